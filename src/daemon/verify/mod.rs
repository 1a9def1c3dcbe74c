//! Verification: fetches paths from caches as Nix would, and says what is wrong with each.
//! It runs beside the driver, few paths at a time and until a deadline, so that it costs
//! the uploads little.
//!
//! Must not know who asked, nor which sessions the paths belong to.

mod counts;

use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use tokio::time::{MissedTickBehavior, interval, timeout_at};

pub(in crate::daemon) use counts::Verifier;

use crate::cache::{
    CacheClient, CacheError, ErrorClass, Expected, Fault, FaultKind, Substituter, TokenSource,
};
use crate::control::messages::{MAX_PROBLEMS, Problem, Verification};
use crate::daemon::push::{StoreReader, UpstreamCheck, UpstreamKeys};
use crate::observe::event;
use crate::store::PathInfo;
use crate::types::{StorePath, millis};

/// Paths that are fetched at a time. A decompressor takes 128 MiB at most.
const PARALLEL: usize = 2;
/// The time between two reports of the progress while no check ends.
const SHOWN_EVERY: Duration = Duration::from_secs(1);
/// Most log entries about single paths in one verification.
const LOGGED: usize = 100;

/// A cache to read from.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Source {
    pub(in crate::daemon) name: String,
    pub(in crate::daemon) client: CacheClient,
    /// The token for reading.
    pub(in crate::daemon) pull: TokenSource,
    /// The keys of its upstream caches.
    pub(in crate::daemon) upstream_keys: UpstreamKeys,
    /// The upstream caches that are asked.
    pub(in crate::daemon) upstream_check: UpstreamCheck,
}

/// A path in a cache.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::daemon) struct Target {
    /// Position of the cache among the sources.
    pub(in crate::daemon) source: usize,
    pub(in crate::daemon) path: StorePath,
}

/// A path that was checked.
struct Checked {
    target: Target,
    /// Whether the path is valid in the store.
    valid: bool,
    finding: Finding,
}

/// What was found of a path.
enum Finding {
    /// It is as it should be. How many bytes were fetched.
    Good(u64),
    /// The cache lacks it. An upstream cache has it, by its signature or its own answer.
    Upstream,
    Faulty(Fault),
}

/// Checks all targets within `limit`, and reports to `progress` how many of all are done,
/// also while a large path keeps that number as it is.
/// Ends early when dropped.
pub(in crate::daemon) async fn run(
    verifier: &Verifier,
    store: &StoreReader,
    sources: &[Source],
    targets: Vec<Target>,
    limit: Duration,
    progress: impl Fn(u64, u64),
) -> Verification {
    let began = Instant::now();
    let deadline = tokio::time::Instant::now() + limit;
    // A cache that does not answer is asked once, not for each path.
    let mut substituters = Vec::new();
    for (n, source) in sources.iter().enumerate() {
        // A source that no target names is not opened.
        if !targets.iter().any(|target| target.source == n) {
            substituters.push(Err(late()));
            continue;
        }
        let opened = timeout_at(deadline, source.client.substituter(&source.pull, store.dir())).await;
        substituters.push(opened.unwrap_or_else(|_| Err(late())));
    }
    let total = targets.len() as u64;
    let checks = targets.into_iter().map(|target| check(store, sources, &substituters, target));
    let mut checks = futures_util::stream::iter(checks).buffer_unordered(PARALLEL);
    let mut tally = Tally::new(sources.len());
    // Its first tick comes at once.
    let mut tick = interval(SHOWN_EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            checked = timeout_at(deadline, checks.next()) => match checked {
                Ok(Some(checked)) => tally.add(checked, sources, store),
                Ok(None) | Err(_) => break,
            },
            _ = tick.tick() => {}
        }
        progress(tally.done(), total);
    }
    drop(checks);
    tally.end(verifier, sources, total, began)
}

fn late() -> CacheError {
    CacheError {
        class: ErrorClass::Unreachable,
        message: "the cache gave no answer before the deadline".to_owned(),
        status: None,
        retry_after: None,
    }
}

async fn check(
    store: &StoreReader,
    sources: &[Source],
    substituters: &[Result<Substituter, CacheError>],
    target: Target,
) -> Checked {
    let info = store.infos(vec![target.path.clone()]).await.pop();
    // Without the Nix database the cache is compared with itself.
    let info = info.and_then(Result::ok).flatten();
    let valid = info.is_some();
    let source = &sources[target.source];
    let expected = info.clone().filter(|info| info.nar_size > 0).map(|info| Expected {
        nar_hash: info.nar_hash,
        nar_size: info.nar_size,
        references: info.references,
    });
    let result = match &substituters[target.source] {
        Ok(from) => source.client.check(from, &target.path, expected.as_ref()).await,
        Err(error) => {
            let kind = match error.class {
                ErrorClass::Unauthorized | ErrorClass::Forbidden => FaultKind::Refused,
                _ => FaultKind::Unreachable,
            };
            Err(Fault { kind, detail: error.to_string() })
        }
    };
    let finding = match result {
        Ok(bytes) => Finding::Good(bytes),
        Err(fault) if fault.kind == FaultKind::Absent && in_upstream(source, info.as_ref(), store).await => {
            Finding::Upstream
        }
        Err(fault) => Finding::Faulty(fault),
    };
    Checked { target, valid, finding }
}

async fn in_upstream(source: &Source, info: Option<&PathInfo>, store: &StoreReader) -> bool {
    let Some(info) = info else { return false };
    source.upstream_keys.have_signed(info) || source.upstream_check.find(info, store.dir()).await.is_some()
}

/// What was found so far.
struct Tally {
    report: Verification,
    /// For each source: verified, good, bytes, and the counts by kind.
    caches: Vec<CacheTally>,
    logged: usize,
}

#[derive(Debug, Clone, Default)]
struct CacheTally {
    verified: u64,
    good: u64,
    bytes: u64,
    faults: Vec<FaultKind>,
}

impl Tally {
    fn new(sources: usize) -> Self {
        Self { report: Verification::default(), caches: vec![CacheTally::default(); sources], logged: 0 }
    }

    /// How many targets are done.
    fn done(&self) -> u64 {
        self.report.verified + self.report.upstream
    }

    fn add(&mut self, checked: Checked, sources: &[Source], store: &StoreReader) {
        let Checked { target, valid, finding } = checked;
        let (cache, name) = (&mut self.caches[target.source], &sources[target.source].name);
        if !matches!(finding, Finding::Upstream) {
            cache.verified += 1;
            self.report.verified += 1;
        }
        let fault = match finding {
            Finding::Good(bytes) => {
                cache.good += 1;
                cache.bytes += bytes;
                self.report.good += 1;
                self.report.bytes += bytes;
                return;
            }
            Finding::Upstream => {
                self.report.upstream += 1;
                return;
            }
            Finding::Faulty(fault) => fault,
        };
        cache.faults.push(fault.kind);
        let path = store.dir().full(&target.path);
        if self.logged < LOGGED {
            self.logged += 1;
            event!(
                PATH_NOT_READABLE,
                cache = name,
                store_path = path,
                problem = fault.kind.as_str(),
                error = fault.detail,
                "{path} cannot be read from the cache {name} ({}): {}",
                fault.kind.as_str(),
                fault.detail
            );
        }
        self.report.problems_total += 1;
        if self.report.problems.len() < MAX_PROBLEMS as usize {
            self.report.problems.push(Problem {
                path,
                cache: name.clone(),
                problem: fault.kind.as_str().to_owned(),
                detail: fault.detail,
                valid,
            });
        }
    }

    /// Logs what was found of each cache, and adds it to the counts.
    fn end(mut self, verifier: &Verifier, sources: &[Source], total: u64, began: Instant) -> Verification {
        self.report.duration_ms = millis(began.elapsed());
        self.report.unchecked = total - self.done();
        for (cache, source) in self.caches.iter().zip(sources).filter(|(cache, _)| cache.verified > 0) {
            verifier.count(&source.name, cache.good, &cache.faults);
            let (verified, problems) = (cache.verified, cache.faults.len());
            if problems == 0 {
                event!(
                    CACHE_VERIFIED,
                    cache = source.name,
                    paths = verified,
                    bytes = cache.bytes,
                    duration_ms = self.report.duration_ms,
                    "verified {verified} paths of the cache {}: all can be read",
                    source.name
                );
            } else {
                event!(
                    CACHE_FAULTY,
                    cache = source.name,
                    paths = verified,
                    problems = problems,
                    bytes = cache.bytes,
                    duration_ms = self.report.duration_ms,
                    "verified {verified} paths of the cache {}: {problems} cannot be read as they should",
                    source.name
                );
            }
        }
        self.report
    }
}
