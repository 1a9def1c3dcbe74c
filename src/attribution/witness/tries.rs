//! What is remembered of each path's tries. Must not know where it comes from.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::lineage::Lineage;
use super::super::proc::ProcId;
use super::super::windows::Maker;
use crate::observe::detail;

/// Paths that are remembered.
pub(super) const PATHS: usize = 16_384;
/// Tries at one path that are remembered.
pub(super) const TRIES: usize = 8;
/// A lock file is made first and locked then: so long it is looked for a holder…
const FRESH: Duration = Duration::from_millis(20);
/// … so often.
const AGAIN: Duration = Duration::from_micros(200);
/// How often held locks are looked at, for those that change hands.
const HELD: Duration = Duration::from_millis(25);
/// And lock files that nobody holds: Nix lets go of one while it waits for a
/// build slot, and takes it again without an event.
const LEFT: [(Duration, Duration); 3] = [
    (Duration::from_secs(60), Duration::from_millis(10)),
    (Duration::from_secs(3600), Duration::from_millis(250)),
    (Duration::MAX, Duration::from_secs(2)),
];

#[derive(Default)]
pub(super) struct State {
    pub(super) paths: HashMap<String, Entry>,
    pub(super) lineages: HashMap<ProcId, Arc<Lineage>>,
    /// The store's, in the kernel's words.
    pub(super) device: Option<(u32, u32)>,
    /// How many orders are done with.
    pub(super) done: u64,
}

#[derive(Default)]
pub(super) struct Entry {
    pub(super) tries: Vec<Try>,
    pub(super) hook: Option<(Maker, Instant)>,
}

/// Which file a lock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Inode {
    /// Not looked at yet.
    Unread,
    /// This one.
    Is(u64),
    /// It was gone when it was looked at: who held it stays unknown.
    Missed,
}

/// One lock file's life.
pub(super) struct Try {
    /// Of the lock file.
    pub(super) inode: Inode,
    /// Who held it last, and what that descends from, if that can be known.
    pub(super) holder: Option<(i32, Option<Arc<Lineage>>)>,
    pub(super) seen: Instant,
    pub(super) removed: Option<Instant>,
    /// Found before it was told.
    pub(super) scanned: bool,
}

impl Try {
    pub(super) fn is_open(&self) -> bool {
        self.removed.is_none() && self.inode != Inode::Missed
    }

    /// A lock file is made first and locked then.
    pub(super) fn is_awaited(&self) -> bool {
        self.is_open() && self.holder.is_none() && self.seen.elapsed() < FRESH
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

    pub(super) fn created(&mut self, base: &str, scanned: bool) {
        let Some(entry) = self.entry(base) else { return };
        if let Some(known) = entry.tries.iter_mut().find(|t| t.scanned && t.removed.is_none()) {
            known.scanned = scanned;
        } else if entry.tries.len() < TRIES {
            let (inode, seen) = (Inode::Unread, Instant::now());
            entry.tries.push(Try { inode, holder: None, seen, removed: None, scanned });
        }
    }

    pub(super) fn open(&self) -> impl Iterator<Item = &Try> {
        self.paths.values().flat_map(|e| &e.tries).filter(|t| t.is_open())
    }

    /// Until when to wait for the next look without being told anything.
    pub(super) fn pause(&self) -> Duration {
        let wait = |t: &Try| match &t.holder {
            Some(_) => HELD,
            None if t.is_awaited() => AGAIN,
            None => {
                let age = t.seen.elapsed();
                LEFT.iter().find(|(until, _)| age < *until).map_or(HELD, |(_, wait)| *wait)
            }
        };
        self.open().map(wait).min().unwrap_or(Duration::from_secs(3600))
    }
}
