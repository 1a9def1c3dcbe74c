//! How many verifications may run at a time, and what they have found since the daemon
//! started.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::cache::FaultKind;

/// Places for verifications, and the counts. Clones share them.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Verifier {
    /// One place for root, the service's user and the timer, so that no other user can
    /// keep them waiting, and one for all others.
    places: [Arc<Semaphore>; 2],
    /// By cache: paths by the word for what was found.
    found: Arc<Mutex<BTreeMap<String, BTreeMap<String, u64>>>>,
}

impl Default for Verifier {
    fn default() -> Self {
        Self { places: [Arc::new(Semaphore::new(1)), Arc::new(Semaphore::new(1))], found: Arc::default() }
    }
}

impl Verifier {
    /// Takes a place, which is free again when the permit is dropped. `None`: another
    /// verification has it. `trusted`: the caller is root or the service's user.
    pub(in crate::daemon) fn begin(&self, trusted: bool) -> Option<OwnedSemaphorePermit> {
        Arc::clone(&self.places[usize::from(trusted)]).try_acquire_owned().ok()
    }

    pub(super) fn count(&self, cache: &str, good: u64, faults: &[FaultKind]) {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let found = found.entry(cache.to_owned()).or_default();
        *found.entry("good".to_owned()).or_default() += good;
        for kind in faults {
            *found.entry(kind.as_str().to_owned()).or_default() += 1;
        }
    }

    /// What was found in a cache.
    pub(in crate::daemon) fn found(&self, cache: &str) -> BTreeMap<String, u64> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).get(cache).cloned().unwrap_or_default()
    }
}
