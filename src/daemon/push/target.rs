//! A cache as a destination. Must not know its configuration, nor how well it does.

use super::{CacheApi, UpstreamKeys};
use crate::types::{CacheId, CacheName};

/// What questions, uploads and probes need of a cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Target {
    pub(in crate::daemon) id: CacheId,
    /// The cache's name on its server.
    pub(in crate::daemon) name: CacheName,
    pub(in crate::daemon) api: CacheApi,
    pub(in crate::daemon) upstream_keys: UpstreamKeys,
}

impl Target {
    /// Takes over the upstream keys that the client has learned of, if any.
    pub(super) fn note_upstream_keys(&self) {
        if let Some(config) = self.api.config() {
            self.upstream_keys.set(config.upstream_cache_key_names.unwrap_or_default());
        }
    }
}
