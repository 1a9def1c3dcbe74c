//! Replies about sessions and their paths. Must not know where the values come from.

use serde::{Deserialize, Serialize};

use super::CiJob;

/// The outcome of a session or push.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// All paths are in the cache.
    #[default]
    Complete,
    /// No path is pending, and at least one has failed.
    Partial,
    /// At least one path is pending.
    Pending,
}

impl Outcome {
    /// Returns the outcome for these numbers of failed and pending paths. Pending
    /// paths count more than failed ones.
    #[must_use]
    pub const fn of(failed: u64, pending: u64) -> Self {
        match (failed, pending) {
            (0, 0) => Self::Complete,
            (_, 0) => Self::Partial,
            (_, _) => Self::Pending,
        }
    }
}

/// The state of a session.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SessionState {
    /// The job runs; new paths join the session.
    #[default]
    Open,
    /// The job has ended the session; paths are still pending.
    Draining,
    /// The session has ended and no path is pending.
    Closed,
    /// The job ended without ending the session.
    Abandoned,
}

/// A path that has failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failed {
    /// The store path, in full.
    pub path: String,
    /// The reason, for people.
    pub error: String,
    /// The class of the error, for programs.
    pub class: Option<String>,
}

/// How many paths belong to a session by each kind of evidence.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Attributed {
    /// The process that built the path descends from the anchor.
    pub process: u64,
    /// A build hook named the path.
    pub hook: u64,
    /// A path of the session refers to it.
    pub closure: u64,
    /// The path became valid while no other session was open.
    pub window: u64,
    /// The path became valid while several sessions were open.
    pub shared: u64,
    /// Always 0. Earlier versions counted paths that the job named here; they count
    /// as `closure` now.
    pub named: u64,
}

/// The outcomes of a session's paths. Each path is counted once, among `pushed`,
/// `already_cached`, `upstream`, `failed_total`, `pending`, `skipped` and `collected`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Summary {
    /// The session's id; none for a push or flush outside of any session.
    pub session: Option<String>,
    /// The session's name for people.
    pub label: Option<String>,
    /// The cache that it pushed to; empty when there were several.
    pub cache: String,
    /// The outcome of the session as a whole.
    pub outcome: Outcome,
    /// Paths that were uploaded for this session.
    pub pushed: u64,
    /// Paths that the cache had already.
    pub already_cached: u64,
    /// Paths that an upstream cache has, by their signatures or by its own answer.
    pub upstream: u64,
    /// Paths that have failed; at most [`super::MAX_FAILED`] are listed.
    pub failed: Vec<Failed>,
    /// How many paths have failed.
    pub failed_total: u64,
    /// Paths that are still to be pushed.
    pub pending: u64,
    /// Paths that a filter or a route leaves out.
    pub skipped: u64,
    /// Paths that were deleted from the store before they were pushed.
    pub collected: u64,
    /// The size of the uploaded NARs, in bytes.
    pub bytes: u64,
    /// Why the paths belong to the session.
    pub attributed: Attributed,
    /// How long the end of the session took.
    pub flush_ms: u64,
    /// The time from the start to the end of the session.
    pub duration_ms: u64,
    /// The state of the session.
    pub state: SessionState,
    /// Whether the session was started with `--strict`.
    pub strict: bool,
    /// Warnings for the job.
    pub warnings: Vec<String>,
    /// The engine of the cache, `native` or `attic`; empty when there were several caches.
    pub engine: String,
    /// Whether the session had to wait for the attic client.
    pub waited_for_client: bool,
    /// How many of the paths that the job named are not valid in the store. They are
    /// counted nowhere else.
    pub invalid: u64,
    /// What chose the cache: a route of the configuration, `--cache` or `default_cache`;
    /// none when it is not known, or for several caches.
    pub route: Option<String>,
    /// How many of the paths are outputs of content-addressed derivations in a cache that
    /// keeps no realisations, so that Nix does not find them there and builds them again.
    pub without_realisation: u64,
}

/// A session in a list.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionEntry {
    /// The session's id.
    pub session: String,
    /// The session's name for people.
    pub label: Option<String>,
    /// The cache that it pushes to.
    pub cache: String,
    /// The state of the session.
    pub state: SessionState,
    /// The user who opened it.
    pub uid: u32,
    /// Whether it was started with `--strict`.
    pub strict: bool,
    /// When it was opened, in milliseconds since 1970.
    pub started_at: i64,
    /// When it ended, in milliseconds since 1970.
    pub ended_at: Option<i64>,
    /// Paths that were pushed, that the cache had already, or that an upstream cache has.
    pub settled: u64,
    /// Paths that are still to be pushed.
    pub pending: u64,
    /// Paths that have failed.
    pub failed: u64,
    /// The CI job of the session.
    pub ci: Option<CiJob>,
}

/// One session with its paths.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionDetail {
    /// The session as in a list.
    pub session: SessionEntry,
    /// The summary that its end would give now.
    pub summary: Summary,
    /// Its paths; at most [`super::MAX_ENTRIES`] are listed.
    pub paths: Vec<PathEntry>,
    /// How many paths it has.
    pub paths_total: u64,
    /// The name of the host.
    pub host: String,
    /// The name of the user who opened it, if it is known.
    pub user: Option<String>,
}

/// One path of a session.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathEntry {
    /// The store path, in full.
    pub path: String,
    /// The outcome of the path: `pushed`, `already_cached`, `pending`, …
    pub state: String,
    /// The evidence by which it belongs to the session.
    pub evidence: String,
    /// The size of its NAR, in bytes.
    pub bytes: u64,
    /// How many uploads were tried.
    pub attempts: u32,
    /// When it became valid, in milliseconds since 1970.
    pub valid_at: Option<i64>,
    /// When the daemon saw it.
    pub seen_at: Option<i64>,
    /// When the cache last answered whether it has the path.
    pub asked_at: Option<i64>,
    /// When its last upload began.
    pub begun_at: Option<i64>,
    /// When its state became final.
    pub settled_at: Option<i64>,
}
