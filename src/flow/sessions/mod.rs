//! The life cycle of a session, pure: when it is open, when its end begins, when
//! it is closed, and whether it counts as abandoned. [`SessionLife::step`] takes an
//! event and the time and returns the actions. A `flush` has such a life as well, from
//! the moment when it is taken in.
//!
//! Must not know: who waits for the session, its paths, the clock.

mod callers;
mod ends;
mod limits;
mod namings;
mod opening;

#[cfg(test)]
mod tests;

use std::time::Duration;

use crate::types::Mono;

pub(crate) use callers::{Callers, Knows, Patience, SHORT_WAIT};
pub(crate) use ends::{
    Candidate, JobOf, Meant, Moment, NoSession, Otherwise, Record, Return, Target, meant, returns,
};
pub(crate) use limits::{LimitReached, SessionLimits};
pub(crate) use namings::{NamingQueue, PushSubject, Subject};
pub(crate) use opening::{Begun, Opened, Openings, Purpose as OpenFor, Step as OpeningStep};

/// All bounds of sessions.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Tuning {
    /// Most open sessions of a user, those that are being opened included.
    pub(crate) open_of_user: usize,
    /// Most sessions of a user that are not closed: jobs, and pushes. Draining
    /// sessions cost little, and while a cache is away a user must still be able
    /// to start new ones.
    pub(crate) live_of_user: usize,
    /// Most sessions of all users that are not closed.
    pub(crate) live: usize,
    /// Most namings of a user that wait for the intake.
    pub(crate) namings_of_user: usize,
    /// Most namings that the intake has at a time, one of each user.
    pub(crate) namings_at_intake: usize,
    /// Callers that wait from which on those that have closed their connection are forgotten.
    /// There are fewer connections, so that there are never twice as many.
    pub(crate) callers: usize,
    /// How long a session waits for its end after its anchor ended: the end of a
    /// job's last process and its `session end` may arrive in either order.
    pub(crate) grace: Duration,
    /// The same after a restart, when the job may still be looking for the daemon.
    pub(crate) restart_grace: Duration,
    /// How long a session without an anchor stays open: nothing shows the daemon that its job
    /// has ended.
    pub(crate) open_longest: Duration,
    /// How often the cache is asked about the paths of a session before it is closed.
    pub(crate) rounds: u32,
}

/// The bounds of the daemon.
pub(crate) const TUNING: Tuning = Tuning {
    open_of_user: 256,
    live_of_user: 1_024,
    live: 8_192,
    namings_of_user: 64,
    namings_at_intake: 4,
    callers: 512,
    grace: Duration::from_secs(2),
    restart_grace: Duration::from_secs(10),
    open_longest: Duration::from_secs(7 * 24 * 3600),
    rounds: 8,
};

/// Where a session stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionState {
    /// Its job runs, and its window is open.
    Open {
        /// When it counts as abandoned. `None`: its anchor is watched.
        until: Option<Mono>,
    },
    /// Its anchor ended, and its window is still open.
    Orphaned {
        /// When it counts as abandoned.
        until: Mono,
    },
    /// It has ended. The intake takes in its paths and closes its window.
    Taking {
        /// Namings that are not finished.
        namings: u32,
        /// Its job has not ended it.
        abandoned: bool,
        /// Rounds of questions before this one.
        round: u32,
    },
    /// All of its paths are known as pushes, and some may be unsettled.
    Settling {
        /// Its job has not ended it.
        abandoned: bool,
        /// Rounds of questions before this one.
        round: u32,
    },
    /// It is over.
    Closed,
}

/// What happens to a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionEvent {
    /// Its job ends it, or names more paths. A naming begins.
    End,
    /// Its job ends it in the same way as a naming that waits for the intake: that naming
    /// is for both.
    Join,
    /// Its anchor ended.
    AnchorGone,
    /// Its caller left before it learned the session's id, so nobody can end it.
    CallerGone,
    /// The intake finished a naming, or refused it.
    Named,
    /// None of its pushes is unsettled.
    Quiet {
        /// Whether some were uploaded since the cache was asked about all of them: an
        /// upload takes its time, and the answer is about this moment.
        uploaded: bool,
    },
    /// Time passed.
    Tick,
}

/// What the caller does for a session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum SessionAction {
    /// Record that it drains, and whether it counts as abandoned. Its anchor need
    /// not be watched any longer.
    Drain(Ended),
    /// Its job ended it after all: record that it does not count as abandoned.
    Rejoined,
    /// Begin a naming without paths, which closes the window.
    Take,
    /// Begin a naming of everything that its job has named: the cache is asked again.
    Confirm,
    /// Warn that the cache deletes its paths again and again.
    WarnUnstable,
    /// Wait for its pushes: [`SessionEvent::Quiet`] follows.
    Flush,
    /// Record that it is over, and answer who waits.
    Close {
        /// Its job has not ended it.
        abandoned: bool,
    },
}

/// Why a session drains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ended {
    /// Its job has ended it.
    ByJob,
    /// Its anchor has ended, and nobody has ended it since.
    AnchorGone,
    /// Its caller left before it learned the session's id.
    CallerGone,
    /// It has no anchor, and nobody has ended it for [`Tuning::open_longest`].
    OpenTooLong,
}

impl Ended {
    /// Whether the session counts as abandoned.
    pub(crate) fn abandoned(self) -> bool {
        match self {
            Self::ByJob => false,
            Self::AnchorGone | Self::CallerGone | Self::OpenTooLong => true,
        }
    }
}

/// What the ledger has of a session that was live when the daemon ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Left {
    /// It was open.
    Open {
        anchor: AnchorNow,
        /// How long it has been open, by the wall clock.
        open_for: Duration,
    },
    /// It was draining.
    Draining {
        /// Its job has not ended it.
        abandoned: bool,
    },
}

/// A session's anchor after a restart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AnchorNow {
    /// It has none.
    None,
    /// The process runs.
    Runs,
    /// The process has ended, or was one of an earlier boot.
    Ended,
}

/// What is done for a restored session when its pushes are known again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Resume {
    /// Its anchor is watched.
    Watch,
    /// It waits for its end.
    Wait,
    /// The intake takes in its paths and closes its window, which may not have happened, and
    /// the cache is asked again: what it said is only remembered.
    Take,
}

/// The life of one session.
#[derive(Debug)]
pub(crate) struct SessionLife {
    state: SessionState,
    grace: Duration,
    rounds: u32,
}

impl SessionLife {
    fn new(tuning: &Tuning, state: SessionState) -> Self {
        Self { state, grace: tuning.grace, rounds: tuning.rounds }
    }

    /// Starts the life of a job's session that has been recorded. `anchored`: its anchor is
    /// watched.
    pub(crate) fn open(tuning: &Tuning, anchored: bool, now: Mono) -> Self {
        let until = (!anchored).then(|| now.after(tuning.open_longest));
        Self::new(tuning, SessionState::Open { until })
    }

    /// Starts the life of a session that has been recorded as draining, with one
    /// naming to come: a push, or a session that its job ends after it was closed.
    pub(crate) fn draining(tuning: &Tuning, abandoned: bool) -> Self {
        Self::new(tuning, SessionState::Taking { namings: 1, abandoned, round: 0 })
    }

    /// Continues the life of a session after a restart, and returns what is done for it.
    pub(crate) fn restored(tuning: &Tuning, left: Left, now: Mono) -> (Self, Resume) {
        let grace = now.after(tuning.restart_grace);
        match left {
            Left::Open { anchor: AnchorNow::Runs, .. } => (Self::open(tuning, true, now), Resume::Watch),
            Left::Open { anchor: AnchorNow::Ended, .. } => {
                (Self::new(tuning, SessionState::Orphaned { until: grace }), Resume::Wait)
            }
            Left::Open { anchor: AnchorNow::None, open_for } => {
                // The wall clock may have jumped while no daemon ran.
                let until = now.after(tuning.open_longest.saturating_sub(open_for)).max(grace);
                (Self::new(tuning, SessionState::Open { until: Some(until) }), Resume::Wait)
            }
            Left::Draining { abandoned } => (Self::draining(tuning, abandoned), Resume::Take),
        }
    }

    /// Returns whether its window is open.
    pub(crate) fn is_open(&self) -> bool {
        matches!(self.state, SessionState::Open { .. } | SessionState::Orphaned { .. })
    }

    /// Returns whether all of its paths are known as pushes.
    pub(crate) fn is_settling(&self) -> bool {
        matches!(self.state, SessionState::Settling { .. })
    }

    /// Returns when the next [`SessionEvent::Tick`] is due.
    pub(crate) fn due(&self) -> Option<Mono> {
        match self.state {
            SessionState::Open { until } => until,
            SessionState::Orphaned { until } => Some(until),
            SessionState::Taking { .. } | SessionState::Settling { .. } | SessionState::Closed => None,
        }
    }

    /// Handles an event and returns the actions in order. Total: a pair that is not
    /// drawn changes nothing.
    ///
    /// ```text
    ///  start ──► Open ── end, caller left, or too long without an anchor ─► Taking ── last naming ──► Settling ── quiet ──► Closed
    ///             │                                                         ▲ ▲ ▲                       │  nothing uploaded,
    ///             │ anchor gone                                             │ │ │                       │  or the last round
    ///             ▼                                                         │ │ └── end, or next round ─┘
    ///          Orphaned ── end, caller left, or grace over ─────────────────┘ └── push, end after it was closed, restart
    /// ```
    ///
    /// A round is one question about everything that the answer reports on. Another one
    /// follows when a path was uploaded meanwhile.
    pub(crate) fn step(&mut self, event: SessionEvent, now: Mono) -> Vec<SessionAction> {
        use SessionAction as Action;
        use SessionEvent as Event;
        use SessionState as State;
        let rejoined = |abandoned| if abandoned { vec![Action::Rejoined] } else { Vec::new() };
        let (state, actions) = match (self.state, event) {
            (State::Open { .. } | State::Orphaned { .. }, Event::End) => {
                let state = State::Taking { namings: 1, abandoned: false, round: 0 };
                (state, vec![Action::Drain(Ended::ByJob)])
            }
            (State::Open { .. }, Event::AnchorGone) => {
                (State::Orphaned { until: now.after(self.grace) }, Vec::new())
            }
            (State::Open { until: Some(until) }, Event::Tick) if until <= now => abandon(Ended::OpenTooLong),
            (State::Orphaned { until }, Event::Tick) if until <= now => abandon(Ended::AnchorGone),
            (State::Open { .. } | State::Orphaned { .. }, Event::CallerGone) => abandon(Ended::CallerGone),
            (State::Taking { namings, abandoned, round }, Event::End) => {
                let namings = namings.saturating_add(1);
                (State::Taking { namings, abandoned: false, round }, rejoined(abandoned))
            }
            (State::Taking { namings, abandoned, round }, Event::Join) => {
                (State::Taking { namings, abandoned: false, round }, rejoined(abandoned))
            }
            (State::Taking { namings, abandoned, round }, Event::Named) if namings > 1 => {
                (State::Taking { namings: namings - 1, abandoned, round }, Vec::new())
            }
            (State::Taking { abandoned, round, .. }, Event::Named) => {
                (State::Settling { abandoned, round }, vec![Action::Flush])
            }
            (State::Settling { abandoned, round }, Event::End) => {
                (State::Taking { namings: 1, abandoned: false, round }, rejoined(abandoned))
            }
            (State::Settling { abandoned, round }, Event::Quiet { uploaded: true })
                if round + 1 < self.rounds =>
            {
                let state = State::Taking { namings: 1, abandoned, round: round + 1 };
                (state, vec![Action::Confirm])
            }
            (State::Settling { abandoned, .. }, Event::Quiet { uploaded }) => {
                let close = Action::Close { abandoned };
                (State::Closed, if uploaded { vec![Action::WarnUnstable, close] } else { vec![close] })
            }
            (State::Open { .. }, Event::Join | Event::Named | Event::Quiet { .. } | Event::Tick)
            | (
                State::Orphaned { .. },
                Event::Join | Event::AnchorGone | Event::Named | Event::Quiet { .. } | Event::Tick,
            )
            | (
                State::Taking { .. },
                Event::AnchorGone | Event::CallerGone | Event::Quiet { .. } | Event::Tick,
            )
            | (
                State::Settling { .. },
                Event::Join | Event::AnchorGone | Event::CallerGone | Event::Named | Event::Tick,
            )
            | (
                State::Closed,
                Event::End
                | Event::Join
                | Event::AnchorGone
                | Event::CallerGone
                | Event::Named
                | Event::Quiet { .. }
                | Event::Tick,
            ) => (self.state, Vec::new()),
        };
        self.state = state;
        actions
    }
}

/// Ends a session without its job: the daemon takes in its paths.
fn abandon(why: Ended) -> (SessionState, Vec<SessionAction>) {
    let state = SessionState::Taking { namings: 1, abandoned: true, round: 0 };
    (state, vec![SessionAction::Drain(why), SessionAction::Take])
}
