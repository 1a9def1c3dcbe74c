//! Replies about the daemon, its caches and the attic client. Must not know where
//! the values come from.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Failed, SessionEntry};

/// The state of the daemon.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// The version of the daemon.
    pub version: String,
    /// How long it runs, in milliseconds.
    pub uptime_ms: u64,
    /// Whether it is stopping.
    pub draining: bool,
    /// One entry for each cache.
    pub cache: Vec<CacheStatus>,
    /// How many pushes there are in each state.
    pub queue: QueueStatus,
    /// Sessions that are open or draining, as far as the caller may see them.
    pub sessions: Vec<SessionEntry>,
    /// How far the Nix database is read.
    pub store: StoreStatus,
    /// The attic client that the daemon keeps.
    pub client: ClientStatus,
    /// Whether the ledger can be written.
    pub ledger: LedgerStatus,
    /// Paths that have failed, as far as the caller may see them; at most
    /// [`super::MAX_ENTRIES`] are listed.
    pub failed: Vec<Failed>,
    /// Warnings for the administrator.
    pub warnings: Vec<String>,
    /// How many sessions there are, of all users.
    pub session_counts: SessionCounts,
    /// Uploads that run now, as far as the caller may see them; at most
    /// [`super::MAX_UPLOADS`] are listed.
    pub uploads: Vec<UploadStatus>,
    /// The last entries of the log, oldest first, as far as the caller may see them.
    pub events: Vec<LogLine>,
    /// Bytes of NARs that were read for uploads since the daemon started, those of
    /// running uploads included.
    pub sent_bytes: u64,
}

/// An upload that runs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadStatus {
    /// The store path, in full.
    pub path: String,
    /// The cache.
    pub cache: String,
    /// The size of the NAR, in bytes.
    pub nar_size: u64,
    /// How many bytes of it were read so far.
    pub sent: u64,
    /// How long the upload runs, in milliseconds.
    pub running_ms: u64,
    /// Which try it is, from 1.
    pub attempt: u32,
    /// Whether `sent` is known. It is not for uploads of the attic client.
    pub measured: bool,
}

/// An entry of the log.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was logged, in milliseconds since 1970.
    pub at: i64,
    /// `error`, `warn` or `info`.
    pub level: String,
    /// The entry's text.
    pub text: String,
}

/// How many sessions there are, of all users.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionCounts {
    /// Sessions whose jobs run.
    pub open: u64,
    /// Sessions that have ended with pending paths.
    pub draining: u64,
}

/// Whether a cache takes uploads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheState {
    /// The cache answers.
    Online,
    /// The cache does not answer.
    #[default]
    Offline,
    /// The cache refuses the token.
    Unauthorized,
}

impl CacheState {
    /// Returns the word for it in JSON.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Unauthorized => "unauthorized",
        }
    }
}

/// The state of one cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// The cache's name in the configuration.
    pub name: String,
    /// The endpoint in use, if one was found.
    pub endpoint: Option<String>,
    /// Whether the cache takes uploads.
    pub state: CacheState,
    /// The engine, `native` or `attic`.
    pub engine: String,
    /// Why the cache is not online, or what it waits for.
    pub reason: Option<String>,
    /// When its token expires, in seconds since 1970.
    pub token_expires: Option<i64>,
    /// The outcomes of pushes since the daemon started.
    pub counts: PathCounts,
    /// How many paths `verify` found in each state since the daemon started: `good`, or the
    /// kind of the problem.
    pub verified: BTreeMap<String, u64>,
}

/// The outcomes of pushes to one cache since the daemon started. The numbers only grow.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathCounts {
    /// Pushes whose upload the cache has confirmed.
    pub pushed: u64,
    /// Paths that the cache had already.
    pub already_cached: u64,
    /// Paths that an upstream cache has, by their signatures or by its own answer.
    pub upstream: u64,
    /// Paths that were deleted from the store before they were pushed.
    pub collected: u64,
    /// Pushes that have failed; one that is tried again and fails again counts again.
    pub failed: u64,
    /// Uploads that went wrong, whether they were retried or not.
    pub failures: u64,
    /// The size of the uploaded NARs, in bytes.
    pub bytes: u64,
}

/// How many pushes there are in each state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Pushes that wait.
    pub pending: u64,
    /// Pushes whose upload runs now.
    pub uploading: u64,
    /// Pushes that have failed.
    pub failed: u64,
}

/// How far the Nix database is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// The last row that was read.
    pub cursor: i64,
    /// How many rows come after it.
    pub lag: u64,
    /// Why new rows cannot be followed, if they cannot.
    pub problem: Option<String>,
    /// The size of the NARs of pending paths that are protected from garbage collection,
    /// in bytes.
    pub protected_bytes: u64,
    /// How many pending paths are not protected because a limit is exceeded.
    pub unprotected_paths: u64,
    /// How many paths have lost their protection since the daemon started.
    pub let_go: u64,
    /// The directory in which the store's files are, if the store is below a root.
    pub files: Option<String>,
}

/// The state of the attic client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// `disabled`, `absent`, `trying`, `ready`, `updating` or `broken`.
    pub state: String,
    /// The path of the program.
    pub path: Option<String>,
    /// The version that the program prints.
    pub version: Option<String>,
    /// The installable that the configuration names.
    pub installable: Option<String>,
    /// When this client was installed, in milliseconds since 1970.
    pub since: Option<i64>,
    /// How long it took to fetch and try this client, in milliseconds.
    pub took_ms: Option<u64>,
    /// How long the daemon had no client before that, in milliseconds.
    pub waited_ms: Option<u64>,
    /// Why there is no client, or why a newer client was not taken.
    pub error: Option<String>,
}

/// What a job needs to call the attic client, and Nix to read the caches.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// The attic client.
    pub client: ClientStatus,
    /// The caches, in the order of the configuration.
    pub servers: Vec<ClientServer>,
    /// The netrc file that the daemon writes, if it writes one.
    pub netrc: Option<String>,
}

/// One cache, for programs that read from it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientServer {
    /// The cache's name in the configuration.
    pub name: String,
    /// The cache's name on the server.
    pub cache: String,
    /// Whether this is the default cache.
    pub default: bool,
    /// The address of the API, if one was found.
    pub endpoint: Option<String>,
    /// The substituter that the cache names.
    pub substituter: Option<String>,
    /// The key for `trusted-public-keys` that the cache names.
    pub public_key: Option<String>,
    /// Whether the cache says that reading needs no token.
    pub public: Option<bool>,
    /// Whether the cache can be read with the netrc file, if the daemon tried.
    pub readable: Option<bool>,
    /// Why it cannot be read.
    pub problem: Option<String>,
    /// The file with the authorities that the daemon trusts for it, if the configuration names one.
    pub ca_file: Option<String>,
    /// The certificate that the daemon shows to it.
    pub client_cert: Option<String>,
    /// The key of that certificate; none: it is in the same file.
    pub client_key: Option<String>,
}

/// Whether the ledger can be written.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStatus {
    /// `ok` or `degraded`.
    pub state: String,
    /// The reason, for people.
    pub detail: Option<String>,
}
