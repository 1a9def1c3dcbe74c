//! What is told about the daemon, its caches and its client.
//! Must not know how any of it is found out.

use serde::{Deserialize, Serialize};

use super::{Failed, SessionEntry};

/// How the daemon is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Status {
    /// Of the daemon.
    pub version: String,
    /// Since its start.
    pub uptime_ms: u64,
    /// It is stopping.
    pub draining: bool,
    /// One entry a cache.
    pub cache: Vec<CacheStatus>,
    /// What is to be uploaded.
    pub queue: QueueStatus,
    /// Open and draining ones.
    pub sessions: Vec<SessionEntry>,
    /// How far the Nix database is read.
    pub store: StoreStatus,
    /// The attic client that the daemon keeps.
    pub client: ClientStatus,
    /// The daemon's own records.
    pub ledger: LedgerStatus,
    /// Paths set aside after failing; at most [`super::MAX_ENTRIES`].
    pub parked: Vec<Failed>,
    /// What an operator should know.
    pub warnings: Vec<String>,
}

/// Whether a cache takes uploads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CacheState {
    /// It answers.
    Online,
    /// It does not.
    #[default]
    Offline,
    /// It refuses the token.
    Unauthorized,
}

impl CacheState {
    /// The word that the JSON has for it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Online => "online",
            Self::Offline => "offline",
            Self::Unauthorized => "unauthorized",
        }
    }
}

/// One cache.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CacheStatus {
    /// Name in the configuration.
    pub name: String,
    /// The endpoint in use, when one was found.
    pub endpoint: Option<String>,
    /// Whether it takes uploads.
    pub state: CacheState,
    /// `native` or `attic`.
    pub engine: String,
    /// Why it is not online.
    pub reason: Option<String>,
    /// When its token ends, Unix time in seconds.
    pub token_expires: Option<i64>,
    /// What became of paths since the daemon started.
    pub counts: PathCounts,
}

/// What became of paths for one cache since the daemon started; only grows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct PathCounts {
    /// Uploaded and confirmed.
    pub pushed: u64,
    /// In the cache before.
    pub already_cached: u64,
    /// In an upstream cache, by its signature.
    pub upstream: u64,
    /// Deleted from the store before they could be pushed.
    pub collected: u64,
    /// Given up; one that is tried again and fails again counts again.
    pub failed: u64,
    /// Uploads that failed, whether they were tried again or not.
    pub failures: u64,
    /// Bytes of NARs uploaded.
    pub bytes: u64,
}

/// The queue's numbers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueStatus {
    /// Waiting.
    pub pending: u64,
    /// Under way.
    pub uploading: u64,
    /// Set aside after failing.
    pub parked: u64,
}

/// How far the Nix database is read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoreStatus {
    /// Last row seen.
    pub cursor: i64,
    /// Rows after it.
    pub lag: u64,
    /// What is wrong with the watch, if anything.
    pub problem: Option<String>,
}

/// The attic client.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientStatus {
    /// `disabled`, `absent`, `trying`, `ready`, `updating` or `broken`.
    pub state: String,
    /// The program.
    pub path: Option<String>,
    /// What it says of its version.
    pub version: Option<String>,
    /// What the configuration names.
    pub installable: Option<String>,
    /// Since when this one is here, Unix time in milliseconds.
    pub since: Option<i64>,
    /// How long phase 1 took that brought it: fetching and trying it.
    pub took_ms: Option<u64>,
    /// How long the daemon was without one before that.
    pub waited_ms: Option<u64>,
    /// Why there is none, or why the last newer one was not taken.
    pub error: Option<String>,
}

/// What a job needs for calling the client itself, and Nix for reading.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientInfo {
    /// The client.
    pub client: ClientStatus,
    /// The caches.
    pub servers: Vec<ClientServer>,
    /// The netrc file that the daemon keeps.
    pub netrc: Option<String>,
}

/// One cache as its readers see it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClientServer {
    /// Name in the configuration.
    pub name: String,
    /// Name on the server.
    pub cache: String,
    /// Where sessions go when nothing else is said.
    pub default: bool,
    /// Address of the API, when one was found.
    pub endpoint: Option<String>,
    /// Where Nix fetches from, as the cache says.
    pub substituter: Option<String>,
    /// For `trusted-public-keys`, as the cache says.
    pub public_key: Option<String>,
    /// Whether reading needs no token, as the cache says.
    pub public: Option<bool>,
    /// Whether it can be read with what the netrc file holds, when that was asked for.
    pub readable: Option<bool>,
    /// Why not.
    pub problem: Option<String>,
}

/// The daemon's own records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LedgerStatus {
    /// `ok`, or what is wrong.
    pub state: String,
    /// More, for people.
    pub detail: Option<String>,
}
