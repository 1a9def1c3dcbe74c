//! Whether an upstream cache has a path that came to this host without its signature
//! (`[caches.NAME] upstream_check`), by the upstream's own answer.
//!
//! An answer counts for a limited time. An upstream that fails is not asked for a while, and
//! what only it could have is pushed. Must not know sessions, nor the ledger.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures_util::StreamExt as _;
use tokio::time::Instant;

use crate::cache::{CacheError, Expected, Upstream};
use crate::daemon::inbox::UpstreamAnswer;
use crate::observe::{detail, event};
use crate::store::{Origin, PathInfo};
use crate::types::{NarHash, StoreDir, StorePath};

/// Questions at a time.
const PARALLEL: usize = 16;
/// How long the questions about one batch of paths may take together.
const BATCH_TIME: Duration = Duration::from_secs(10);
/// How long an upstream that failed is not asked.
const PAUSE: Duration = Duration::from_secs(60);
/// Upper bound of the answers that are remembered.
const MOST_ANSWERS: usize = 65_536;

/// The upstream caches that are asked for the paths of one cache. Clones share the answers.
/// The default asks none.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct UpstreamCheck(Option<Arc<Inner>>);

#[derive(Debug)]
struct Inner {
    /// The name of the cache whose paths are asked about.
    cache: String,
    upstreams: Vec<Asked>,
    /// How long an answer counts.
    counts_for: Duration,
    answers: Mutex<HashMap<StorePath, Answer>>,
}

/// An upstream cache.
#[derive(Debug)]
struct Asked {
    url: Arc<str>,
    client: Upstream,
    /// Until when it is not asked, because it failed. `None`: its last answer was one.
    failed_until: Mutex<Option<Instant>>,
}

/// What all upstreams answered about a path.
#[derive(Debug)]
struct Answer {
    nar_hash: NarHash,
    asked_at: Instant,
    /// The one that has it.
    upstream: Option<Arc<str>>,
}

impl UpstreamCheck {
    /// Asks these upstreams for paths of the cache `cache`. A path that is confirmed counts
    /// as confirmed for `recheck_after`; an answer counts for half of that before it
    /// confirms anything.
    pub(in crate::daemon) fn new(
        cache: &str,
        upstreams: Vec<(String, Upstream)>,
        recheck_after: Duration,
    ) -> Self {
        if upstreams.is_empty() {
            return Self(None);
        }
        let asked = |(url, client): (String, Upstream)| Asked {
            url: url.into(),
            client,
            failed_until: Mutex::new(None),
        };
        Self(Some(Arc::new(Inner {
            cache: cache.to_owned(),
            upstreams: upstreams.into_iter().map(asked).collect(),
            counts_for: recheck_after / 2,
            answers: Mutex::default(),
        })))
    }

    /// Whether any upstream is asked.
    pub(in crate::daemon) fn is_on(&self) -> bool {
        self.0.is_some()
    }

    /// Asks about these paths ahead of their uploads, many at a time and for a limited time.
    pub(in crate::daemon) async fn learn(&self, infos: Vec<PathInfo>, store_dir: &StoreDir) {
        let all = futures_util::stream::iter(infos).for_each_concurrent(PARALLEL, |info| {
            let (this, store_dir) = (self.clone(), store_dir.clone());
            async move { drop(this.find(&info, &store_dir).await) }
        });
        // Whatever is left is asked when its upload would begin.
        let _ = tokio::time::timeout(BATCH_TIME, all).await;
    }

    /// Returns the upstream that has this path, by an answer that still counts or by asking
    /// now. `None`: none has it, or it is not known. Only outputs that were copied to this
    /// host are asked about: no upstream learns the name of what was built or added here.
    pub(in crate::daemon) async fn find(
        &self,
        info: &PathInfo,
        store_dir: &StoreDir,
    ) -> Option<UpstreamAnswer> {
        let inner = self.0.as_ref().filter(|_| info.origin() == Origin::Substituted)?;
        if let Some(known) = inner.known(info) {
            return known;
        }
        let asked_at = Instant::now();
        let expected = Expected {
            nar_hash: info.nar_hash,
            nar_size: info.nar_size,
            references: info.references.clone(),
        };
        let mut all_answered = true;
        for upstream in &inner.upstreams {
            if upstream.is_paused() {
                all_answered = false;
                continue;
            }
            match upstream.client.offers(&info.path, &expected, store_dir).await {
                Ok(offers) => {
                    upstream.answered();
                    if offers {
                        inner.remember(info, asked_at, Some(Arc::clone(&upstream.url)));
                        return Some(UpstreamAnswer { upstream: Arc::clone(&upstream.url), asked_at });
                    }
                }
                Err(error) => {
                    all_answered = false;
                    upstream.failed(&inner.cache, &error);
                }
            }
        }
        if all_answered {
            inner.remember(info, asked_at, None);
        }
        None
    }
}

impl Inner {
    fn answers(&self) -> MutexGuard<'_, HashMap<StorePath, Answer>> {
        self.answers.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The answer about this path that still counts. `Some(None)`: no upstream has it.
    fn known(&self, info: &PathInfo) -> Option<Option<UpstreamAnswer>> {
        let answers = self.answers();
        let answer = answers.get(&info.path).filter(|answer| {
            answer.nar_hash == info.nar_hash && answer.asked_at.elapsed() < self.counts_for
        })?;
        let found = |upstream| UpstreamAnswer { upstream, asked_at: answer.asked_at };
        Some(answer.upstream.clone().map(found))
    }

    fn remember(&self, info: &PathInfo, asked_at: Instant, upstream: Option<Arc<str>>) {
        let mut answers = self.answers();
        if answers.len() >= MOST_ANSWERS {
            answers.retain(|_, answer| answer.asked_at.elapsed() < self.counts_for);
            if answers.len() >= MOST_ANSWERS {
                answers.clear();
            }
        }
        answers.insert(info.path.clone(), Answer { nar_hash: info.nar_hash, asked_at, upstream });
    }
}

impl Asked {
    fn failed_until(&self) -> MutexGuard<'_, Option<Instant>> {
        self.failed_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_paused(&self) -> bool {
        self.failed_until().is_some_and(|until| Instant::now() < until)
    }

    fn answered(&self) {
        if self.failed_until().take().is_some() {
            detail!(upstream = &*self.url, "the upstream cache answers again");
        }
    }

    /// Has it not asked for a while. Logs the first failure after an answer.
    fn failed(&self, cache: &str, error: &CacheError) {
        let was_failed = self.failed_until().replace(Instant::now() + PAUSE).is_some();
        if !was_failed {
            let url = &*self.url;
            event!(
                UPSTREAM_CHECK_FAILED,
                cache = cache,
                upstream = url,
                error = %error,
                "the upstream cache {url} cannot be asked whether it has paths, so that they are pushed to cache \
                 {cache}: {error}"
            );
        }
    }
}
