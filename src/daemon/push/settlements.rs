//! What the intake learns of pushes that are no longer with the driver. A board and not
//! a channel, since neither side may wait for the other; it holds at most an entry for
//! each push that was known. Must not know what the intake does with it.

use std::sync::{Arc, Mutex, PoisonError};

use crate::daemon::inbox::DbRow;
use crate::types::{CacheId, Mono};

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Settlement {
    /// The push of this row is settled or forgotten.
    Settled {
        cache: CacheId,
        /// The row of the Nix database.
        row: DbRow,
        /// When the question or upload began that showed the cache to have the whole
        /// closure, if one did.
        confirmed: Option<Mono>,
    },
    /// The cache has deleted paths that it had.
    Distrust(CacheId),
}

/// The board. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct Settlements(Arc<Mutex<Vec<Settlement>>>);

impl Settlements {
    pub(in crate::daemon) fn post(&self, settlement: Settlement) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(settlement);
    }

    /// Takes all entries, oldest first.
    pub(in crate::daemon) fn take(&self) -> Vec<Settlement> {
        std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
