//! Replies to the question what happened to a path. Must not know where the values
//! come from.

use serde::{Deserialize, Serialize};

/// What is known about one store path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathStory {
    /// The store path in full, or what was asked for if no path is known by it.
    pub path: String,
    /// Whether the path is valid in the store; none when the Nix database cannot be
    /// read now.
    pub valid: Option<bool>,
    /// The size of its NAR, in bytes, if it is known.
    pub nar_size: Option<u64>,
    /// The sessions of the path that the caller may see, and why it belongs to them.
    pub sessions: Vec<SessionRef>,
    /// How many sessions of other users the path belongs to.
    pub hidden_sessions: u64,
    /// Its pushes, one for each cache.
    pub pushes: Vec<PushStory>,
    /// What explains the state as a whole, in a sentence.
    pub summary: String,
}

/// A session that a path belongs to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionRef {
    /// The session's id.
    pub session: String,
    /// The session's name for people.
    pub label: Option<String>,
    /// The user who opened it.
    pub uid: u32,
    /// The evidence by which the path belongs to it.
    pub evidence: String,
    /// The outcome of the path for the session.
    pub outcome: String,
    /// The cache that the session pushes to; empty when a route skips its paths.
    pub cache: String,
    /// What chose the cache: a route of the configuration, `--cache` or `default_cache`;
    /// none when an earlier version opened the session.
    pub route: Option<String>,
}

/// One push of a path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PushStory {
    /// The cache; empty when a route skips the path.
    pub cache: String,
    /// The state: `pending`, `uploading`, `pushed`, `already_cached`, `upstream`,
    /// `failed`, `skipped` or `collected`.
    pub state: String,
    /// How many uploads were tried.
    pub attempts: u32,
    /// The last error, for people.
    pub error: Option<String>,
    /// The class of the last error, for programs.
    pub class: Option<String>,
    /// When the path became valid, in milliseconds since 1970.
    pub valid_at: Option<i64>,
    /// When the daemon saw it.
    pub seen_at: Option<i64>,
    /// When the cache last answered whether it has the path.
    pub asked_at: Option<i64>,
    /// When its last upload began.
    pub begun_at: Option<i64>,
    /// When the state became final.
    pub settled_at: Option<i64>,
    /// What the push waits for, or what makes it go on; none when nothing is to be done.
    pub next: Option<String>,
    /// What sent the path to the cache, or to none: a route of the configuration or
    /// `default_cache`; none when a session did, or another path that refers to it.
    pub route: Option<String>,
}
