//! What is remembered of each path's tries, and what may be concluded from what
//! happened. Must not know where it comes from.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::lineage::Lineage;
use super::super::proc::ProcId;
use super::super::windows::Maker;
use super::events::Happened;
use crate::observe::detail;

/// Paths that are remembered.
pub(super) const PATHS: usize = 16_384;
/// Tries at one path that are remembered.
pub(super) const TRIES: usize = 8;
/// Lock files that are held open at a time.
pub(super) const PINS: usize = 256;
/// After something happened to a lock file it is looked for a holder so long…
const FRESH: Duration = Duration::from_millis(40);
/// … at first without a rest, since whoever rests on a busy machine comes back
/// too late; then less and less often…
const EAGER: Duration = Duration::from_micros(150);
/// … but at least so often.
pub(super) const OFTEN: Duration = Duration::from_millis(5);
/// The kernel tells that a file is closed a moment before the lock on it is
/// gone: who is seen to hold it that soon may not any more.
const SETTLES: Duration = Duration::from_micros(100);

#[derive(Default)]
pub(super) struct State {
    pub(super) paths: HashMap<String, Entry>,
    pub(super) lineages: HashMap<ProcId, Arc<Lineage>>,
    /// Those with an unsettled try.
    pub(super) unsettled: Vec<String>,
    /// The store's, in the kernel's words.
    pub(super) device: Option<(u32, u32)>,
    /// Which question was the last that everything before it is seen to.
    pub(super) done: u64,
    /// Whether anything is seen at all.
    pub(super) watches: bool,
}

#[derive(Default)]
pub(super) struct Entry {
    pub(super) tries: Vec<Attempt>,
    pub(super) hook: Option<(Maker, Instant)>,
}

/// Who holds a lock.
#[derive(Debug)]
pub(super) enum Holder {
    Unknown,
    /// Seen to hold it, and nobody has let go since; what that descends from,
    /// if that can be known.
    Seen(i32, Option<Arc<Lineage>>),
}

/// A lock file held open, without any right to it (`O_PATH`): while that is so
/// the kernel gives its inode to no other file.
pub(super) struct Pin {
    pub(super) file: OwnedFd,
    pub(super) inode: u64,
    /// One of the witness's, which count how many there are.
    pub(super) _counted: Arc<()>,
}

/// One lock file's life.
pub(super) struct Attempt {
    pub(super) pin: Option<Pin>,
    pub(super) holder: Holder,
    /// When last something happened that makes another holder possible.
    pub(super) poked: Instant,
    /// When somebody let go of it last, who may have held it.
    closed: Option<Instant>,
    pub(super) removed: Option<Instant>,
    /// Found before it was told.
    scanned: bool,
}

impl Attempt {
    fn new(scanned: bool) -> Self {
        let (holder, poked) = (Holder::Unknown, Instant::now());
        Self { pin: None, holder, poked, closed: None, removed: None, scanned }
    }

    /// Whether the next look may tell more.
    pub(super) fn is_unsettled(&self) -> bool {
        let open = self.removed.is_none() && self.pin.is_some();
        open && !matches!(self.holder, Holder::Seen(_, Some(_)))
    }

    /// Who made what this try came to.
    pub(super) fn seen(self) -> Option<Arc<Lineage>> {
        match self.holder {
            Holder::Seen(_, lineage) => lineage,
            Holder::Unknown => None,
        }
    }

    /// A look that began at `at` shows this holder. True when it is news.
    pub(super) fn held_by(&mut self, pid: i32, at: Instant) -> bool {
        if self.closed.is_some_and(|closed| at < closed + SETTLES) {
            return false;
        }
        match &self.holder {
            Holder::Unknown => true,
            Holder::Seen(known, lineage) => *known != pid || lineage.is_none(),
        }
    }

    /// Somebody closed the file: its holder, or one who tried in vain.
    fn let_go(&mut self) {
        self.poked = Instant::now();
        self.closed = Some(self.poked);
        self.holder = Holder::Unknown;
    }
}

impl State {
    /// A path's entry; none when too much is remembered already.
    pub(super) fn entry(&mut self, base: &str) -> Option<&mut Entry> {
        if self.paths.len() >= PATHS && !self.paths.contains_key(base) {
            detail!(base = base, "too many locks are watched: who makes this path stays unknown");
            return None;
        }
        Some(self.paths.entry(base.to_owned()).or_default())
    }

    /// Takes in one event. All that happened before a file is opened by `pin`
    /// is taken in before the next look: so a file that was not the try's own
    /// is never looked at on its behalf.
    pub(super) fn happened(&mut self, base: &str, what: Happened, pin: impl Fn() -> Option<Pin>) {
        match what {
            Happened::Created => self.begun(base, false, pin),
            Happened::Opened => {
                if !self.paths.get(base).is_some_and(|e| e.tries.iter().any(|t| t.removed.is_none())) {
                    return; // one that was removed before, or left from before our time
                }
                self.poke(base, pin);
            }
            Happened::Closed => {
                if let Some(open) = self.open(base) {
                    open.let_go();
                    if open.is_unsettled() {
                        self.unsettle(base);
                    }
                }
            }
            Happened::Removed => {
                if let Some(ended) = self.open(base) {
                    ended.removed = Some(Instant::now());
                    let there = |p: &Pin| rustix::fs::fstat(&p.file).is_ok_and(|s| s.st_nlink > 0);
                    if ended.pin.take().is_some_and(|pin| there(&pin)) {
                        // It was the next try's file already.
                        ended.holder = Holder::Unknown;
                    }
                }
            }
        }
    }

    /// A lock file is there.
    pub(super) fn begun(&mut self, base: &str, scanned: bool, pin: impl Fn() -> Option<Pin>) {
        let Some(entry) = self.entry(base) else { return };
        let known = entry.tries.iter_mut().find(|t| t.removed.is_none());
        if let Some(known) = known {
            if known.scanned || scanned {
                known.scanned = scanned;
                return self.poke(base, pin);
            }
            // Its end was not told.
            known.removed = Some(Instant::now());
            known.holder = Holder::Unknown;
            known.pin = None;
        }
        if entry.tries.len() < TRIES {
            entry.tries.push(Attempt::new(scanned));
        }
        self.poke(base, pin);
    }

    fn open(&mut self, base: &str) -> Option<&mut Attempt> {
        self.paths.get_mut(base)?.tries.iter_mut().find(|t| t.removed.is_none())
    }

    /// Somebody may take the lock now.
    fn poke(&mut self, base: &str, pin: impl Fn() -> Option<Pin>) {
        let Some(open) = self.open(base) else { return };
        if matches!(open.holder, Holder::Seen(_, Some(_))) {
            return; // it is held; when that ends, that is told
        }
        open.poked = Instant::now();
        if open.pin.is_none() {
            open.pin = pin();
        }
        if open.pin.is_some() {
            self.unsettle(base);
        }
    }

    fn unsettle(&mut self, base: &str) {
        if !self.unsettled.iter().any(|known| known == base) {
            self.unsettled.push(base.to_owned());
        }
    }

    /// Lets go of what is settled, and of files that nobody takes: when
    /// somebody does, that is told.
    pub(super) fn tidy(&mut self, now: Instant) {
        let mut unsettled = std::mem::take(&mut self.unsettled);
        unsettled.retain(|base| {
            let Some(open) = self.open(base).filter(|t| t.is_unsettled()) else { return false };
            let fresh = now.duration_since(open.poked) < FRESH;
            if !fresh {
                open.pin = None;
            }
            fresh
        });
        self.unsettled = unsettled;
    }

    /// Until when to wait for the next look without being told anything.
    pub(super) fn pause(&mut self, now: Instant) -> Option<Duration> {
        let bases = std::mem::take(&mut self.unsettled);
        let ages = bases.iter().filter_map(|base| Some(now.duration_since(self.open(base)?.poked)));
        let pause = ages.map(|age| if age < EAGER { Duration::ZERO } else { (age / 2).min(OFTEN) }).min();
        self.unsettled = bases;
        pause
    }
}
