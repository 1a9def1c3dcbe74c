//! Stopping and sleeping: nothing new is begun, what runs may end until a deadline, and
//! systemd is asked for as much time as that takes.

use std::time::Duration;

use tokio::time::Instant;

use super::requests::STOPPING;
use super::{Driver, Ended};
use crate::control::messages::ErrorCode;
use crate::daemon::inbox::HostEvent;
use crate::flow::{BreakerState, Event};
use crate::observe::event;
use crate::types::{Period, millis};

/// Most time that systemd is asked for at once, while the drain makes progress.
const EXTENSION: Duration = Duration::from_secs(30);
/// Time after the deadline in which everything is written down.
const MARGIN: Duration = Duration::from_secs(10);

/// How far stopping is, and whether the host is about to sleep.
#[derive(Debug, Default)]
pub(super) struct Stopping {
    deadline: Option<Instant>,
    asleep: bool,
    /// Bytes and uploads when systemd was last asked for more time.
    progress: (u64, u32),
}

impl Stopping {
    pub(super) fn has_begun(&self) -> bool {
        self.deadline.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

impl Driver {
    /// How the driver has ended, once it has.
    pub(super) fn at_end(&mut self) -> Option<Ended> {
        let deadline = self.stopping.deadline?;
        let ended = if self.flow.in_flight() == 0 {
            Ended::Drained
        } else if deadline <= Instant::now() {
            Ended::Deadline
        } else {
            return None;
        };
        let now = self.now();
        let answered = self.parts.sessions.callers().end(now);
        self.answer_all(answered);
        self.parts.pushes.log_all();
        Some(ended)
    }

    /// Stops the intake and begins no upload any more. Those that run may end until
    /// the deadline.
    pub(super) fn stop(&mut self) {
        self.stopping.deadline = Some(Instant::now() + self.parts.settings.drain_timeout);
        self.parts.notify.stopping();
        event!(
            STOPPING,
            uploading = self.flow.in_flight(),
            "stopping: {} running uploads may end within {}, the rest stays in the ledger",
            self.flow.in_flight(),
            Period(self.parts.settings.drain_timeout)
        );
        self.parts.intake.stop();
        self.step(Event::Stop);
        // The running requests may be all that some callers wait for. The others
        // get an answer now that says how much is left.
        let in_flight = self.flow.in_flight();
        let now = self.now();
        let Self { parts, flow, .. } = self;
        let is_hopeless = |group| flow.unsettled(group) > in_flight;
        let answered = parts.sessions.callers().stop(now, is_hopeless);
        self.answer_all(answered);
        for opener in self.parts.sessions.stop_openings() {
            opener.refuse(ErrorCode::Draining, STOPPING);
        }
        self.extend();
    }

    /// Asks systemd for as long as the end takes, if there was progress since the
    /// last time; see EXTEND_TIMEOUT_USEC in sd_notify(3).
    pub(super) fn extend(&mut self) {
        let Some(deadline) = self.stopping.deadline else { return };
        let progress = (self.parts.transfers.sent(), self.flow.in_flight());
        if progress != self.stopping.progress {
            self.stopping.progress = progress;
            let rest = deadline.saturating_duration_since(Instant::now());
            self.parts.notify.extend(rest.min(EXTENSION) + MARGIN);
        }
    }

    /// Follows what logind announces. Before a shutdown uploads go on, until the
    /// host's SIGTERM. Before a sleep no upload is begun.
    pub(super) fn host(&mut self, event: HostEvent) {
        if self.stopping.has_begun() {
            return;
        }
        match event {
            HostEvent::ShuttingDown(wait) => event!(
                HOST_STOPS,
                pending = self.pending(),
                duration_ms = millis(wait),
                "the host is shutting down; it waits up to {} s for {} pending pushes",
                wait.as_secs(),
                self.pending()
            ),
            HostEvent::Sleeping(wait) => {
                event!(
                    HOST_SLEEPS,
                    pending = self.pending(),
                    duration_ms = millis(wait),
                    "the host goes to sleep: running uploads may end within {} s, {} pushes are pending",
                    wait.as_secs(),
                    self.pending()
                );
                self.stopping.asleep = true;
                self.step(Event::Stop);
            }
            HostEvent::Running if self.stopping.asleep => {
                event!(
                    HOST_AWAKE,
                    pending = self.pending(),
                    "the host is awake: the uploads of {} pending pushes continue",
                    self.pending()
                );
                self.stopping.asleep = false;
                self.step(Event::Resume);
                // The network may have changed.
                for cache in self.parts.caches.ids() {
                    self.step(Event::ProbeNow(cache));
                }
            }
            HostEvent::Running => {}
        }
    }

    /// Whether the host should delay its shutdown: something is being uploaded, or
    /// could be uploaded now.
    pub(super) fn holds_host(&self) -> bool {
        if self.stopping.asleep {
            return self.flow.in_flight() > 0;
        }
        let mut views = self.parts.caches.ids().filter_map(|id| self.flow.view(id));
        views.any(|view| view.uploading > 0 || (view.state == BreakerState::Online && view.pending > 0))
    }
}
