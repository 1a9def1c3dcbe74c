//! A cache as a destination. Must not know its configuration, nor how well it does.

use super::UpstreamKeys;
use crate::cache::CacheClient;
use crate::types::CacheId;

/// What questions, uploads and probes need of a cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Target {
    pub(in crate::daemon) id: CacheId,
    pub(in crate::daemon) client: CacheClient,
    pub(in crate::daemon) upstream_keys: UpstreamKeys,
}

impl Target {
    /// Takes over the upstream keys that the client has learned of, if any.
    pub(super) fn note_upstream_keys(&self) {
        if let Some(config) = self.client.config() {
            self.upstream_keys.set(config.upstream_cache_key_names.unwrap_or_default());
        }
    }
}
