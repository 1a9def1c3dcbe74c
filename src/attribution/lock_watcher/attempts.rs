//! The attempts at each path, and what may be concluded from events and from
//! reads of the lock table. Must not know: inotify, `/proc`.

use std::collections::{HashMap, VecDeque};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::lineage::Lineage;
use super::super::windows::Maker;
use super::events::Happened;
use crate::observe::detail;

/// Upper bound of the paths that are remembered.
pub(super) const PATHS: usize = 16_384;
/// Upper bound of the attempts at one path that are remembered.
pub(super) const ATTEMPTS: usize = 8;
/// Upper bound of the lock files that are held open at a time.
pub(super) const HELD_FILES: usize = 256;
/// How long the file of a new lock is held open that no process locks.
const FRESH: Duration = Duration::from_millis(40);
/// The kernel reports that a file is closed a moment before it removes the lock:
/// a holder that is seen this soon afterwards may hold it no longer.
const SETTLES: Duration = Duration::from_micros(100);

#[derive(Default)]
pub(super) struct State {
    pub(super) paths: HashMap<String, Entry>,
    /// The open attempts by the inodes of their files.
    inodes: HashMap<u64, Arc<str>>,
    /// The attempts whose files are held open, oldest first.
    fresh: VecDeque<(Instant, String)>,
    /// The paths whose holders were to be looked for at once.
    urgent: Vec<String>,
    /// The store's device as `/proc/locks` writes it.
    pub(super) device: Option<(u32, u32)>,
    /// The number of the last `catch_up` that is answered.
    pub(super) done: u64,
    /// How many times the lock table was read.
    pub(super) reads: u64,
    /// Whether the thread runs.
    pub(super) watches: bool,
}

#[derive(Default)]
pub(super) struct Entry {
    pub(super) attempts: Vec<Attempt>,
    pub(super) hook: Option<(Maker, Instant)>,
}

/// The holder of a lock.
#[derive(Debug)]
pub(super) enum Holder {
    Unknown,
    /// This process was seen to hold it, and no process has closed the file
    /// since; its ancestors, if they can be known.
    Seen(i32, Option<Arc<Lineage>>),
}

/// A lock file held open, without any right to it (`O_PATH`): while that is so
/// the kernel gives its inode to no other file.
pub(super) struct HeldFile {
    pub(super) file: OwnedFd,
    /// Counts the held files.
    pub(super) _counted: Arc<()>,
}

/// The lock file that has a name at the moment.
pub(super) struct LockFile {
    pub(super) inode: u64,
    /// `None` when [`HELD_FILES`] others are held open.
    pub(super) held: Option<HeldFile>,
}

/// One lock file from its creation to its removal.
pub(super) struct Attempt {
    /// The inode of the file, when it was last looked at.
    pub(super) inode: Option<u64>,
    held: Option<HeldFile>,
    pub(super) holder: Holder,
    /// When a process that may have held the lock last closed the file.
    closed: Option<Instant>,
    pub(super) removed: Option<Instant>,
    /// Found in the directory before its event was read.
    scanned: bool,
}

/// What an event asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// A look at the lock table at once: the lock may be released in a moment.
    Urgent,
    /// A look soon: a build may have started.
    Soon,
    Nothing,
}

/// What a read of the lock table says about an attempt whose file was not held open
/// when the read began. It counts when the events until then show no removal.
#[derive(Debug)]
pub(super) struct Tentative {
    base: Arc<str>,
    inode: u64,
    pid: i32,
}

impl Attempt {
    fn new(scanned: bool) -> Self {
        Self { inode: None, held: None, holder: Holder::Unknown, closed: None, removed: None, scanned }
    }

    /// An attempt whose holder was seen.
    #[cfg(test)]
    pub(super) fn of(lineage: Arc<Lineage>) -> Self {
        Self { holder: Holder::Seen(0, Some(lineage)), ..Self::new(false) }
    }

    /// Whether the next read of the lock table may say more.
    pub(super) fn is_unsettled(&self) -> bool {
        self.removed.is_none() && !matches!(self.holder, Holder::Seen(_, Some(_)))
    }

    /// The maker of the path, if this attempt made it.
    pub(super) fn seen(&self) -> Option<Arc<Lineage>> {
        match &self.holder {
            Holder::Seen(_, lineage) => lineage.clone(),
            Holder::Unknown => None,
        }
    }

    /// Takes in that a read of the lock table that began at `at` shows this holder.
    fn held_by(&mut self, pid: i32, at: Instant, lineage: impl FnOnce(i32) -> Option<Arc<Lineage>>) {
        if self.closed.is_some_and(|closed| at < closed + SETTLES) {
            return;
        }
        let is_new = match &self.holder {
            Holder::Unknown => true,
            Holder::Seen(known, lineage) => *known != pid || lineage.is_none(),
        };
        if is_new {
            self.holder = Holder::Seen(pid, lineage(pid));
        }
        // From now on an event says when another process may hold the lock.
        self.held = None;
    }

    /// A process closed the file: the holder, or one that did not get the lock.
    fn set_closed(&mut self) {
        self.closed = Some(Instant::now());
        self.holder = Holder::Unknown;
    }
}

impl State {
    /// A path's entry; `None` when [`PATHS`] others are remembered.
    pub(super) fn entry(&mut self, base: &str) -> Option<&mut Entry> {
        if !self.paths.contains_key(base) {
            if self.paths.len() >= PATHS {
                detail!(base = base, "too many locks are watched: who makes this path stays unknown");
                return None;
            }
            self.paths.insert(base.to_owned(), Entry::default());
        }
        self.paths.get_mut(base)
    }

    /// Takes in one event. `file` returns the lock file that has a path's name now.
    pub(super) fn happened(
        &mut self,
        base: &str,
        what: Happened,
        file: impl Fn() -> Option<LockFile>,
    ) -> Next {
        match what {
            Happened::Created => {
                self.created(base, false, file);
                self.urgent(base)
            }
            Happened::Appeared if self.open(base).is_some_and(|open| open.is_unsettled()) => {
                self.urgent(base)
            }
            Happened::Appeared => Next::Soon,
            Happened::Closed => {
                let Some(open) = self.open(base) else { return Next::Nothing };
                // A process that tried to take a lock closes its file too. The holder, known
                // until then, is looked for again before it ends.
                let was_known = open.seen().is_some();
                open.set_closed();
                if was_known { Next::Soon } else { Next::Nothing }
            }
            Happened::Removed => {
                if let Some(ended) = self.open(base) {
                    ended.removed = Some(Instant::now());
                    let inode = ended.inode;
                    let there = |p: &HeldFile| rustix::fs::fstat(&p.file).is_ok_and(|s| s.st_nlink > 0);
                    if ended.held.take().is_some_and(|held| there(&held)) {
                        // It was the next attempt's file already.
                        ended.holder = Holder::Unknown;
                    }
                    self.forget_inode(inode, base);
                }
                Next::Soon
            }
        }
    }

    /// A lock file exists. An attempt is not judged by another attempt's file: the
    /// events from before `file` looked at it are taken in before the next read of
    /// the lock table.
    pub(super) fn created(&mut self, base: &str, scanned: bool, file: impl Fn() -> Option<LockFile>) {
        let Some(entry) = self.entry(base) else { return };
        let known = entry.attempts.iter_mut().find(|t| t.removed.is_none());
        let mut last = None;
        match known {
            Some(known) if known.scanned || scanned => {
                known.scanned = scanned;
                if known.inode.is_some() {
                    return;
                }
            }
            Some(known) => {
                // The event of its removal was lost.
                known.removed = Some(Instant::now());
                known.holder = Holder::Unknown;
                known.held = None;
                last = known.inode;
                entry.push(Attempt::new(scanned));
            }
            None => entry.push(Attempt::new(scanned)),
        }
        self.forget_inode(last, base);
        self.identify(base, file());
    }

    /// Notes which file is the open attempt's.
    fn identify(&mut self, base: &str, file: Option<LockFile>) {
        let (Some(open), Some(LockFile { inode, held })) = (self.open(base), file) else { return };
        open.inode = Some(inode);
        if held.is_some() {
            open.held = held;
            self.fresh.push_back((Instant::now(), base.to_owned()));
        }
        self.inodes.insert(inode, base.into());
    }

    fn forget_inode(&mut self, inode: Option<u64>, base: &str) {
        if let Some(inode) = inode
            && self.inodes.get(&inode).is_some_and(|of| **of == *base)
        {
            self.inodes.remove(&inode);
        }
    }

    fn open(&mut self, base: &str) -> Option<&mut Attempt> {
        self.paths.get_mut(base)?.attempts.iter_mut().find(|t| t.removed.is_none())
    }

    /// Takes in a read of the lock table that began at `at`: process numbers of
    /// holders by inode. `lineage` returns a process's ancestors. Returns what is to be
    /// taken in by [`Self::settle`] after the events until now.
    pub(super) fn learn(
        &mut self,
        holders: &[(u64, i32)],
        at: Instant,
        mut lineage: impl FnMut(i32) -> Option<Arc<Lineage>>,
    ) -> Vec<Tentative> {
        self.reads += 1;
        let mut tentative = Vec::new();
        for (inode, pid) in holders.iter().copied() {
            let Some(base) = self.inodes.get(&inode).cloned() else { continue };
            let Some(open) = self.open(&base).filter(|open| open.is_unsettled()) else { continue };
            if open.held.is_some() {
                open.held_by(pid, at, &mut lineage);
            } else {
                tentative.push(Tentative { base, inode, pid });
            }
        }
        tentative
    }

    /// Takes in what was tentative. All events until after the read have been taken in:
    /// an attempt that is still open had the same file all the time.
    pub(super) fn settle(
        &mut self,
        tentative: &[Tentative],
        at: Instant,
        mut lineage: impl FnMut(i32) -> Option<Arc<Lineage>>,
    ) {
        for Tentative { base, inode, pid } in tentative {
            if let Some(open) = self.open(base).filter(|open| open.inode == Some(*inode)) {
                open.held_by(*pid, at, &mut lineage);
            }
        }
    }

    /// Known holders become unknown, since events may be missing.
    pub(super) fn doubt(&mut self) {
        let attempts = self.paths.values_mut().flat_map(|entry| &mut entry.attempts);
        attempts.filter(|t| t.removed.is_none()).for_each(Attempt::set_closed);
    }

    /// Takes in that events were lost: `there` says which lock file has a path's
    /// name now. Attempts with another file have ended.
    pub(super) fn recount(&mut self, there: impl Fn(&str) -> Option<u64>) {
        self.doubt();
        self.inodes.clear();
        for (base, entry) in &mut self.paths {
            for open in entry.attempts.iter_mut().filter(|t| t.removed.is_none()) {
                match there(base).filter(|inode| open.inode.is_none_or(|known| known == *inode)) {
                    Some(inode) => {
                        open.inode = Some(inode);
                        self.inodes.insert(inode, base.as_str().into());
                    }
                    None => open.removed = Some(Instant::now()),
                }
            }
        }
    }

    fn urgent(&mut self, base: &str) -> Next {
        if self.urgent.len() >= HELD_FILES {
            self.forget_settled();
        }
        if self.urgent.len() < HELD_FILES {
            self.urgent.push(base.to_owned());
        }
        Next::Urgent
    }

    /// Removes the locks from the urgent ones that are removed or whose holder is known.
    fn forget_settled(&mut self) {
        let mut urgent = std::mem::take(&mut self.urgent);
        urgent.retain(|base| self.open(base).is_some_and(|open| open.is_unsettled()));
        self.urgent = urgent;
    }

    /// Whether the holder of an urgent lock is still unknown.
    pub(super) fn is_urgent(&mut self) -> bool {
        self.forget_settled();
        !self.urgent.is_empty()
    }

    /// Stops to look for the holders of urgent locks at once.
    pub(super) fn calm(&mut self) {
        self.urgent.clear();
    }

    /// Whether there are lock files.
    pub(super) fn has_open(&self) -> bool {
        !self.inodes.is_empty()
    }

    /// Closes the files of attempts that are settled, removed or no longer fresh.
    pub(super) fn tidy(&mut self, now: Instant) {
        let mut fresh = std::mem::take(&mut self.fresh);
        fresh.retain(|(since, base)| {
            let Some(open) = self.open(base).filter(|open| open.held.is_some()) else { return false };
            let keeps = now.duration_since(*since) < FRESH;
            if !keeps {
                open.held = None;
            }
            keeps
        });
        self.fresh = fresh;
    }
}

impl Entry {
    fn push(&mut self, attempt: Attempt) {
        if self.attempts.len() < ATTEMPTS {
            self.attempts.push(attempt);
        }
    }
}
