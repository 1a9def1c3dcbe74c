//! One inotify watch on the store directory, and which directory it hangs on.
//!
//! Must not know: what follows from an event, when to look again.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use notify::event::{EventKind, EventKindMask};
use notify::{Config, ErrorKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// The watch could not be hung.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// No such directory, or not readable.
    #[error("the store directory {} cannot be looked at: {error}", .dir.display())]
    Directory {
        /// The store directory.
        dir: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The kernel's limit on watches or on inotify instances of this user.
    #[error("no inotify watch is left for {}: raise fs.inotify.max_user_watches or max_user_instances", .0.display())]
    Limit(PathBuf),
    /// Anything else.
    #[error("watching {}: {error}", .dir.display())]
    Watch {
        /// The store directory.
        dir: PathBuf,
        /// What the watcher said.
        error: notify::Error,
    },
    /// The thread for the timer could not be started.
    #[error("no thread for the store_watch: {0}")]
    Thread(io::Error),
}

/// What the watch reports.
#[derive(Debug)]
pub(super) enum Seen {
    /// `<name>.lock` went.
    LockRemoved(String),
    /// The kernel dropped events.
    Overflow,
    /// The watch reports nothing any more.
    Lost(String),
}

/// A hung watch; dropping it takes it down.
pub(super) struct Watch {
    on: (u64, u64),
    watcher: Option<RecommendedWatcher>,
    ended: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // notify (9.0.0-rc.7) panics when a watcher is dropped whose thread is
        // no more; a few hundred bytes are the price of not dropping it.
        if self.ended.load(Ordering::Acquire) {
            std::mem::forget(self.watcher.take());
        }
    }
}

impl Watch {
    /// Hangs a watch; `seen` is called on the watcher's own thread.
    pub(super) fn hang(dir: &Path, seen: impl Fn(Seen) + Send + 'static) -> Result<Self, WatchError> {
        let place = |error| WatchError::Directory { dir: dir.to_owned(), error };
        // Before the watch: were the directory replaced right after, the next
        // look finds another one and hangs the watch again.
        let on = device_and_inode(dir).map_err(place)?;
        // Only what goes: making and reading a store file costs no event then.
        let config = Config::default().with_event_kinds(EventKindMask::REMOVE);
        let ended = Arc::new(AtomicBool::new(false));
        let guard = Ended { seen, flag: Arc::clone(&ended) };
        let root = dir.to_owned();
        let handler = move |event| interpret(&root, event, &guard.seen);
        let failed = |error: notify::Error| match &error.kind {
            ErrorKind::MaxFilesWatch => WatchError::Limit(dir.to_owned()),
            ErrorKind::Io(e) if e.raw_os_error() == Some(rustix::io::Errno::MFILE.raw_os_error()) => {
                WatchError::Limit(dir.to_owned())
            }
            _ => WatchError::Watch { dir: dir.to_owned(), error },
        };
        let mut watcher = RecommendedWatcher::new(handler, config).map_err(failed)?;
        watcher.watch(dir, RecursiveMode::NonRecursive).map_err(failed)?;
        Ok(Self { on, watcher: Some(watcher), ended })
    }

    /// Whether the path still leads to the directory that is watched. A file
    /// system mounted over it silences the watch without an event.
    pub(super) fn still_on(&self, dir: &Path) -> bool {
        device_and_inode(dir).is_ok_and(|now| now == self.on)
    }
}

/// Says so when the watcher's thread ends, for whatever reason: otherwise the
/// bell would simply never ring again.
struct Ended<F: Fn(Seen)> {
    seen: F,
    flag: Arc<AtomicBool>,
}

impl<F: Fn(Seen)> Drop for Ended<F> {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::Release);
        (self.seen)(Seen::Lost("the watcher's thread ended".to_owned()));
    }
}

fn interpret(dir: &Path, event: notify::Result<notify::Event>, seen: &impl Fn(Seen)) {
    let event = match event {
        Ok(event) => event,
        Err(error) => return seen(Seen::Lost(error.to_string())),
    };
    if event.need_rescan() {
        seen(Seen::Overflow);
    }
    if !matches!(event.kind, EventKind::Remove(_)) {
        return;
    }
    for path in &event.paths {
        if path == dir {
            let how = event.info().unwrap_or("directory removed");
            seen(Seen::Lost(format!("{}: {how}", dir.display())));
        } else if let Some(base) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".lock"))
        {
            seen(Seen::LockRemoved(base.to_owned()));
        }
    }
}

fn device_and_inode(dir: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(dir)?;
    if meta.is_dir() { Ok((meta.dev(), meta.ino())) } else { Err(io::ErrorKind::NotADirectory.into()) }
}
