//! The calls that transfers make of a cache: over HTTP, or in the simulation. Must not
//! know what is decided from the answers.

use std::collections::HashSet;
use std::io;

use bytes::Bytes;
use futures_util::Stream;

#[cfg(test)]
use super::simulated::SimulatedCache;
use crate::cache::{CacheClient, CacheConfig, CacheError, Discovered, UploadInfo, Uploaded};

/// A cache as transfers reach it.
#[derive(Debug, Clone)]
pub(in crate::daemon) enum CacheApi {
    /// Over HTTP.
    Http(CacheClient),
    /// In the simulation.
    #[cfg(test)]
    Simulated(SimulatedCache),
}

impl CacheApi {
    /// Asks which of these hashes the cache lacks.
    pub(in crate::daemon) async fn missing(
        &self,
        hashes: Vec<String>,
    ) -> Result<HashSet<String>, CacheError> {
        match self {
            Self::Http(client) => client.missing(hashes).await,
            #[cfg(test)]
            Self::Simulated(cache) => cache.missing(hashes).await,
        }
    }

    /// Uploads a NAR. `no_verdicts`: the uploads of it that ended without a verdict.
    pub(in crate::daemon) async fn upload(
        &self,
        info: &UploadInfo,
        nar: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
        no_verdicts: u32,
    ) -> Result<Uploaded, CacheError> {
        match self {
            Self::Http(client) => client.upload_again(info, nar, no_verdicts).await,
            #[cfg(test)]
            Self::Simulated(cache) => cache.upload(info).await,
        }
    }

    /// Looks for the cache.
    pub(in crate::daemon) async fn discover(&self) -> Result<Discovered, CacheError> {
        match self {
            Self::Http(client) => client.discover().await,
            #[cfg(test)]
            Self::Simulated(cache) => cache.discover().await,
        }
    }

    /// The configuration that the cache has shown, if it has.
    pub(super) fn config(&self) -> Option<CacheConfig> {
        match self {
            Self::Http(client) => client.config(),
            #[cfg(test)]
            Self::Simulated(_) => None,
        }
    }
}
