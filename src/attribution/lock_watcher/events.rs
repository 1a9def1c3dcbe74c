//! Events of lock files, from an own inotify(7) watch: their order relative to
//! reads of the lock table matters, and passing them through another thread would
//! cost a context switch each.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

/// An event of `<base>.lock`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    Created,
    /// By a process that may take the lock next.
    Opened,
    /// By a process that may have held the lock.
    Closed,
    Removed,
}

/// The watch.
pub(super) struct Events {
    dir: PathBuf,
    inotify: OwnedFd,
    /// `None` while there is no such directory.
    watch: Option<i32>,
}

impl Events {
    /// Watches a directory. One that does not exist, as before the store is mounted, is
    /// watched from the next [`Self::renew`] on at which it does.
    pub(super) fn watch(dir: &Path) -> Result<Self, Errno> {
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watch = match add(&inotify, dir) {
            Ok(watch) => Some(watch),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { dir: dir.to_owned(), inotify, watch })
    }

    /// Watches the directory that the path leads to now.
    pub(super) fn renew(&mut self) {
        if let Ok(watch) = add(&self.inotify, &self.dir) {
            if let Some(old) = self.watch.filter(|old| *old != watch) {
                let _ = remove_watch(&self.inotify, old); // the kernel may have removed it already
            }
            self.watch = Some(watch);
        }
    }

    pub(super) fn fd(&self) -> &OwnedFd {
        &self.inotify
    }

    /// Calls `each` for all events so far, in order; true when some were lost.
    pub(super) fn drain(&self, mut each: impl FnMut(&str, Happened)) -> bool {
        let mut lost = false;
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => return lost,
            };
            let is = |flag| event.events().contains(flag);
            lost |= is(ReadFlags::QUEUE_OVERFLOW);
            let happened = match () {
                () if Some(event.wd()) != self.watch => continue,
                () if is(ReadFlags::CREATE) => Happened::Created,
                () if is(ReadFlags::OPEN) => Happened::Opened,
                () if is(ReadFlags::CLOSE_WRITE) => Happened::Closed,
                () if is(ReadFlags::DELETE) => Happened::Removed,
                () => continue,
            };
            let name = event.file_name().and_then(|name| name.to_str().ok());
            if let Some(base) = name.and_then(|name| name.strip_suffix(".lock")) {
                each(base, happened);
            }
        }
    }
}

fn add(inotify: &OwnedFd, dir: &Path) -> Result<i32, Errno> {
    let flags = WatchFlags::CREATE | WatchFlags::OPEN | WatchFlags::CLOSE_WRITE | WatchFlags::DELETE;
    add_watch(inotify, dir, flags | WatchFlags::ONLYDIR)
}
