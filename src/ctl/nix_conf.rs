//! The command `nix-conf`, and how this host's Nix is set up for the caches. Must
//! not know how things are printed.

use std::process::Command;

use super::{
    Context,
    attic_client::ask,
    exit::{Exit, Failure},
};
use crate::control::messages::{ClientInfo, ClientServer};

/// The settings that nix.conf needs.
#[derive(Debug, Default, PartialEq, Eq, serde::Serialize)]
pub(super) struct Lines {
    pub(super) substituters: Vec<String>,
    pub(super) trusted_public_keys: Vec<String>,
    pub(super) netrc_file: Option<String>,
    /// The files with the authorities of private servers.
    pub(super) ca_files: Vec<String>,
    /// Whether a substituter's address names a client certificate, which needs Nix 2.34.
    pub(super) client_certificates: bool,
    /// Whether a build goes on when a cache fails.
    pub(super) fallback: bool,
    /// How long a connection attempt may take, in seconds.
    pub(super) connect_timeout: Option<u32>,
}

/// How long Nix is to try to reach a cache that does not answer, in seconds. Older versions of
/// Nix try for minutes by default.
const CONNECT_TIMEOUT: u32 = 5;

/// Which settings for one cache this host's Nix has.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub(super) struct Knows {
    pub(super) substituter: bool,
    pub(super) public_key: bool,
    /// None when the cache needs no netrc file.
    pub(super) netrc: Option<bool>,
}

/// Prints the lines for nix.conf, from what the caches say about themselves.
pub(super) fn command(context: &Context, netrc: bool, cache: Option<&str>) -> Result<Exit, Failure> {
    let info = ask(context, false)?;
    if netrc {
        return print_netrc(context, &info);
    }
    let wanted = |server: &&ClientServer| cache.is_none_or(|cache| cache == server.name);
    let servers: Vec<&ClientServer> = info.servers.iter().filter(wanted).collect();
    if let (Some(cache), []) = (cache, servers.as_slice()) {
        let names: Vec<&str> = info.servers.iter().map(|s| s.name.as_str()).collect();
        return Err(Failure::Usage(format!("there is no cache {cache:?}; configured: {}", names.join(", "))));
    }
    for server in servers.iter().filter(|server| server.substituter.is_none() || server.public_key.is_none())
    {
        context.render.warn(&format!(
            "cache {}: its substituter and key are not known yet, because it has not answered; `flywheelctl status` says why",
            server.name
        ));
    }
    context.render.nix_conf(&lines(&servers, info.netrc.as_deref()));
    Ok(Exit::Done)
}

/// Prints the netrc file that the daemon writes, with the caller's rights.
fn print_netrc(context: &Context, info: &ClientInfo) -> Result<Exit, Failure> {
    let Some(file) = &info.netrc else {
        let text = "the daemon writes no netrc file: set [nix] netrc, and pull_token_file for the cache";
        return Err(Failure::Usage(text.to_owned()));
    };
    let text = std::fs::read(file).map_err(|e| {
        Failure::Usage(format!(
            "{file}: {e}; root and the group of the file may read it (see [nix] netrc_group)"
        ))
    })?;
    context.render.raw(&text);
    Ok(Exit::Done)
}

/// Returns the settings for these caches, as far as they have answered.
pub(super) fn lines(servers: &[&ClientServer], netrc: Option<&str>) -> Lines {
    let known = || servers.iter().filter_map(|s| Some((s, s.substituter.clone()?, s.public_key.clone()?)));
    let private = servers.iter().any(|server| server.public == Some(false));
    Lines {
        substituters: known().map(|(server, url, _)| with_certificate(server, url)).collect(),
        trusted_public_keys: known().map(|(_, _, key)| key).collect(),
        netrc_file: netrc.filter(|_| private).map(str::to_owned),
        ca_files: known().filter_map(|(server, ..)| server.ca_file.clone()).collect(),
        client_certificates: known().any(|(server, ..)| server.client_cert.is_some()),
        fallback: known().next().is_some(),
        connect_timeout: known().next().map(|_| CONNECT_TIMEOUT),
    }
}

/// Returns the substituter's address with the certificate that its server asks for.
fn with_certificate(server: &ClientServer, url: String) -> String {
    let Some(cert) = &server.client_cert else { return url };
    let key = server.client_key.as_ref().unwrap_or(cert);
    let plain =
        |text: &str| text.replace('%', "%25").replace('&', "%26").replace('#', "%23").replace(' ', "%20");
    format!("{url}?tls-certificate={}&tls-private-key={}", plain(cert), plain(key))
}

/// Nix's settings, as `nix config show` prints them: `key = value` lines.
#[derive(Debug, Clone, Default)]
pub(super) struct Conf(pub(super) String);

impl Conf {
    /// Returns the value of a setting; none when Nix does not know the setting.
    pub(super) fn value(&self, key: &str) -> Option<&str> {
        self.0.lines().find_map(|line| Some(line.strip_prefix(key)?.strip_prefix(" =")?.trim()))
    }

    /// Returns the words of a setting's value.
    pub(super) fn words(&self, key: &str) -> Vec<&str> {
        self.value(key).unwrap_or_default().split_whitespace().collect()
    }

    /// Finds which settings for a cache are there.
    pub(super) fn knows(&self, server: &ClientServer, netrc: Option<&str>) -> Knows {
        let has = |key: &str, wanted: &Option<String>, same: &dyn Fn(&str, &str) -> bool| {
            wanted.as_deref().is_some_and(|wanted| self.words(key).iter().any(|v| same(v, wanted)))
        };
        let address = |url: &str| url.split('?').next().unwrap_or_default().trim_end_matches('/').to_owned();
        let needed = server.public == Some(false);
        Knows {
            substituter: has("substituters", &server.substituter, &|a, b| address(a) == address(b)),
            public_key: has("trusted-public-keys", &server.public_key, &|a, b| a == b),
            netrc: needed.then(|| netrc.is_some_and(|file| self.value("netrc-file") == Some(file))),
        }
    }
}

/// Whether a Nix that prints this for `nix --version` can send a client certificate: Nix from 2.34 on.
pub(super) fn sends_certificates(version: &str) -> bool {
    let number = version.split_whitespace().last().unwrap_or_default();
    let mut parts = number.split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    let (major, minor) = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    !version.contains("Lix") && (major, minor) >= (2, 34)
}

/// Returns what `nix --version` prints; empty when it cannot be run.
pub(super) fn version() -> String {
    let output = Command::new("nix").arg("--version").output();
    output.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned()).unwrap_or_default()
}

/// Returns Nix's settings; with `system` those that count for every user, without the
/// caller's own.
pub(super) fn host(system: bool) -> Result<Conf, String> {
    // Nix 2.20 renamed the command.
    let mut why = String::new();
    for words in [&["config", "show"][..], &["show-config"]] {
        let features = ["--extra-experimental-features", "nix-command"];
        let mut command = Command::new("nix");
        command.args(features).args(words);
        if system {
            command.env("NIX_USER_CONF_FILES", "/dev/null").env_remove("NIX_CONFIG");
        }
        match command.output() {
            Ok(output) if output.status.success() => {
                return Ok(Conf(String::from_utf8_lossy(&output.stdout).into_owned()));
            }
            Ok(output) => why = String::from_utf8_lossy(&output.stderr).trim().to_owned(),
            Err(e) => return Err(format!("`nix` cannot be started: {e}")),
        }
    }
    Err(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server(public: bool) -> ClientServer {
        ClientServer {
            name: "main".into(),
            substituter: Some("https://a/main".into()),
            public_key: Some("main:key=".into()),
            public: Some(public),
            ..ClientServer::default()
        }
    }

    #[test]
    fn the_lines_are_what_the_cache_says() {
        let (public, private) = (server(true), server(false));
        let silent = ClientServer { name: "silent".into(), ..ClientServer::default() };
        let all = lines(&[&public, &silent], Some("/run/netrc"));
        assert_eq!(
            (all.substituters.len(), all.trusted_public_keys.as_slice()),
            (1, &["main:key=".to_owned()][..])
        );
        assert_eq!(all.netrc_file, None, "a public cache needs none");
        assert_eq!(lines(&[&private], Some("/run/netrc")).netrc_file.as_deref(), Some("/run/netrc"));
        assert_eq!(lines(&[&private], None).netrc_file, None);
        let of = |key: Option<&str>| ClientServer {
            ca_file: Some("/ca".into()),
            client_cert: Some("/c&c.pem".into()),
            client_key: key.map(str::to_owned),
            ..server(true)
        };
        let both = lines(&[&of(Some("/key"))], None);
        assert_eq!(both.substituters, ["https://a/main?tls-certificate=/c%26c.pem&tls-private-key=/key"]);
        assert_eq!((both.ca_files, both.client_certificates), (vec!["/ca".to_owned()], true));
        let one = lines(&[&of(None)], None).substituters.remove(0);
        assert!(one.ends_with("tls-private-key=/c%26c.pem"), "{one}");
        let conf = Conf(format!("substituters = {one}\ntrusted-public-keys = main:key=\n"));
        assert!(conf.knows(&of(None), None).substituter, "the address is found with its certificate");
    }

    #[test]
    fn which_nix_sends_certificates() {
        for (version, sends) in [
            ("nix (Nix) 2.8.0", false),
            ("nix (Nix) 2.33.9", false),
            ("nix (Nix) 2.34.0", true),
            ("nix (Nix) 2.35.0pre20260101_abc", true),
            ("nix (Determinate Nix 3.16.0) 2.34.1", true),
            ("nix (Lix, like Nix) 2.95.0", false),
            ("", false),
        ] {
            assert_eq!(sends_certificates(version), sends, "{version}");
        }
    }

    #[test]
    fn what_nix_knows() {
        let conf = "netrc-file = /run/netrc\nsubstituters = https://x https://a/main/?priority=3\ntrusted-public-keys = x:1 main:key=\n";
        let is = |conf: &str, server: &ClientServer, netrc| {
            let k = Conf(conf.to_owned()).knows(server, netrc);
            (k.substituter, k.public_key, k.netrc)
        };
        assert_eq!(is(conf, &server(true), None), (true, true, None));
        assert_eq!(is(conf, &server(false), Some("/run/netrc")), (true, true, Some(true)));
        assert_eq!(is(conf, &server(false), Some("/etc/netrc")), (true, true, Some(false)));
        assert_eq!(is(conf, &server(false), None), (true, true, Some(false)));
        assert_eq!(is("substituters = https://a/mai\n", &server(true), None), (false, false, None));
        assert_eq!(is(conf, &ClientServer::default(), None), (false, false, None));
    }
}
