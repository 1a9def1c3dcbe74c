//! The pushes that the decisions know: what each number stands for, and how its
//! last upload failed. Must not know how uploads are carried out.

use std::collections::HashMap;
use std::sync::Arc;

use super::records;
use crate::daemon::gc_roots::GcRoots;
use crate::ledger::Ledger;
use crate::types::{CacheId, PushId, StoreDir, StorePath};

/// A push that is not settled.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) path: StorePath,
    pub(super) cache: CacheId,
    /// The number of uploads so far.
    pub(super) attempts: u32,
    /// The last error. Thousands of pushes may share one.
    pub(super) error: Option<Arc<PushError>>,
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
    pub(super) ledger: Ledger,
    pub(super) gc_roots: GcRoots,
    pub(super) store_dir: StoreDir,
}

impl Pushes {
    /// Records outcomes in `ledger` and tells `gc_roots` which paths are pending.
    pub(in crate::daemon) fn new(ledger: Ledger, gc_roots: GcRoots, store_dir: StoreDir) -> Self {
        Self { by_id: HashMap::new(), ledger, gc_roots, store_dir }
    }

    /// Remembers pushes to a cache, with the reasons of those that failed earlier.
    /// `active`: those that are tried, so their paths are protected.
    pub(in crate::daemon) fn add(
        &mut self,
        cache: CacheId,
        paths: Vec<(PushId, StorePath)>,
        reasons: Vec<(PushId, String, String)>,
        active: &[PushId],
    ) {
        for (id, path) in paths {
            self.by_id.entry(id).or_insert(Push { path, cache, attempts: 0, error: None });
        }
        for (id, class, text) in reasons {
            if let Some(push) = self.by_id.get_mut(&id) {
                push.error = Some(Arc::new(PushError { class, text }));
            }
        }
        let paths = active.iter().filter_map(|id| Some(self.by_id.get(id)?.path.clone())).collect();
        self.gc_roots.keep(cache.0, paths);
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
        self.ledger.uploading(push, attempt);
        Some(known.path.clone())
    }

    /// Notes that failed pushes are tried again.
    pub(in crate::daemon) fn reopen(&mut self, push: PushId) {
        self.ledger.reopen(&[push]);
        if let Some(push) = self.by_id.get(&push) {
            self.gc_roots.keep(push.cache.0, vec![push.path.clone()]);
        }
    }

    /// Forgets a failed push. The ledger keeps it.
    pub(in crate::daemon) fn forget(&mut self, push: PushId) {
        self.by_id.remove(&push);
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
    pub(super) fn record_failed(&self, id: PushId, push: &Push, error: &PushError) {
        self.ledger.settle(id, records::failed(&error.class, error.text.clone(), push.attempts));
        self.gc_roots.park(push.cache.0, push.path.clone());
    }
}
