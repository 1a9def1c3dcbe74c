//! Whether this host's Nix reads the caches, and what it does when one cannot be reached. Must not
//! know whether paths get into them.

use std::path::Path;

use super::{Finding, Level};
use crate::control::messages::{CacheDiagnosis, ClientInfo, ClientServer};
use crate::ctl::nix_conf::{self, Conf};

/// The command that adds what is missing.
const ADD: &str = "flywheelctl nix-conf >>/etc/nix/nix.conf && systemctl restart nix-daemon";
/// The longest connection attempt that does not keep every build waiting, in seconds.
const LONGEST_CONNECT: u64 = 30;

/// Nix's settings: with those of the calling user, and without them.
pub(super) struct NixSettings {
    pub(super) own: Conf,
    pub(super) system: Conf,
    /// Whether the nix-daemon takes settings from the calling user.
    pub(super) trusted: bool,
    /// What `nix --version` prints.
    pub(super) version: String,
}

impl NixSettings {
    /// Asks Nix.
    pub(super) fn of_host() -> Result<Self, String> {
        let own = nix_conf::host(false)?;
        let system = nix_conf::host(true)?;
        let trusted = super::groups::is_trusted(&own.words("trusted-users"));
        Ok(Self { own, system, trusted, version: nix_conf::version() })
    }
}

/// Checks how Nix reads each cache.
pub(super) fn of_reading(
    info: &ClientInfo,
    examined: &[CacheDiagnosis],
    known: Result<&NixSettings, &String>,
) -> Vec<Finding> {
    let nix = match known {
        Ok(nix) => nix,
        Err(why) => {
            let text = format!("cannot be asked for its settings: {why}");
            return vec![Finding::bad("nix", text, "nix --version")];
        }
    };
    let mut all: Vec<Finding> = info
        .servers
        .iter()
        .map(|server| {
            let examined = examined.iter().find(|cache| cache.name == server.name);
            of_server(server, examined, info.netrc.as_deref(), nix)
        })
        .collect();
    all.extend(info.servers.iter().flat_map(|server| certificates(server, nix)));
    if nix.system.words("experimental-features").contains(&"ca-derivations") {
        all.extend(examined.iter().filter(|cache| !cache.realisations).map(|cache| {
            let text = "keeps no realisations, so the next pipeline builds content-addressed derivations again; \
                        the built-in cache keeps them";
            Finding::note(format!("cache {}", cache.name), text)
        }));
    }
    all.extend(when_away(nix));
    all.push(hook(&nix.system));
    all.extend(other_netrc(info.netrc.as_deref(), Path::new("/etc/determinate")));
    all
}

/// What Nix needs to reach a server whose authority is private, or which asks for a certificate.
fn certificates(server: &ClientServer, nix: &NixSettings) -> Vec<Finding> {
    let what = format!("reading {}", server.name);
    let mut all = Vec::new();
    if let Some(file) = &server.ca_file {
        let own =
            nix.system.value("ssl-cert-file").filter(|own| !own.is_empty()).unwrap_or("the system's file");
        let text = format!(
            "flywheeld trusts the authorities in {file}; Nix reads those in {own} (ssl-cert-file), which must have them too"
        );
        all.push(Finding::note(&what, text).run("flywheelctl nix-conf"));
    }
    if server.client_cert.is_some() && !nix_conf::sends_certificates(&nix.version) {
        let text = format!(
            "its server asks for a client certificate, which Nix sends from 2.34 on, and this is {}; let the server \
             ask for none on reading",
            if nix.version.is_empty() { "an unknown version" } else { &nix.version }
        );
        all.push(Finding::note(&what, text));
    }
    all
}

/// Determinate Nix writes the netrc file that Nix reads, and takes entries from files that its
/// configuration names.
pub(super) fn other_netrc(netrc: Option<&str>, determinate: &Path) -> Option<Finding> {
    let netrc = netrc.filter(|_| determinate.is_dir())?;
    let config = determinate.join("config.json");
    let text = std::fs::read_to_string(&config).unwrap_or_default();
    let what = "netrc";
    if text.contains(netrc) {
        return Some(Finding::good(what, format!("{} takes the entries of {netrc}", config.display())));
    }
    let text = format!(
        "Determinate Nix writes the netrc file that Nix reads here, and Nix cannot read private caches until \
         authentication.additionalNetrcSources in {} names {netrc}",
        config.display()
    );
    let file = config.display();
    let command = if config.exists() {
        let add = format!(".authentication.additionalNetrcSources += [\"{netrc}\"]");
        format!("jq '{add}' {file} >{file}.new && mv {file}.new {file} && systemctl restart nix-daemon")
    } else {
        let all = format!("{{\"authentication\":{{\"additionalNetrcSources\":[\"{netrc}\"]}}}}");
        format!("echo '{all}' >{file} && systemctl restart nix-daemon")
    };
    Some(Finding::note(what, text).run(command))
}

fn of_server(
    server: &ClientServer,
    examined: Option<&CacheDiagnosis>,
    netrc: Option<&str>,
    nix: &NixSettings,
) -> Finding {
    let what = format!("reading {}", server.name);
    let Some(url) = &server.substituter else { return not_known(&what, server, examined, nix) };
    let (own, system) = (nix.own.knows(server, netrc), nix.system.knows(server, netrc));
    if !own.substituter {
        return Finding::bad(what, format!("this host's Nix does not use the substituter {url}"), ADD);
    }
    if !own.public_key {
        return Finding::bad(what, format!("the key of {url} is not trusted by this host's Nix"), ADD);
    }
    let for_all = system.substituter && system.public_key;
    if !(nix.trusted || for_all) {
        let text = format!(
            "{url} or its key is only in your own nix.conf, which the nix-daemon ignores: you are not in trusted-users"
        );
        return Finding::bad(what, text, ADD);
    }
    if own.netrc == Some(false) {
        let text = "the cache is private, and Nix does not use the netrc file that flywheeld writes";
        return Finding::bad(what, text, "flywheelctl nix-conf");
    }
    match (server.readable, &server.problem) {
        (Some(true), _) => Finding::good(what, format!("set up, {url}")),
        (Some(false), problem) => {
            let why = problem.as_deref().unwrap_or("the reason is not known");
            let text = format!("nix.conf is set up, and {url} cannot be read now: {why}");
            Finding::bad(what, text, format!("curl --silent --show-error '{url}/nix-cache-info'"))
        }
        (None, _) => Finding::unchecked(what, format!("nix.conf is set up; {url} was not tried")),
    }
}

/// The cache has not said since the daemon's start where Nix reads it. The substituters
/// on the hosts of its endpoints are all that can be compared.
fn not_known(
    what: &str,
    server: &ClientServer,
    examined: Option<&CacheDiagnosis>,
    nix: &NixSettings,
) -> Finding {
    let configured = examined.map(|cache| cache.endpoints.iter().map(|e| e.address.as_str()).collect());
    let endpoints: Vec<&str> = configured.unwrap_or_else(|| server.endpoint.as_deref().into_iter().collect());
    let hosts: Vec<&str> = endpoints.iter().filter_map(|address| host_of(address)).collect();
    let there =
        nix.system.words("substituters").into_iter().find(|s| host_of(s).is_some_and(|h| hosts.contains(&h)));
    let text = match there {
        Some(url) => format!("nix.conf names {url}; its key is compared when the cache answers"),
        None => format!(
            "the cache does not answer, so its substituter is not known; nix.conf has none on {}",
            if hosts.is_empty() { "its host".to_owned() } else { hosts.join(", ") }
        ),
    };
    Finding::unchecked(what, text)
}

/// The host of an address, without a port.
fn host_of(address: &str) -> Option<&str> {
    let authority = address.split_once("://")?.1.split(['/', '?', '#']).next()?;
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    Some(match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    })
}

/// What Nix does when a substituter cannot be reached.
fn when_away(nix: &NixSettings) -> Vec<Finding> {
    if nix.system.words("substituters").is_empty() {
        return Vec::new();
    }
    let what = "builds without a cache";
    let mut all = Vec::new();
    if nix.system.value("fallback") != Some("true") {
        let text = "they fail when a cache cannot be reached, since nix.conf lacks `fallback = true`";
        all.push(Finding::bad(
            what,
            text,
            "echo 'fallback = true' >>/etc/nix/nix.conf && systemctl restart nix-daemon",
        ));
    }
    let timeout = nix.system.value("connect-timeout").and_then(|text| text.parse::<u64>().ok());
    if timeout.is_none_or(|seconds| seconds == 0 || seconds > LONGEST_CONNECT) {
        let text = "they wait for minutes when a cache cannot be reached, since nix.conf has no short connect-timeout";
        all.push(Finding::bad(
            what,
            text,
            "echo 'connect-timeout = 5' >>/etc/nix/nix.conf && systemctl restart nix-daemon",
        ));
    }
    if all.is_empty() {
        all.push(Finding::good(
            what,
            "they continue when a cache cannot be reached: fallback is on, and connection attempts are short",
        ));
    }
    all
}

/// Whose hook a program is: flywheel's, also through a link or in a script, or another one, which flywheel does not need to
/// replace.
fn whose(program: &Path) -> &'static str {
    let target = std::fs::canonicalize(program).unwrap_or_else(|_| program.to_owned());
    let named = [program, &target]
        .iter()
        .any(|path| path.file_name().is_some_and(|name| name == "flywheel-hook" || name == "flywheelctl"));
    let calls = || {
        use std::io::Read as _;
        let mut text = Vec::new();
        let read = std::fs::File::open(&target).and_then(|file| file.take(64 * 1024).read_to_end(&mut text));
        let text = String::from_utf8_lossy(&text);
        read.is_ok() && (text.contains("flywheelctl hook") || text.contains("flywheel-hook"))
    };
    if named || calls() {
        ", which is flywheel's: it also runs what is in /etc/flywheel/hook.d"
    } else {
        ", which is not flywheel's; flywheel needs none. To have both, link it into /etc/flywheel/hook.d and name \
         flywheel-hook in nix.conf"
    }
}

/// A post-build hook that cannot be run fails every build.
fn hook(conf: &Conf) -> Finding {
    let what = "post-build-hook";
    let Some(program) = conf.words("post-build-hook").into_iter().next() else {
        return Finding::good(what, "not set, and not needed");
    };
    use std::os::unix::fs::PermissionsExt as _;
    match std::fs::metadata(Path::new(program)) {
        Ok(meta) if meta.permissions().mode() & 0o111 != 0 => {
            Finding::good(what, format!("{program} is in force{}", whose(Path::new(program))))
        }
        Ok(_) => Finding::bad(
            what,
            format!("{program} is not executable, so every build fails"),
            format!("chmod a+x {program}"),
        ),
        Err(error) => Finding::bad(
            what,
            format!("{program} cannot be run, so every build fails: {error}"),
            "grep -n post-build-hook /etc/nix/nix.conf",
        ),
    }
}

/// Whether nix.conf has all that Nix needs to read every cache.
pub(in crate::ctl) fn nix_reads_all(info: &ClientInfo, system: &Conf) -> bool {
    let nix =
        NixSettings { own: system.clone(), system: system.clone(), trusted: true, version: String::new() };
    let known = info.servers.iter().all(|server| {
        let knows = system.knows(server, info.netrc.as_deref());
        knows.substituter && knows.public_key && knows.netrc != Some(false)
    });
    known && when_away(&nix).iter().all(|finding| finding.level == Level::Good)
}

/// Checks what needs no daemon.
pub(super) fn without_daemon(known: Result<&NixSettings, &String>) -> Vec<Finding> {
    let text = "which substituters this host needs is not known without flywheeld";
    let mut all = vec![Finding::unchecked("reading", text)];
    match known {
        Ok(nix) => {
            all.extend(when_away(nix));
            all.push(hook(&nix.system));
        }
        Err(why) => all.push(Finding::unchecked("nix", format!("cannot be asked for its settings: {why}"))),
    }
    all
}
