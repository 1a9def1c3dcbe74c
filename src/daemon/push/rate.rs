//! The limit on bytes per second over all uploads: each chunk of a NAR reserves
//! time in one schedule, in the order in which the chunks come.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How far uploads may run ahead of the schedule after a pause.
const BURST: Duration = Duration::from_millis(100);

/// The shortest wait. tokio's timers count in milliseconds and round up.
const GRAIN: Duration = Duration::from_millis(2);

/// The schedule that all uploads share.
#[derive(Debug)]
pub(in crate::daemon) struct Rate {
    per_second: u64,
    /// When the last byte that was reserved may be sent. `None` before the first.
    due: Mutex<Option<Instant>>,
}

impl Rate {
    /// A schedule of this many bytes per second; 0 counts as 1.
    pub(in crate::daemon) fn new(per_second: u64) -> Self {
        Self { per_second: per_second.max(1), due: Mutex::new(None) }
    }

    /// Reserves time for `bytes`, and returns how long they must wait before they
    /// are sent.
    ///
    /// A wait below [`GRAIN`] counts as none: a timer would make it longer, and at
    /// hundreds of megabytes per second each chunk's share is far below that. The
    /// schedule keeps the time, and a later chunk waits for it.
    pub(in crate::daemon) fn reserve(&self, bytes: usize, now: Instant) -> Duration {
        let cost = Duration::from_secs_f64(bytes as f64 / self.per_second as f64);
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let earliest = now.checked_sub(BURST).unwrap_or(now);
        let begin = due.map_or(earliest, |at| at.max(earliest));
        let end = begin + cost;
        *due = Some(end);
        let wait = end.saturating_duration_since(now);
        if wait < GRAIN { Duration::ZERO } else { wait }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_senders_share_one_schedule() {
        let rate = Rate::new(1_000);
        let start = Instant::now();
        let mut waited = Duration::ZERO;
        for _ in 0..100 {
            // This sender waits as long as it must.
            waited += rate.reserve(100, start + waited);
        }
        // 10,000 bytes at 1,000 a second, less the burst.
        assert_eq!(waited, Duration::from_secs(10) - BURST);
        // Of two reservations at the same moment the second waits for the first.
        let now = start + waited;
        assert_eq!(rate.reserve(1_000, now), Duration::from_secs(1));
        assert_eq!(rate.reserve(1_000, now), Duration::from_secs(2));
    }

    /// With timers that wait up to a millisecond too long, as tokio's do.
    #[test]
    fn high_rates_are_reached_and_not_exceeded() {
        for megabytes in [1, 50, 400, 1_000] {
            let rate = Rate::new(megabytes * 1_000_000);
            let start = Instant::now();
            let (mut now, chunk) = (start, 64 * 1024);
            let chunks = megabytes * 1_000_000 * 10 / chunk;
            for _ in 0..chunks {
                let wait = rate.reserve(usize::try_from(chunk).unwrap(), now);
                if !wait.is_zero() {
                    now += Duration::from_millis(u64::try_from(wait.as_millis()).unwrap() + 1);
                }
            }
            let took = (now - start).as_secs_f64();
            assert!((9.5..=10.5).contains(&took), "{megabytes} MB/s: 10 s of bytes took {took} s");
        }
    }

    #[test]
    fn a_pause_allows_no_more_than_the_burst() {
        let rate = Rate::new(1_000);
        let start = Instant::now();
        rate.reserve(1, start);
        let later = start + Duration::from_secs(60);
        assert_eq!(rate.reserve(1_000, later), Duration::from_secs(1) - BURST);
    }
}
