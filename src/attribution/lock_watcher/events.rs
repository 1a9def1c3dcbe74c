//! Events of the store directory, from inotify(7) watches of its own: their order
//! relative to reads of the lock table matters, and passing them through another
//! thread would cost a context switch each.
//!
//! Nix opens and closes the lock of a goal that waits for a build slot each time
//! another build ends: tens of thousands of times for a few hundred derivations.
//! So no watch asks for opened files, and the watch for closed ones is a second
//! one, which no thread waits for: a closed file costs one entry of the kernel's
//! queue, and the entries are read together.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::inotify::{CreateFlags, ReadFlags, Reader, WatchFlags, add_watch, init, remove_watch};
use rustix::io::Errno;

/// Upper bound of the events of one watch that are taken in at a time. A queue of the
/// kernel has 16,384 entries by default.
const MOST: usize = 32_768;

/// An event of the store directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Happened {
    /// The file `<base>.lock` was created.
    Created,
    /// The file `<base>.lock` was removed.
    Removed,
    /// A process that may have held the lock closed `<base>.lock`.
    Closed,
    /// A path of this name appeared: the process that holds its lock makes it.
    Appeared,
}

/// What [`Events::drain`] missed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Lost {
    /// Locks were created or removed.
    pub(super) changes: bool,
    /// Locks were closed.
    pub(super) closes: bool,
}

/// The watches.
pub(super) struct Events {
    dir: PathBuf,
    changes: Watch,
    closes: Watch,
    changed: Batch,
    closed: Batch,
}

struct Watch {
    inotify: OwnedFd,
    /// `None` while there is no such directory.
    watch: Option<i32>,
    flags: WatchFlags,
}

impl Events {
    /// Watches a directory. One that does not exist, as before the store is mounted, is
    /// watched from the next [`Self::renew`] on at which it does.
    pub(super) fn watch(dir: &Path) -> Result<Self, Errno> {
        let changes = WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO;
        // Not for removed files: the close that ends a successful build says nothing.
        let closes = WatchFlags::CLOSE_WRITE | WatchFlags::EXCL_UNLINK;
        Ok(Self {
            dir: dir.to_owned(),
            changes: Watch::start(dir, changes)?,
            closes: Watch::start(dir, closes)?,
            changed: Batch::default(),
            closed: Batch::default(),
        })
    }

    /// Watches the directory that the path leads to now.
    pub(super) fn renew(&mut self) {
        self.changes.renew(&self.dir);
        self.closes.renew(&self.dir);
    }

    /// The descriptor that is readable after each event other than a closed lock.
    pub(super) fn fd(&self) -> &OwnedFd {
        &self.changes.inotify
    }

    /// Calls `each` for all events so far. A lock's creation comes before its closing,
    /// and its closing before its removal. Apart from that the order of closings and
    /// other events is lost: a closing may be reported twice, or for the file that has
    /// the name by now.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&str, Happened)) -> Lost {
        let (changed, closed) = (&mut self.changed, &mut self.closed);
        changed.clear();
        closed.clear();
        let mut created = false;
        let changes = self.changes.read(|name, flags| {
            let (base, what) = match name.strip_suffix(".lock") {
                Some(base) if flags.contains(ReadFlags::CREATE) => (base, Happened::Created),
                Some(base) if flags.contains(ReadFlags::DELETE) => (base, Happened::Removed),
                None if flags.intersects(ReadFlags::CREATE | ReadFlags::MOVED_TO) => {
                    (name, Happened::Appeared)
                }
                Some(_) | None => return true,
            };
            created |= what == Happened::Created;
            changed.add(base, what)
        });
        // Read after the changes: what was closed before a removal is among them.
        let closes = self
            .closes
            .read(|name, _| name.strip_suffix(".lock").is_none_or(|base| closed.add(base, Happened::Closed)));
        closed.each(&mut each);
        changed.each(&mut each);
        if created {
            closed.each(&mut each);
        }
        Lost { changes, closes }
    }
}

/// Events in order.
#[derive(Default)]
struct Batch {
    names: String,
    events: Vec<(usize, Happened)>,
}

impl Batch {
    fn clear(&mut self) {
        self.names.clear();
        self.events.clear();
    }

    /// Adds an event; false when there is no room.
    fn add(&mut self, base: &str, what: Happened) -> bool {
        let has_room = self.events.len() < MOST;
        if has_room {
            self.names.push_str(base);
            self.events.push((self.names.len(), what));
        }
        has_room
    }

    fn each(&self, each: &mut impl FnMut(&str, Happened)) {
        let mut from = 0;
        for (to, what) in &self.events {
            each(&self.names[from..*to], *what);
            from = *to;
        }
    }
}

impl Watch {
    fn start(dir: &Path, flags: WatchFlags) -> Result<Self, Errno> {
        let flags = flags | WatchFlags::ONLYDIR;
        let inotify = init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        let watch = match add_watch(&inotify, dir, flags) {
            Ok(watch) => Some(watch),
            Err(Errno::NOENT) => None,
            Err(error) => return Err(error),
        };
        Ok(Self { inotify, watch, flags })
    }

    fn renew(&mut self, dir: &Path) {
        if let Ok(watch) = add_watch(&self.inotify, dir, self.flags) {
            if let Some(old) = self.watch.filter(|old| *old != watch) {
                let _ = remove_watch(&self.inotify, old); // the kernel may have removed it already
            }
            self.watch = Some(watch);
        }
    }

    /// Calls `each` for all events in the queue, which returns false when it has no room.
    /// True when the kernel dropped some, or `each` did.
    fn read(&self, mut each: impl FnMut(&str, ReadFlags) -> bool) -> bool {
        let mut lost = false;
        let mut buffer = [MaybeUninit::uninit(); 16 * 1024];
        let mut reader = Reader::new(&self.inotify, &mut buffer);
        loop {
            let event = match reader.next() {
                Ok(event) => event,
                Err(Errno::INTR) => continue,
                Err(_) => return lost,
            };
            lost |= event.events().contains(ReadFlags::QUEUE_OVERFLOW);
            if Some(event.wd()) != self.watch {
                continue;
            }
            if let Some(name) = event.file_name().and_then(|name| name.to_str().ok()) {
                lost |= !each(name, event.events());
            }
        }
    }
}
