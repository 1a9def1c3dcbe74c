//! What happens to a newly valid path: to which cache, and whether at all.
//! Pure, apart from the facts about caches that discovery fills in.

use std::sync::{Arc, PoisonError, RwLock};

use crate::config::{Filter, Origin as Wanted};
use crate::ledger::PushState;
use crate::store::{Origin, PathInfo};

/// What each cache told about itself, by its number.
#[derive(Debug, Clone, Default)]
pub(super) struct Facts(Arc<RwLock<Vec<Vec<String>>>>);

impl Facts {
    pub(super) fn new(caches: usize) -> Self {
        Self(Arc::new(RwLock::new(vec![Vec::new(); caches])))
    }

    /// The names of the keys whose signatures mean "an upstream cache has it".
    pub(super) fn set_upstream(&self, cache: u16, keys: Vec<String>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let cache = usize::from(cache);
        // Caches may be added while the daemon runs.
        if all.len() <= cache {
            all.resize(cache + 1, Vec::new());
        }
        all[cache] = keys;
    }

    /// Whether an upstream cache of this one has the path, by its signatures.
    pub(super) fn in_upstream(&self, cache: u16, info: &PathInfo) -> bool {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = all.get(usize::from(cache)) else { return false };
        // A signature reads `<key name>:<base64>` (Nix, src/libstore/crypto.cc).
        let signed =
            |key: &String| info.sigs.iter().any(|s| s.split_once(':').is_some_and(|(k, _)| k == key));
        keys.iter().any(signed)
    }
}

/// How a newly valid path enters the ledger, before anybody refers to it.
pub(super) fn enters_as(filter: &Filter, upstream: bool, info: &PathInfo) -> PushState {
    let origin = match info.origin() {
        Origin::Built => Wanted::Built,
        Origin::Substituted => Wanted::Substituted,
        Origin::Source => Wanted::Source,
        Origin::Derivation => Wanted::Derivation,
    };
    if !filter.admits(info.path.name(), origin, info.nar_size) {
        PushState::Skipped
    } else if upstream {
        PushState::Upstream
    } else {
        PushState::Pending
    }
}
