//! The upstream caches of each cache: by the keys that they sign with. Discovery
//! fills them in. Must not know who asks.

use std::sync::{Arc, PoisonError, RwLock};

use crate::store::PathInfo;

/// What each cache told about itself, by its number.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct UpstreamKeys(Arc<RwLock<Vec<Vec<String>>>>);

impl UpstreamKeys {
    pub(in crate::daemon) fn new(caches: usize) -> Self {
        Self(Arc::new(RwLock::new(vec![Vec::new(); caches])))
    }

    /// The names of the keys whose signatures mean "an upstream cache has it".
    pub(in crate::daemon) fn set_upstream(&self, cache: u16, keys: Vec<String>) {
        let mut all = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let cache = usize::from(cache);
        // Caches may be added while the daemon runs.
        if all.len() <= cache {
            all.resize(cache + 1, Vec::new());
        }
        all[cache] = keys;
    }

    /// Whether an upstream cache of this one has the path, by its signatures.
    pub(in crate::daemon) fn in_upstream(&self, cache: u16, info: &PathInfo) -> bool {
        let all = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let Some(keys) = all.get(usize::from(cache)) else { return false };
        // A signature reads `<key name>:<base64>` (Nix, src/libstore/crypto.cc).
        let signed =
            |key: &String| info.sigs.iter().any(|s| s.split_once(':').is_some_and(|(k, _)| k == key));
        keys.iter().any(signed)
    }
}
