//! A cache in the simulation: each call is put on a board, and its caller waits until the
//! simulation has answered it.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::oneshot;

use crate::cache::{CacheError, Discovered, ErrorClass, UploadInfo, Uploaded};
use crate::types::CacheId;

/// The calls that are not answered, oldest first.
pub(in crate::daemon) type Board = Arc<Mutex<Vec<(CacheId, CacheCall)>>>;

type Answer<T> = oneshot::Sender<Result<T, CacheError>>;

/// A call.
#[derive(Debug)]
pub(in crate::daemon) enum CacheCall {
    /// Which of these hashes are missing?
    Missing(Vec<String>, Answer<HashSet<String>>),
    /// An upload of the path with this hash.
    Upload(String, Answer<Uploaded>),
    /// Does the cache answer?
    Discover(Answer<Discovered>),
}

/// One cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct SimulatedCache {
    pub(in crate::daemon) id: CacheId,
    pub(in crate::daemon) board: Board,
}

impl SimulatedCache {
    async fn call<T>(&self, make: impl FnOnce(Answer<T>) -> CacheCall) -> Result<T, CacheError> {
        let (answer, answered) = oneshot::channel();
        self.board.lock().unwrap_or_else(PoisonError::into_inner).push((self.id, make(answer)));
        answered.await.unwrap_or_else(|_| {
            let message = "the connection ended".to_owned();
            Err(CacheError { class: ErrorClass::Transient, message, status: None, retry_after: None })
        })
    }

    pub(super) async fn missing(&self, hashes: Vec<String>) -> Result<HashSet<String>, CacheError> {
        self.call(|answer| CacheCall::Missing(hashes, answer)).await
    }

    pub(super) async fn upload(&self, info: &UploadInfo) -> Result<Uploaded, CacheError> {
        self.call(|answer| CacheCall::Upload(info.store_path_hash.clone(), answer)).await
    }

    pub(super) async fn discover(&self) -> Result<Discovered, CacheError> {
        self.call(CacheCall::Discover).await
    }
}
