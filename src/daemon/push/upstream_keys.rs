//! The signing keys of a cache's upstream caches. Discovery fills them in. Must not
//! know who asks for them.

use std::sync::{Arc, PoisonError, RwLock};

use crate::store::PathInfo;

/// The names of the keys that the upstream caches of one cache sign with. Clones
/// share them. Empty until the cache has answered.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct UpstreamKeys(Arc<RwLock<Vec<String>>>);

impl UpstreamKeys {
    /// Replaces the names.
    pub(in crate::daemon) fn set(&self, keys: Vec<String>) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = keys;
    }

    /// Whether a path has a signature by one of the keys: then an upstream cache
    /// has the path.
    pub(in crate::daemon) fn have_signed(&self, info: &PathInfo) -> bool {
        // A signature is `<key name>:<base64>` (Nix, src/libstore/crypto.cc).
        let signed =
            |key: &String| info.sigs.iter().any(|s| s.split_once(':').is_some_and(|(k, _)| k == key));
        self.0.read().unwrap_or_else(PoisonError::into_inner).iter().any(signed)
    }
}
