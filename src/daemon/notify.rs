//! What systemd is told (sd_notify(3)). Without `$NOTIFY_SOCKET` nothing is.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

/// The way to systemd.
#[derive(Debug, Default)]
pub(super) struct Notify {
    last: Option<(Instant, String)>,
}

/// Status lines are at least this far apart.
const APART: Duration = Duration::from_secs(1);

impl Notify {
    /// The socket is served and the ledger is open.
    pub(super) fn ready(&mut self) {
        Self::send(&[NotifyState::Ready]);
    }

    /// The end has begun.
    pub(super) fn stopping(&mut self) {
        Self::send(&[NotifyState::Stopping]);
    }

    /// The end takes this long yet, from now.
    pub(super) fn extend(&mut self, rest: Duration) {
        Self::send(&[NotifyState::ExtendTimeoutUsec(u32::try_from(rest.as_micros()).unwrap_or(u32::MAX))]);
    }

    /// Whether the last line is old enough for another.
    pub(super) fn is_due(&self) -> bool {
        self.last.as_ref().is_none_or(|(at, _)| at.elapsed() >= APART)
    }

    /// A line for `systemctl status`, told when it differs from the last.
    pub(super) fn status(&mut self, line: String) {
        if self.last.as_ref().is_none_or(|(_, last)| *last != line) {
            Self::send(&[NotifyState::Status(&line)]);
        }
        self.last = Some((Instant::now(), line));
    }

    fn send(states: &[NotifyState<'_>]) {
        if let Err(error) = sd_notify::notify(states) {
            tracing::debug!(%error, "systemd could not be told");
        }
    }
}
