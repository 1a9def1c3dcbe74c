//! The end: no new work, a deadline for what runs, and as much time from
//! systemd as that takes.

use std::time::{Duration, Instant};

use crate::daemon::driver::{Driver, Ended};
use crate::daemon::host::logind::Host;
use crate::daemon::sessions::session::Waiter;
use crate::flow::{BreakerState, Event};
use crate::observe::event;
use crate::types::CacheId;

/// How much time systemd is asked for at once while a drain moves, and what is
/// needed after the deadline to write everything down.
const EXTENSION: Duration = Duration::from_secs(30);
const MARGIN: Duration = Duration::from_secs(10);

impl Driver {
    pub(in crate::daemon) fn at_end(&mut self) -> Option<Ended> {
        let deadline = self.stopping?;
        let ended = if self.flow.in_flight() == 0 {
            Ended::Drained
        } else if deadline <= Instant::now() {
            Ended::Deadline
        } else {
            return None;
        };
        for waiter in std::mem::take(&mut self.sessions.waiters) {
            self.answer(waiter.asked, waiter.responder, waiter.since, true);
        }
        Some(ended)
    }

    /// Stops intake and dispatch; what runs may end until the deadline.
    pub(in crate::daemon) fn stop(&mut self) {
        self.stopping = Some(Instant::now() + self.settings.drain_timeout);
        self.notify.stopping();
        event!(
            STOPPING,
            uploading = self.flow.in_flight(),
            "stopping: what is being uploaded may end, the rest stays in the ledger"
        );
        self.bell.stop();
        self.step(Event::Stop);
        // What is under way may be all that some wait for; the others are told
        // now how much is left.
        let in_flight = self.flow.in_flight();
        let (soon, never): (Vec<Waiter>, Vec<Waiter>) = std::mem::take(&mut self.sessions.waiters)
            .into_iter()
            .partition(|w| self.flow.unsettled(w.group) <= in_flight);
        self.sessions.waiters = soon;
        for waiter in never {
            self.answer(waiter.asked, waiter.responder, waiter.since, true);
        }
        let unnamed: Vec<_> = self.sessions.namings.values_mut().filter_map(|n| n.caller.take()).collect();
        for caller in unnamed {
            self.answer_unlooked(caller);
        }
        self.extend();
    }

    /// Asks systemd for as long as the end takes, while something moves; see
    /// EXTEND_TIMEOUT_USEC in sd_notify(3).
    pub(in crate::daemon) fn extend(&mut self) {
        let Some(deadline) = self.stopping else { return };
        let moved = (self.transfers.sent(), self.flow.in_flight());
        if moved != self.moved {
            self.moved = moved;
            let rest = deadline.saturating_duration_since(Instant::now());
            self.notify.extend(rest.min(EXTENSION) + MARGIN);
        }
    }

    /// What logind says: until the host goes down what is pending is pushed as
    /// ever, and its SIGTERM ends the daemon as any other; before a sleep
    /// nothing new is begun.
    pub(in crate::daemon) fn host(&mut self, host: Host) {
        if self.stopping.is_some() {
            return;
        }
        match host {
            Host::Stops(wait) => event!(
                HOST_STOPS,
                pending = self.pending(),
                duration_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                "the host goes down, and waits a moment for what is pending"
            ),
            Host::Sleeps(wait) => {
                event!(
                    HOST_SLEEPS,
                    pending = self.pending(),
                    duration_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX),
                    "the host goes to sleep: what is being uploaded may end"
                );
                self.asleep = true;
                self.step(Event::Stop);
            }
            Host::Stays if self.asleep => {
                event!(HOST_AWAKE, pending = self.pending(), "the host is awake: uploads go on");
                self.asleep = false;
                self.step(Event::Resume);
                // The network may be another one.
                for number in 0..u16::try_from(self.caches.len()).unwrap_or(u16::MAX) {
                    self.step(Event::ProbeNow(CacheId(number)));
                }
            }
            Host::Stays => {}
        }
    }

    /// Whether the host is to wait for us: something is under way, or could be
    /// pushed now.
    pub(in crate::daemon) fn holds_host(&self) -> bool {
        if self.asleep {
            return self.flow.in_flight() > 0;
        }
        let mut views =
            (0..self.caches.len()).filter_map(|n| self.flow.view(CacheId(u16::try_from(n).ok()?)));
        views.any(|view| view.uploading > 0 || (view.state == BreakerState::Online && view.pending > 0))
    }
}
