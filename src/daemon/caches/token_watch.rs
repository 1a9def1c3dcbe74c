//! Watches the files with the tokens and extra headers of the caches: new ones are used
//! within seconds, and the log warns before a token expires.
//!
//! The files are looked at regularly: a look costs one system call, and sees every
//! way in which a token is replaced (written, renamed onto, a symlink replaced as
//! systemd and Kubernetes do, a file system mounted). A token that cannot be read is
//! no error here, since it may appear later.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::sync::mpsc::Sender;

use super::Cache;
use crate::cache::{CacheClient, Renewed};
use crate::daemon::inbox::Input;
use crate::observe::event;
use crate::types::{CacheId, Wall};

/// Time between two looks.
const LOOK: Duration = Duration::from_secs(5);
/// When a warning comes before a token expires: in seconds, and in words.
const NOTICE: [(i64, &str); 3] = [(3600, "an hour"), (24 * 3600, "a day"), (7 * 24 * 3600, "a week")];

/// Metadata that differ when a file was replaced or written.
type Fingerprint = Option<(u64, u64, u64, i64, i64, i64)>;

/// The token of one cache.
pub(in crate::daemon) struct Watched {
    id: CacheId,
    name: String,
    client: CacheClient,
    files: Vec<PathBuf>,
    seen: Vec<Fingerprint>,
    /// The time of expiry that the last warning was about, and the index of that
    /// warning in [`NOTICE`]; its length means none.
    warned: (i64, usize),
}

impl Watched {
    /// The token of this cache.
    pub(in crate::daemon) fn of(cache: &Cache) -> Self {
        let files = cache.connection().token_file().into_iter().chain(cache.client().headers_file());
        let files = files.map(Path::to_owned).collect();
        Self::new(cache.id(), cache.name().to_owned(), cache.client().clone(), files)
    }

    fn new(id: CacheId, name: String, client: CacheClient, files: Vec<PathBuf>) -> Self {
        let seen = files.iter().map(|file| fingerprint(file)).collect();
        Self { id, name, client, files, seen, warned: (0, NOTICE.len()) }
    }

    /// Reads token and headers again if a file has changed. Returns what is new. Blocks
    /// for a moment.
    fn look(&mut self) -> Renewed {
        let now: Vec<Fingerprint> = self.files.iter().map(|file| fingerprint(file)).collect();
        if now == self.seen {
            return Renewed::default();
        }
        // After an error the file is read again at the next look; it may be half
        // written now.
        match self.client.reload_token() {
            Ok(renewed) => {
                self.seen = now;
                renewed
            }
            Err(_) => Renewed::default(),
        }
    }

    /// The warning that is due at `now`, in seconds since 1970. Each one is given
    /// once for each time of expiry.
    fn warning(&mut self, now: i64) -> Option<String> {
        // A program renews its token, and says when it cannot.
        let expiry = self.client.token_expiry().filter(|_| self.client.supplied().is_none())?;
        if self.warned.0 != expiry {
            self.warned = (expiry, NOTICE.len());
        }
        let left = expiry - now;
        let level = NOTICE.iter().position(|(before, _)| left <= *before)?;
        if level >= self.warned.1 || left <= 0 {
            return None;
        }
        self.warned.1 = level;
        Some(format!(
            "the token of the cache {} expires in less than {} (at {expiry}, seconds since 1970): renew it; a changed \
             token file is noticed by itself",
            self.name, NOTICE[level].1
        ))
    }
}

fn fingerprint(file: &Path) -> Fingerprint {
    let meta = std::fs::metadata(file).ok()?;
    Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec(), meta.ctime_nsec()))
}

/// Looks at all tokens again and again, until the driver has ended.
pub(in crate::daemon) async fn watch(mut all: Vec<Watched>, out: Sender<Input>) {
    let mut timer = tokio::time::interval(LOOK);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        timer.tick().await;
        // A token file may be on a slow file system.
        let looked = tokio::task::spawn_blocking(move || {
            let looks = all.iter_mut().map(|w| (w.id, w.look()));
            let changed: Vec<(CacheId, Renewed)> = looks.filter(|(_, new)| new.any()).collect();
            (all, changed)
        });
        let Ok((looked, changed)) = looked.await else { return };
        all = looked;
        for watched in &mut all {
            if let Some((_, new)) = changed.iter().find(|(id, _)| *id == watched.id) {
                event!(
                    TOKEN_RENEWED,
                    cache = watched.name,
                    "cache {} has {new}, used from now on",
                    watched.name
                );
                if out.send(Input::TokenChanged(watched.id)).await.is_err() {
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
        Watched::new(CacheId(0), "c".into(), CacheClient::new(settings).unwrap(), vec![file.to_owned()])
    }

    #[test]
    fn a_new_changed_or_renamed_token_file_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        let mut watched = watched(&file);
        assert!(!watched.look().any(), "a missing file is nothing new");
        std::fs::write(&file, "one").unwrap();
        assert!(watched.look().token && !watched.look().any());
        std::fs::write(dir.path().join("new"), "two").unwrap();
        std::fs::rename(dir.path().join("new"), &file).unwrap();
        assert!(watched.look().token && !watched.look().any());
        std::fs::remove_file(&file).unwrap();
        assert!(!watched.look().any(), "a removed file leaves the old token in use");
        // As in a directory of credentials: a symlink is replaced.
        std::fs::write(dir.path().join("three"), "three").unwrap();
        std::os::unix::fs::symlink(dir.path().join("three"), &file).unwrap();
        assert!(watched.look().token);
        // An empty file is half written: it is read again later.
        std::fs::write(dir.path().join("three"), "").unwrap();
        assert!(!watched.look().any());
        std::fs::write(dir.path().join("three"), "four").unwrap();
        assert!(watched.look().token);
    }

    #[test]
    fn warnings_come_once_a_week_a_day_and_an_hour_before_expiry() {
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
        // A clock that was set back causes no second warning; another token does.
        assert_eq!(at(20 * 3600), None);
        std::fs::write(&file, token(end + 1)).unwrap();
        assert!(watched.look().token);
        assert!(watched.warning(end - 60).unwrap().contains("an hour"));
    }
}
