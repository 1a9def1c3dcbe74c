//! Carries out questions, uploads and probes. Each is a task of its own that
//! reports to the driver's inbox and decides nothing.

use std::collections::HashMap;
use std::future::ready;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use bytes::Bytes;
use futures_util::future::Either;
use futures_util::{Stream, StreamExt, stream};
use tokio::sync::mpsc::Sender;

use super::{Rate, StoreReader, Target};
use crate::cache::UploadInfo;
use crate::daemon::inbox::{Input, UploadEnd};
use crate::store::{PathInfo, nar};
use crate::types::{CacheName, PushId, StoreDir, StorePath};

/// An upload that runs.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Running {
    /// Bytes of its NAR that were read so far. `None`: the attic client reads it, which does
    /// not tell.
    sent: Option<Arc<AtomicU64>>,
    begun: Instant,
}

impl Running {
    /// Bytes of its NAR that were read so far; 0 when nobody knows.
    pub(in crate::daemon) fn sent(&self) -> u64 {
        self.sent.as_ref().map_or(0, |sent| sent.load(Ordering::Relaxed))
    }

    /// Whether it is known how much of the NAR was read.
    pub(in crate::daemon) fn is_measured(&self) -> bool {
        self.sent.is_some()
    }

    pub(in crate::daemon) fn elapsed(&self) -> Duration {
        self.begun.elapsed()
    }
}

/// NARs of this size in bytes, or larger, are sent only as long as the cache lacks them:
/// other hosts may send the same one.
const SHARED_FROM: u64 = 16 << 20;

/// How long an upload waits at least before it asks again whether the path has arrived.
const ARRIVAL_EVERY: Duration = Duration::from_secs(1);

/// How long an upload that has run for `elapsed` waits before it asks again whether the path
/// has arrived: a tenth of that, so that the questions of a long upload are few and what is
/// sent in vain is a small part.
fn until_next_question(elapsed: Duration) -> Duration {
    (elapsed / 10).max(ARRIVAL_EVERY)
}

/// Returns when the cache has the path that is being sent. `sent`: bytes of the NAR that were
/// read so far.
///
/// Asks first when the upload begins, since the answer that caused it may be old. After the
/// last byte the answer to the upload itself decides. A question that fails says nothing.
async fn arrival(target: &Target, upload: &UploadInfo, sent: &AtomicU64) {
    let begun = Instant::now();
    loop {
        let missing = target.api.missing(vec![upload.store_path_hash.clone()]).await;
        let is_there = missing.is_ok_and(|missing| missing.is_empty());
        if is_there && sent.load(Ordering::Relaxed) < upload.nar_size {
            return;
        }
        tokio::time::sleep(until_next_question(begun.elapsed())).await;
    }
}

/// What the tasks need. Clones share it.
#[derive(Clone)]
pub(in crate::daemon) struct Transfers {
    store: StoreReader,
    /// The limit on bytes per second, if there is one.
    rate: Option<Arc<Rate>>,
    /// Bytes read for uploads since the daemon started.
    sent: Arc<AtomicU64>,
    /// The uploads that run.
    running: Arc<Mutex<HashMap<PushId, Running>>>,
    out: Sender<Input>,
}

impl Transfers {
    /// Reads paths from `store` and reports to `out`. `max_rate`: bytes per second
    /// over all uploads.
    pub(in crate::daemon) fn new(store: StoreReader, max_rate: Option<u64>, out: Sender<Input>) -> Self {
        let mut this = Self { store, rate: None, sent: Arc::default(), running: Arc::default(), out };
        this.limit(max_rate);
        this
    }

    /// Limits the uploads that begin from now on to this many bytes per second.
    pub(in crate::daemon) fn limit(&mut self, max_rate: Option<u64>) {
        self.rate = max_rate.map(|rate| Arc::new(Rate::new(rate)));
    }

    pub(in crate::daemon) fn store(&self) -> &StoreReader {
        &self.store
    }

    /// Reports that an upload which began at `begun` has ended.
    pub(in crate::daemon) async fn report(&self, push: PushId, result: UploadEnd, begun: Instant) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(&push);
        let _ = self.out.send(Input::Uploaded { push, result, took: begun.elapsed() }).await;
    }

    /// Asks which of these paths the cache lacks, and whether its upstream caches have those.
    pub(in crate::daemon) fn ask(&self, target: Target, pushes: Vec<(PushId, StorePath)>) {
        let (out, store) = (self.out.clone(), self.store.clone());
        tokio::spawn(async move {
            let hashes = pushes.iter().map(|(_, path)| path.hash_part().to_owned()).collect();
            let begun = Instant::now();
            let result = target.api.missing(hashes).await;
            let took = begun.elapsed();
            // The first question makes the client look for the cache. The upstream
            // keys must be known before anything is uploaded.
            target.note_upstream_keys();
            if let Ok(missing) = &result
                && target.upstream_check.is_on()
            {
                let paths = pushes.iter().map(|(_, path)| path).filter(|p| missing.contains(p.hash_part()));
                let infos = store.infos(paths.cloned().collect()).await;
                let infos = infos.into_iter().filter_map(|info| info.ok().flatten()).collect();
                target.upstream_check.learn(infos, store.dir()).await;
            }
            let result = result.map(|missing| {
                pushes.iter().filter(|(_, p)| missing.contains(p.hash_part())).map(|(id, _)| *id).collect()
            });
            let pushes = pushes.into_iter().map(|(id, _)| id).collect();
            let _ = out.send(Input::Asked { cache: target.id, pushes, result, took }).await;
        });
    }

    /// Asks whether the cache answers. Reads its token again first, since a
    /// renewed token is what usually ends a refusal.
    pub(in crate::daemon) fn probe(&self, target: Target) {
        let out = self.out.clone();
        tokio::spawn(async move {
            let result = target.api.discover().await;
            let _ = out.send(Input::Probed(target.id, result)).await;
        });
    }

    /// Notes that the attic client uploads this path, until [`Self::report`] is called.
    pub(in crate::daemon) fn begin_by_attic(&self, push: PushId, begun: Instant) {
        let running = Running { sent: None, begun };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(push, running);
    }

    /// Uploads one path, of which `no_verdicts` uploads have ended without a verdict.
    pub(in crate::daemon) fn upload(&self, target: Target, push: PushId, path: StorePath, no_verdicts: u32) {
        let this = self.clone();
        let begun = Instant::now();
        let own = Arc::new(AtomicU64::new(0));
        let running = Running { sent: Some(Arc::clone(&own)), begun };
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(push, running);
        tokio::spawn(async move {
            let result = this.send(&target, path, own, no_verdicts).await;
            this.report(push, result, begun).await;
        });
    }

    /// Sends one path, and counts its bytes in `own`.
    async fn send(
        &self,
        target: &Target,
        path: StorePath,
        own: Arc<AtomicU64>,
        no_verdicts: u32,
    ) -> UploadEnd {
        let (info, small) = match self.store.read(path).await {
            Ok(Some(read)) => read,
            Ok(None) => return UploadEnd::Collected,
            Err(reason) => return UploadEnd::Unreadable(reason),
        };
        if let Some(end) = target.in_upstream(&info, self.store.dir()).await {
            return end;
        }
        let upload = upload_info(target.name.clone(), self.store.dir(), &info);
        let nar = match small {
            Some(nar) => Either::Left(stream::once(ready(Ok(Bytes::from(nar))))),
            None => Either::Right(nar::stream(self.store.file(&info.path))),
        };
        let sent = Arc::clone(&self.sent);
        let progress = Arc::clone(&own);
        let nar = nar.inspect(move |chunk| {
            if let Ok(chunk) = chunk {
                sent.fetch_add(chunk.len() as u64, Ordering::Relaxed);
                own.fetch_add(chunk.len() as u64, Ordering::Relaxed);
            }
        });
        let uploading = target.api.upload(&upload, self.paced(nar), no_verdicts);
        let result = if upload.nar_size < SHARED_FROM {
            uploading.await
        } else {
            // `biased` polls the upload first: its own confirmation counts as pushed.
            tokio::select! {
                biased;
                result = uploading => result,
                () = arrival(target, &upload, &progress) => return UploadEnd::Arrived,
            }
        };
        match result {
            Ok(uploaded) => UploadEnd::Confirmed(uploaded, info.nar_size),
            // Reading the path fails when it was collected meanwhile.
            Err(error) => match self.store.info(info.path.clone()).await {
                Ok(None) => UploadEnd::Collected,
                Ok(Some(_)) | Err(_) => UploadEnd::Failed(error, info.nar_size),
            },
        }
    }

    /// The uploads that run now.
    pub(in crate::daemon) fn running(&self) -> HashMap<PushId, Running> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Bytes read for uploads since the daemon started, those of running uploads
    /// included.
    pub(in crate::daemon) fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Adds bytes that the attic client has uploaded.
    pub(in crate::daemon) fn add_sent(&self, bytes: u64) {
        self.sent.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The NAR's chunks at the rate that is allowed.
    fn paced<S>(&self, nar: S) -> impl Stream<Item = io::Result<Bytes>> + Send + use<S>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let Some(rate) = self.rate.clone() else { return Either::Left(nar) };
        Either::Right(nar.then(move |chunk| {
            let wait =
                chunk.as_ref().map_or(Duration::ZERO, |c| rate.reserve(c.len(), std::time::Instant::now()));
            async move {
                if !wait.is_zero() {
                    tokio::time::sleep(wait).await;
                }
                chunk
            }
        }))
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
