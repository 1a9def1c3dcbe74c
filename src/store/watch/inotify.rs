//! One inotify watch on the store directory.
//!
//! Must not know: what follows from an event, when a watch is started again.

use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{fs, io};

use notify::event::{EventKind, EventKindMask};
use notify::{Config, ErrorKind, RecommendedWatcher, RecursiveMode, Watcher as _};

/// Why a watch could not be started.
#[derive(Debug, thiserror::Error)]
pub enum WatchError {
    /// The directory does not exist or cannot be read.
    #[error("the store directory {} cannot be watched: {error}", .dir.display())]
    Directory {
        /// The store directory.
        dir: PathBuf,
        /// The system's error.
        error: io::Error,
    },
    /// The kernel's limit on watches or inotify instances of this user is reached.
    #[error("no inotify watch is left for {}: raise fs.inotify.max_user_watches or max_user_instances", .0.display())]
    Limit(PathBuf),
    /// Any other error.
    #[error("watching {}: {error}", .dir.display())]
    Watch {
        /// The store directory.
        dir: PathBuf,
        /// The watcher's error.
        error: notify::Error,
    },
    /// The thread for the timer could not be started.
    #[error("the thread of the store watch cannot be started: {0}")]
    Thread(io::Error),
}

/// A report of the watch.
#[derive(Debug)]
pub(super) enum Notification {
    /// `<name>.lock` was removed; the name.
    LockRemoved(String),
    /// The kernel dropped events.
    Overflow,
    /// The watch reports nothing any more; the reason.
    Lost(String),
}

/// A running watch; dropping it ends it.
pub(super) struct Watch {
    on: (u64, u64),
    watcher: Option<RecommendedWatcher>,
    ended: Arc<AtomicBool>,
}

impl Drop for Watch {
    fn drop(&mut self) {
        // notify (9.0.0-rc.7) panics when a watcher is dropped whose thread has
        // ended; not dropping it leaks a few hundred bytes.
        if self.ended.load(Ordering::Acquire) {
            std::mem::forget(self.watcher.take());
        }
    }
}

impl Watch {
    /// Starts a watch; `notify` is called on the watcher's own thread.
    pub(super) fn start(
        dir: &Path,
        notify: impl Fn(Notification) + Send + 'static,
    ) -> Result<Self, WatchError> {
        let failed_dir = |error| WatchError::Directory { dir: dir.to_owned(), error };
        // Before the watch: when the directory is replaced in between, the next
        // check finds another one and the watch is started again.
        let on = device_and_inode(dir).map_err(failed_dir)?;
        // Removals only: creating and reading store files causes no events then.
        let config = Config::default().with_event_kinds(EventKindMask::REMOVE);
        let ended = Arc::new(AtomicBool::new(false));
        let guard = Ended { notify, flag: Arc::clone(&ended) };
        let root = dir.to_owned();
        let handler = move |event| interpret(&root, event, &guard.notify);
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

    /// Whether the path leads to the directory that is watched. A file system
    /// that is mounted over it silences the watch without an event.
    pub(super) fn is_on(&self, dir: &Path) -> bool {
        device_and_inode(dir).is_ok_and(|now| now == self.on)
    }
}

/// Reports when the watcher's thread ends, for any reason: otherwise the reader
/// would not be woken any more.
struct Ended<F: Fn(Notification)> {
    notify: F,
    flag: Arc<AtomicBool>,
}

impl<F: Fn(Notification)> Drop for Ended<F> {
    fn drop(&mut self) {
        self.flag.store(true, Ordering::Release);
        (self.notify)(Notification::Lost("the watcher's thread ended".to_owned()));
    }
}

fn interpret(dir: &Path, event: notify::Result<notify::Event>, notify: &impl Fn(Notification)) {
    let event = match event {
        Ok(event) => event,
        Err(error) => return notify(Notification::Lost(error.to_string())),
    };
    if event.need_rescan() {
        notify(Notification::Overflow);
    }
    if !matches!(event.kind, EventKind::Remove(_)) {
        return;
    }
    for path in &event.paths {
        if path == dir {
            let how = event.info().unwrap_or("directory removed");
            notify(Notification::Lost(format!("{}: {how}", dir.display())));
        } else if let Some(base) =
            path.file_name().and_then(|name| name.to_str()).and_then(|name| name.strip_suffix(".lock"))
        {
            notify(Notification::LockRemoved(base.to_owned()));
        }
    }
}

fn device_and_inode(dir: &Path) -> io::Result<(u64, u64)> {
    let meta = fs::metadata(dir)?;
    if meta.is_dir() { Ok((meta.dev(), meta.ino())) } else { Err(io::ErrorKind::NotADirectory.into()) }
}
