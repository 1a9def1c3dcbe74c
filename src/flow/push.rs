//! One push: one store path on its way to one cache.

use super::concurrency::Round;
use super::event::Cause;
use super::referrers::Referrers;
use crate::types::{CacheId, Mono, PushId, SessionId};

/// From this many bytes on, a NAR counts as large.
const LARGE: u64 = 1 << 20;

/// Where a push stands. The diagram of the transitions is in `flow/mod.rs`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    /// The cache has not been asked whether it has the path.
    Unasked,
    /// A query is under way.
    Asking,
    /// Missing in the cache; waits for its references.
    Held,
    /// Waits for a free place among the uploads.
    Ready,
    /// The confirmations of its closure are too old for its upload to begin.
    Stale,
    /// Is being uploaded.
    Uploading,
    /// Waits until this time after an error.
    Resting(Mono),
    /// Failed: not tried until somebody asks.
    Failed(Cause),
}

/// What the ledger has of a push whose cache is asked again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Recorded {
    /// See [`Purpose::Recheck`](super::event::Purpose::Recheck).
    InCache,
    /// See [`Purpose::Upstream`](super::event::Purpose::Upstream).
    InUpstream,
}

/// A push that is not settled.
#[derive(Debug)]
pub(super) struct Push {
    pub(super) cache: CacheId,
    pub(super) phase: Phase,
    /// References that are not settled, failed ones included.
    pub(super) references: Vec<PushId>,
    /// Pushes that have this one in their `references`.
    pub(super) referrers: Referrers,
    /// Sessions that it belongs to.
    pub(super) sessions: Vec<SessionId>,
    /// The session in whose queue it waits for its turn.
    pub(super) queued_for: SessionId,
    /// Whether somebody waits for it or for a push that refers to it.
    pub(super) urgent: bool,
    /// Bytes of its NAR.
    pub(super) nar_size: u64,
    /// The concurrency limit's round in which its upload began.
    pub(super) round: Round,
    /// Uploads that have begun.
    pub(super) attempts: u32,
    /// Whether the path was read again because of [`Failure::Mismatch`](super::Failure::Mismatch).
    pub(super) mismatched: bool,
    /// What the ledger has of it, if that is to be confirmed again.
    pub(super) recheck: Option<Recorded>,
    /// When the oldest confirmation was asked for among the settled part of its
    /// closure. `None`: that is not known.
    pub(super) closure_at: Option<Mono>,
    /// "Present" settles it only when the query began at this time or later.
    pub(super) ask_after: Mono,
    /// When its upload began.
    pub(super) upload_at: Mono,
    /// How often its closure was too old since its last upload.
    pub(super) rechecks: u32,
    /// Uploads that ended without a verdict.
    pub(super) no_verdicts: u32,
    /// After its rest the cache is asked, and the path not sent at once.
    pub(super) ask_first: bool,
    /// Whether a reference of it was removed from the store. Then its own path
    /// was removed as well.
    pub(super) doomed: bool,
}

impl Push {
    /// Returns whether its upload counts as large. The duration of a large upload
    /// says more about the connection than about the server, so these are
    /// counted apart.
    pub(super) fn is_large(&self) -> bool {
        self.nar_size >= LARGE
    }

    pub(super) fn is_failed(&self) -> bool {
        matches!(self.phase, Phase::Failed(_))
    }
}
