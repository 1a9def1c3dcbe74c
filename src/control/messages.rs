//! The requests and replies of the control socket, as plain data. Must not know any
//! other room, nor the encoding.
//!
//! The encoding is positional: new variants are appended, and a changed struct
//! raises the protocol number in [`super::codec`]. The JSON of [`Summary`] and
//! [`Status`] is documented; fields are only added to it.

mod diagnosis;
mod sessions;
mod status;
mod stories;
mod verify;

use serde::{Deserialize, Serialize};

pub use diagnosis::{
    CacheDiagnosis, Diagnosis, EndpointDiagnosis, Fault, HostDiagnosis, SpaceDiagnosis, UploadDiagnosis,
    Usage,
};
pub use sessions::{
    Attributed, Failed, Outcome, PathEntry, SessionDetail, SessionEntry, SessionState, Summary,
};
pub use status::{
    CacheState, CacheStatus, ClientInfo, ClientServer, ClientStatus, LedgerStatus, LogLine, PathCounts,
    QueueStatus, SessionCounts, Status, StoreStatus, UploadStatus,
};
pub use stories::{PathStory, PushStory, SessionRef};
pub use verify::{Problem, Verification, VerifyScope};

/// The most failures that one summary lists; `failed_total` has the true number.
pub const MAX_FAILED: u32 = 1000;
/// The most paths, sessions or failures in one reply.
pub const MAX_ENTRIES: u32 = 1000;
/// The most uploads in a progress report.
pub const MAX_SLOW: u32 = 3;
/// The most running uploads in a status.
pub const MAX_UPLOADS: u32 = 100;
/// The longest free text (an error's reason, a label) in a reply, in bytes.
pub const MAX_TEXT: u32 = 300;
/// The longest path in a reply, in bytes. The name of a store path has at most 211
/// characters.
pub const MAX_PATH: u32 = 512;

/// The longest string in a request other than a path, in bytes.
pub const MAX_FIELD: u32 = 2048;
/// The most paths in one request.
pub const MAX_PATHS: u32 = 10_000;
/// The most paths in one [`Request::Why`].
pub const MAX_ASKED: u32 = 100;
/// The most paths in one [`Request::Verify`].
pub const MAX_VERIFIED: u32 = 2000;
/// The most problems in one [`Verification`]; `problems_total` has the true number.
pub const MAX_PROBLEMS: u32 = 400;

/// What a caller asks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request {
    /// Opens a session. Answered by [`Reply::Started`].
    SessionStart {
        /// The session's name for people.
        label: Option<String>,
        /// The cache to push to; without one the daemon's routes decide.
        cache: Option<String>,
        /// The process whose descendants belong to the session.
        anchor_pid: Option<u32>,
        /// Whether the end of the session reports failures by its exit status.
        strict: bool,
        /// The CI job of the session. It labels the session and authorizes nothing.
        ci: Option<CiJob>,
        /// Whether the journal has an entry at level info for each pushed path.
        log_paths: bool,
    },
    /// Ends a session; one that has ended already gets the same answer again.
    /// Answered by [`Reply::Ended`].
    SessionEnd {
        /// The session's id; without one the caller's session of `ci_job`, else the
        /// caller's only open session.
        session: Option<String>,
        /// [`CiJob::key`] of the caller's job.
        ci_job: Option<String>,
        /// Further store paths of the session, in full.
        push: Vec<String>,
        /// How long the caller waits for the uploads.
        timeout_ms: u64,
        /// False: answer at once, upload later.
        wait: bool,
        /// Whether the caller has chosen the timeout. Else the daemon answers sooner when
        /// the cache is away, so that nothing can be uploaded before the deadline.
        patient: bool,
    },
    /// Lists sessions. Answered by [`Reply::Sessions`].
    SessionList {
        /// Whether closed sessions are listed too.
        all: bool,
    },
    /// Describes one session. Answered by [`Reply::Session`].
    SessionShow {
        /// The session's id.
        session: String,
    },
    /// Pushes paths outside any session. Answered by [`Reply::Pushed`].
    Push {
        /// Store paths, in full.
        paths: Vec<String>,
        /// The cache to push to; without one the daemon's routes decide.
        cache: Option<String>,
        /// False: answer when they are queued.
        wait: bool,
        /// How long the caller waits.
        timeout_ms: u64,
    },
    /// Reads the Nix database now and waits for all pending pushes. Answered by
    /// [`Reply::Pushed`].
    Flush {
        /// How long the caller waits.
        timeout_ms: u64,
    },
    /// Describes the daemon. Answered by [`Reply::Status`].
    Status,
    /// Reads configuration and tokens again. Answered by [`Reply::Done`].
    Reload,
    /// Reports a build, from Nix's post-build hook, which is a child of the builder.
    /// Answered by [`Reply::Done`].
    Hook {
        /// The derivation that was built, as a full store path.
        derivation: Option<String>,
        /// Its outputs, as full store paths.
        outputs: Vec<String>,
    },
    /// Describes the attic client and how to read the caches. Answered by
    /// [`Reply::Client`].
    Client {
        /// Whether the daemon also tries to read the caches.
        check: bool,
    },
    /// Asks what happened to paths and what they wait for. Answered by [`Reply::Why`].
    Why {
        /// Store paths in full, or their hashes of 32 characters.
        paths: Vec<String>,
    },
    /// Asks the caches and the host for what can keep paths from being pushed. Answered
    /// by [`Reply::Diagnosis`].
    Diagnose {
        /// Whether a small path is uploaded to each cache and read back.
        push: bool,
    },
    /// Fetches paths from their caches as Nix would, and checks them. Answered by
    /// [`Reply::Verified`].
    Verify {
        /// Which paths.
        scope: VerifyScope,
        /// The cache; without one, each path is fetched from the caches that have
        /// confirmed it.
        cache: Option<String>,
        /// How long it may take.
        timeout_ms: u64,
    },
    /// Asks for the daemon's metrics. Answered by [`Reply::Metrics`].
    Metrics,
}

/// The CI job of a session, as the job's environment describes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct CiJob {
    /// `gitlab`, `github`, `gitea`, `forgejo`, `buildkite` or `jenkins`.
    pub system: String,
    /// The job's id, unique within the system.
    pub id: String,
    /// The job's page for people.
    pub url: Option<String>,
    /// The repository or pipeline.
    pub project: Option<String>,
    /// The branch or tag.
    pub git_ref: Option<String>,
}

impl CiJob {
    /// Returns `SYSTEM:ID`, by which [`Request::SessionEnd`] names a job.
    #[must_use]
    pub fn key(&self) -> String {
        format!("{}:{}", self.system, self.id)
    }
}

/// What the daemon replies.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply {
    /// A progress report; any number of them come before the final reply.
    Progress(Progress),
    /// A session is open.
    Started {
        /// The session's id.
        session: String,
        /// The cache that it pushes to.
        cache: String,
    },
    /// A session has ended.
    Ended(Summary),
    /// Sessions, newest first.
    Sessions(Vec<SessionEntry>),
    /// One session.
    Session(SessionDetail),
    /// The result of a push or a flush.
    Pushed(Summary),
    /// The state of the daemon.
    Status(Status),
    /// The request was carried out.
    Done {
        /// A line for people.
        message: String,
    },
    /// The request was refused or failed.
    Error {
        /// The kind of error, for programs.
        code: ErrorCode,
        /// What happened and what to do, for people.
        message: String,
    },
    /// The attic client and how to read the caches.
    Client(ClientInfo),
    /// What happened to paths, in the order of the request.
    Why(Vec<PathStory>),
    /// What can keep paths from being pushed.
    Diagnosis(Diagnosis),
    /// What a verification found.
    Verified(Verification),
    /// The page of metrics, in Prometheus' text format.
    Metrics(String),
}

/// The progress of a request that waits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// How many of its paths have an outcome.
    pub settled: u64,
    /// How many paths it has so far.
    pub total: u64,
    /// How many of its paths are being uploaded.
    pub uploading: u32,
    /// NAR bytes of its paths that were uploaded.
    pub bytes_sent: u64,
    /// A line for people, such as why nothing is uploaded.
    pub note: Option<String>,
    /// The session that ends. A caller that lost the connection asks again by this id.
    pub session: Option<String>,
    /// NAR bytes of its paths that are still to be uploaded, or found in the cache.
    pub bytes_left: u64,
    /// Those of its uploads that run longest, at most [`MAX_SLOW`].
    pub slow: Vec<UploadStatus>,
}

/// Why a request was not carried out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request is invalid.
    BadRequest,
    /// There is no session or path of this name.
    NotFound,
    /// The caller may not ask for this.
    Denied,
    /// A limit is reached; the request may work later.
    Busy,
    /// The daemon is stopping.
    Draining,
    /// The daemon has a fault.
    Internal,
    /// The versions of flywheelctl and flywheeld do not fit each other.
    Version,
}
