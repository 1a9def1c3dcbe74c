//! Keeps an eye on the caches' tokens: a new one is used within seconds, one
//! that runs out is warned of in time.
//!
//! The files are looked at and not watched: a look costs a system call, and
//! sees every way in which a token is replaced (written over, renamed onto, a
//! symlink turned round as systemd and Kubernetes do, a file system mounted).
//! A token that cannot be read is not an error here: it may come later.

use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use tokio::sync::mpsc::Sender;

use crate::cache::CacheClient;
use crate::daemon::inbox::Input;
use crate::observe::event;
use crate::types::{CacheId, Wall};

/// Between looks.
const LOOK: Duration = Duration::from_secs(5);
/// Before a token's end, a warning each: seconds, and in words.
const NOTICE: [(i64, &str); 3] = [(3600, "an hour"), (24 * 3600, "a day"), (7 * 24 * 3600, "a week")];

/// What tells one state of a file from another without reading it.
type Print = Option<(u64, u64, u64, i64, i64, i64)>;

/// One cache's token.
pub(in crate::daemon) struct Watched {
    name: String,
    client: CacheClient,
    file: Option<PathBuf>,
    seen: Print,
    /// The end that was warned of, and how near it was then (an index of
    /// [`NOTICE`]; its length for "not yet").
    warned: (i64, usize),
}

impl Watched {
    pub(in crate::daemon) fn new(name: String, client: CacheClient, file: Option<PathBuf>) -> Self {
        let seen = print(file.as_ref());
        Self { name, client, file, seen, warned: (0, NOTICE.len()) }
    }

    /// Whether there is another token than before. Reads a small file.
    fn look(&mut self) -> bool {
        let now = print(self.file.as_ref());
        if now == self.seen {
            return false;
        }
        // Read again next time, should it be half written now.
        match self.client.reload_token() {
            Ok(changed) => {
                self.seen = now;
                changed
            }
            Err(_) => false,
        }
    }

    /// The warning that is due, once for each end and notice.
    fn warning(&mut self, now: i64) -> Option<String> {
        let end = self.client.token_expiry()?;
        if self.warned.0 != end {
            self.warned = (end, NOTICE.len());
        }
        let left = end - now;
        let level = NOTICE.iter().position(|(before, _)| left <= *before)?;
        if level >= self.warned.1 || left <= 0 {
            return None;
        }
        self.warned.1 = level;
        Some(format!(
            "the token of the cache {} expires in less than {} (at {end}, seconds since 1970): renew it; a changed \
             token file is noticed by itself",
            self.name, NOTICE[level].1
        ))
    }
}

fn print(file: Option<&PathBuf>) -> Print {
    let meta = std::fs::metadata(file?).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()))
}

/// Until the driver is gone.
pub(in crate::daemon) async fn watch(mut all: Vec<Watched>, out: Sender<Input>) {
    let mut timer = tokio::time::interval(LOOK);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        for (number, watched) in (0_u16..).zip(&mut all) {
            if watched.look() {
                event!(TOKEN_RENEWED, cache = watched.name, "a new token: it is used from now on");
                if out.send(Input::TokenChanged(CacheId(number))).await.is_err() {
                    return;
                }
            }
            if let Some(text) = watched.warning(Wall::now().0 / 1000) {
                event!(
                    TOKEN_EXPIRES,
                    cache = watched.name,
                    expires = watched.client.token_expiry(),
                    "{text}"
                );
            }
        }
        if out.is_closed() {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine as _;

    use super::*;
    use crate::cache::{ClientSettings, TokenSource};
    use crate::types::CacheName;

    fn token(exp: i64) -> String {
        let part = |text: &str| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(text);
        format!("{}.{}.sig", part("{}"), part(&format!("{{\"exp\":{exp}}}")))
    }

    fn watched(file: &std::path::Path) -> Watched {
        let source = TokenSource::File(file.to_owned());
        let settings =
            ClientSettings::new(vec!["http://127.0.0.1:9".into()], CacheName::parse("c").unwrap(), source);
        Watched::new("c".into(), CacheClient::new(settings).unwrap(), Some(file.to_owned()))
    }

    #[test]
    fn a_token_that_comes_changes_or_is_renamed_onto_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let mut watched = watched(&file);
        assert!(!watched.look(), "a missing file is nothing new");
        std::fs::write(&file, "one").unwrap();
        assert!(watched.look() && !watched.look());
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        assert!(watched.look() && !watched.look());
        std::fs::remove_file(&file).unwrap();
        assert!(!watched.look(), "a file that is gone leaves the old token in use");
        // As in a directory of credentials: the link is turned round.
        std::fs::write(dir.path().join("three"), "three").unwrap();
        std::os::unix::fs::symlink(dir.path().join("three"), &file).unwrap();
        assert!(watched.look());
        // Half written: not taken, and looked at again.
        std::fs::write(dir.path().join("three"), "").unwrap();
        assert!(!watched.look());
        std::fs::write(dir.path().join("three"), "four").unwrap();
        assert!(watched.look());
    }

    #[test]
    fn a_week_a_day_and_an_hour_before_the_end_once_each() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let end = 2_000_000_000;
        std::fs::write(&file, token(end)).unwrap();
        let mut watched = watched(&file);
        let mut at = |before: i64| watched.warning(end - before);
        assert_eq!(at(8 * 24 * 3600), None);
        assert!(at(6 * 24 * 3600).unwrap().contains("a week"));
        assert_eq!(at(5 * 24 * 3600), None);
        assert!(at(20 * 3600).unwrap().contains("a day"));
        assert!(at(1800).unwrap().contains("an hour"));
        assert_eq!(at(60), None);
        assert_eq!(at(-60), None);
        // A clock that is put back does not warn twice; another token begins anew.
        assert_eq!(at(20 * 3600), None);
        std::fs::write(&file, token(end + 1)).unwrap();
        assert!(watched.look());
        assert!(watched.warning(end - 60).unwrap().contains("an hour"));
    }
}
