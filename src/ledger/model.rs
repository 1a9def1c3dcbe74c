//! What goes into the ledger and what comes out of it, as plain values. Must
//! not know SQL beyond the numbers that stand for states in the file: those
//! are part of the file format and never change their meaning.

/// Row id of an item, one (cache, path) pair. Never used twice.
pub type PushId = i64;
/// Row id of a session. Never used twice.
pub type SessionRow = i64;

/// Where an item stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PushState {
    /// Waits for its upload or for the cache's word that it is not needed.
    Pending = 0,
    /// An upload was begun; kept over a restart, see [`Settle`].
    Uploading = 1,
    /// Uploaded by this host and confirmed.
    Pushed = 2,
    /// The cache had it already.
    Cached = 3,
    /// An upstream of the cache has it.
    Upstream = 4,
    /// Given up for a recorded reason.
    Failed = 5,
    /// Left out by a filter.
    Skipped = 6,
    /// Gone from the store before it could be pushed.
    Collected = 7,
}

impl PushState {
    /// Nothing is left to do for it.
    #[must_use]
    pub fn is_settled(self) -> bool {
        !matches!(self, Self::Pending | Self::Uploading)
    }

    /// The cache (or its upstream) was said to have it, at `settled_at`.
    #[must_use]
    pub fn is_confirmed(self) -> bool {
        matches!(self, Self::Pushed | Self::Cached | Self::Upstream)
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

/// How an item came to belong to a session. Order is strength, strongest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Evidence {
    /// Nix's hook ran for it in the session.
    Hook = 0,
    /// A process of the session made it.
    Process = 1,
    /// It is in the closure of something the session made.
    Closure = 2,
    /// It became valid while the session alone was open.
    Window = 3,
    /// It became valid while several sessions were open.
    Shared = 4,
    /// The job asked for it by name: says nothing about who made it.
    Named = 5,
}

impl Evidence {
    /// How many kinds there are.
    pub const COUNT: usize = 6;

    pub(super) fn from_file(n: i64) -> Option<Self> {
        Some(match n {
            0 => Self::Hook,
            1 => Self::Process,
            2 => Self::Closure,
            3 => Self::Window,
            4 => Self::Shared,
            5 => Self::Named,
            _ => return None,
        })
    }
}

/// How a session counts an item. Numbered like the [`PushState`] it comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Outcome {
    /// Not settled yet.
    Pending = 0,
    /// Uploaded, and this session made it.
    Pushed = 2,
    /// In the cache without this session's doing.
    AlreadyCached = 3,
    /// In an upstream of the cache.
    Upstream = 4,
    /// Not in the cache, with a reason.
    Failed = 5,
    /// Left out by a filter.
    Skipped = 6,
    /// Gone from the store before it could be pushed.
    Collected = 7,
}

impl Outcome {
    /// What attaching to an item in this state counts as.
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

/// How far a store's journal was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// Which database the number belongs to.
    pub identity: String,
    /// The last row that was taken in.
    pub id: i64,
}

/// One batch of the intake: all of it is recorded, or nothing.
#[derive(Clone, Debug, Default)]
pub struct Admit {
    /// Where the journal was read to, when the batch comes from there.
    pub cursor: Option<Cursor>,
    /// The items, known or not.
    pub items: Vec<NewPushRow>,
    /// Now, unix ms.
    pub at: i64,
}

/// One item of an [`Admit`].
#[derive(Clone, Debug)]
pub struct NewPushRow {
    /// The cache's name.
    pub cache: String,
    /// Base name of the store path.
    pub path: String,
    /// Size of its NAR.
    pub nar_size: u64,
    /// What it should be when nothing is known of it: Pending, Upstream or Skipped.
    pub state: PushState,
    /// A confirmation older than this (unix ms) is not believed any more.
    pub recheck_before: i64,
    /// Take a failed item up again.
    pub retry_failed: bool,
    /// The sessions it belongs to.
    pub sessions: Vec<(SessionRow, Evidence)>,
}

/// What became of an [`Admit`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Admitted {
    /// In the order of the batch: id, state now, whether it became pending just now.
    pub items: Vec<(PushId, PushState, bool)>,
    /// Sessions that were named but are unknown or over; nothing was attached to them.
    pub refused: Vec<SessionRow>,
}

/// How an attempt at an item ended. Cached on an item that was Uploading is
/// recorded as Pushed: we sent it and lost the answer. Pending puts it back
/// into the queue and records the error of the attempt.
#[derive(Clone, Debug)]
pub struct Settle {
    /// The new state.
    pub state: PushState,
    /// Short name of the kind of error.
    pub error_class: Option<String>,
    /// The error for people; cut at [`super::MAX_ERROR`] bytes.
    pub error: Option<String>,
    /// Bytes that were sent.
    pub bytes: u64,
    /// Attempts so far.
    pub attempts: u32,
    /// Now, unix ms.
    pub at: i64,
}

/// An item as it stands in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PushRow {
    /// Its id.
    pub id: PushId,
    /// The cache's name.
    pub cache: String,
    /// Base name of the store path.
    pub path: String,
    /// Size of its NAR.
    pub nar_size: u64,
    /// Where it stands.
    pub state: PushState,
    /// Attempts so far.
    pub attempts: u32,
    /// Kind of the last error.
    pub error_class: Option<String>,
    /// The last error.
    pub error: Option<String>,
    /// When it was settled, unix ms; 0 while it is not.
    pub settled_at: i64,
}

/// Life of a session. Closed and Abandoned are final.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SessionState {
    /// The job runs.
    Open = 0,
    /// The job has ended, its paths are waited for.
    Draining = 1,
    /// Over.
    Closed = 2,
    /// Over without the job having said so.
    Abandoned = 3,
}

impl SessionState {
    /// Open or draining: may be given items, and follows when one is taken up again.
    #[must_use]
    pub fn is_live(self) -> bool {
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

/// A session to be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewSession {
    /// Its public name, unique.
    pub id: String,
    /// What the job calls itself.
    pub label: Option<String>,
    /// The cache it pushes to.
    pub cache: String,
    /// Who opened it.
    pub uid: u32,
    /// Their group.
    pub gid: u32,
    /// Process whose end ends the session: pid and start time.
    pub anchor_pid: Option<(i32, u64)>,
    /// The job wants failures to be its own.
    pub strict: bool,
    /// What is known of the CI job, JSON.
    pub ci: Option<String>,
    /// Unix ms.
    pub started_at: i64,
    /// The store's journal at its start: what has a higher number may be its.
    pub after: i64,
}

/// A session as it stands in the ledger.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionInfo {
    /// Its row.
    pub row: SessionRow,
    /// What it was opened with.
    pub new: NewSession,
    /// Where it stands.
    pub state: SessionState,
    /// When the job ended, unix ms.
    pub ended_at: Option<i64>,
    /// When it was over, unix ms.
    pub closed_at: Option<i64>,
    /// How long the job waited.
    pub flush_ms: Option<u64>,
    /// The store's journal at its end, when that is known.
    pub until: Option<i64>,
    /// What its end warned of.
    pub warnings: Vec<String>,
}

/// One path of a session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPush {
    /// The item.
    pub item: PushId,
    /// Base name of the store path.
    pub path: String,
    /// Size of its NAR.
    pub nar_size: u64,
    /// How it came to the session.
    pub evidence: Evidence,
    /// How the session counts it.
    pub outcome: Outcome,
    /// Kind of error, when it counts as failed.
    pub error_class: Option<String>,
    /// The error, when it counts as failed.
    pub error: Option<String>,
}

/// A path that failed, with its reason.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Base name of the store path.
    pub path: String,
    /// Kind of error; empty if none was given.
    pub class: String,
    /// The error; empty if none was given.
    pub error: String,
}

/// A session's paths, each counted exactly once.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Uploaded.
    pub pushed: u64,
    /// In the cache without this session's doing.
    pub already_cached: u64,
    /// In an upstream.
    pub upstream: u64,
    /// The first [`super::MAX_FAILURES`] failures.
    pub failed: Vec<Failure>,
    /// How many failed in all.
    pub failed_total: u64,
    /// Not settled yet.
    pub pending: u64,
    /// Left out by a filter.
    pub skipped: u64,
    /// Gone from the store.
    pub collected: u64,
    /// NAR bytes of what was pushed.
    pub bytes: u64,
    /// All of them by how they came to the session, indexed by [`Evidence`].
    pub by_evidence: [u64; Evidence::COUNT],
}

impl Counts {
    /// How many paths the session has.
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
    /// Sessions.
    pub sessions: u64,
    /// Items.
    pub items: u64,
}
