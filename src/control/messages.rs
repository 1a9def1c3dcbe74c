//! What is said on the control socket, as plain data. Must not know any other
//! room, nor how the bytes are laid out.
//!
//! The layout on the socket is positional: variants are only ever appended, and
//! a changed struct raises the protocol number in [`super::codec`]. The JSON of
//! [`Summary`] and [`Status`] is the documented one; fields are only added.

use serde::{Deserialize, Serialize};

/// Most failures that one summary lists; `failed_total` has the true number.
pub const MAX_FAILED: u32 = 1000;
/// Most paths, sessions, parked paths or warnings in one reply.
pub const MAX_ENTRIES: u32 = 1000;
/// Longest free text (an error's reason, a label) in a reply, in bytes.
pub const MAX_TEXT: u32 = 300;
/// Longest path in a reply; store paths end at 211 characters after the store directory.
pub const MAX_PATH: u32 = 512;

/// What a client asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens a session. Answered by [`Reply::Started`].
    SessionStart {
        /// Name for people.
        label: Option<String>,
        /// Cache to push to; the daemon's routing decides without one.
        cache: Option<String>,
        /// Process whose descendants belong to the session.
        anchor_pid: Option<u32>,
        /// The end reports failures by its exit status.
        strict: bool,
        /// The CI job around it: a label, never an authorization.
        ci: Option<CiJob>,
    },
    /// Ends a session, again with the same answer when it has ended. Answered by [`Reply::Ended`].
    SessionEnd {
        /// Its id; without one the caller's session of `ci_job`, else the caller's only open one.
        session: Option<String>,
        /// [`CiJob::key`] of the caller's job.
        ci_job: Option<String>,
        /// Full store paths that belong to the session too.
        push: Vec<String>,
        /// How long the caller waits for the uploads.
        timeout_ms: u64,
        /// False: answer at once, upload later.
        wait: bool,
    },
    /// Answered by [`Reply::Sessions`].
    SessionList {
        /// Closed ones too.
        all: bool,
    },
    /// Answered by [`Reply::Session`].
    SessionShow {
        /// Its id.
        session: String,
    },
    /// Pushes paths outside any session. Answered by [`Reply::Pushed`].
    Push {
        /// Full store paths.
        paths: Vec<String>,
        /// Cache to push to.
        cache: Option<String>,
        /// False: answer when they are queued.
        wait: bool,
        /// How long the caller waits.
        timeout_ms: u64,
    },
    /// Looks at the store now and waits for everything queued. Answered by [`Reply::Pushed`].
    Flush {
        /// How long the caller waits.
        timeout_ms: u64,
    },
    /// Answered by [`Reply::Status`].
    Status,
    /// Reads configuration and tokens again. Answered by [`Reply::Done`].
    Reload,
    /// Nix's post-build hook: who asks is a child of the builder. Answered by [`Reply::Done`].
    Hook {
        /// Full store path of what was built.
        derivation: Option<String>,
        /// Full store paths that came of it.
        outputs: Vec<String>,
    },
    /// The attic client, and how to read the caches. Answered by [`Reply::Client`].
    Client {
        /// Also whether the caches can be read.
        check: bool,
    },
}

/// The CI job that a session belongs to, as its environment tells it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiJob {
    /// `gitlab`, `github`, `gitea`, `forgejo`, `buildkite` or `jenkins`.
    pub system: String,
    /// Unique within the system.
    pub id: String,
    /// Where people look at the job.
    pub url: Option<String>,
    /// Repository or pipeline.
    pub project: Option<String>,
    /// Branch or tag.
    pub git_ref: Option<String>,
}

impl CiJob {
    /// What [`Request::SessionEnd`] names a job by: `SYSTEM:ID`.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}", self.system, self.id)
    }
}

/// What the daemon answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// Any number of these, before the final one.
    Progress(Progress),
    /// A session is open.
    Started {
        /// Its id.
        session: String,
        /// Where it pushes to.
        cache: String,
    },
    /// A session has ended.
    Ended(Summary),
    /// Sessions, newest first.
    Sessions(Vec<SessionEntry>),
    /// One session.
    Session(SessionDetail),
    /// What became of a push or a flush.
    Pushed(Summary),
    /// How the daemon is.
    Status(Status),
    /// Done, with a line for people.
    Done {
        /// That line.
        message: String,
    },
    /// Refused or failed.
    Error {
        /// For programs.
        code: ErrorCode,
        /// For people: what, where, what to do.
        message: String,
    },
    /// The attic client, and how to read the caches.
    Client(ClientInfo),
}

/// How far a waiting request is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// Paths whose outcome is known.
    pub settled: u64,
    /// Paths there are so far.
    pub total: u64,
    /// Uploads under way.
    pub uploading: u32,
    /// Bytes sent for this request.
    pub bytes_sent: u64,
    /// A line for people, such as why nothing moves.
    pub note: Option<String>,
    /// The session that is ending, so that a caller who lost the connection can ask for it by its id.
    pub session: Option<String>,
}

/// Why a request was not done.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request makes no sense.
    BadRequest,
    /// No such session or path.
    NotFound,
    /// Not for this caller.
    Denied,
    /// A limit is reached; later it may work.
    Busy,
    /// The daemon is stopping.
    Draining,
    /// A fault of the daemon.
    Internal,
    /// Client and daemon do not understand each other.
    Version,
}

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
    /// Not in the cache for good; at most [`MAX_FAILED`].
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
    /// Its paths; at most [`MAX_ENTRIES`].
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
    /// Paths set aside after failing; at most [`MAX_ENTRIES`].
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
