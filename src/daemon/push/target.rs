//! A cache as a destination. Must not know its configuration, nor how well it does.

use super::{CacheApi, UpstreamCheck, UpstreamKeys};
use crate::daemon::inbox::UploadEnd;
use crate::store::PathInfo;
use crate::types::{CacheId, CacheName, StoreDir};

/// What questions, uploads and probes need of a cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Target {
    pub(in crate::daemon) id: CacheId,
    /// The cache's name on its server.
    pub(in crate::daemon) name: CacheName,
    pub(in crate::daemon) api: CacheApi,
    pub(in crate::daemon) upstream_keys: UpstreamKeys,
    pub(in crate::daemon) upstream_check: UpstreamCheck,
}

impl Target {
    /// How an upload ends that need not begin: an upstream cache has the path, by its
    /// signature or by the cache's own answer.
    pub(in crate::daemon) async fn in_upstream(
        &self,
        info: &PathInfo,
        store_dir: &StoreDir,
    ) -> Option<UploadEnd> {
        if self.upstream_keys.have_signed(info) {
            return Some(UploadEnd::InUpstream(None));
        }
        let answer = self.upstream_check.find(info, store_dir).await?;
        Some(UploadEnd::InUpstream(Some(answer)))
    }

    /// Takes over the upstream keys that the client has learned of, if any.
    pub(super) fn note_upstream_keys(&self) {
        if let Some(config) = self.api.config() {
            self.upstream_keys.set(config.upstream_cache_key_names.unwrap_or_default());
        }
    }
}
