//! Carrying out what was decided: queries, uploads and probes, each a push of
//! its own that reports to the driver and decides nothing.

use std::future::ready;
use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::future::Either;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc::Sender;

use crate::cache::{CacheClient, UploadInfo};
use crate::daemon::inbox::{Input, Sent};
use crate::daemon::push::rate::Rate;
use crate::daemon::push::upstream_keys::UpstreamKeys;
use crate::store::{DbIdentity, NixDb, NixDbError, PathInfo, nar};
use crate::types::{CacheId, CacheName, PushId, StoreDir, StorePath};

/// A NAR up to this many bytes is read at once: most paths, and little memory
/// for each upload.
const SMALL: usize = 64 * 1024;

/// What transfers need; cheap to clone.
#[derive(Clone)]
pub(in crate::daemon) struct Transfers {
    pub(in crate::daemon) clients: Arc<[CacheClient]>,
    pub(in crate::daemon) nix_db: Arc<Mutex<(NixDb, DbIdentity)>>,
    pub(in crate::daemon) state_dir: Arc<std::path::Path>,
    pub(in crate::daemon) store_dir: StoreDir,
    pub(in crate::daemon) upstream_keys: UpstreamKeys,
    /// Bytes per second over all uploads, when they are limited.
    pub(in crate::daemon) rate: Option<Arc<Rate>>,
    /// Bytes read for uploads so far: whether anything moves.
    pub(in crate::daemon) sent: Arc<AtomicU64>,
    pub(in crate::daemon) out: Sender<Input>,
}

impl Transfers {
    fn client(&self, cache: CacheId) -> CacheClient {
        self.clients[usize::from(cache.0)].clone()
    }

    /// Asks which of these the cache lacks.
    pub(in crate::daemon) fn ask(&self, cache: CacheId, pushes: Vec<(PushId, StorePath)>) {
        let this = self.clone();
        tokio::spawn(async move {
            let hashes = pushes.iter().map(|(_, path)| path.hash_part().to_owned()).collect();
            let client = this.client(cache);
            let begun = Instant::now();
            let result = client.missing(hashes).await;
            let took = begun.elapsed();
            // The question makes the client look for the cache when it has not
            // yet, and its upstream keys must be known before anything is sent.
            if let Some(config) = client.config() {
                this.upstream_keys.set_upstream(cache.0, config.upstream_cache_key_names.unwrap_or_default());
            }
            let result = result.map(|missing| {
                pushes.iter().filter(|(_, p)| missing.contains(p.hash_part())).map(|(id, _)| *id).collect()
            });
            let pushes = pushes.into_iter().map(|(id, _)| id).collect();
            let _ = this.out.send(Input::Asked { cache, pushes, result, took }).await;
        });
    }

    /// Sees whether the cache answers.
    pub(in crate::daemon) fn probe(&self, cache: CacheId) {
        let this = self.clone();
        tokio::spawn(async move {
            let client = this.client(cache);
            // A token that was renewed is the usual way out of "unauthorized".
            let _ = client.reload_token();
            let result = client.discover().await;
            let _ = this.out.send(Input::Probed(cache, result)).await;
        });
    }

    /// Uploads one path.
    pub(in crate::daemon) fn upload(&self, cache: CacheId, push: PushId, path: StorePath) {
        let this = self.clone();
        tokio::spawn(async move {
            let begun = Instant::now();
            let result = this.send(cache, path).await;
            let took = begun.elapsed();
            let _ = this.out.send(Input::Uploaded { push, result, took }).await;
        });
    }

    async fn send(&self, cache: CacheId, path: StorePath) -> Sent {
        let (info, small) = match self.read(path).await {
            Ok(Some(read)) => read,
            Ok(None) => return Sent::Collected,
            Err(reason) => return Sent::Unreadable(reason),
        };
        if self.upstream_keys.in_upstream(cache.0, &info) {
            return Sent::Upstream;
        }
        let client = self.client(cache);
        let upload = upload_info(client.cache().clone(), &self.store_dir, &info);
        let nar = match small {
            Some(nar) => Either::Left(stream::once(ready(Ok(Bytes::from(nar))))),
            None => Either::Right(nar::stream(self.file(&info.path))),
        };
        let sent = Arc::clone(&self.sent);
        let nar = nar.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        });
        match client.upload(&upload, self.paced(nar)).await {
            Ok(uploaded) => Sent::Done(uploaded, info.nar_size),
            // Reading failed: when the path is gone by now, that is why.
            Err(error) => match self.info(info.path.clone()).await {
                Ok(None) => Sent::Collected,
                Ok(Some(_)) | Err(_) => Sent::Failed(error, info.nar_size),
            },
        }
    }

    /// Bytes read for uploads so far, also for those that are under way.
    pub(in crate::daemon) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Bytes that were sent for uploads elsewhere.
    pub(in crate::daemon) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What the store knows of these now, each for itself.
    pub(in crate::daemon) async fn infos(
        &self,
        paths: Vec<StorePath>,
    ) -> Vec<Result<Option<PathInfo>, String>> {
        let (this, count) = (self.clone(), paths.len());
        let read = move || paths.iter().map(|path| this.with_nix_db(|j| j.info(path))).collect();
        match tokio::task::spawn_blocking(read).await {
            Ok(infos) => infos,
            Err(e) => (0..count).map(|_| Err(e.to_string())).collect(),
        }
    }

    /// The highest number that the Nix database has given. Blocks for a moment.
    pub(in crate::daemon) fn head(&self) -> Result<i64, String> {
        self.with_nix_db(NixDb::head)
    }

    /// Reads the Nix database, the present one: when the file was replaced, it
    /// is opened anew.
    fn with_nix_db<R>(&self, read: impl FnOnce(&NixDb) -> Result<R, NixDbError>) -> Result<R, String> {
        let mut reader = self.nix_db.lock().unwrap_or_else(PoisonError::into_inner);
        let same = match reader.0.identity() {
            Ok(identity) => identity == reader.1,
            Err(NixDbError::Replaced) => false,
            Err(e) => return Err(e.to_string()),
        };
        if !same {
            let nix_db = NixDb::open(&self.state_dir, &self.store_dir).map_err(|e| e.to_string())?;
            let identity = nix_db.identity().map_err(|e| e.to_string())?;
            *reader = (nix_db, identity);
        }
        read(&reader.0).map_err(|e| e.to_string())
    }

    fn file(&self, path: &StorePath) -> PathBuf {
        self.store_dir.as_path().join(path.base())
    }

    /// What the store knows of a path now, and its NAR when that is small: both
    /// in one go, since for a small path the way to a thread that may block and
    /// back is the dearest part. When reading fails, the stream tells why.
    async fn read(&self, path: StorePath) -> Result<Option<(PathInfo, Option<Vec<u8>>)>, String> {
        let this = self.clone();
        let read = move || {
            let Some(info) = this.with_nix_db(|j| j.info(&path))? else { return Ok(None) };
            let size = usize::try_from(info.nar_size).ok().filter(|size| *size <= SMALL);
            let nar = size.and_then(|size| nar::whole(&this.file(&path), size).ok().flatten());
            Ok(Some((info, nar)))
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_else(|e| Err(e.to_string()))
    }

    /// The NAR at the rate that is allowed.
    fn paced<S>(&self, nar: S) -> impl Stream<Item = io::Result<Bytes>> + Send + use<S>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let Some(rate) = self.rate.clone() else { return Either::Left(nar) };
        Either::Right(nar.then(move |chunk| {
            let wait = chunk.as_ref().map_or(Duration::ZERO, |c| rate.reserve(c.len(), Instant::now()));
            async move {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                chunk
            }
        }))
    }

    /// What the store knows of a path now.
    async fn info(&self, path: StorePath) -> Result<Option<PathInfo>, String> {
        let this = self.clone();
        match tokio::task::spawn_blocking(move || this.with_nix_db(|j| j.info(&path))).await {
            Ok(found) => found,
            Err(e) => Err(e.to_string()),
        }
    }
}

fn upload_info(cache: CacheName, store_dir: &StoreDir, info: &PathInfo) -> UploadInfo {
    UploadInfo {
        cache,
        store_path_hash: info.path.hash_part().to_owned(),
        store_path: store_dir.full(&info.path),
        references: info.references.iter().map(|r| r.base().to_owned()).collect(),
        system: None,
        deriver: info.deriver.as_ref().map(|d| d.base().to_owned()),
        sigs: info.sigs.clone(),
        ca: info.ca.clone(),
        nar_hash: info.nar_hash.to_string(),
        nar_size: info.nar_size,
    }
}
