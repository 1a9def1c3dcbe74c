//! The circuit breaker of one cache: open, requests go out; closed, one probe at
//! a time finds out whether they may.
//!
//! ```text
//!            unreachable, or 3 transient errors in a row
//!      Open ───────────────────────────────────────────────► Closed(offline) ─┐ probe failed:
//!       ▲ ▲                                                    │      ▲───────┘ wait longer
//!       │ └──────────────── probe answered ────────────────────┘
//!       │                                   401, 403
//!       └── probe answered ── Closed(refused) ◄─── Open
//! ```
//!
//! After a probe was answered, one transient error before the first success
//! closes the breaker again, and its next wait is longer: a cache that answers
//! probes but not the work is overloaded.

use super::event::Failure;
use super::retry::{Backoff, Rng};
use crate::types::{Mono, PushId};

/// The state of a cache as `status` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum BreakerState {
    /// Requests go out.
    Online,
    /// It does not answer; probes go out.
    Offline,
    /// It refuses the token; probes go out rarely, and when the token changes.
    Refused,
}

/// Transient errors in a row, over all pushes, that close the breaker.
const STRIKES: u32 = 3;

#[derive(Debug)]
enum State {
    Open { strikes: u32 },
    Closed { refused: bool, probe: Probe },
}

#[derive(Debug)]
enum Probe {
    At(Mono),
    Running {
        /// Something changed since the probe began, so a bad result is stale.
        again: bool,
    },
}

/// One cache's breaker.
#[derive(Debug)]
pub(super) struct CircuitBreaker {
    state: State,
    /// How often the breaker closed since the last success. The waits grow with it.
    attempt: u32,
    /// How often an error of the work closed it after an answered probe. Errors
    /// of the push that closed it before do not count.
    relapses: u32,
    /// The push whose error closed it last.
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

    /// Returns the state to show.
    pub(super) fn shown(&self) -> BreakerState {
        self.shown
    }

    /// Returns when the next probe is due.
    pub(super) fn due(&self) -> Option<Mono> {
        match self.state {
            State::Closed { probe: Probe::At(at), .. } => Some(at),
            State::Closed { probe: Probe::Running { .. }, .. } | State::Open { .. } => None,
        }
    }

    /// Marks the due probe as begun. Returns false when none is due.
    pub(super) fn begin_probe(&mut self, now: Mono) -> bool {
        let due = self.due().is_some_and(|at| at <= now);
        if let State::Closed { probe, .. } = &mut self.state
            && due
        {
            *probe = Probe::Running { again: false };
        }
        due
    }

    /// Makes a probe due now if the breaker is closed.
    pub(super) fn probe_now(&mut self, now: Mono) {
        match &mut self.state {
            State::Closed { probe: Probe::Running { again }, .. } => *again = true,
            State::Closed { probe, .. } => *probe = Probe::At(now),
            State::Open { .. } => {}
        }
    }

    /// Takes note of a success that the cache gives only with a good token.
    pub(super) fn succeeded(&mut self) {
        self.attempt = 0;
        self.relapses = 0;
        if let State::Open { strikes } = &mut self.state {
            *strikes = 0;
            self.shown = BreakerState::Online;
        }
    }

    /// Takes note of a request's failure. Failures that say nothing about the
    /// cache as a whole do not count.
    pub(super) fn failed(&mut self, failure: Failure, by: Option<PushId>, now: Mono, rng: &mut Rng) {
        let State::Open { strikes } = &mut self.state else { return };
        match failure {
            Failure::Refused => self.close(true, now, rng),
            Failure::Unreachable => self.close(false, now, rng),
            Failure::Transient { .. } => {
                *strikes += 1;
                if *strikes >= STRIKES {
                    // One path that always fails must not make the waits longer.
                    if self.attempt > 0 && (by.is_none() || by != self.last) {
                        self.relapses += 1;
                    }
                    self.last = by;
                    self.close(false, now, rng);
                }
            }
            Failure::NoVerdict
            | Failure::NoSuchCache
            | Failure::Mismatch
            | Failure::TooLarge
            | Failure::Rejected
            | Failure::Local
            | Failure::Store
            | Failure::Engine => {}
        }
    }

    /// Handles a probe's result. Returns whether the breaker opened.
    pub(super) fn probed(&mut self, result: Result<(), Failure>, now: Mono, rng: &mut Rng) -> bool {
        let State::Closed { refused, probe: Probe::Running { again } } = self.state else {
            // No probe was under way. What it found counts like a request.
            if let Err(failure) = result {
                self.failed(failure, None, now, rng);
            }
            return false;
        };
        let opened = match result {
            // The cache shows its configuration also to a token that may not
            // push: "refused" is shown until a request succeeds.
            Ok(()) => {
                // Until a request succeeds, one transient error closes it again.
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
            // The cache answers, and its answer says nothing about its health:
            // each push finds out for itself. It is not away, and no further probe
            // would say so.
            Err(Failure::NoSuchCache | Failure::Rejected | Failure::TooLarge | Failure::Mismatch) => {
                self.state = State::Open { strikes: 0 };
                if !refused {
                    self.shown = BreakerState::Online;
                }
                true
            }
            Err(
                Failure::Unreachable
                | Failure::Transient { .. }
                | Failure::NoVerdict
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
