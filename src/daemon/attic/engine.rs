//! `engine = "attic"`: the uploads of one cache, carried out by the attic
//! client. The decisions stay where they are: what is uploaded when, and how
//! often. Here what was decided one by one becomes runs of the client for many.
//!
//! None of the paths of a run refers to another, since none is uploaded before
//! its references are there. What came of a run is asked of the cache; the
//! client's own words only tell why something is missing. It fails a whole run
//! for one bad path, so what is left of a failed one is run again in halves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::{Mutex, mpsc};
use tokio::task::JoinHandle;

use crate::attic::{self, Ended, Limits, Line, Meaning, Place, Pushed};
use crate::cache::{CacheError, ErrorClass, Uploaded};
use crate::daemon::attic::client::Handle;
use crate::daemon::attic::login::{Login, Served};
use crate::daemon::inbox::{Input, Sent};
use crate::daemon::push::transfer::Transfers;
use crate::flow::CacheLimits;
use crate::observe::{detail, event};
use crate::store::PathInfo;
use crate::types::{CacheId, PushId, StorePath};

/// Uploads that flow may have under way: what one run can be made of.
pub(in crate::daemon) const LIMITS: CacheLimits = CacheLimits { least: 1, most: 128 };
/// Paths in one run.
const MOST: usize = 64;
/// Runs at a time: a large path must not hold up all small ones.
const RUNS: usize = 2;
/// A run may take so long, and longer for what is large: attic pushed 10 MiB a
/// second where it was measured.
const LEAST: Duration = Duration::from_secs(600);
const SLOWEST: u64 = 256 * 1024;
/// Lines that say nothing of a path, told to the log at most, for each run.
const CHATTER: usize = 20;

/// The way to one cache's engine.
pub(in crate::daemon) struct Engine {
    queue: mpsc::UnboundedSender<(PushId, StorePath)>,
    runs: Vec<JoinHandle<()>>,
}

impl Engine {
    /// Has it uploaded. Not more wait here than flow lets be under way.
    pub(in crate::daemon) fn upload(&self, push: PushId, path: StorePath) {
        let _ = self.queue.send((push, path));
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        // The client's runs are killed with them.
        self.runs.iter().for_each(JoinHandle::abort);
    }
}

/// What a run needs.
pub(in crate::daemon) struct Means {
    pub(in crate::daemon) cache: CacheId,
    pub(in crate::daemon) transfers: Transfers,
    pub(in crate::daemon) client: Handle,
    pub(in crate::daemon) place: Place,
    pub(in crate::daemon) login: Login,
    pub(in crate::daemon) served: Served,
    /// Uploads at a time, within a run.
    pub(in crate::daemon) jobs: u32,
    /// Bytes of address space.
    pub(in crate::daemon) memory: Option<u64>,
    /// Without any movement.
    pub(in crate::daemon) stall: Duration,
}

/// Begins to wait for uploads.
pub(in crate::daemon) fn start(means: Means) -> Engine {
    let (queue, waiting) = mpsc::unbounded_channel();
    let (means, waiting) = (Arc::new(means), Arc::new(Mutex::new(waiting)));
    let runs = (0..RUNS).map(|_| tokio::spawn(work(Arc::clone(&means), Arc::clone(&waiting))));
    Engine { queue, runs: runs.collect() }
}

async fn work(means: Arc<Means>, waiting: Arc<Mutex<mpsc::UnboundedReceiver<(PushId, StorePath)>>>) {
    loop {
        let mut batch = Vec::new();
        if waiting.lock().await.recv_many(&mut batch, MOST).await == 0 {
            return;
        }
        means.batch(batch).await;
    }
}

/// A path on its way.
struct Ware {
    push: PushId,
    info: PathInfo,
}

/// Why paths are not there.
enum Undone {
    /// The client could not be used.
    Engine(String),
    /// It or the cache said so.
    Failed(CacheError),
}

impl Undone {
    fn sent(&self, ware: &Ware) -> Sent {
        match self {
            Self::Engine(reason) => Sent::Engine(reason.clone()),
            Self::Failed(error) => Sent::Failed(error.clone(), ware.info.nar_size),
        }
    }
}

/// What a run that went wrong as a whole means.
enum Whole {
    /// The same for each of them.
    Each(Undone),
    /// The client itself does not work.
    Lost(String),
    /// One of them may be to blame.
    Halve,
}

impl Means {
    async fn tell(&self, push: PushId, result: Sent, begun: Instant) {
        let took = begun.elapsed();
        let _ = self.transfers.out.send(Input::Uploaded { push, result, took }).await;
    }

    async fn tell_all(&self, wares: &[Ware], begun: Instant, undone: &Undone) {
        for ware in wares {
            self.tell(ware.push, undone.sent(ware), begun).await;
        }
    }

    /// What is not valid any more, or an upstream cache's, is left out first.
    async fn batch(&self, batch: Vec<(PushId, StorePath)>) {
        let begun = Instant::now();
        let (pushes, paths): (Vec<_>, Vec<_>) = batch.into_iter().unzip();
        let mut wares = Vec::new();
        for (push, info) in pushes.into_iter().zip(self.transfers.infos(paths).await) {
            match info {
                Ok(Some(info)) if self.transfers.upstream_keys.in_upstream(self.cache.0, &info) => {
                    self.tell(push, Sent::Upstream, begun).await;
                }
                Ok(Some(info)) => wares.push(Ware { push, info }),
                Ok(None) => self.tell(push, Sent::Collected, begun).await,
                Err(reason) => self.tell(push, Sent::Unreadable(reason), begun).await,
            }
        }
        let login = self.login.clone();
        let refreshed = tokio::task::spawn_blocking(move || login.refresh()).await;
        if let Ok(Err(error)) = refreshed {
            let reason = format!("the attic client cannot be logged in: {error:#}");
            return self.tell_all(&wares, begun, &Undone::Engine(reason)).await;
        }
        let mut parts = vec![wares];
        let mut tried = false;
        while let Some(part) = parts.pop().filter(|part| !part.is_empty()) {
            let Some(program) = self.client.view().program else {
                let gone = Undone::Engine("the attic client is gone".to_owned());
                self.tell_all(&part, begun, &gone).await;
                continue;
            };
            let pushed = self.push(&program, &part).await;
            let Some(mut left) = self.confirmed(part, &pushed, begun).await else { continue };
            if left.is_empty() {
                continue;
            }
            match self.whole(&program, &pushed, left.len(), &mut tried).await {
                Whole::Each(undone) => self.tell_all(&left, begun, &undone).await,
                Whole::Lost(why) => {
                    self.client.lost(why.clone());
                    self.tell_all(&left, begun, &Undone::Engine(why)).await;
                }
                Whole::Halve => {
                    let other = left.split_off(left.len() / 2);
                    detail!(
                        cache = self.served.name,
                        paths = left.len() + other.len(),
                        "run again in halves"
                    );
                    parts.extend([other, left]);
                }
            }
        }
    }

    async fn push(&self, program: &std::path::Path, part: &[Ware]) -> Pushed {
        let cache = self.served.name.as_str();
        let paths: Vec<String> =
            part.iter().map(|ware| self.transfers.store_dir.full(&ware.info.path)).collect();
        let size: u64 = part.iter().map(|ware| ware.info.nar_size).sum();
        let time = LEAST + Duration::from_secs(size / SLOWEST);
        let push = attic::Push {
            program,
            cache: &self.served.reference(),
            paths: &paths,
            jobs: self.jobs,
            limits: Limits { memory: self.memory, time, stall: Some(self.stall) },
        };
        let mut chatter = 0;
        let full = |base: &str| format!("{}/{base}", self.transfers.store_dir.as_str());
        let pushed = attic::push(&self.place, push, |line| match line {
            Line::Pushed { base, note } => {
                event!(ATTIC_PUSHED, cache = cache, store_path = full(base), line = note, "attic: pushed");
            }
            Line::Failed { base, error } => {
                event!(ATTIC_FAILED, cache = cache, store_path = full(base), error = error, "attic: failed");
            }
            Line::Fatal(error) => event!(ATTIC_STOPPED, cache = cache, error = error, "attic gives up"),
            Line::Other(line) => {
                chatter += 1;
                if chatter <= CHATTER {
                    detail!(cache = cache, line = line, "attic says");
                }
            }
        });
        let pushed = pushed.await;
        detail!(cache = cache, paths = part.len(), ended = %pushed.ended, "attic has run");
        pushed
    }

    /// Tells of those that the cache has now and of those that failed by name;
    /// the others. Nothing when the cache cannot be asked.
    async fn confirmed(&self, part: Vec<Ware>, pushed: &Pushed, begun: Instant) -> Option<Vec<Ware>> {
        let hashes = part.iter().map(|ware| ware.info.path.hash_part().to_owned()).collect();
        let missing = match self.served.client.missing(hashes).await {
            Ok(missing) => missing,
            Err(error) => {
                self.tell_all(&part, begun, &Undone::Failed(error)).await;
                return None;
            }
        };
        let mut left = Vec::new();
        for ware in part {
            let path = &ware.info.path;
            if !missing.contains(path.hash_part()) {
                self.transfers.add_sent(ware.info.nar_size);
                let uploaded = Uploaded { deduplicated: false, file_size: None };
                self.tell(ware.push, Sent::Done(uploaded, ware.info.nar_size), begun).await;
            } else if let Some(error) = pushed.failed.get(path.base()) {
                let undone = Undone::Failed(failed(attic::meaning(error), error));
                self.tell(ware.push, undone.sent(&ware), begun).await;
            } else {
                left.push(ware);
            }
        }
        Some(left)
    }

    /// Why what the client said nothing about is not there.
    async fn whole(
        &self,
        program: &std::path::Path,
        pushed: &Pushed,
        left: usize,
        tried: &mut bool,
    ) -> Whole {
        let last = pushed.last.as_deref().unwrap_or("it said nothing");
        let text = format!("attic push: {} ({last})", pushed.ended);
        let local = |text| Whole::Each(Undone::Failed(error(ErrorClass::Local, text)));
        match &pushed.ended {
            Ended::NotRun(_) | Ended::Exited(126 | 127) => return Whole::Lost(text),
            // Alone it is to blame itself; with others that is not known, and
            // fewer at a time come next.
            Ended::Stalled(_) | Ended::TimedOut(_) if left == 1 => return local(text),
            Ended::Stalled(_) | Ended::TimedOut(_) => {
                return Whole::Each(Undone::Failed(error(ErrorClass::Transient, text)));
            }
            Ended::Exited(0) => return local(format!("{text}, but the cache does not have it")),
            Ended::Exited(_) => {}
        }
        match attic::meaning(last) {
            meaning @ (Meaning::Refused | Meaning::NoSuchCache | Meaning::Transient) => {
                return Whole::Each(Undone::Failed(failed(meaning, last)));
            }
            Meaning::TooLarge | Meaning::Mismatch | Meaning::Unknown => {}
        }
        if !std::mem::replace(tried, true)
            && let Err(miss) = attic::check(&self.place, program, Some(&self.served.reference())).await
        {
            return match self.served.client.discover().await {
                Ok(_) => Whole::Lost(format!("{text}; {miss}")),
                Err(error) => Whole::Each(Undone::Failed(error)),
            };
        }
        if left == 1 { local(text) } else { Whole::Halve }
    }
}

/// A failure as the cache's own would be told.
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
        // Tried a few times, then given up with this reason.
        Meaning::Unknown => ErrorClass::Local,
    };
    error(class, format!("attic: {text}"))
}
