//! One push: one store path on its way to one cache.

use std::num::NonZeroU64;

use super::event::Cause;
use super::id_set::IdSet;
use crate::types::{CacheId, Mono, SessionId};

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
    /// It was [`Recorded::InCache`] until an early answer counted it as pending.
    Unconfirmed,
}

/// When the oldest confirmation was asked for among the settled part of a closure, or that
/// this is not known. It is an `Option<Mono>` in half of the bytes, with the same order:
/// what is not known is older than everything.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct ClosureAt(Option<NonZeroU64>);

impl ClosureAt {
    pub(super) const UNKNOWN: Self = Self(None);

    /// The moment, which never comes when it is in the last millisecond of the clock.
    pub(super) fn at(at: Mono) -> Self {
        Self(NonZeroU64::new(at.0.saturating_add(1)))
    }

    pub(super) fn new(at: Option<Mono>) -> Self {
        at.map_or(Self::UNKNOWN, Self::at)
    }

    pub(super) fn get(self) -> Option<Mono> {
        self.0.map(|at| if at == NonZeroU64::MAX { Mono::MAX } else { Mono(at.get() - 1) })
    }
}

/// A push that is not settled. There may be a hundred thousand of them, so what only a
/// running upload needs is elsewhere, in [`Upload`](super::cache::Upload).
#[derive(Debug)]
pub(super) struct Push {
    pub(super) cache: CacheId,
    pub(super) phase: Phase,
    /// References that are not settled, failed ones included.
    pub(super) references: IdSet,
    /// Pushes that have this one in their `references`.
    pub(super) referrers: IdSet,
    /// Sessions that it belongs to.
    pub(super) sessions: IdSet,
    /// The session in whose queue it waits for its turn.
    pub(super) queued_for: SessionId,
    /// Whether somebody waits for it or for a push that refers to it.
    pub(super) urgent: bool,
    /// Bytes of its NAR.
    pub(super) nar_size: u64,
    /// Uploads that have begun.
    pub(super) attempts: u32,
    /// Whether the path was read again because of [`Failure::Mismatch`](super::Failure::Mismatch).
    pub(super) mismatched: bool,
    /// What the ledger has of it, if that is to be confirmed again.
    pub(super) recheck: Option<Recorded>,
    /// The age of what is known of its closure.
    pub(super) closure_at: ClosureAt,
    /// "Present" settles it only when the query began at this time or later.
    pub(super) ask_after: Mono,
    /// How often its closure was too old since its last upload.
    pub(super) rechecks: u8,
    /// Uploads that ended without a verdict.
    pub(super) no_verdicts: u8,
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

#[cfg(test)]
mod tests {
    use super::*;

    /// A backlog of a hundred thousand pushes is to stay small.
    #[test]
    fn a_push_is_small() {
        assert!(size_of::<Push>() <= 112, "{} bytes", size_of::<Push>());
    }

    #[test]
    fn the_age_of_a_closure_is_an_option_in_half_of_the_bytes() {
        let moments = [None, Some(Mono(0)), Some(Mono(7)), Some(Mono(u64::MAX - 2)), Some(Mono::MAX)];
        for pair in moments.windows(2) {
            assert_eq!(ClosureAt::new(pair[0]).get(), pair[0]);
            assert!(ClosureAt::new(pair[0]) < ClosureAt::new(pair[1]), "{pair:?}");
        }
        assert_eq!(ClosureAt::at(Mono::MAX).get(), Some(Mono::MAX));
        assert_eq!(size_of::<ClosureAt>(), 8);
    }
}
