//! `engine = "attic"`: the attic client carries out the uploads of one cache. What
//! is uploaded when, and how often, is decided as for every cache; this file turns
//! single uploads into runs of the client with many paths.
//!
//! No path of a run refers to another one, since none is uploaded before its
//! references are in the cache. The cache is asked for the result of a run, and the
//! client's output only tells why a path is missing. The client fails a whole run
//! because of one path, so the rest of a failed run is run again in halves.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use super::{CacheLogin, Client, Login};
use crate::attic::{self, Ended, Limits, Line, Meaning, Pushed, Workspace};
use crate::cache::{CacheError, ErrorClass, Uploaded};
use crate::daemon::inbox::UploadEnd;
use crate::daemon::push::{Target, Transfers};
use crate::flow::CacheLimits;
use crate::observe::{detail, event};
use crate::store::PathInfo;
use crate::types::{PushId, StorePath};

/// Uploads that may be under way at a time: the paths that runs are made of.
const UPLOADS: CacheLimits = CacheLimits { least: 1, most: 128 };
/// Most paths in one run.
const PATHS: usize = 64;
/// Runs at a time: a large path must not delay all small ones.
const RUNS: usize = 2;
/// A run is killed after this time, plus a second for each [`SLOWEST`] bytes.
const LEAST: Duration = Duration::from_secs(600);
/// Bytes per second of the slowest upload that is not killed. (attic pushed 10 MiB
/// per second where it was measured.)
const SLOWEST: u64 = 256 * 1024;
/// Lines of output about no path that are logged, for each run.
const OTHER_LINES: usize = 20;

/// The engine of one cache. Dropping it kills its runs.
pub(in crate::daemon) struct Engine {
    queue: mpsc::UnboundedSender<(PushId, StorePath)>,
    runs: Vec<JoinHandle<()>>,
}

/// What an engine needs.
pub(in crate::daemon) struct Setup {
    pub(in crate::daemon) target: Target,
    pub(in crate::daemon) transfers: Transfers,
    pub(in crate::daemon) client: Client,
    pub(in crate::daemon) workspace: Workspace,
    pub(in crate::daemon) login: Login,
    /// The cache as it is when the engine starts; later ones come from `login`.
    pub(in crate::daemon) cache: CacheLogin,
    /// Uploads at a time within a run.
    pub(in crate::daemon) jobs: u32,
    /// The client's limit of address space, in bytes.
    pub(in crate::daemon) memory: Option<u64>,
    /// How long a run may show no progress.
    pub(in crate::daemon) stall: Duration,
}

impl Engine {
    /// Uploads that may be under way at a time.
    pub(in crate::daemon) const LIMITS: CacheLimits = UPLOADS;

    /// Starts the engine. It waits for uploads.
    pub(in crate::daemon) fn start(setup: Setup) -> Self {
        let (queue, waiting) = mpsc::unbounded_channel();
        let (setup, waiting) = (Arc::new(setup), Arc::new(Mutex::new(waiting)));
        let runs = (0..RUNS).map(|_| tokio::spawn(work(Arc::clone(&setup), Arc::clone(&waiting))));
        Self { queue, runs: runs.collect() }
    }

    /// Adds a path to the next run. The queue is bounded by [`Self::LIMITS`].
    pub(in crate::daemon) fn upload(&self, push: PushId, path: StorePath) {
        let _ = self.queue.send((push, path));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        self.runs.iter().for_each(JoinHandle::abort);
    }
}

async fn work(setup: Arc<Setup>, waiting: Arc<Mutex<mpsc::UnboundedReceiver<(PushId, StorePath)>>>) {
    loop {
        let mut batch = Vec::new();
        if waiting.lock().await.recv_many(&mut batch, PATHS).await == 0 {
            return;
        }
        setup.batch(batch).await;
    }
}

/// One path of a run.
struct Upload {
    push: PushId,
    info: PathInfo,
}

/// Why paths are not in the cache.
enum Undone {
    /// The client could not be used.
    Engine(String),
    /// The client or the cache reported an error.
    Failed(CacheError),
}

impl Undone {
    fn end(&self, upload: &Upload) -> UploadEnd {
        match self {
            Self::Engine(reason) => UploadEnd::Engine(reason.clone()),
            Self::Failed(error) => UploadEnd::Failed(error.clone(), upload.info.nar_size),
        }
    }
}

/// Why the paths are missing about which a run's output says nothing.
enum Verdict {
    /// All of them for this reason.
    Each(Undone),
    /// The client itself does not work.
    Broken(String),
    /// One of them may be the cause, and it is not known which.
    Halve,
}

impl Setup {
    /// The cache as it is configured now.
    fn cache(&self) -> CacheLogin {
        self.login.caches().into_iter().nth(self.target.id.index()).unwrap_or_else(|| self.cache.clone())
    }

    async fn report(&self, push: PushId, end: UploadEnd, begun: Instant) {
        self.transfers.report(push, end, begun).await;
    }

    async fn report_all(&self, uploads: &[Upload], begun: Instant, undone: &Undone) {
        for upload in uploads {
            self.report(upload.push, undone.end(upload), begun).await;
        }
    }

    /// Uploads a batch. Paths that are not valid any more, or that an upstream
    /// cache has, are left out first.
    async fn batch(&self, batch: Vec<(PushId, StorePath)>) {
        let begun = Instant::now();
        let (pushes, paths): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut uploads = Vec::new();
        for (push, info) in pushes.into_iter().zip(self.transfers.store().infos(paths).await) {
            match info {
                Ok(Some(info)) => match self.target.in_upstream(&info, self.transfers.store().dir()).await {
                    Some(end) => self.report(push, end, begun).await,
                    None => {
                        self.transfers.begin_by_attic(push, begun);
                        uploads.push(Upload { push, info });
                    }
                },
                Ok(None) => self.report(push, UploadEnd::Collected, begun).await,
                Err(reason) => self.report(push, UploadEnd::Unreadable(reason), begun).await,
            }
        }
        let login = self.login.clone();
        let refreshed = tokio::task::spawn_blocking(move || login.refresh()).await;
        if let Ok(Err(error)) = refreshed {
            let reason = format!("the attic client cannot be logged in: {error:#}");
            return self.report_all(&uploads, begun, &Undone::Engine(reason)).await;
        }
        let mut parts = vec![uploads];
        let mut checked = false;
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            let Some(program) = self.client.view().program else {
                let missing = Undone::Engine("there is no attic client any more".to_owned());
                self.report_all(&part, begun, &missing).await;
                continue;
            };
            let pushed = self.push(&program, &part).await;
            let Some(mut left) = self.confirmed(part, &pushed, begun).await else { continue };
            if left.is_empty() {
                continue;
            }
            match self.verdict(&program, &pushed, left.len(), &mut checked).await {
                Verdict::Each(undone) => self.report_all(&left, begun, &undone).await,
                Verdict::Broken(why) => {
                    self.client.lost(why.clone());
                    self.report_all(&left, begun, &Undone::Engine(why)).await;
                }
                Verdict::Halve => {
                    let other = left.split_off(left.len() / 2);
                    detail!(cache = self.cache.name, paths = left.len() + other.len(), "run again in halves");
                    parts.extend([other, left]);
                }
            }
        }
    }

    async fn push(&self, program: &std::path::Path, part: &[Upload]) -> Pushed {
        let login = self.cache();
        let cache = login.name.as_str();
        let paths: Vec<String> =
            part.iter().map(|upload| self.transfers.store().dir().full(&upload.info.path)).collect();
        let size: u64 = part.iter().map(|upload| upload.info.nar_size).sum();
        let time = LEAST + Duration::from_secs(size / SLOWEST);
        let push = attic::Push {
            program,
            cache: &login.reference(),
            paths: &paths,
            jobs: self.jobs,
            limits: Limits { memory: self.memory, time, stall: Some(self.stall) },
        };
        let mut others = 0;
        let full = |base: &str| format!("{}/{base}", self.transfers.store().dir().as_str());
        let pushed = attic::push(&self.workspace, push, |line| match line {
            Line::Pushed { base, note } => {
                event!(
                    ATTIC_PUSHED,
                    cache = cache,
                    store_path = full(base),
                    line = note,
                    "attic has pushed {} to cache {cache}",
                    full(base)
                );
            }
            Line::Failed { base, error } => {
                event!(
                    ATTIC_FAILED,
                    cache = cache,
                    store_path = full(base),
                    error = error,
                    "attic could not push {} to cache {cache}: {error}",
                    full(base)
                );
            }
            Line::Fatal(error) => {
                event!(
                    ATTIC_STOPPED,
                    cache = cache,
                    error = error,
                    "attic ended a run for cache {cache} with an error: {error}"
                );
            }
            Line::Other(line) => {
                others += 1;
                if others <= OTHER_LINES {
                    detail!(cache = cache, line = line, "attic's output");
                }
            }
        });
        let pushed = pushed.await;
        detail!(cache = cache, paths = part.len(), ended = %pushed.ended, "a run of attic has ended");
        pushed
    }

    /// Reports the paths that the cache has now, and those that the output names as
    /// failed. Returns the others, or `None` when the cache could not be asked; then
    /// all of them are reported.
    async fn confirmed(&self, part: Vec<Upload>, pushed: &Pushed, begun: Instant) -> Option<Vec<Upload>> {
        let hashes = part.iter().map(|upload| upload.info.path.hash_part().to_owned()).collect();
        let missing = match self.cache().client.missing(hashes).await {
            Ok(missing) => missing,
            Err(error) => {
                self.report_all(&part, begun, &Undone::Failed(error)).await;
                return None;
            }
        };
        let mut left = Vec::new();
        for upload in part {
            let path = &upload.info.path;
            if !missing.contains(path.hash_part()) {
                self.transfers.add_sent(upload.info.nar_size);
                let uploaded = Uploaded { deduplicated: false, file_size: None };
                self.report(upload.push, UploadEnd::Confirmed(uploaded, upload.info.nar_size), begun).await;
            } else if let Some(error) = pushed.failed.get(path.base()) {
                let undone = Undone::Failed(failed(attic::meaning(error), error));
                self.report(upload.push, undone.end(&upload), begun).await;
            } else {
                left.push(upload);
            }
        }
        Some(left)
    }

    /// Why the paths are missing about which the output says nothing. `left` is
    /// their number; `checked` is whether the client was checked in this batch.
    async fn verdict(
        &self,
        program: &std::path::Path,
        pushed: &Pushed,
        left: usize,
        checked: &mut bool,
    ) -> Verdict {
        let last = pushed.last.as_deref().unwrap_or("no output");
        let text = format!("attic push: {} ({last})", pushed.ended);
        let local = |text| Verdict::Each(Undone::Failed(error(ErrorClass::Local, text)));
        match &pushed.ended {
            Ended::NotRun(_) | Ended::Exited(126 | 127) => return Verdict::Broken(text),
            // A single path is itself the cause. Several are tried again later.
            Ended::Stalled(_) | Ended::TimedOut(_) if left == 1 => return local(text),
            Ended::Stalled(_) | Ended::TimedOut(_) => {
                return Verdict::Each(Undone::Failed(error(ErrorClass::Transient, text)));
            }
            Ended::Exited(0) => return local(format!("{text}, but the cache does not have it")),
            Ended::Exited(_) => {}
        }
        match attic::meaning(last) {
            meaning @ (Meaning::Refused | Meaning::NoSuchCache | Meaning::Transient) => {
                return Verdict::Each(Undone::Failed(failed(meaning, last)));
            }
            Meaning::TooLarge | Meaning::Mismatch | Meaning::Unknown => {}
        }
        if !std::mem::replace(checked, true)
            && let Err(unavailable) =
                attic::check(&self.workspace, program, Some(&self.cache().reference())).await
        {
            return match self.cache().client.discover().await {
                Ok(_) => Verdict::Broken(format!("{text}; {unavailable}")),
                Err(error) => Verdict::Each(Undone::Failed(error)),
            };
        }
        if left == 1 { local(text) } else { Verdict::Halve }
    }
}

/// An error in the form of the cache's own.
fn error(class: ErrorClass, message: impl Into<String>) -> CacheError {
    CacheError { class, message: message.into(), status: None, retry_after: None }
}

fn failed(meaning: Meaning, text: &str) -> CacheError {
    let class = match meaning {
        Meaning::Refused => ErrorClass::Forbidden,
        Meaning::NoSuchCache => ErrorClass::NoSuchCache,
        Meaning::TooLarge => ErrorClass::TooLarge,
        Meaning::Mismatch => ErrorClass::Mismatch,
        Meaning::Transient => ErrorClass::Transient,
        // Retried a few times, then failed with this reason.
        Meaning::Unknown => ErrorClass::Local,
    };
    error(class, format!("attic: {text}"))
}
