//! How many sessions a user, and all users together, may have. Must not know what a
//! session does.

use std::collections::BTreeMap;

use super::Tuning;

/// A limit that was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitReached {
    /// The user has too many open sessions.
    #[error("uid {uid} has {open} open sessions, the most there may be: end some")]
    Open {
        /// The user.
        uid: u32,
        /// How many.
        open: usize,
    },
    /// The user has too many sessions that are not closed.
    #[error(
        "uid {uid} has {live} sessions and pushes with pending paths, the most there may be: try again when some are done"
    )]
    OfUser {
        /// The user.
        uid: u32,
        /// How many.
        live: usize,
    },
    /// There are too many sessions that are not closed.
    #[error(
        "{0} sessions and pushes have pending paths, the most there may be: try again when some are done"
    )]
    All(usize),
}

#[derive(Debug, Clone, Copy, Default)]
struct OfUser {
    open: usize,
    live: usize,
}

/// Counts the sessions from the moment that they are being opened.
#[derive(Debug)]
pub(crate) struct SessionLimits {
    tuning: Tuning,
    of_user: BTreeMap<u32, OfUser>,
    live: usize,
}

impl SessionLimits {
    pub(crate) fn new(tuning: Tuning) -> Self {
        Self { tuning, of_user: BTreeMap::new(), live: 0 }
    }

    /// Counts a session that is about to be recorded, unless a limit is reached.
    /// `open`: it is a job's. A push is never open.
    pub(crate) fn begin(&mut self, uid: u32, open: bool) -> Result<(), LimitReached> {
        let of_user = self.of_user.get(&uid).copied().unwrap_or_default();
        if open && of_user.open >= self.tuning.open_of_user {
            return Err(LimitReached::Open { uid, open: of_user.open });
        }
        if of_user.live >= self.tuning.live_of_user {
            return Err(LimitReached::OfUser { uid, live: of_user.live });
        }
        if self.live >= self.tuning.live {
            return Err(LimitReached::All(self.live));
        }
        self.count(uid, open);
        Ok(())
    }

    /// Counts a session that exists already, regardless of the limits.
    pub(crate) fn count(&mut self, uid: u32, open: bool) {
        let of_user = self.of_user.entry(uid).or_default();
        of_user.live += 1;
        of_user.open += usize::from(open);
        self.live += 1;
    }

    /// Counts an open session as draining.
    pub(crate) fn drain(&mut self, uid: u32) {
        if let Some(of_user) = self.of_user.get_mut(&uid) {
            of_user.open = of_user.open.saturating_sub(1);
        }
    }

    /// Takes a session out of the counts. `open`: it was counted as open.
    pub(crate) fn end(&mut self, uid: u32, open: bool) {
        let Some(of_user) = self.of_user.get_mut(&uid) else { return };
        of_user.live = of_user.live.saturating_sub(1);
        of_user.open = of_user.open.saturating_sub(usize::from(open));
        self.live = self.live.saturating_sub(1);
        if of_user.live == 0 {
            self.of_user.remove(&uid);
        }
    }
}
