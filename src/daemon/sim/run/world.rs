//! The world of a run: the Nix store, the caches and the users, as the calls of the
//! ledger, too, may change them. Must not know the daemon.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::time::Instant;

use super::super::caches::{Cache, short};
use super::super::checks::hash;
use super::super::jobs::{Job, UIDS, cache_of};
use super::super::store::{Made, Store};
use super::super::trace::{Moment, Rng, Trace};
use super::PIDS;
use super::acts::Emphasis;
use crate::attribution::{Lineage, LockWatcher, ProcId};
use crate::control::messages::Outcome;

/// Which faults a run has, drawn from its seed.
#[derive(Debug, Clone, Copy)]
pub(super) struct Faults {
    pub(super) crashes: bool,
    pub(super) stops: bool,
    pub(super) outages: bool,
    pub(super) deletions: bool,
    pub(super) collections: bool,
    pub(super) rollbacks: bool,
    pub(super) no_database: bool,
    pub(super) slow_ledger: bool,
    pub(super) anchors_end: bool,
    pub(super) callers_leave: bool,
    pub(super) interleaved: bool,
    pub(super) reloads: bool,
    pub(super) disk_full: bool,
    pub(super) power_cuts: bool,
    /// Other hosts push paths.
    pub(super) other_hosts: bool,
}

impl Faults {
    pub(super) fn draw(rng: &mut Rng) -> Self {
        let mut some = || rng.one_in(2);
        Self {
            crashes: some(),
            stops: some(),
            outages: some(),
            deletions: some(),
            collections: some(),
            rollbacks: some() && some(),
            no_database: some() && some(),
            slow_ledger: some(),
            anchors_end: some(),
            callers_leave: some(),
            interleaved: some(),
            reloads: some(),
            disk_full: some() && some(),
            power_cuts: some() && some(),
            other_hosts: some(),
        }
    }
}

/// What the ledger's calls, too, may act on.
pub(super) struct World {
    pub(super) store: Store,
    pub(super) caches: Vec<Cache>,
    pub(super) jobs: Vec<Job>,
    pub(super) rng: Rng,
    pub(super) trace: Trace,
    pub(super) seen: BTreeMap<&'static str, u64>,
    pub(super) origin: Instant,
    pub(super) faults: Faults,
    pub(super) emphasis: Emphasis,
    /// The world does not act between calls of the ledger any more.
    pub(super) calm: bool,
    /// The daemon is to be woken up: a path may have become valid.
    pub(super) wake: bool,
    pub(super) fresh: u64,
    /// What the running daemon sees of makers.
    pub(super) lock_watcher: Option<LockWatcher>,
}

impl World {
    pub(super) fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap()
    }

    pub(super) fn moment(&self) -> Moment {
        Moment { ms: self.now(), line: self.trace.lines() }
    }

    pub(super) fn line(&mut self, text: &str) {
        let now = self.now();
        self.trace.line(now, text);
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// A build: one path becomes valid, made by a job or by nobody's job.
    pub(super) fn build(&mut self) {
        let running: Vec<usize> = (0..self.jobs.len()).filter(|n| !self.jobs[*n].dead).collect();
        let job = if self.rng.one_in(3) { None } else { self.rng.pick(&running).copied() };
        self.build_with(job, None, None);
    }

    /// A build of this job, or of nobody's by this user, with these references; what is not
    /// said is drawn. Returns the path, unless one that is built again lacks a reference.
    pub(super) fn build_with(
        &mut self,
        job: Option<usize>,
        user: Option<u32>,
        fixed: Option<BTreeSet<String>>,
    ) -> Option<String> {
        let of_job = job.map(|job| self.jobs[job].uid);
        let maker = of_job.or(user).unwrap_or_else(|| UIDS[self.rng.index(UIDS.len())]);
        // Without a daemon nobody sees who holds a lock.
        let seen = (fixed.is_some() || !self.rng.one_in(4)) && self.lock_watcher.is_some();
        let valid = self.store.valid();
        let is_new = fixed.is_some();
        let mut references = fixed.unwrap_or_default();
        references.retain(|base| self.store.made.get(base).is_some_and(|made| made.valid));
        for _ in 0..if is_new { 0 } else { self.rng.below(4) } {
            // Often a new one, so that there are chains: names are in the order of the builds.
            let from = if self.rng.one_in(2) { 0 } else { valid.len().saturating_sub(4) };
            references.extend(self.rng.pick(&valid[from..]).cloned());
        }
        // Most builds are new; some make a path again that was collected.
        let gone: Vec<String> =
            self.store.made.iter().filter(|(_, made)| !made.valid).map(|(base, _)| base.clone()).collect();
        let again = if !is_new && self.rng.one_in(5) { self.rng.pick(&gone).cloned() } else { None };
        let base = again.unwrap_or_else(|| self.store.new_name());
        if let Some(before) = self.store.made.get(&base) {
            references = before.references.iter().filter(|r| self.store.made[*r].valid).cloned().collect();
            if references.len() < before.references.len() {
                return None;
            }
        }
        // Users who surely have an open session, and those who may have one.
        let is_open = |job: &&Job| job.id.is_some() && !job.finished && !job.end_asked && !job.dead;
        let open: BTreeSet<u32> = self.jobs.iter().filter(is_open).map(|job| job.uid).collect();
        let mut allowed: BTreeSet<u16> =
            self.store.made.get(&base).map(|made| made.allowed.clone()).unwrap_or_default();
        allowed.extend(if seen { vec![cache_of(maker)] } else { self.caches_of_nobody() });
        let before = self.store.made.get(&base).map_or_else(Vec::new, |made| {
            let mut before = made.before.clone();
            before.push((made.seen, made.open.clone()));
            before
        });
        let made = Made {
            references: references.into_iter().collect(),
            seen: seen.then_some(maker),
            maker,
            job,
            allowed,
            row: 0,
            at: self.moment(),
            valid: true,
            open,
            before,
        };
        if seen {
            let anchor = job.and_then(|job| self.jobs[job].anchor);
            let mut line = vec![ProcId { pid: PIDS - 1, start: 1_000_000 }];
            line.extend(anchor.map(|pid| ProcId { pid, start: u64::from(pid.unsigned_abs()) }));
            let lineage = Lineage { line, session: 1, cgroup: None, person: Some((maker, maker)) };
            if let Some(watcher) = &self.lock_watcher {
                watcher.saw(&base, &Arc::new(lineage));
            }
        }
        let size = 100 + self.rng.below(1 << 21);
        let text = format!(
            "world: build {} by {maker} of job {job:?}, seen {seen}, refers to {:?}",
            short(hash(&base)),
            made.references.iter().map(|r| short(hash(r))).collect::<Vec<_>>()
        );
        self.store.register(&base, made, size);
        if self.rng.one_in(30) {
            let cache = self.rng.index(self.caches.len());
            self.caches[cache].too_large.insert(hash(&base).to_owned());
        }
        self.line(&text);
        self.count("builds");
        self.wake = true;
        Some(base)
    }

    /// Some builds at once. `backed_up`: the Nix database is backed up in between.
    pub(super) fn builds(&mut self, backed_up: bool) {
        for _ in 0..1 + self.rng.below(3) {
            self.build();
        }
        if backed_up {
            self.store.back_up();
            self.line("world: backup of the Nix database");
        }
        for _ in 0..1 + self.rng.below(3) {
            self.build();
        }
    }

    /// The Nix database goes back to its last backup.
    pub(super) fn go_back(&mut self) {
        if let Some(removed) = self.store.roll_back() {
            self.line(&format!("world: the Nix database goes back, {} paths", removed.len()));
            self.count("rollbacks");
            self.wake = true;
        }
    }

    /// The Nix database goes back to its last backup, or is backed up for that.
    pub(super) fn back_up_or_go_back(&mut self) {
        if self.emphasis.rollbacks && !self.store.is_backed_up() {
            return self.builds(true);
        }
        if !self.emphasis.rollbacks && self.rng.one_in(2) {
            self.store.back_up();
            self.line("world: backup of the Nix database");
        } else if self.store.is_backed_up() {
            self.go_back();
            if self.emphasis.rollbacks && self.rng.one_in(2) {
                // Their numbers are given again before the daemon looks.
                self.builds(false);
            }
        }
    }

    /// Caches that a path may go to whose maker was not seen.
    pub(super) fn caches_of_nobody(&self) -> Vec<u16> {
        // The window of a session may be open until its end has been answered with everything.
        // A power cut may have opened it again.
        let over = |job: &Job| {
            !job.may_be_lost && job.ended.as_ref().is_some_and(|end| end.outcome != Outcome::Pending)
        };
        let sessions = self.jobs.iter().filter(|job| !over(job)).map(|job| cache_of(job.uid));
        sessions.chain([0]).collect()
    }

    /// The daemon has ended: what it knew of the makers of rows that it has not read is lost.
    pub(super) fn forget_makers(&mut self, cursor: i64) {
        self.lock_watcher = None;
        let caches = self.caches_of_nobody();
        let read = self.store.read_up_to(cursor);
        for made in self.store.made.values_mut().filter(|made| made.row > read) {
            // It may have been taken in with its maker, without the cursor.
            made.before.push((made.seen, made.open.clone()));
            made.seen = None;
            made.allowed.extend(caches.iter().copied());
        }
    }

    pub(super) fn collect(&mut self) -> Vec<String> {
        let kept = self.store.roots();
        let mut rng = self.rng.clone();
        let removed = self.store.collect(&kept, |_| rng.one_in(2));
        self.rng = rng;
        let names: Vec<String> = removed.iter().map(|base| short(hash(base))).collect();
        self.line(&format!("world: collection removes {names:?}"));
        self.count("collections");
        removed
    }

    /// Another host pushes a valid path, with its closure or, as some clients do, without.
    pub(super) fn other_host_pushes(&mut self) {
        let cache = self.rng.index(self.caches.len());
        let valid = self.store.valid();
        // Mostly a new one, which this host may be about to push: names are in the order of the builds.
        let from = if self.rng.one_in(3) { 0 } else { valid.len().saturating_sub(3) };
        let Some(base) = self.rng.pick(&valid[from..]).cloned() else { return };
        let parts = if self.rng.one_in(2) { self.store.closure(&base) } else { BTreeSet::from([base]) };
        let names: Vec<String> = parts.iter().map(|base| short(hash(base))).collect();
        self.caches[cache].has.extend(parts.iter().map(|base| hash(base).to_owned()));
        self.line(&format!("world: another host pushes {names:?} to cache {cache}"));
        self.count("pushes of other hosts");
    }

    /// A cache deletes some paths, or all.
    pub(super) fn delete(&mut self, cache: usize) {
        let all = self.rng.one_in(3);
        let mut rng = self.rng.clone();
        let deleted = self.caches[cache].delete(|| all || rng.one_in(3));
        self.rng = rng;
        self.line(&format!("world: cache {cache} deletes {} paths", deleted.len()));
        if self.emphasis.deletions && self.rng.one_in(3) {
            // It does not take one of them again.
            self.caches[cache].too_large.extend(self.rng.pick(&deleted).cloned());
        }
        self.count("deletions");
    }

    /// What may happen between two calls of the ledger.
    pub(super) fn interfere(&mut self) {
        if self.calm || !self.faults.interleaved || !self.rng.one_in(12) {
            return;
        }
        self.count("events within a turn");
        if self.faults.collections && self.rng.one_in(2) {
            self.collect();
        } else {
            self.build();
        }
    }
}

pub(super) type Shared = Arc<Mutex<World>>;

pub(super) fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}
