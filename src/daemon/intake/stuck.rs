//! A time in which nothing can be taken in: how long to rest between tries, and
//! what is said of it.

use std::time::{Duration, Instant};

use super::IntakeError;
use crate::observe::event;

/// Between tries while nothing can be taken in: from this, doubled each time,
const STUCK_LEAST: Duration = Duration::from_millis(50);
/// to this.
const STUCK_MOST: Duration = Duration::from_secs(5);
/// Longest time between looks for a database that is not there yet.
const ABSENT_MOST: Duration = Duration::from_secs(1);
/// The log is told of another reason this long after the last.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// A time in which nothing can be taken in, told once and not with every try.
#[derive(Debug, Default)]
pub(super) struct Stuck {
    since: Option<Instant>,
    tries: u32,
    said: Option<(Instant, String)>,
}

impl Stuck {
    /// Another try failed: how long to rest, and what to say of it.
    pub(super) fn on(&mut self, error: &IntakeError) -> (Duration, String) {
        let text = error.to_string();
        let since = *self.since.get_or_insert_with(Instant::now);
        let news = self.said.as_ref().is_none_or(|(at, said)| *said != text && at.elapsed() >= SAY_AGAIN);
        if news {
            event!(
                INTAKE_STUCK,
                error = text,
                duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX),
                "newly built paths cannot be taken in for the moment; it is tried again, nothing is lost"
            );
            self.said = Some((Instant::now(), text.clone()));
        }
        let most = if matches!(error, IntakeError::Absent(_)) { ABSENT_MOST } else { STUCK_MOST };
        let rest = STUCK_LEAST.saturating_mul(1 << self.tries.min(10)).min(most);
        self.tries += 1;
        (rest, text)
    }

    /// A try succeeded; true when some before it had not.
    pub(super) fn over(&mut self) -> bool {
        let Some(since) = std::mem::take(self).since else { return false };
        let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
        event!(INTAKE_RESUMED, duration_ms = duration_ms, "newly built paths are taken in again");
        true
    }
}
