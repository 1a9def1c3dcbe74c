//! Times in which the intake cannot take in paths: the delay between its tries, and the
//! log entries about them.

use std::time::Duration;

use tokio::time::Instant;

use super::IntakeError;
use crate::observe::event;

/// First delay between two tries; each further one is twice as long.
const STUCK_LEAST: Duration = Duration::from_millis(50);
/// Upper bound of the delay between two tries.
const STUCK_MOST: Duration = Duration::from_secs(5);
/// Upper bound of that delay while there is no Nix database yet.
const ABSENT_MOST: Duration = Duration::from_secs(1);
/// Least time between two log entries, when the reason changes.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// A time in which the intake cannot take in paths. Logged once, not with every try.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    since: Option<Instant>,
    tries: u32,
    said: Option<(Instant, String)>,
}

impl Stuck {
    /// Notes that a try failed. Returns the delay before the next try, and the error's text.
    pub(super) fn on(&mut self, error: &IntakeError) -> (Duration, String) {
        let text = error.to_string();
        let since = *self.since.get_or_insert_with(Instant::now);
        let news = self.said.as_ref().is_none_or(|(at, said)| *said != text && at.elapsed() >= SAY_AGAIN);
        if news {
            event!(
                INTAKE_STUCK,
                error = text,
                duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
                "newly built paths cannot be taken in for the moment: {text}; the intake retries, and nothing is lost"
            );
            self.said = Some((Instant::now(), text.clone()));
        }
        let most = if matches!(error, IntakeError::Absent(_)) { ABSENT_MOST } else { STUCK_MOST };
        let rest = STUCK_LEAST.saturating_mul(1 << self.tries.min(10)).min(most);
        self.tries += 1;
        (rest, text)
    }

    /// Notes that a try succeeded. Returns whether the tries before it had failed.
    pub(super) fn over(&mut self) -> bool {
        let Some(since) = std::mem::take(self).since else { return false };
        let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        event!(
            INTAKE_RESUMED,
            duration_ms = duration_ms,
            "newly built paths are taken in again, after {duration_ms} ms"
        );
        true
    }
}
