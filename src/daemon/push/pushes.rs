//! The pushes that the decisions know: what each number stands for, and how its
//! last upload failed. Must not know how uploads are carried out.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::log_groups::LogGroups;
use super::records;
use super::settlements::{Settlement, Settlements};
use super::transfer::Running;
use crate::control::messages::UploadStatus;
use crate::daemon::gc_roots::GcRoots;
use crate::daemon::inbox::{DbRow, FoundPath};
use crate::ledger::{Ledger, Steps};
use crate::types::{CacheId, Mono, PushId, StoreDir, StorePath, Wall, millis};

/// A push that is not settled.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) path: StorePath,
    pub(super) cache: CacheId,
    /// Its row in the Nix database.
    row: DbRow,
    /// The size of its NAR, in bytes.
    nar_size: u64,
    /// The ledger has it as confirmed, and the cache is asked whether that is still so.
    pub(super) recheck: bool,
    /// The ledger had it as confirmed when it was taken in.
    pub(super) was_confirmed: bool,
    /// Whether one protection from garbage collection is this push's.
    pub(super) protected: bool,
    /// When the cache was asked that has its whole closure.
    confirmed: Option<Mono>,
    /// When it was taken in, in ms since 1970; 0 if it is not known.
    pub(super) seen_at: i64,
    pub(super) steps: Steps,
    /// The upstream cache that has answered that it has the path.
    pub(super) upstream: Option<Arc<str>>,
    /// The number of uploads so far.
    pub(super) attempts: u32,
    /// The last error. Thousands of pushes may share one.
    pub(super) error: Option<Arc<PushError>>,
}

impl Push {
    fn sized(&self) -> (StorePath, u64) {
        (self.path.clone(), self.nar_size)
    }
}

/// Why a question or upload went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PushError {
    /// One of the error classes of the protocol.
    pub(super) class: String,
    pub(super) text: String,
}

impl PushError {
    pub(super) fn new(class: &str, text: impl Into<String>) -> Self {
        Self { class: class.to_owned(), text: text.into() }
    }
}

/// All of them. Their number is bounded by the intake.
pub(in crate::daemon) struct Pushes {
    pub(super) by_id: HashMap<PushId, Push>,
    /// For each cache, how many of them the ledger has as confirmed.
    rechecks: HashMap<CacheId, usize>,
    pub(super) ledger: Ledger,
    pub(super) gc_roots: GcRoots,
    pub(super) store_dir: StoreDir,
    pub(super) log: LogGroups,
    settlements: Settlements,
}

impl Pushes {
    /// Records outcomes in `ledger`, tells `gc_roots` which paths are pending, and the
    /// intake by `settlements` which pushes are no longer known.
    pub(in crate::daemon) fn new(
        ledger: Ledger,
        gc_roots: GcRoots,
        store_dir: StoreDir,
        settlements: Settlements,
    ) -> Self {
        let (by_id, rechecks) = (HashMap::new(), HashMap::new());
        Self { by_id, rechecks, ledger, gc_roots, store_dir, log: LogGroups::default(), settlements }
    }

    /// Remembers pushes to a cache, with the reasons of those that failed earlier.
    /// `wanted`: those that are to be in the cache; the intake has protected each of their
    /// paths once for this. `rechecks`: those that the ledger has as confirmed; one that is
    /// known already stays what it is.
    pub(in crate::daemon) fn add(
        &mut self,
        cache: CacheId,
        paths: Vec<FoundPath>,
        reasons: Vec<(PushId, String, String)>,
        wanted: &[PushId],
        rechecks: &HashSet<PushId>,
    ) {
        for FoundPath { push, row, path, nar_size, seen_at } in paths {
            let recheck = rechecks.contains(&push);
            let new = Push {
                path,
                cache,
                row,
                nar_size,
                recheck,
                was_confirmed: recheck,
                protected: false,
                confirmed: None,
                seen_at,
                steps: Steps::default(),
                upstream: None,
                attempts: 0,
                error: None,
            };
            let before = self.by_id.len();
            // A path that was collected and is valid again has another row.
            self.by_id.entry(push).or_insert(new).row = row;
            if recheck && self.by_id.len() > before {
                *self.rechecks.entry(cache).or_default() += 1;
            }
        }
        for id in wanted {
            if let Some(push) = self.by_id.get_mut(id)
                && std::mem::replace(&mut push.protected, true)
            {
                // It had a protection already.
                self.gc_roots.release(cache.0, push.path.clone());
            }
        }
        for (id, class, text) in reasons {
            if let Some(push) = self.by_id.get_mut(&id) {
                push.error = Some(Arc::new(PushError { class, text }));
            }
        }
    }

    /// The paths of these pushes, without those that are not known.
    pub(in crate::daemon) fn paths(&self, pushes: Vec<PushId>) -> Vec<(PushId, StorePath)> {
        pushes.into_iter().filter_map(|id| Some((id, self.by_id.get(&id)?.path.clone()))).collect()
    }

    /// The cache that a push goes to.
    pub(in crate::daemon) fn cache_of(&self, push: PushId) -> Option<CacheId> {
        Some(self.by_id.get(&push)?.cache)
    }

    /// Notes that an upload begins, and returns the path to upload.
    pub(in crate::daemon) fn begin(&mut self, push: PushId, attempt: u32) -> Option<StorePath> {
        let known = self.by_id.get_mut(&push)?;
        known.attempts = attempt;
        known.steps.begun_at = Wall::now().0;
        self.ledger.uploading(push, attempt);
        Some(known.path.clone())
    }

    /// A running upload as `status` shows it.
    pub(in crate::daemon) fn upload_status(
        &self,
        id: PushId,
        running: &Running,
        name: impl Fn(CacheId) -> String,
    ) -> Option<UploadStatus> {
        let push = self.by_id.get(&id)?;
        Some(UploadStatus {
            path: self.store_dir.full(&push.path),
            cache: name(push.cache),
            nar_size: push.nar_size,
            sent: running.sent(),
            running_ms: millis(running.elapsed()),
            attempt: push.attempts,
            measured: running.is_measured(),
        })
    }

    /// Notes that the cache has answered whether it has these paths.
    pub(in crate::daemon) fn asked(&mut self, pushes: &[PushId]) {
        let now = Wall::now().0;
        for id in pushes {
            if let Some(push) = self.by_id.get_mut(id) {
                push.steps.asked_at = now;
            }
        }
    }

    /// How many pushes to a cache the ledger has as confirmed: they are asked about again,
    /// and are not to be uploaded as far as anybody knows.
    pub(in crate::daemon) fn rechecks(&self, cache: CacheId) -> usize {
        self.rechecks.get(&cache).copied().unwrap_or_default()
    }

    /// For each cache, when the oldest push was taken in for which `pending` is true, in
    /// ms since 1970. Pushes that are only asked about again do not count.
    pub(in crate::daemon) fn oldest(&self, pending: impl Fn(PushId) -> bool) -> HashMap<CacheId, i64> {
        let mut oldest: HashMap<CacheId, i64> = HashMap::new();
        for (id, push) in &self.by_id {
            if !push.recheck && push.seen_at > 0 && pending(*id) {
                let at = oldest.entry(push.cache).or_insert(push.seen_at);
                *at = push.seen_at.min(*at);
            }
        }
        oldest
    }

    /// Notes that the cache has the whole closure of a push that is about to settle.
    pub(in crate::daemon) fn confirmed(&mut self, id: PushId, at: Mono) {
        if let Some(push) = self.by_id.get_mut(&id) {
            push.confirmed = Some(at);
        }
    }

    /// Notes that confirmed pushes are pending again: the cache has deleted their
    /// paths, or somebody is answered before it is known.
    pub(in crate::daemon) fn unconfirm(&mut self, pushes: &[PushId]) {
        self.ledger.unconfirm(pushes);
        let mut paths: HashMap<CacheId, Vec<(StorePath, u64)>> = HashMap::new();
        for id in pushes {
            if let Some(push) = self.by_id.get_mut(id) {
                if std::mem::take(&mut push.recheck) {
                    *self.rechecks.entry(push.cache).or_default() -= 1;
                }
                if !std::mem::replace(&mut push.protected, true) {
                    paths.entry(push.cache).or_default().push(push.sized());
                }
            }
        }
        for (cache, paths) in paths {
            self.gc_roots.keep(cache.0, paths);
        }
    }

    /// Tells the intake that the cache has deleted paths.
    pub(in crate::daemon) fn distrust(&self, cache: CacheId) {
        self.settlements.post(Settlement::Distrust(cache));
    }

    /// Forgets a push and tells the intake so.
    pub(super) fn take(&mut self, id: PushId) -> Option<Push> {
        let push = self.by_id.remove(&id)?;
        let Push { cache, row, confirmed, recheck, .. } = push;
        if recheck {
            *self.rechecks.entry(cache).or_default() -= 1;
        }
        self.settlements.post(Settlement::Settled { cache, row, confirmed });
        Some(push)
    }

    /// Notes that failed pushes are tried again.
    pub(in crate::daemon) fn reopen(&mut self, push: PushId) {
        self.ledger.reopen(&[push]);
        if let Some(push) = self.by_id.get_mut(&push) {
            if !std::mem::replace(&mut push.protected, true) {
                self.gc_roots.keep(push.cache.0, vec![push.sized()]);
            }
            self.gc_roots.forget_failed(push.cache.0, push.path.clone());
        }
    }

    /// The pushes that are to be in a cache and for which `which` is true.
    #[cfg(test)]
    pub(in crate::daemon) fn wanted(&self, which: impl Fn(PushId) -> bool) -> Vec<(PushId, StorePath)> {
        let wanted = self.by_id.iter().filter(|(id, push)| !push.recheck && which(**id));
        let mut wanted: Vec<_> = wanted.map(|(id, push)| (*id, push.path.clone())).collect();
        wanted.sort_unstable();
        wanted
    }

    /// Forgets a failed push. The ledger keeps it.
    pub(in crate::daemon) fn forget(&mut self, push: PushId) {
        self.take(push);
    }

    /// Path, error class and error text of up to `most` of the pushes for which
    /// `failed` is true.
    pub(in crate::daemon) fn failures(
        &self,
        failed: impl Fn(PushId) -> bool,
        most: usize,
    ) -> Vec<(String, String, String)> {
        let failed = self.by_id.iter().filter(|(id, _)| failed(**id));
        let failed = failed.filter_map(|(_, push)| Some((push, push.error.as_deref()?))).take(most);
        failed.map(|(p, e)| (self.store_dir.full(&p.path), e.class.clone(), e.text.clone())).collect()
    }

    /// Records a failed push.
    pub(super) fn record_failed(&mut self, id: PushId, error: &PushError) {
        let Some(push) = self.by_id.get_mut(&id) else { return };
        self.ledger.settle(id, records::failed(&error.class, error.text.clone(), push.attempts, push.steps));
        if std::mem::take(&mut push.protected) {
            self.gc_roots.keep_failed(push.cache.0, push.path.clone());
        }
    }
}
