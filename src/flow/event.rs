//! What goes into the decisions and what comes out of them.

use std::time::Duration;

use crate::types::{CacheId, PushId, SessionId};

/// A push as it is admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewPush {
    /// The caller's number.
    pub id: PushId,
    /// References that are not confirmed to be in this cache. One that is not
    /// known here counts as settled: admit references before their referrers.
    pub references: Vec<PushId>,
    /// Bytes of its NAR. An upload from 1 MiB on counts as large.
    pub nar_size: u64,
    /// Who waits for it.
    pub sessions: Vec<SessionId>,
    /// Failed from an earlier life: not tried until somebody asks for it.
    pub failed: bool,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Tasks that somebody wants in a cache. A known one only gains sessions.
    Admit {
        /// The cache.
        cache: CacheId,
        /// The pushes, references before referrers.
        pushes: Vec<NewPush>,
    },
    /// A query came back: `present` are in the cache, `missing` are not. What
    /// is in neither is asked again later.
    Asked {
        /// The cache.
        cache: CacheId,
        /// In the cache already.
        present: Vec<PushId>,
        /// To be uploaded.
        missing: Vec<PushId>,
    },
    /// A query failed as a whole.
    AskFailed {
        /// The cache.
        cache: CacheId,
        /// What was asked for; the query is known here, so it may be left empty.
        pushes: Vec<PushId>,
        /// How it failed.
        failure: Failure,
    },
    /// The cache confirmed an upload.
    /// The duration runs from the begin of the upload to its confirmation.
    Uploaded(PushId, Duration),
    /// How long a request without content took: a probe or a question. The first
    /// one tells how far away the cache is.
    RoundTrip(CacheId, Duration),
    /// An upload turned out to be needless: it is in an upstream cache.
    InUpstream(PushId),
    /// An upload failed.
    UploadFailed(PushId, Failure),
    /// A push's path is gone from the store.
    Collected(PushId),
    /// A probe came back.
    Probed(CacheId, Result<(), Failure>),
    /// Something about a cache changed (its token, its configuration): look again now.
    ProbeNow(CacheId),
    /// Failed pushes are tried again: those named, or all.
    Retry(Option<Vec<PushId>>),
    /// Somebody waits for these pushes as a group.
    Want(SessionId, Vec<PushId>),
    /// Everything unsettled becomes this group's.
    WantAll(SessionId),
    /// A group's pushes go to the front; [`Action::Quiet`] follows when none is left.
    Flush(SessionId),
    /// Nobody waits for this group any more.
    Forget(SessionId),
    /// Uploads to a cache wait from here on, or may go on: what carries them
    /// out is not there. What runs may end, and the cache is asked all the same.
    Hold(CacheId, bool),
    /// The number of uploads at a time to a cache changed.
    Limits(CacheId, CacheLimits),
    /// Mono passed.
    Tick,
    /// Nothing new is begun; what runs may end.
    Stop,
    /// The stop is over.
    Resume,
}

pub(super) use super::cache::CacheLimits;

/// How a request to a cache failed, as far as it matters for what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// No connection: nobody gets through.
    Unreachable,
    /// This request failed, another may succeed (5xx, 408, 429, timeouts, cut answers).
    Transient {
        /// The server said how long to wait.
        retry_after: Option<Duration>,
    },
    /// 401 or 403: the token is missing, expired or lacks the right.
    Refused,
    /// The server does not know the cache.
    NoSuchCache,
    /// The server found another hash or size than the store's database says.
    Mismatch,
    /// The server refuses its size.
    TooLarge,
    /// The server refuses the request as such.
    Rejected,
    /// The path could not be read here.
    Local,
    /// The store's database could not be read: says nothing about the path, nor
    /// about the cache.
    Store,
    /// What carries uploads out could not do its work; says as little.
    Engine,
}

/// Why a push is failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Cause {
    /// Its own upload or query failed for good.
    Failed(Failure),
    /// A reference of it is failed.
    Reference(PushId),
    /// It was failed before this life began.
    Earlier,
}

/// How a push ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Uploaded and confirmed.
    Pushed,
    /// It was there already.
    Cached,
    /// An upstream cache has it.
    Upstream,
    /// Gone from the store before it was uploaded.
    Collected,
}

/// What to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Ask the cache which of these are missing.
    Ask(CacheId, Vec<PushId>),
    /// Upload; `attempt` counts from 1.
    Upload(CacheId, PushId, u32),
    /// See whether the cache answers and lets us push.
    Probe(CacheId),
    /// A push is done with.
    Settled(PushId, Outcome),
    /// A push is given up until somebody asks for it.
    Failed(PushId, Cause),
    /// A failed push is known no longer: too many are. It stays given up, until
    /// it is admitted again.
    Forgotten(PushId),
    /// A failed push is tried again.
    Reopened(PushId),
    /// A flushed group has nothing unsettled left.
    Quiet(SessionId),
    /// A cache went from one state to another.
    Breaker(CacheId, super::BreakerState),
}
