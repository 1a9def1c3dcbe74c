//! The events that the decisions take and the actions that they return.

use std::time::Duration;

use crate::types::{CacheId, Mono, PushId, SessionId};

/// A push as it is admitted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NewPush {
    /// The number that the caller gave it.
    pub(crate) id: PushId,
    /// References that are not confirmed to be in this cache. An unknown one
    /// counts as settled, so references are admitted before their referrers.
    pub(crate) references: Vec<PushId>,
    /// Bytes of its NAR. An upload from 1 MiB on counts as large.
    pub(crate) nar_size: u64,
    /// Whether this host has built the path.
    pub(crate) built: bool,
    /// Sessions that it belongs to.
    pub(crate) sessions: Vec<SessionId>,
    pub(crate) purpose: Purpose,
    /// When the oldest confirmation was asked for among the part of its closure that
    /// is not in `references`. [`Mono::MAX`]: there is no other part; `None`: it is
    /// not known.
    pub(crate) closure_at: Option<Mono>,
    /// "Present" settles the push only when the query began at this time or later.
    pub(crate) ask_after: Mono,
}

/// What a push is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// The path is to be put into the cache, unless the cache has it.
    Wanted,
    /// The ledger has the path as confirmed; the cache is asked whether it still
    /// has it. Without the path the push becomes [`Purpose::Wanted`].
    Recheck,
    /// The ledger has the path as in an upstream cache, by that cache's own answer. Without
    /// the path in this cache the push becomes [`Purpose::Wanted`], and that says nothing
    /// about what this cache deletes.
    Upstream,
    /// It failed before the daemon started: it waits for [`Event::Retry`].
    Failed,
}

/// What happened to a push, a cache or a session.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    /// Pushes to one cache begin. A push that is known already gains sessions, is
    /// asked about anew where `ask_after` says so, and if its closure was too old to
    /// upload it, takes the new references and `closure_at`.
    Admit {
        /// The cache.
        cache: CacheId,
        /// The pushes, references before referrers.
        pushes: Vec<NewPush>,
    },
    /// The cache answered a query. Pushes of the query in neither list are asked
    /// about again later.
    Asked {
        /// The cache.
        cache: CacheId,
        /// Pushes whose path is in the cache.
        present: Vec<PushId>,
        /// Pushes whose path is not in the cache.
        missing: Vec<PushId>,
    },
    /// A query failed as a whole.
    AskFailed {
        /// The cache.
        cache: CacheId,
        /// How it failed.
        failure: Failure,
    },
    /// The cache confirmed an upload. The duration runs from the upload's
    /// beginning to its confirmation.
    Uploaded(PushId, Duration),
    /// A request without content, a probe or a query, took this long. The first
    /// duration tells how far away the cache is.
    RoundTrip(CacheId, Duration),
    /// An upload turned out to be unnecessary: an upstream cache has the path, as of this
    /// time.
    InUpstream(PushId, Mono),
    /// An upload was broken off: the cache has the path from elsewhere by now.
    Arrived(PushId),
    /// An upload failed.
    UploadFailed(PushId, Failure),
    /// A push's path was removed from the store.
    Collected(PushId),
    /// [`Action::Recheck`] is done: the pushes whose closure could be read were
    /// admitted again. The others are tried again later.
    Rechecked(CacheId),
    /// A caller is answered before a session is settled: pushes of the session that
    /// are only remembered as confirmed count as pending.
    Unconfirmed(SessionId),
    /// A probe ended.
    Probed(CacheId, Result<(), Failure>),
    /// A cache's token or configuration changed: probe it now if its breaker is
    /// closed.
    ProbeNow(CacheId),
    /// Somebody asks for failed pushes again: the named ones, or all. Those of them that
    /// wait after an upload without a verdict are asked about at once.
    Retry(Option<Vec<PushId>>),
    /// These pushes belong to a session as well.
    Want(SessionId, Vec<PushId>),
    /// All unsettled pushes belong to a group as well, and so does every push that is admitted
    /// before the group's [`Event::Flush`]. [`super::Flow::counts`] says how they settled.
    WantAll(SessionId),
    /// Somebody waits for a session: its pushes go first, and [`Action::Quiet`]
    /// follows when none is unsettled.
    Flush(SessionId),
    /// Nobody needs a session's counts any longer.
    Forget(SessionId),
    /// Uploads to a cache wait from now on (`true`) or may begin again: the engine
    /// that carries them out is away or back. Uploads that run may end, and
    /// queries go on.
    Hold(CacheId, bool),
    /// The bounds of the number of uploads at a time changed.
    Limits(CacheId, CacheLimits),
    /// Time passed.
    Tick,
    /// The daemon stops: no request begins, those under way may end.
    Stop,
    /// The stop is over: requests may begin again.
    Resume,
}

pub(super) use super::cache::CacheLimits;

/// How a request to a cache failed, as far as it matters for what to do next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Failure {
    /// No connection could be made, so no request can succeed.
    Unreachable,
    /// This request failed and another may succeed: 5xx, 408, 429, a timeout, an
    /// answer that was cut off.
    Transient {
        /// How long the server asks to wait.
        retry_after: Option<Duration>,
    },
    /// 401 or 403: the token is missing, expired or lacks the right.
    Refused,
    /// The upload's body was sent and no answer came, or a gateway answered in the
    /// server's place: the server may have the path. It is asked before the path is
    /// sent again.
    NoVerdict,
    /// The server does not know the cache.
    NoSuchCache,
    /// The server computed another hash or size than the Nix database has.
    Mismatch,
    /// The server refuses the upload because of its size.
    TooLarge,
    /// The server refuses the content of the request.
    Rejected,
    /// The path could not be read from the store.
    Local,
    /// The Nix database could not be read. This says nothing about the path or
    /// the cache.
    Store,
    /// The engine that carries uploads out could not work. This says nothing
    /// about the path or the cache either.
    Engine,
}

/// Why a push failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Cause {
    /// A permanent error of its own upload or query.
    Failed(Failure),
    /// This reference of it failed.
    Reference(PushId),
    /// It failed before the daemon started.
    Earlier,
    /// Each time before its upload could begin, the confirmations of its closure had
    /// become too old, or the cache had deleted something of it.
    Outdated,
}

/// How a push settled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Uploaded and confirmed.
    Pushed,
    /// The cache had it already.
    Cached,
    /// An upstream cache has it.
    Upstream,
    /// It was removed from the store before it was uploaded.
    Collected,
}

/// What the caller does next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Action {
    /// Ask the cache which of these are missing.
    Ask(CacheId, Vec<PushId>),
    /// Upload a push. The last field is the attempt, from 1.
    Upload(CacheId, PushId, u32),
    /// Find out whether the cache answers and accepts the token.
    Probe(CacheId),
    /// A push is about to settle, and the cache has its whole closure: this was true
    /// at the given time or later.
    Confirmed(PushId, Mono),
    /// A push settled and is no longer known here.
    Settled(PushId, Outcome),
    /// The cache does not have the paths of these [`Purpose::Recheck`] or
    /// [`Purpose::Upstream`] pushes, or nobody waits until it is known: they are
    /// [`Purpose::Wanted`] now.
    Wanted(Vec<PushId>),
    /// The cache has deleted paths: what it confirmed before this time counts no longer.
    Distrust(CacheId, Mono),
    /// Admit these pushes again with what of their closures is not confirmed. Then
    /// comes [`Event::Rechecked`]; until then there is no second one for the cache.
    Recheck(CacheId, Vec<PushId>),
    /// A push failed: it is not tried again until [`Event::Retry`].
    Failed(PushId, Cause),
    /// A failed push is no longer known here, because too many have failed. It
    /// stays failed until it is admitted again.
    Forgotten(PushId),
    /// A failed push is tried again and counts as unsettled.
    Reopened(PushId),
    /// A session that somebody waits for has no unsettled push left.
    Quiet(SessionId),
    /// The state that a cache shows changed.
    Breaker(CacheId, super::BreakerState),
}
