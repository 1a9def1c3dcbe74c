//! The reply to `doctor`: what the daemon found out about its caches and its host.
//! Must not know what is good or bad, nor where the values come from.

use serde::{Deserialize, Serialize};

/// What the daemon found out for `doctor`. It has no secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnosis {
    /// One entry for each cache, in the order of the configuration.
    pub caches: Vec<CacheDiagnosis>,
    /// The host, as the daemon's process sees it.
    pub host: HostDiagnosis,
}

/// A request that went wrong.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// The class of the error, for programs: `unreachable`, `unauthorized`, …
    pub class: String,
    /// What failed and why, for people.
    pub message: String,
}

/// What one cache answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheDiagnosis {
    /// The cache's name in the configuration.
    pub name: String,
    /// The configured endpoints, in their order.
    pub endpoints: Vec<EndpointDiagnosis>,
    /// The store directory that the cache is for, if it says so.
    pub store_dir: Option<String>,
    /// Where the token comes from: a file, a variable, or none when there is none.
    pub token_source: Option<String>,
    /// Why the token cannot be read, if it cannot.
    pub token_problem: Option<String>,
    /// When the token expires, in seconds since 1970.
    pub token_expires: Option<i64>,
    /// Whether a program renews the token before it expires.
    pub token_renews: bool,
    /// Why the cache did not answer a question that needs the right to push; none when
    /// it did, or when no endpoint answers.
    pub push_problem: Option<Fault>,
    /// The outcome of an upload, if the caller asked for one.
    pub upload: Option<UploadDiagnosis>,
    /// Whether the cache keeps realisations of content-addressed derivations.
    pub realisations: bool,
}

/// What one endpoint answered.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EndpointDiagnosis {
    /// The address.
    pub address: String,
    /// Why it does not describe the cache; none when it does.
    pub fault: Option<Fault>,
    /// How many seconds the server's clock is ahead of this host's, if it sent a date.
    pub clock_ahead_s: Option<i64>,
}

/// The upload of a small path that is the same on all hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadDiagnosis {
    /// The path.
    pub path: String,
    /// Why it was not uploaded, if it was not.
    pub upload_problem: Option<Fault>,
    /// Why it was not read back, if it was not.
    pub read_problem: Option<Fault>,
}

/// The host, as the daemon's process sees it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostDiagnosis {
    /// The daemon's user.
    pub uid: u32,
    /// The store directory.
    pub store_dir: String,
    /// Free space where the daemon or Nix writes.
    pub space: Vec<SpaceDiagnosis>,
    /// How many files the daemon may have open, and how many it has.
    pub open_files: Option<Usage>,
    /// The kernel's limit of watches for one user.
    pub inotify_watches: Option<u64>,
    /// The kernel's limit of inotify instances for one user.
    pub inotify_instances: Option<u64>,
    /// Whether the daemon cannot see the processes of other users.
    pub processes_hidden: bool,
}

/// A limit and what is used of it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// What is used.
    pub used: u64,
    /// The limit.
    pub limit: u64,
}

/// The free space of one directory's file system.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SpaceDiagnosis {
    /// What the directory is for: `store`, `state` or `built-in cache`.
    pub purpose: String,
    /// The directory.
    pub dir: String,
    /// Bytes that the daemon may still write.
    pub free: u64,
    /// Files that can still be made; none where the file system has no limit.
    pub free_files: Option<u64>,
}
