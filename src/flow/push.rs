//! One push: one store path on its way into one cache.

use super::concurrency::Round;
use super::event::Cause;
use super::referrers::Referrers;
use crate::types::{CacheId, Mono, PushId, SessionId};

/// From this many bytes on, a NAR counts as large.
const LARGE: u64 = 1 << 20;

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
    /// Bytes of its NAR.
    pub(super) nar_size: u64,
    /// The concurrency limit's round in which its upload began.
    pub(super) round: Round,
    /// Uploads begun.
    pub(super) attempts: u32,
    /// A mismatch was seen once, and the path read again.
    pub(super) mismatched: bool,
    /// A reference of it is gone from the store, so it must be gone as well.
    pub(super) doomed: bool,
}

impl Push {
    /// Whether its upload counts as large: then its duration says more about the
    /// line than about the server, and it has places of its own.
    pub(super) fn is_large(&self) -> bool {
        self.nar_size >= LARGE
    }

    pub(super) fn is_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed(_))
    }
}
