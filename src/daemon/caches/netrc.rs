//! The netrc file that Nix reads private caches with, kept as it should be:
//! looked at every few seconds, like the tokens, and written when an address or
//! a token has changed. It holds pull tokens and never a push token.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use zeroize::Zeroizing;

use crate::cache::{CacheClient, TokenSource};
use crate::observe::event;
use crate::types::replace_file;

/// Between looks.
const LOOK: Duration = Duration::from_secs(5);
/// What such a file begins with. One that begins otherwise is somebody else's.
const MARK: &str = "# Written by flywheeld, again and again: changes are lost.\n";
const MODE: u32 = 0o640;

/// A cache as its readers see it.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Read {
    pub(in crate::daemon) name: String,
    pub(in crate::daemon) client: CacheClient,
    pub(in crate::daemon) pull: TokenSource,
}

/// The file, and why it is not as it should be, if it is not.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Netrc {
    pub(in crate::daemon) file: PathBuf,
    group: Option<String>,
    reads: Vec<Read>,
    trouble: Arc<Mutex<Option<String>>>,
}

impl Netrc {
    pub(in crate::daemon) fn new(file: PathBuf, group: Option<String>, reads: Vec<Read>) -> Self {
        Self { file, group, reads, trouble: Arc::default() }
    }

    /// The token that a cache is read with.
    pub(in crate::daemon) fn pull(&self, cache: &str) -> TokenSource {
        self.reads.iter().find(|read| read.name == cache).map(|read| read.pull.clone()).unwrap_or_default()
    }

    /// For `status`.
    pub(in crate::daemon) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Until the daemon ends.
    pub(in crate::daemon) async fn keep(self) {
        let mut timer = tokio::time::interval(LOOK);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            let trouble = looked.unwrap_or_else(|e| Err(e.to_string())).err();
            let mut told = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            if *told != trouble {
                if let Some(error) = &trouble {
                    event!(NETRC_TROUBLE, file = %self.file.display(), error = error, "the netrc file is not as it should be");
                }
                *told = trouble;
            }
        }
    }

    fn look(&self) -> Result<(), String> {
        let mut entries = Vec::new();
        let mut troubles = Vec::new();
        let mut unsure = false;
        for read in self.reads.iter().filter(|read| read.pull != TokenSource::None) {
            // Before the cache has answered nobody knows where it is read from.
            let Some(config) = read.client.config() else {
                unsure = true;
                continue;
            };
            let Some(host) = config.substituter_endpoint.as_deref().and_then(host) else { continue };
            match read.pull.text() {
                Ok(Some(token)) => entries.push((host, token)),
                Ok(None) => {}
                Err(error) => {
                    unsure = true;
                    troubles.push(format!("cache {}: {error}", read.name));
                }
            }
        }
        if unsure {
            // A start, or a token that cannot be read for a moment, takes nothing from Nix.
            let text = Zeroizing::new(std::fs::read_to_string(&self.file).unwrap_or_default());
            let earlier = parse(&text).into_iter().filter(|(host, _)| entries.iter().all(|(h, _)| h != host));
            let earlier: Vec<_> = earlier.collect();
            entries.extend(earlier);
        }
        let (text, clash) = render(entries);
        troubles.extend(clash);
        self.write(&text)?;
        if troubles.is_empty() { Ok(()) } else { Err(troubles.join("; ")) }
    }

    fn write(&self, text: &str) -> Result<(), String> {
        let shown = self.file.display();
        let now = std::fs::read_to_string(&self.file).map(Zeroizing::new);
        if now.as_ref().is_ok_and(|now| !now.starts_with(MARK) && !now.trim().is_empty()) {
            return Err(format!(
                "{shown} is not flywheeld's and is left alone: name another file in [nix] netrc, or move it away"
            ));
        }
        let rights = std::fs::metadata(&self.file).map(|meta| meta.permissions().mode() & 0o777);
        if now.is_ok_and(|now| now.as_str() == text) && rights.is_ok_and(|mode| mode == MODE) {
            return Ok(());
        }
        let group = self.group.as_deref().map(group_number).transpose()?;
        replace_file(&self.file, text.as_bytes(), MODE, group).map_err(|e| {
            format!("{shown} cannot be written: {e}; the service's user needs its directory and to be in its group")
        })?;
        event!(NETRC_WRITTEN, file = %shown, "the netrc file for Nix is written");
        Ok(())
    }
}

/// curl, which reads the file for Nix, knows hosts and no ports.
fn host(url: &str) -> Option<String> {
    let rest = url.split_once("://")?.1;
    let authority = rest.split(['/', '?', '#']).next()?;
    let host = match authority.strip_prefix('[') {
        Some(v6) => v6.split(']').next()?,
        None => authority.split(':').next()?,
    };
    (!host.is_empty()).then(|| host.to_owned())
}

/// The text, and what cannot be said in it.
fn render(entries: Vec<(String, Zeroizing<String>)>) -> (Zeroizing<String>, Option<String>) {
    let mut text = Zeroizing::new(String::from(MARK));
    let mut known: Vec<(String, Zeroizing<String>)> = Vec::new();
    let mut clash = None;
    for (host, token) in entries {
        match known.iter().find(|(other, _)| *other == host) {
            Some((_, other)) if *other == token => {}
            Some(_) => {
                clash = Some(format!(
                    "{host} has caches with different pull tokens, and a netrc file knows one for a host: \
                     use one token that may read them all"
                ));
            }
            None => {
                // One allocation, so that no half of it stays in memory.
                text.reserve(host.len() + token.len() + 64);
                text.push_str("machine ");
                text.push_str(&host);
                text.push_str("\nlogin flywheel\npassword ");
                text.push_str(&token);
                text.push('\n');
                known.push((host, token));
            }
        }
    }
    (text, clash)
}

/// What [`render`] wrote; nothing of a file that is somebody else's.
fn parse(text: &str) -> Vec<(String, Zeroizing<String>)> {
    let entry = |entry: &str| {
        let (host, token) = entry.split_once("\nlogin flywheel\npassword ")?;
        Some((host.to_owned(), Zeroizing::new(token.trim_end().to_owned())))
    };
    text.strip_prefix(MARK).map_or_else(Vec::new, |rest| rest.split("machine ").filter_map(entry).collect())
}

/// A group's number; the name service knows names.
fn group_number(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let output = Command::new("getent").args(["group", "--", name]).output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let number = text.split(':').nth(2).and_then(|number| number.trim().parse().ok());
    number.ok_or_else(|| format!("there is no group {name:?}: correct [nix] netrc_group"))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::types::CacheName;

    #[test]
    fn hosts_have_no_ports() {
        for (url, expected) in [
            ("https://cache.example.com/main", Some("cache.example.com")),
            ("http://127.0.0.1:8742/main", Some("127.0.0.1")),
            ("http://[::1]:8742/main", Some("::1")),
            ("https://a?x", Some("a")),
            ("https:///x", None),
            ("nonsense", None),
        ] {
            assert_eq!(host(url).as_deref(), expected, "{url}");
        }
    }

    #[test]
    fn a_host_has_one_token() {
        let entry = |host: &str, token: &str| (host.to_owned(), Zeroizing::new(token.to_owned()));
        let (text, clash) = render(vec![entry("a", "1"), entry("b", "2"), entry("a", "1")]);
        let expected =
            format!("{MARK}machine a\nlogin flywheel\npassword 1\nmachine b\nlogin flywheel\npassword 2\n");
        assert_eq!((text.as_str(), clash), (expected.as_str(), None));
        let (text, clash) = render(vec![entry("a", "1"), entry("a", "3")]);
        assert!(text.contains("password 1") && !text.contains("password 3"));
        assert!(clash.unwrap().contains("different pull tokens"));
    }

    #[test]
    fn a_start_takes_nothing_from_nix() {
        use crate::cache::ClientSettings;
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("netrc");
        let before =
            format!("{MARK}machine a\nlogin flywheel\npassword 1\nmachine b\nlogin flywheel\npassword 2\n");
        std::fs::write(&file, &before).unwrap();
        // A cache that has not answered yet.
        let name = CacheName::parse("main").unwrap();
        let settings = ClientSettings::new(vec!["http://127.0.0.1:1".into()], name, TokenSource::None);
        let client = CacheClient::new(settings).unwrap();
        let netrc = |pull| {
            Netrc::new(file.clone(), None, vec![Read { name: "main".into(), client: client.clone(), pull }])
        };
        netrc(TokenSource::File(dir.path().join("pull"))).look().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
        // None of ours is private any more: then nothing stays.
        netrc(TokenSource::None).look().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), MARK);
    }

    #[test]
    fn somebody_elses_file_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("netrc");
        let netrc = Netrc::new(file.clone(), None, Vec::new());
        netrc.look().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), MARK);
        let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o640);
        // Rights that somebody has changed come back.
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        netrc.look().unwrap();
        assert_eq!(mode(&file), 0o640);
        std::fs::write(&file, "machine x\nlogin y\npassword z\n").unwrap();
        assert!(netrc.look().unwrap_err().contains("left alone"));
        assert!(std::fs::read_to_string(&file).unwrap().starts_with("machine x"));
        let wrong = Netrc::new(dir.path().join("other"), Some("no such group".into()), Vec::new());
        assert!(wrong.look().unwrap_err().contains("netrc_group"));
    }
}
