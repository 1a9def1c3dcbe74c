//! One push: one store path on its way into one cache.

use super::event::Cause;
use super::referrers::Referrers;
use crate::types::{CacheId, Mono, PushId, SessionId};

/// Where a push stands. What each phase may become is drawn in the room's first page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// Nobody has asked the cache yet.
    Unasked,
    /// A query is on its way.
    Asking,
    /// Missing; waits for its references.
    Held,
    /// Could be uploaded now.
    Ready,
    /// Is being uploaded.
    Uploading,
    /// Waits before the next try.
    Resting(Mono),
    /// Given up until somebody asks for it.
    Failed(Cause),
}

/// What is known about a push that is not settled.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) cache: CacheId,
    pub(super) phase: Phase,
    /// References that it still waits for, failed ones included.
    pub(super) references: Vec<PushId>,
    /// Tasks that wait for it: the other end of their `references`, always.
    pub(super) referrers: Referrers,
    /// Groups that wait for it.
    pub(super) sessions: Vec<SessionId>,
    /// The lane it queues in.
    pub(super) lane: SessionId,
    pub(super) urgent: bool,
    /// Uploads begun.
    pub(super) attempts: u32,
    /// A mismatch was seen once, and the path read again.
    pub(super) mismatched: bool,
    /// A reference of it is gone from the store, so it must be gone as well.
    pub(super) doomed: bool,
}

impl Push {
    pub(super) fn is_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed(_))
    }
}
