//! The request to verify what caches serve, and its reply. Must not know how paths are
//! fetched.

use serde::{Deserialize, Serialize};

/// Which paths are verified.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum VerifyScope {
    /// These store paths, in full.
    Paths(Vec<String>),
    /// The paths of this session that are in the cache.
    Session(String),
    /// This many paths, at random, of those that caches have confirmed.
    Sample(u32),
}

/// What a verification found.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verification {
    /// How many paths were fetched and checked, each once for each cache.
    pub verified: u64,
    /// How many of them are as they should be.
    pub good: u64,
    /// How many the cache lacks and need not have, because an upstream cache has them.
    pub upstream: u64,
    /// How many were not reached before the deadline.
    pub unchecked: u64,
    /// How many bytes were fetched.
    pub bytes: u64,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// How many problems there are; at most [`super::MAX_PROBLEMS`] of them are listed.
    pub problems_total: u64,
    /// What is wrong.
    pub problems: Vec<Problem>,
}

/// What is wrong with a path in a cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// The store path in full.
    pub path: String,
    /// The cache.
    pub cache: String,
    /// The kind: `absent`, `not_served`, `cut`, `other_hash`, `wrong_key`, `references`,
    /// `refused`, `unreachable` or `unsupported`.
    pub problem: String,
    /// What was seen, and what to do.
    pub detail: String,
    /// Whether the path is valid in the store, so that it can be pushed again.
    pub valid: bool,
}
