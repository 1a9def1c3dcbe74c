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
use crate::flow::{Outcome, PushTable};
use crate::ledger::{Ledger, Steps};
use crate::types::{CacheId, Mono, PushId, StoreDir, StorePath, Wall, millis};

/// A push that is not settled. There may be a hundred thousand of them, so what most of
/// them do not have yet is boxed.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) path: StorePath,
    /// Its row in the Nix database, and the row's generation: a [`DbRow`] without padding.
    row: i64,
    generation: u32,
    pub(super) cache: CacheId,
    pub(super) recorded: Recorded,
    /// Whether one protection from garbage collection is this push's.
    pub(super) protected: bool,
    /// The size of its NAR, in bytes.
    nar_size: u64,
    /// When it was taken in, in ms since 1970; 0 if it is not known.
    pub(super) seen_at: i64,
    /// When the cache last answered whether it has the path, in ms since 1970; 0: not yet.
    asked_at: i64,
    tries: Option<Box<Tries>>,
}

/// Whether the ledger has a push as confirmed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// It was not when it was taken in.
    Never,
    /// It was then, and is not any more.
    Earlier,
    /// It is, and the cache is asked whether that is still so.
    Now,
}

/// The uploads of a push so far.
#[derive(Debug, Default)]
struct Tries {
    attempts: u32,
    /// When the last one began, in ms since 1970; 0: none has.
    begun_at: i64,
    /// The upstream cache that has answered that it has the path.
    upstream: Option<Arc<str>>,
    /// The last error. Thousands of pushes may share one.
    error: Option<Arc<PushError>>,
}

impl Push {
    fn sized(&self) -> (StorePath, u64) {
        (self.path.clone(), self.nar_size)
    }

    /// Whether the ledger has it as confirmed, and the cache is asked about it again.
    pub(super) fn is_recheck(&self) -> bool {
        self.recorded == Recorded::Now
    }

    fn set_row(&mut self, row: DbRow) {
        (self.generation, self.row) = (row.generation, row.id);
    }

    fn tries(&mut self) -> &mut Tries {
        self.tries.get_or_insert_default()
    }

    /// The number of uploads so far.
    pub(super) fn attempts(&self) -> u32 {
        self.tries.as_ref().map_or(0, |tries| tries.attempts)
    }

    pub(super) fn steps(&self) -> Steps {
        let begun_at = self.tries.as_ref().map_or(0, |tries| tries.begun_at);
        Steps { asked_at: self.asked_at, begun_at }
    }

    /// The upstream cache that has answered that it has the path.
    pub(super) fn upstream(&self) -> Option<&str> {
        self.tries.as_ref()?.upstream.as_deref()
    }

    pub(super) fn set_upstream(&mut self, upstream: Option<Arc<str>>) {
        if upstream.is_some() || self.tries.is_some() {
            self.tries().upstream = upstream;
        }
    }

    /// The last error.
    pub(super) fn error(&self) -> Option<&PushError> {
        self.tries.as_ref()?.error.as_deref()
    }

    pub(super) fn set_error(&mut self, error: Arc<PushError>) {
        self.tries().error = Some(error);
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
    pub(super) by_id: PushTable<Push>,
    /// The push that is about to settle, if the cache has its whole closure, and when the
    /// cache was asked that has it.
    confirmed: Option<(PushId, Mono)>,
    /// For each cache, how many of them the ledger has as confirmed.
    rechecks: HashMap<CacheId, usize>,
    pub(super) ledger: Ledger,
    pub(super) gc_roots: GcRoots,
    pub(super) store_dir: StoreDir,
    pub(super) log: LogGroups,
    pub(super) settlements: Settlements,
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
        let (by_id, rechecks) = (PushTable::default(), HashMap::new());
        let confirmed = None;
        Self {
            by_id,
            confirmed,
            rechecks,
            ledger,
            gc_roots,
            store_dir,
            log: LogGroups::default(),
            settlements,
        }
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
        for FoundPath { push, row, path, nar_size, seen_at, is_new: _ } in paths {
            let recheck = rechecks.contains(&push);
            if let Some(known) = self.by_id.get_mut(&push) {
                // A path that was collected and is valid again has another row.
                known.set_row(row);
                continue;
            }
            let new = Push {
                path,
                row: row.id,
                generation: row.generation,
                cache,
                recorded: if recheck { Recorded::Now } else { Recorded::Never },
                protected: false,
                nar_size,
                seen_at,
                asked_at: 0,
                tries: None,
            };
            self.by_id.insert(push, new);
            if recheck {
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
                push.set_error(Arc::new(PushError { class, text }));
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
        let tries = known.tries();
        (tries.attempts, tries.begun_at) = (attempt, Wall::now().0);
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
            attempt: push.attempts(),
            measured: running.is_measured(),
        })
    }

    /// Notes that the cache has answered whether it has these paths.
    pub(in crate::daemon) fn asked(&mut self, pushes: &[PushId]) {
        let now = Wall::now().0;
        for id in pushes {
            if let Some(push) = self.by_id.get_mut(id) {
                push.asked_at = now;
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
        for (id, push) in self.by_id.iter() {
            if !push.is_recheck() && push.seen_at > 0 && pending(id) {
                let at = oldest.entry(push.cache).or_insert(push.seen_at);
                *at = push.seen_at.min(*at);
            }
        }
        oldest
    }

    /// Notes that the cache has the whole closure of a push that is about to settle.
    pub(in crate::daemon) fn confirmed(&mut self, id: PushId, at: Mono) {
        self.confirmed = Some((id, at));
    }

    /// Notes that confirmed pushes are pending again: the cache has deleted their
    /// paths, or somebody is answered before it is known.
    pub(in crate::daemon) fn unconfirm(&mut self, pushes: &[PushId]) {
        self.ledger.unconfirm(pushes);
        let mut paths: HashMap<CacheId, Vec<(StorePath, u64)>> = HashMap::new();
        for id in pushes {
            if let Some(push) = self.by_id.get_mut(id) {
                if push.is_recheck() {
                    push.recorded = Recorded::Earlier;
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

    /// Tells the intake that the cache has deleted paths that it had before this time.
    pub(in crate::daemon) fn distrust(&self, cache: CacheId, before: Mono) {
        self.settlements.post(Settlement::Distrust(cache, before));
    }

    /// Forgets a push and tells the intake so, and if it is settled how. Then the ledger has been
    /// sent that before.
    pub(super) fn take(&mut self, id: PushId, outcome: Option<Outcome>) -> Option<Push> {
        let confirmed = self.confirmed.take().filter(|(push, _)| *push == id).map(|(_, at)| at);
        let push = self.by_id.remove(&id)?;
        let cache = push.cache;
        if push.is_recheck() {
            *self.rechecks.entry(cache).or_default() -= 1;
        }
        let row = DbRow { generation: push.generation, id: push.row };
        self.settlements.post(Settlement::Settled { push: id, cache, row, outcome, confirmed });
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

    /// The pushes that are to be in a cache, in no order.
    #[cfg(test)]
    pub(in crate::daemon) fn wanted(&self) -> impl Iterator<Item = (PushId, &StorePath)> {
        self.by_id.iter().filter(|(_, push)| !push.is_recheck()).map(|(id, push)| (id, &push.path))
    }

    /// The base name of the push's path.
    #[cfg(test)]
    pub(in crate::daemon) fn base(&self, push: PushId) -> Option<&str> {
        self.by_id.get(&push).map(|push| push.path.base())
    }

    /// Forgets a failed push. The ledger keeps it.
    pub(in crate::daemon) fn forget(&mut self, push: PushId) {
        self.take(push, None);
    }

    /// Path, error class and error text of up to `most` of the pushes for which
    /// `failed` is true.
    pub(in crate::daemon) fn failures(
        &self,
        failed: impl Fn(PushId) -> bool,
        most: usize,
    ) -> Vec<(String, String, String)> {
        let failed = self.by_id.iter().filter(|(id, _)| failed(*id));
        let failed = failed.filter_map(|(_, push)| Some((push, push.error()?))).take(most);
        failed.map(|(p, e)| (self.store_dir.full(&p.path), e.class.clone(), e.text.clone())).collect()
    }

    /// Records a failed push.
    pub(super) fn record_failed(&mut self, id: PushId, error: &PushError) {
        let Some(push) = self.by_id.get_mut(&id) else { return };
        let record = records::failed(&error.class, error.text.clone(), push.attempts(), push.steps());
        self.ledger.settle(id, record);
        if std::mem::take(&mut push.protected) {
            self.gc_roots.keep_failed(push.cache.0, push.path.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A backlog of a hundred thousand pushes is to stay small.
    #[test]
    fn a_push_is_small() {
        assert!(size_of::<Push>() <= 64, "{} bytes", size_of::<Push>());
    }
}
