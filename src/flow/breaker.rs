//! Whether a cache is let work: open, or closed with one probe at a time.
//!
//! ```text
//!            unreachable, or 3 transient failures in a row
//!      Open ───────────────────────────────────────────────► Closed(Away) ──┐ probe failed:
//!       ▲ ▲                                                    │    ▲────────┘ wait longer
//!       │ └──────────────── probe answered ────────────────────┘
//!       │                                   401, 403
//!       └── probe answered ── Closed(Refused) ◄─── Open
//! ```
//!
//! After a probe the breaker is open on trial: one transient failure before the
//! first success closes it again, and for longer each time, since a cache that
//! answers probes but not the work has too much of it.

use super::event::Failure;
use super::retry::{Backoff, Rng};
use crate::types::{Mono, PushId};

/// What a cache looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BreakerState {
    /// Requests go out.
    Online,
    /// It does not answer; it is probed.
    Offline,
    /// It refuses the token; it is looked at now and then, and when the token changes.
    Refused,
}

/// Transient failures in a row, over all pushes, that close the breaker.
const STRIKES: u32 = 3;

#[derive(Debug)]
enum State {
    Open { strikes: u32 },
    Closed { refused: bool, probe: Probe },
}

#[derive(Debug)]
enum Probe {
    At(Mono),
    /// `again`: something changed since it began, so a bad answer is stale.
    Running {
        again: bool,
    },
}

/// One cache's breaker.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    state: State,
    /// Closings since the last success: what the waits grow with.
    attempt: u32,
    /// Of these, closings by a failure right after a probe that was answered,
    /// by another push than the one before.
    relapses: u32,
    last: Option<PushId>,
    shown: BreakerState,
}

impl CircuitBreaker {
    pub(super) fn new() -> Self {
        Self {
            state: State::Open { strikes: 0 },
            attempt: 0,
            relapses: 0,
            last: None,
            shown: BreakerState::Online,
        }
    }

    pub(super) fn is_open(&self) -> bool {
        matches!(self.state, State::Open { .. })
    }

    pub(super) fn shown(&self) -> BreakerState {
        self.shown
    }

    /// When the next probe is due.
    pub(super) fn due(&self) -> Option<Mono> {
        match self.state {
            State::Closed { probe: Probe::At(at), .. } => Some(at),
            State::Closed { probe: Probe::Running { .. }, .. } | State::Open { .. } => None,
        }
    }

    /// Marks the due probe as begun; false when none is due.
    pub(super) fn begin_probe(&mut self, now: Mono) -> bool {
        let due = self.due().is_some_and(|at| at <= now);
        if let State::Closed { probe, .. } = &mut self.state
            && due
        {
            *probe = Probe::Running { again: false };
        }
        due
    }

    /// Look again now.
    pub(super) fn probe_now(&mut self, now: Mono) {
        match &mut self.state {
            State::Closed { probe: Probe::Running { again }, .. } => *again = true,
            State::Closed { probe, .. } => *probe = Probe::At(now),
            State::Open { .. } => {}
        }
    }

    /// A request that only an open, permitted cache answers has succeeded.
    pub(super) fn succeeded(&mut self) {
        self.attempt = 0;
        self.relapses = 0;
        if let State::Open { strikes } = &mut self.state {
            *strikes = 0;
            self.shown = BreakerState::Online;
        }
    }

    /// A request failed. Only what says something about the cache as a whole counts.
    pub(super) fn failed(&mut self, failure: Failure, by: Option<PushId>, now: Mono, rng: &mut Rng) {
        let State::Open { strikes } = &mut self.state else { return };
        match failure {
            Failure::Refused => self.close(true, now, rng),
            Failure::Unreachable => self.close(false, now, rng),
            Failure::Transient { .. } => {
                *strikes += 1;
                if *strikes >= STRIKES {
                    // One path that always fails must not make the others wait
                    // longer each time.
                    if self.attempt > 0 && (by.is_none() || by != self.last) {
                        self.relapses += 1;
                    }
                    self.last = by;
                    self.close(false, now, rng);
                }
            }
            Failure::NoSuchCache
            | Failure::Mismatch
            | Failure::TooLarge
            | Failure::Rejected
            | Failure::Local
            | Failure::Store
            | Failure::Engine => {}
        }
    }

    /// A probe came back; true when the breaker has opened.
    pub(super) fn probed(&mut self, result: Result<(), Failure>, now: Mono, rng: &mut Rng) -> bool {
        let State::Closed { refused, probe: Probe::Running { again } } = self.state else {
            // Nobody waited for it; what it saw counts all the same.
            if let Err(failure) = result {
                self.failed(failure, None, now, rng);
            }
            return false;
        };
        let opened = match result {
            // That the cache shows its configuration does not prove that the
            // token may push: "refused" is shown until a request has succeeded.
            Ok(()) => {
                // Open on trial: until something has succeeded, one failure closes.
                self.state = State::Open { strikes: STRIKES - 1 };
                if !refused {
                    self.shown = BreakerState::Online;
                }
                true
            }
            Err(Failure::Refused) => {
                self.close(true, now, rng);
                false
            }
            // It answers, and what it says is not about its health: let the
            // pushes find out, each for itself.
            Err(Failure::NoSuchCache | Failure::Rejected | Failure::TooLarge | Failure::Mismatch) => {
                self.state = State::Open { strikes: 0 };
                true
            }
            Err(
                Failure::Unreachable
                | Failure::Transient { .. }
                | Failure::Local
                | Failure::Store
                | Failure::Engine,
            ) => {
                self.close(false, now, rng);
                false
            }
        };
        if again {
            self.probe_now(now);
        }
        opened
    }

    fn close(&mut self, refused: bool, now: Mono, rng: &mut Rng) {
        self.attempt = self.attempt.saturating_add(1);
        let wait = if refused {
            Backoff::REFUSED.wait(self.attempt, rng)
        } else if self.is_open() && self.relapses > 0 {
            Backoff::OVERLOAD.wait(self.relapses, rng)
        } else {
            Backoff::PROBE.wait(self.attempt, rng)
        };
        let at = now.after(wait);
        self.state = State::Closed { refused, probe: Probe::At(at) };
        self.shown = if refused { BreakerState::Refused } else { BreakerState::Offline };
    }
}
