//! The values that the ledger takes and returns. The numbers of the enums are part
//! of the file format and never change their meaning.
//!
//! Must not know: SQL.

/// The row of a push: one path on its way to one cache. Never used twice.
pub type PushId = i64;
/// The row of a session. Never used twice.
pub type SessionRow = i64;

/// The state of a push.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PushState {
    /// Waits for its upload, or for the cache's answer that it has the path.
    Pending = 0,
    /// An upload has begun. Stays over a restart, see [`Settle`].
    Uploading = 1,
    /// Uploaded by this host, and confirmed.
    Pushed = 2,
    /// The cache had it already.
    Cached = 3,
    /// An upstream of the cache has it.
    Upstream = 4,
    /// Failed, with a recorded reason.
    Failed = 5,
    /// Left out by a filter.
    Skipped = 6,
    /// Removed from the store before it was uploaded.
    Collected = 7,
}

impl PushState {
    /// Returns whether nothing is left to do for the push.
    #[must_use]
    pub(crate) fn is_settled(self) -> bool {
        !matches!(self, Self::Pending | Self::Uploading)
    }

    /// Returns the word for it in JSON and in messages.
    pub(crate) const fn word(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Uploading => "uploading",
            Self::Pushed => "pushed",
            Self::Cached => "already_cached",
            Self::Upstream => "upstream",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Collected => "collected",
        }
    }

    pub(super) fn from_file(n: i64) -> Option<Self> {
        Some(match n {
            0 => Self::Pending,
            1 => Self::Uploading,
            2 => Self::Pushed,
            3 => Self::Cached,
            4 => Self::Upstream,
            5 => Self::Failed,
            6 => Self::Skipped,
            7 => Self::Collected,
            _ => return None,
        })
    }
}

/// Why a push is a session's. The order is that of strength, the strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// Nix's post-build hook ran for it in the session.
    Hook = 0,
    /// A process of the session made it.
    Process = 1,
    /// It is in the closure of a path that the session made or named.
    Closure = 2,
    /// It became valid while no other session was open.
    Window = 3,
    /// It became valid while several sessions were open.
    Shared = 4,
}

impl Evidence {
    /// The number of kinds.
    pub const COUNT: usize = 5;

    pub(super) fn from_file(n: i64) -> Option<Self> {
        Some(match n {
            0 => Self::Hook,
            1 => Self::Process,
            // 5 is how earlier versions recorded a named path.
            2 | 5 => Self::Closure,
            3 => Self::Window,
            4 => Self::Shared,
            _ => return None,
        })
    }
}

/// How a session counts a push. Numbered like the [`PushState`] it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Not settled.
    Pending = 0,
    /// Uploaded while the session waited for it.
    Pushed = 2,
    /// In the cache without an upload for this session.
    AlreadyCached = 3,
    /// In an upstream of the cache.
    Upstream = 4,
    /// Not in the cache, with a reason.
    Failed = 5,
    /// Left out by a filter.
    Skipped = 6,
    /// Removed from the store before it was uploaded.
    Collected = 7,
}

impl Outcome {
    /// Returns how a session counts a push that is in `state` when the session
    /// gains it.
    pub(super) fn on_attach(state: PushState) -> Self {
        match state {
            PushState::Pending | PushState::Uploading => Self::Pending,
            PushState::Pushed | PushState::Cached => Self::AlreadyCached,
            PushState::Upstream => Self::Upstream,
            PushState::Failed => Self::Failed,
            PushState::Skipped => Self::Skipped,
            PushState::Collected => Self::Collected,
        }
    }

    pub(super) fn from_file(n: i64) -> Option<Self> {
        Some(match n {
            0 => Self::Pending,
            2 => Self::Pushed,
            3 => Self::AlreadyCached,
            4 => Self::Upstream,
            5 => Self::Failed,
            6 => Self::Skipped,
            7 => Self::Collected,
            _ => return None,
        })
    }
}

/// How far a Nix database was read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Cursor {
    /// The identity of the database.
    pub identity: String,
    /// The last row that was read.
    pub id: i64,
    /// A text of the intake by which it recognizes the rows that it read.
    pub marks: String,
}

/// One batch of the intake. All of it is recorded, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Admit {
    /// How far the Nix database was read, if the batch comes from there.
    pub cursor: Option<Cursor>,
    /// The pushes, new or known.
    pub pushes: Vec<NewPushRow>,
    /// The current time, unix ms.
    pub at: i64,
}

/// One push of an [`Admit`].
#[derive(Clone, Debug)]
pub struct NewPushRow {
    /// The cache's name.
    pub cache: String,
    /// Base name of the store path.
    pub path: String,
    /// Size of its NAR.
    pub nar_size: u64,
    /// When the path became valid, unix ms; 0 if it is not known.
    pub valid_at: i64,
    /// The state of a push that is not known yet: pending, upstream or skipped.
    pub state: PushState,
    /// Whether a failed push becomes pending again.
    pub retry_failed: bool,
    /// The sessions that it belongs to, and why.
    pub sessions: Vec<(SessionRow, Evidence)>,
    /// A live session with a path that needs this one. A failed push becomes the session's.
    pub needed_by: Option<SessionRow>,
    /// What sent a path of no session to this cache. `None`: a session, or it is a
    /// reference of another path.
    pub route: Option<String>,
}

/// The result of an [`Admit`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// For each push of the batch, in its order: the id, the state now, and whether
    /// this batch made it pending.
    pub pushes: Vec<(PushId, PushState, bool)>,
}

/// The end of an attempt. Cached after Uploading is recorded as Pushed: the upload
/// arrived and its answer was lost. Pending records the error of an attempt that
/// will be retried.
#[derive(Clone, Debug)]
pub struct Settle {
    /// The new state.
    pub state: PushState,
    /// The short name of the error's class.
    pub error_class: Option<String>,
    /// The error's text, shortened to 2,000 bytes.
    pub error: Option<String>,
    /// Attempts so far.
    pub attempts: u32,
    /// When its last steps were.
    pub steps: Steps,
    /// The current time, unix ms.
    pub at: i64,
}

/// When the steps of a push were, in unix ms; 0: not known, or not yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Steps {
    /// When the cache last answered whether it has the path.
    pub asked_at: i64,
    /// When the last upload began.
    pub begun_at: i64,
}

/// A push as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushRow {
    /// Its row.
    pub id: PushId,
    /// The cache's name.
    pub cache: String,
    /// Base name of the store path.
    pub path: String,
    /// Size of its NAR.
    pub nar_size: u64,
    /// Its state.
    pub state: PushState,
    /// Attempts so far.
    pub attempts: u32,
    /// The class of the last error.
    pub error_class: Option<String>,
    /// The last error.
    pub error: Option<String>,
    /// When it settled, unix ms; 0 before.
    pub settled_at: i64,
    /// When it was admitted, unix ms; 0 if it is not known.
    pub seen_at: i64,
}

/// The state of a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// The job runs.
    Open = 0,
    /// The session has ended, and some of its pushes may be unsettled.
    Draining = 1,
    /// The session is over.
    Closed = 2,
    /// The session is over, and its job never ended it.
    Abandoned = 3,
}

impl SessionState {
    /// Returns whether the session may still gain pushes.
    #[must_use]
    pub(crate) fn is_live(self) -> bool {
        matches!(self, Self::Open | Self::Draining)
    }

    pub(super) fn from_file(n: i64) -> Option<Self> {
        Some(match n {
            0 => Self::Open,
            1 => Self::Draining,
            2 => Self::Closed,
            3 => Self::Abandoned,
            _ => return None,
        })
    }
}

/// What a session is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionKind {
    /// A job, which starts it and ends it.
    Job = 0,
    /// One `push`. It is recorded as draining.
    Push = 1,
}

impl SessionKind {
    /// Returns the state that a new session of this kind is recorded with.
    pub(super) fn first_state(self) -> SessionState {
        match self {
            Self::Job => SessionState::Open,
            Self::Push => SessionState::Draining,
        }
    }

    pub(super) fn from_file(n: i64) -> Option<Self> {
        match n {
            0 => Some(Self::Job),
            1 => Some(Self::Push),
            _ => None,
        }
    }
}

/// A new session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// Its id as callers know it, unique.
    pub id: String,
    /// What it is for.
    pub kind: SessionKind,
    /// The job's label.
    pub label: Option<String>,
    /// The name of the cache that it pushes to.
    pub cache: String,
    /// What chose the cache, in words: a route of the configuration, `--cache` or
    /// `default_cache`. `None`: an earlier version opened the session.
    pub route: Option<String>,
    /// The uid of its caller.
    pub uid: u32,
    /// The gid of its caller.
    pub gid: u32,
    /// Its anchor, the process whose end ends the session: pid and start time.
    pub anchor_pid: Option<(i32, u64)>,
    /// Whether a failure fails the job.
    pub strict: bool,
    /// Whether each of its paths is logged at level info.
    pub log_paths: bool,
    /// What is known about the CI job, as JSON.
    pub ci: Option<String>,
    /// When it started, unix ms.
    pub started_at: i64,
    /// The last row of the Nix database at its start: later rows may be the
    /// session's.
    pub after: i64,
}

/// A session as the ledger has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its row.
    pub row: SessionRow,
    /// The values that it was opened with.
    pub new: NewSession,
    /// Its state.
    pub state: SessionState,
    /// Whether it drains, or drained, without its job having ended it.
    pub abandoned: bool,
    /// When it ended, unix ms.
    pub ended_at: Option<i64>,
    /// When it was over, unix ms.
    pub closed_at: Option<i64>,
    /// How long its end took, ms.
    pub flush_ms: Option<u64>,
    /// The last row of the Nix database at its end, if known.
    pub until: Option<i64>,
    /// What its summary warns of.
    pub warnings: Warnings,
}

/// What a session's summary warns of.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Warnings {
    /// The warnings, for people.
    pub texts: Vec<String>,
    /// How many of the paths that the job named are not valid in the store.
    pub invalid: u64,
}

/// A session of a list, with the numbers of its pushes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListedSession {
    /// The session.
    pub info: SessionInfo,
    /// Pushes that are not settled.
    pub pending: u64,
    /// Pushes whose paths are in the cache or in its upstream.
    pub settled: u64,
    /// Pushes that have failed.
    pub failed: u64,
}

/// One push of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPush {
    /// Its row.
    pub push: PushId,
    /// Base name of the store path.
    pub path: String,
    /// Size of its NAR.
    pub nar_size: u64,
    /// Why it is the session's.
    pub evidence: Evidence,
    /// How the session counts it.
    pub outcome: Outcome,
    /// The class of the error, if it counts as failed.
    pub error_class: Option<String>,
    /// The error, if it counts as failed.
    pub error: Option<String>,
    /// Attempts so far.
    pub attempts: u32,
    /// When the path became valid, unix ms; 0 if it is not known.
    pub valid_at: i64,
    /// When it was admitted, unix ms; 0 if it is not known.
    pub seen_at: i64,
    /// When its last steps were.
    pub steps: Steps,
    /// When it settled, unix ms; 0 before.
    pub settled_at: i64,
}

/// A path whose push failed, and the reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Base name of the store path.
    pub path: String,
    /// The class of the error; may be empty.
    pub class: String,
    /// The error; may be empty.
    pub error: String,
}

/// A session's pushes by outcome, each counted once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Uploaded while the session waited for them.
    pub pushed: u64,
    /// In the cache without an upload for this session.
    pub already_cached: u64,
    /// In an upstream of the cache.
    pub upstream: u64,
    /// The first 1,000 failures.
    pub failed: Vec<Failure>,
    /// The number of all failures.
    pub failed_total: u64,
    /// Not settled.
    pub pending: u64,
    /// Left out by a filter.
    pub skipped: u64,
    /// Removed from the store before they were uploaded.
    pub collected: u64,
    /// NAR bytes of the pushed ones.
    pub bytes: u64,
    /// All of them by [`Evidence`], which is the index.
    pub by_evidence: [u64; Evidence::COUNT],
}

impl Counts {
    /// Returns the number of the session's pushes.
    #[must_use]
    pub fn total(&self) -> u64 {
        self.pushed
            + self.already_cached
            + self.upstream
            + self.failed_total
            + self.pending
            + self.skipped
            + self.collected
    }
}

/// What [`super::Ledger::prune`] removed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pruned {
    /// Number of sessions.
    pub sessions: u64,
    /// Number of pushes.
    pub pushes: u64,
}
