//! The netrc file with which Nix reads private caches. The daemon compares it every
//! few seconds and writes it when an address or a token has changed. It holds tokens
//! for reading, and never one for pushing.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use zeroize::Zeroizing;

use super::{BuiltIn, Cache, Caches};
use crate::cache::{CacheClient, TokenSource};
use crate::config::{self, Settings, Target};
use crate::observe::event;
use crate::types::replace_file;

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// The first line of the file. A file that begins otherwise was not written by the
/// daemon.
const MARK: &str = "# Written by flywheeld, which replaces this file: changes are lost.\n";
/// The line between the entries of other files and the daemon's own.
const OWN: &str = "# Entries of flywheel:\n";
const MODE: u32 = 0o640;
/// How long the name service may take to say which group a name is.
const LOOK_UP: Duration = Duration::from_secs(5);
/// Largest file of another program that is included, in bytes.
const LONGEST_INCLUDE: u64 = 1024 * 1024;

/// How Nix reads a cache.
#[derive(Debug, Clone)]
struct Reading {
    name: String,
    client: CacheClient,
    /// The token for reading.
    pull: TokenSource,
}

/// Where the token for reading a cache is.
pub(in crate::daemon) fn pull_token(
    cache: &config::Cache,
    settings: &Settings,
    built_in: Option<&BuiltIn>,
) -> TokenSource {
    match (&cache.target, &cache.pull_token, built_in, &settings.embedded) {
        (Target::Remote(_), Some(file), ..) => TokenSource::File(file.clone()),
        (Target::Embedded, _, Some(at), Some(own)) if !own.public => {
            TokenSource::File(at.pull_token_file().to_owned())
        }
        _ => TokenSource::None,
    }
}

/// The file. Clones share its state.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Netrc {
    file: PathBuf,
    /// The group that may read the file.
    group: Option<String>,
    /// Files of other programs whose entries come first.
    include: Vec<PathBuf>,
    readings: Vec<Reading>,
    /// Why the file is not complete, if it is not.
    trouble: Arc<Mutex<Option<String>>>,
}

impl Netrc {
    /// The file that the configuration names, if it names one.
    pub(in crate::daemon) fn of(
        settings: &Settings,
        built_in: Option<&BuiltIn>,
        caches: &Caches,
    ) -> Option<Self> {
        let reading = |cache: &Cache| {
            let pull = pull_token(settings.caches.get(cache.name())?, settings, built_in);
            Some(Reading { name: cache.name().to_owned(), client: cache.client().clone(), pull })
        };
        let file = settings.nix.netrc.clone()?;
        let readings = caches.iter().filter_map(reading).collect();
        let (group, include) = (settings.nix.netrc_group.clone(), settings.nix.netrc_include.clone());
        Some(Self { include, ..Self::new(file, group, readings) })
    }

    fn new(file: PathBuf, group: Option<String>, readings: Vec<Reading>) -> Self {
        Self { file, group, include: Vec::new(), readings, trouble: Arc::default() }
    }

    pub(in crate::daemon) fn file(&self) -> &Path {
        &self.file
    }

    /// The token that Nix reads a cache with.
    pub(in crate::daemon) fn pull(&self, cache: &str) -> TokenSource {
        self.readings
            .iter()
            .find(|reading| reading.name == cache)
            .map(|reading| reading.pull.clone())
            .unwrap_or_default()
    }

    /// Why the file is not complete, if it is not.
    pub(in crate::daemon) fn trouble(&self) -> Option<String> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Looks at the file again and again, without end.
    pub(in crate::daemon) async fn keep(self) {
        let mut timer = tokio::time::interval(LOOK);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let this = self.clone();
            let looked = tokio::task::spawn_blocking(move || this.look()).await;
            let trouble = looked.unwrap_or_else(|e| Err(e.to_string())).err();
            let mut reported = self.trouble.lock().unwrap_or_else(PoisonError::into_inner);
            if *reported != trouble {
                if let Some(error) = &trouble {
                    event!(NETRC_TROUBLE, file = %self.file.display(), error = error, "the netrc file {} is not complete: {error}", self.file.display());
                }
                *reported = trouble;
            }
        }
    }

    /// Writes the file if an address or a token has changed. Blocks.
    fn look(&self) -> Result<(), String> {
        let mut entries = Vec::new();
        let mut troubles = Vec::new();
        let mut unsure = false;
        for reading in self.readings.iter().filter(|reading| reading.pull != TokenSource::None) {
            // The address for reading is not known before the cache has answered.
            if reading.client.config().is_none() {
                unsure = true;
                continue;
            }
            let host = match reading.client.netrc_host() {
                Ok(Some(host)) => host,
                Ok(None) => continue,
                Err(why) => {
                    troubles.push(format!("cache {}: {why}", reading.name));
                    continue;
                }
            };
            match reading.pull.text() {
                Ok(Some(token)) => entries.push((host, token)),
                Ok(None) => {}
                Err(error) => {
                    unsure = true;
                    troubles.push(format!("cache {}: {error}", reading.name));
                }
            }
        }
        if unsure {
            // At a start, or when a token cannot be read for a moment, the entries that
            // the file has already stay.
            let text = Zeroizing::new(std::fs::read_to_string(&self.file).unwrap_or_default());
            let earlier = parse(&text).into_iter().filter(|(host, _)| entries.iter().all(|(h, _)| h != host));
            let earlier: Vec<_> = earlier.collect();
            entries.extend(earlier);
        }
        let foreign = self.foreign(&mut troubles);
        troubles.extend(shadowed(&foreign, &entries));
        let (text, clash) = render(&foreign, entries);
        troubles.extend(clash);
        self.write(&text)?;
        if troubles.is_empty() { Ok(()) } else { Err(troubles.join("; ")) }
    }

    /// The text of the included files. While one cannot be read, the text that the netrc
    /// file has of all of them stays.
    fn foreign(&self, troubles: &mut Vec<String>) -> Zeroizing<String> {
        let mut text = Zeroizing::new(String::new());
        let before = troubles.len();
        for file in &self.include {
            match read_include(file) {
                Ok(included) => {
                    // One allocation at a time, so that no copy of a password stays in memory.
                    let mut more = Zeroizing::new(String::with_capacity(text.len() + included.len() + 1));
                    more.push_str(&text);
                    more.push_str(&included);
                    if !more.ends_with('\n') && !more.is_empty() {
                        more.push('\n');
                    }
                    text = more;
                }
                Err(why) => troubles.push(format!("netrc_include: {}: {why}", file.display())),
            }
        }
        if troubles.len() > before {
            let now = Zeroizing::new(std::fs::read_to_string(&self.file).unwrap_or_default());
            let known = now.strip_prefix(MARK).and_then(|rest| rest.split_once(OWN));
            if let Some((earlier, _)) = known {
                return Zeroizing::new(earlier.to_owned());
            }
        }
        text
    }

    fn write(&self, text: &str) -> Result<(), String> {
        let shown = self.file.display();
        let now = std::fs::read_to_string(&self.file).map(Zeroizing::new);
        if now.as_ref().is_ok_and(|now| !now.starts_with(MARK) && !now.trim().is_empty()) {
            return Err(format!(
                "{shown} was not written by flywheeld and is left alone: name another file in [nix] netrc, or move it away"
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
        event!(NETRC_WRITTEN, file = %shown, "the netrc file for Nix is written: {shown}");
        Ok(())
    }
}

/// Reads a netrc file of another program.
fn read_include(file: &Path) -> Result<Zeroizing<String>, String> {
    use std::io::Read as _;
    let mut text = Zeroizing::new(String::new());
    let opened = std::fs::File::open(file).and_then(|file| match file.metadata()?.is_file() {
        true => Ok(file),
        false => Err(std::io::Error::other("it is not a regular file")),
    });
    let read = opened.and_then(|file| file.take(LONGEST_INCLUDE + 1).read_to_string(&mut text));
    read.map_err(|e| format!("{e}; the service's user must be able to read it"))?;
    if text.len() as u64 > LONGEST_INCLUDE {
        return Err(format!("it has more than {LONGEST_INCLUDE} bytes"));
    }
    Ok(text)
}

/// Names own entries that Nix does not use, because an entry of an included file comes
/// first.
fn shadowed(foreign: &str, own: &[(String, Zeroizing<String>)]) -> Vec<String> {
    let words: Vec<&str> = foreign.split_whitespace().collect();
    let first = |host: &str| words.windows(2).any(|pair| pair[0] == "machine" && pair[1] == host);
    let catches_all = words.contains(&"default");
    let shadowed = own.iter().filter(|(host, _)| catches_all || first(host));
    let why = |(host, _): &(String, Zeroizing<String>)| {
        format!(
            "a file of netrc_include has an entry for {host} or `default`, which Nix uses instead of flywheel's: \
             remove it there"
        )
    };
    shadowed.map(why).collect()
}

/// The text of the file, and the problem if an entry cannot be part of it. `foreign`: the
/// entries of other files, which come first.
fn render(foreign: &str, entries: Vec<(String, Zeroizing<String>)>) -> (Zeroizing<String>, Option<String>) {
    let mut text = Zeroizing::new(String::with_capacity(MARK.len() + foreign.len() + OWN.len()));
    text.push_str(MARK);
    if !foreign.is_empty() {
        text.push_str(foreign);
        text.push_str(OWN);
    }
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
                // One allocation, so that no copy of a token stays in memory.
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

/// The entries of a file that [`render`] wrote; none of any other file.
fn parse(text: &str) -> Vec<(String, Zeroizing<String>)> {
    let entry = |entry: &str| {
        let (host, token) = entry.split_once("\nlogin flywheel\npassword ")?;
        Some((host.to_owned(), Zeroizing::new(token.trim_end().to_owned())))
    };
    let own = |rest: &str| rest.split_once(OWN).map_or(rest, |(_, own)| own).to_owned();
    let own = text.strip_prefix(MARK).map(own).map(Zeroizing::new);
    own.map_or_else(Vec::new, |own| own.split("machine ").filter_map(entry).collect())
}

/// Reads bytes as the file.
#[cfg(any(fuzzing, test))]
pub(crate) fn fuzz(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    for read in [parse(&text), parse(&format!("{MARK}{text}"))] {
        // A file that was written of what was read is read in the same way.
        let hosts = |entries: &[(String, Zeroizing<String>)]| {
            entries.iter().map(|(host, _)| host.clone()).collect::<std::collections::BTreeSet<_>>()
        };
        let plain = |text: &str| text.bytes().all(|byte| byte.is_ascii_graphic());
        if read.iter().all(|(host, token)| plain(host) && plain(token)) {
            let (written, _) = render("", read.clone());
            assert_eq!(hosts(&parse(&written)), hosts(&read));
        }
    }
}

/// The number of a group. Asks the name service for a name, at most [`LOOK_UP`].
fn group_number(name: &str) -> Result<u32, String> {
    if let Ok(number) = name.parse() {
        return Ok(number);
    }
    let mut getent = Command::new("getent");
    getent.args(["group", "--", name]).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut child = getent.spawn().map_err(|e| format!("getent cannot be run: {e}"))?;
    let until = Instant::now() + LOOK_UP;
    // A group's line is short enough for the pipe, so the process does not wait for a reader.
    while child.try_wait().is_ok_and(|ended| ended.is_none()) {
        if Instant::now() >= until {
            let _ = child.kill();
            let _ = child.wait();
            return Err(format!(
                "the name service does not say which group {name:?} is within {} s: the file stays as it is; a number \
                 as [nix] netrc_group needs no name service",
                LOOK_UP.as_secs()
            ));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let output = child.wait_with_output();
    let text = output.map(|o| String::from_utf8_lossy(&o.stdout).into_owned()).unwrap_or_default();
    let number = text.split(':').nth(2).and_then(|number| number.trim().parse().ok());
    number.ok_or_else(|| format!("there is no group {name:?}: correct [nix] netrc_group"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::CacheName;

    #[test]
    fn a_host_has_one_token() {
        let entry = |host: &str, token: &str| (host.to_owned(), Zeroizing::new(token.to_owned()));
        let (text, clash) = render("", vec![entry("a", "1"), entry("b", "2"), entry("a", "1")]);
        let expected =
            format!("{MARK}machine a\nlogin flywheel\npassword 1\nmachine b\nlogin flywheel\npassword 2\n");
        assert_eq!((text.as_str(), clash), (expected.as_str(), None));
        let (text, clash) = render("", vec![entry("a", "1"), entry("a", "3")]);
        assert!(text.contains("password 1") && !text.contains("password 3"));
        assert!(clash.unwrap().contains("different pull tokens"));
    }

    #[test]
    fn entries_stay_until_the_caches_have_answered() {
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
            Netrc::new(
                file.clone(),
                None,
                vec![Reading { name: "main".into(), client: client.clone(), pull }],
            )
        };
        netrc(TokenSource::File(dir.path().join("pull"))).look().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), before);
        // When no cache is private any more, no entry stays.
        netrc(TokenSource::None).look().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), MARK);
    }

    #[test]
    fn entries_of_other_files_come_first_and_stay_while_a_file_cannot_be_read() {
        let dir = tempfile::tempdir().unwrap();
        let (file, other) = (dir.path().join("netrc"), dir.path().join("other"));
        let netrc = Netrc { include: vec![other.clone()], ..Netrc::new(file.clone(), None, Vec::new()) };
        std::fs::write(&other, "machine b login me password secret").unwrap();
        netrc.look().unwrap();
        let text = format!("{MARK}machine b login me password secret\n{OWN}");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        std::fs::remove_file(&other).unwrap();
        assert!(netrc.look().unwrap_err().contains("netrc_include"));
        assert_eq!(std::fs::read_to_string(&file).unwrap(), text);
        std::fs::write(&other, "").unwrap();
        netrc.look().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), MARK);
        // Own entries are found behind those of others.
        let own = vec![("a".to_owned(), Zeroizing::new("1".to_owned()))];
        let (text, _) = render("machine x\nlogin flywheel\npassword theirs\n", own.clone());
        assert_eq!(parse(&text), own);
        assert!(shadowed("machine b login x", &own).is_empty());
        for foreign in ["machine a login x password y", "default login x password y"] {
            assert!(shadowed(foreign, &own)[0].contains("entry for a"));
        }
    }

    #[test]
    fn a_file_of_another_program_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("netrc");
        let netrc = Netrc::new(file.clone(), None, Vec::new());
        netrc.look().unwrap();
        assert_eq!(std::fs::read_to_string(&file).unwrap(), MARK);
        let mode = |file: &Path| std::fs::metadata(file).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&file), 0o640);
        // A changed mode is set again.
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
