//! What is said on the control socket, as plain data. Must not know any other
//! room, nor how the bytes are laid out.
//!
//! The layout on the socket is positional: variants are only ever appended, and
//! a changed struct raises the protocol number in [`super::codec`]. The JSON of
//! [`Summary`] and [`Status`] is the documented one; fields are only added.

mod sessions;
mod status;

use serde::{Deserialize, Serialize};

pub use sessions::{
    Attributed, Failed, Outcome, PathEntry, SessionDetail, SessionEntry, SessionState, Summary,
};
pub use status::{
    CacheState, CacheStatus, ClientInfo, ClientServer, ClientStatus, LedgerStatus, PathCounts, QueueStatus,
    Status, StoreStatus,
};

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
