//! What is told about a session and its paths.
//! Must not know how any of it is found out.

use serde::{Deserialize, Serialize};

use super::CiJob;

/// How a session or push came out.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Everything is in the cache.
    #[default]
    Complete,
    /// Settled, but something failed.
    Partial,
    /// Something is not settled.
    Pending,
}

impl Outcome {
    /// The one rule: what is unsettled is said before what failed.
    #[must_use]
    pub const fn of(failed: u64, pending: u64) -> Self {
        match (failed, pending) {
            (0, 0) => Self::Complete,
            (_, 0) => Self::Partial,
            (_, _) => Self::Pending,
        }
    }
}

/// Where in its life a session is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// Collecting paths.
    #[default]
    Open,
    /// Ended by its job, uploads under way.
    Draining,
    /// Ended and settled.
    Closed,
    /// Its job went away without ending it.
    Abandoned,
}

/// One path that is not in the cache, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// Full store path.
    pub path: String,
    /// For people.
    pub error: String,
    /// For programs: the error's class.
    pub class: Option<String>,
}

/// By which evidence paths belong to the session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributed {
    /// The building process descends from the anchor.
    pub process: u64,
    /// A build hook named it.
    pub hook: u64,
    /// Something of the session refers to it.
    pub closure: u64,
    /// It became valid while this session alone was open.
    pub window: u64,
    /// It became valid while several sessions were open.
    pub shared: u64,
    /// The job named it.
    pub named: u64,
}

/// What became of a session's paths. Each is counted once among `pushed`,
/// `already_cached`, `upstream`, `failed_total`, `pending`, `skipped` and `collected`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// Its id; none for a push or flush outside any session.
    pub session: Option<String>,
    /// Its name.
    pub label: Option<String>,
    /// Where it pushed to; empty when to several.
    pub cache: String,
    /// All in all.
    pub outcome: Outcome,
    /// Uploaded for this session.
    pub pushed: u64,
    /// In the cache before.
    pub already_cached: u64,
    /// In an upstream cache, by its signature.
    pub upstream: u64,
    /// Not in the cache for good; at most [`super::MAX_FAILED`].
    pub failed: Vec<Failed>,
    /// How many there are of those.
    pub failed_total: u64,
    /// Not settled.
    pub pending: u64,
    /// Left out by a filter.
    pub skipped: u64,
    /// Deleted from the store before they could be pushed.
    pub collected: u64,
    /// Bytes of NARs uploaded.
    pub bytes: u64,
    /// Why the paths are the session's.
    pub attributed: Attributed,
    /// How long the end took.
    pub flush_ms: u64,
    /// From start to end.
    pub duration_ms: u64,
    /// Where in its life the session is.
    pub state: SessionState,
    /// The session was started strict.
    pub strict: bool,
    /// What the job should know.
    pub warnings: Vec<String>,
    /// Which way it went: `native` or `attic`; empty when to several caches.
    pub engine: String,
    /// It went through the attic client, which only appeared after its start.
    pub waited_for_client: bool,
}

/// A session in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEntry {
    /// Its id.
    pub session: String,
    /// Its name.
    pub label: Option<String>,
    /// Where it pushes to.
    pub cache: String,
    /// Where in its life it is.
    pub state: SessionState,
    /// Whose it is.
    pub uid: u32,
    /// Started strict.
    pub strict: bool,
    /// Unix time in milliseconds.
    pub started_at: i64,
    /// Unix time in milliseconds, when it has ended.
    pub ended_at: Option<i64>,
    /// In the cache by now: pushed, cached before, or upstream.
    pub settled: u64,
    /// Not settled.
    pub pending: u64,
    /// Failed.
    pub failed: u64,
    /// The job around it.
    pub ci: Option<CiJob>,
}

/// Everything about one session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDetail {
    /// As in the list.
    pub session: SessionEntry,
    /// What its end would say now.
    pub summary: Summary,
    /// Its paths; at most [`super::MAX_ENTRIES`].
    pub paths: Vec<PathEntry>,
    /// How many there are.
    pub paths_total: u64,
}

/// One path of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathEntry {
    /// Full store path.
    pub path: String,
    /// How it counts: `pushed`, `already_cached`, `pending`, …
    pub state: String,
    /// Why it belongs to the session.
    pub evidence: String,
    /// Size of its NAR.
    pub bytes: u64,
}
