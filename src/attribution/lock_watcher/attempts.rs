//! The attempts at each path, and what may be concluded from events and from
//! reads of the lock table. Must not know: inotify, `/proc`.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::lineage::Lineage;
use super::super::proc::ProcId;
use super::super::windows::Maker;
use super::events::Happened;
use crate::observe::detail;

/// Upper bound of the paths that are remembered.
pub(super) const PATHS: usize = 16_384;
/// Upper bound of the attempts at one path that are remembered.
pub(super) const ATTEMPTS: usize = 8;
/// Upper bound of the lock files that are held open at a time.
pub(super) const HELD_FILES: usize = 256;
/// How long after an event of a lock file its holder is looked for.
const WATCHED: Duration = Duration::from_millis(40);
/// How long after the event the lock table is read without a pause: on a busy
/// machine a thread that pauses runs again too late. Later the pause grows.
const WITHOUT_PAUSE: Duration = Duration::from_micros(150);
/// Upper bound of that pause.
pub(super) const LONGEST_PAUSE: Duration = Duration::from_millis(5);
/// The kernel reports that a file is closed a moment before it removes the lock:
/// a holder that is seen this soon afterwards may hold it no longer.
const SETTLES: Duration = Duration::from_micros(100);

#[derive(Default)]
pub(super) struct State {
    pub(super) paths: HashMap<String, Entry>,
    pub(super) lineages: HashMap<ProcId, Arc<Lineage>>,
    /// The paths with an unsettled attempt.
    pub(super) unsettled: Vec<String>,
    /// The store's device as `/proc/locks` writes it.
    pub(super) device: Option<(u32, u32)>,
    /// The number of the last `catch_up` that is answered.
    pub(super) done: u64,
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
    pub(super) inode: u64,
    /// Counts the held files.
    pub(super) _counted: Arc<()>,
}

/// One lock file from its creation to its removal.
pub(super) struct Attempt {
    pub(super) held: Option<HeldFile>,
    pub(super) holder: Holder,
    /// When an event last made another holder possible.
    pub(super) changed: Instant,
    /// When a process that may have held the lock last closed the file.
    closed: Option<Instant>,
    pub(super) removed: Option<Instant>,
    /// Found in the directory before its event was read.
    scanned: bool,
}

impl Attempt {
    fn new(scanned: bool) -> Self {
        let (holder, changed) = (Holder::Unknown, Instant::now());
        Self { held: None, holder, changed, closed: None, removed: None, scanned }
    }

    /// An attempt whose holder was seen.
    #[cfg(test)]
    pub(super) fn of(lineage: Arc<Lineage>) -> Self {
        Self { holder: Holder::Seen(0, Some(lineage)), ..Self::new(false) }
    }

    /// Whether the next read of the lock table may say more.
    pub(super) fn is_unsettled(&self) -> bool {
        let open = self.removed.is_none() && self.held.is_some();
        open && !matches!(self.holder, Holder::Seen(_, Some(_)))
    }

    /// The maker of the path, if this attempt made it.
    pub(super) fn seen(&self) -> Option<Arc<Lineage>> {
        match &self.holder {
            Holder::Seen(_, lineage) => lineage.clone(),
            Holder::Unknown => None,
        }
    }

    /// Whether a read of the lock table that began at `at` and shows this holder
    /// says something new.
    pub(super) fn held_by(&mut self, pid: i32, at: Instant) -> bool {
        if self.closed.is_some_and(|closed| at < closed + SETTLES) {
            return false;
        }
        match &self.holder {
            Holder::Unknown => true,
            Holder::Seen(known, lineage) => *known != pid || lineage.is_none(),
        }
    }

    /// A process closed the file: the holder, or one that did not get the lock.
    fn set_closed(&mut self) {
        self.changed = Instant::now();
        self.closed = Some(self.changed);
        self.holder = Holder::Unknown;
    }
}

impl State {
    /// A path's entry; `None` when [`PATHS`] others are remembered.
    pub(super) fn entry(&mut self, base: &str) -> Option<&mut Entry> {
        if self.paths.len() >= PATHS && !self.paths.contains_key(base) {
            detail!(base = base, "too many locks are watched: who makes this path stays unknown");
            return None;
        }
        Some(self.paths.entry(base.to_owned()).or_default())
    }

    /// Takes in one event. Events from before `held` opened a file are taken in
    /// before the next read of the lock table, so that an attempt is never judged
    /// by another attempt's file.
    pub(super) fn happened(&mut self, base: &str, what: Happened, held: impl Fn() -> Option<HeldFile>) {
        match what {
            Happened::Created => self.created(base, false, held),
            Happened::Opened => {
                if !self.paths.get(base).is_some_and(|e| e.attempts.iter().any(|t| t.removed.is_none())) {
                    return; // removed before, or older than this daemon
                }
                self.look_at(base, held);
            }
            Happened::Closed => {
                if let Some(open) = self.open(base) {
                    open.set_closed();
                    if open.is_unsettled() {
                        self.unsettle(base);
                    }
                }
            }
            Happened::Removed => {
                if let Some(ended) = self.open(base) {
                    ended.removed = Some(Instant::now());
                    let there = |p: &HeldFile| rustix::fs::fstat(&p.file).is_ok_and(|s| s.st_nlink > 0);
                    if ended.held.take().is_some_and(|held| there(&held)) {
                        // It was the next attempt's file already.
                        ended.holder = Holder::Unknown;
                    }
                }
            }
        }
    }

    /// A lock file exists.
    pub(super) fn created(&mut self, base: &str, scanned: bool, held: impl Fn() -> Option<HeldFile>) {
        let Some(entry) = self.entry(base) else { return };
        let known = entry.attempts.iter_mut().find(|t| t.removed.is_none());
        if let Some(known) = known {
            if known.scanned || scanned {
                known.scanned = scanned;
                return self.look_at(base, held);
            }
            // The event of its removal was lost.
            known.removed = Some(Instant::now());
            known.holder = Holder::Unknown;
            known.held = None;
        }
        if entry.attempts.len() < ATTEMPTS {
            entry.attempts.push(Attempt::new(scanned));
        }
        self.look_at(base, held);
    }

    fn open(&mut self, base: &str) -> Option<&mut Attempt> {
        self.paths.get_mut(base)?.attempts.iter_mut().find(|t| t.removed.is_none())
    }

    /// A process may take the lock now: looks for its holder for a while.
    fn look_at(&mut self, base: &str, held: impl Fn() -> Option<HeldFile>) {
        let Some(open) = self.open(base) else { return };
        if matches!(open.holder, Holder::Seen(_, Some(_))) {
            return; // it is held, and an event follows when that ends
        }
        open.changed = Instant::now();
        if open.held.is_none() {
            open.held = held();
        }
        if open.held.is_some() {
            self.unsettle(base);
        }
    }

    fn unsettle(&mut self, base: &str) {
        if !self.unsettled.iter().any(|known| known == base) {
            self.unsettled.push(base.to_owned());
        }
    }

    /// Closes the files of settled attempts, and those that no process locks: an
    /// event follows when one opens them.
    pub(super) fn tidy(&mut self, now: Instant) {
        let mut unsettled = std::mem::take(&mut self.unsettled);
        unsettled.retain(|base| {
            let Some(open) = self.open(base).filter(|t| t.is_unsettled()) else { return false };
            let fresh = now.duration_since(open.changed) < WATCHED;
            if !fresh {
                open.held = None;
            }
            fresh
        });
        self.unsettled = unsettled;
    }

    /// The pause before the next read of the lock table; `None`: until an event.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Duration> {
        let bases = std::mem::take(&mut self.unsettled);
        let ages = bases.iter().filter_map(|base| Some(now.duration_since(self.open(base)?.changed)));
        let pause = ages
            .map(|age| if age < WITHOUT_PAUSE { Duration::ZERO } else { (age / 2).min(LONGEST_PAUSE) })
            .min();
        self.unsettled = bases;
        pause
    }
}
