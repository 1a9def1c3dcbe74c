//! How fast a wait goes, from its progress reports: the rate of the last seconds, and the
//! time that is left at that rate. Pure; must not know the time of day.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// The time over which the rate is taken.
const SPAN: Duration = Duration::from_secs(10);
/// The least time for which a rate says something.
const LEAST: Duration = Duration::from_secs(1);
/// A longer wait than this is not foretold.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// The progress reports of the last seconds.
#[derive(Debug, Default)]
pub(super) struct Pace {
    /// When, and how many bytes were sent then.
    samples: VecDeque<(Instant, u64)>,
}

impl Pace {
    /// Takes a report.
    pub(super) fn take(&mut self, now: Instant, sent: u64) {
        // A daemon that was restarted counts from 0 again.
        if self.samples.back().is_some_and(|(_, before)| *before > sent) {
            self.samples.clear();
        }
        self.samples.push_back((now, sent));
        while self.samples.len() > 2 && now.duration_since(self.samples[1].0) >= SPAN {
            self.samples.pop_front();
        }
    }

    /// Returns the bytes per second of the last seconds; none when that is not known yet.
    pub(super) fn rate(&self) -> Option<u64> {
        let ((from, before), (to, now)) = (self.samples.front()?, self.samples.back()?);
        let took = to.duration_since(*from);
        if took < LEAST {
            return None;
        }
        let ms = u64::try_from(took.as_millis()).ok()?;
        (now - before).saturating_mul(1000).checked_div(ms)
    }

    /// Returns the time in which `left` bytes are sent at this rate; none when nothing moves.
    pub(super) fn left(&self, left: u64) -> Option<Duration> {
        let rate = self.rate().filter(|rate| *rate > 0)?;
        Some(Duration::from_secs(left.div_ceil(rate))).filter(|left| !left.is_zero() && *left <= LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rate_and_time_left() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let at = |ms| start + Duration::from_millis(ms);
        assert_eq!((pace.rate(), pace.left(10)), (None, None));
        pace.take(at(0), 0);
        pace.take(at(500), 500);
        assert_eq!(pace.rate(), None, "half a second says little");
        pace.take(at(2000), 4000);
        assert_eq!((pace.rate(), pace.left(9000)), (Some(2000), Some(Duration::from_secs(5))));
        // The last seconds count.
        for n in 3..=30 {
            pace.take(at(n * 1000), 4000);
        }
        assert_eq!((pace.rate(), pace.left(9000)), (Some(0), None), "nothing moves");
        pace.take(at(31_000), 10);
        assert_eq!(pace.rate(), None, "a new daemon");
    }
}
