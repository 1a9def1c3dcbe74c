//! When the lock table is read. Pure: the time is a parameter.
//!
//! One read shows the holders of all locks, so the number of reads depends on time
//! and not on the number of locks or on how often Nix opens them:
//!
//! - A lock that was created, and a path that appeared whose maker is unknown,
//!   make a read due at once; some builds and all small additions hold their lock
//!   for a few milliseconds only. [`BURST`] such reads may follow each other, and
//!   [`PER_SECOND`] in each second.
//! - After any event of the store directory the table is read again and again: a
//!   build may have started whose lock existed before. The pause grows with the
//!   time since the event, from [`SHORTEST`] to [`LONGEST`], and with the number of
//!   locks: a read takes longer, the more there are.

use std::time::{Duration, Instant};

/// Upper bound of the urgent reads that follow each other without a pause.
pub(super) const BURST: u32 = 1000;
/// Upper bound of the urgent reads in a second, besides [`BURST`].
pub(super) const PER_SECOND: u32 = 400;
/// How often a lock is urgent that no process was seen to hold.
const RETRIES: u8 = 4;
/// Pause between two urgent reads for the same lock, doubled each time.
const RETRY: Duration = Duration::from_micros(120);
/// Lower bound of the pause between other reads.
pub(super) const SHORTEST: Duration = Duration::from_millis(3);
/// Lower bound of that pause for each lock that the last read showed: some fifty times
/// of what a lock costs.
const EACH: Duration = Duration::from_micros(50);
/// Upper bound of that pause.
pub(super) const LONGEST: Duration = Duration::from_millis(64);
/// How long after an event the table is read where no session is open.
pub(super) const BUSY: Duration = Duration::from_secs(1);

/// Counts what may happen only so often: a number at once, and a number in each second.
#[derive(Debug)]
pub(super) struct Bucket {
    burst: f64,
    per_second: f64,
    allowed: f64,
    counted: Instant,
}

impl Bucket {
    pub(super) fn new((burst, per_second): (u32, u32), now: Instant) -> Self {
        let burst = f64::from(burst);
        Self { burst, per_second: f64::from(per_second), allowed: burst, counted: now }
    }

    /// Whether it may happen.
    fn allows(&mut self, now: Instant) -> bool {
        let new = now.duration_since(self.counted).as_secs_f64() * self.per_second;
        self.allowed = (self.allowed + new).min(self.burst);
        self.counted = now;
        self.allowed >= 1.0
    }

    /// Whether it may happen, and counts it.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let allows = self.allows(now);
        if allows {
            self.allowed -= 1.0;
        }
        allows
    }
}

/// Says when the next read is due.
#[derive(Debug)]
pub(super) struct Pace {
    urgent_reads: Bucket,
    /// The urgent reads that are left for the last urgent event.
    urgent: u8,
    last_event: Option<Instant>,
    last_read: Option<Instant>,
    /// Lower bound of the pause after the last read.
    pause: Duration,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        let urgent_reads = Bucket::new((BURST, PER_SECOND), now);
        Self { urgent_reads, urgent: 0, last_event: None, last_read: None, pause: SHORTEST }
    }

    /// Something changed in the store directory.
    pub(super) fn event(&mut self, now: Instant) {
        self.last_event = Some(now);
    }

    /// The holder of a lock is looked for that may be released in a moment.
    pub(super) fn urgent(&mut self, now: Instant) {
        self.event(now);
        self.urgent = RETRIES;
    }

    pub(super) fn is_urgent(&self) -> bool {
        self.urgent > 0
    }

    /// No lock is urgent any more.
    pub(super) fn calm(&mut self) {
        self.urgent = 0;
    }

    /// The table is read now, and shows this many locks.
    pub(super) fn read(&mut self, now: Instant, locks: usize) {
        if self.urgent > 0 && self.urgent_reads.take(now) {
            self.urgent -= 1;
        }
        self.last_read = Some(now);
        let locks = u32::try_from(locks).unwrap_or(u32::MAX);
        self.pause = EACH.saturating_mul(locks).clamp(SHORTEST, LONGEST);
    }

    /// Whether the last event is at most [`BUSY`] old.
    pub(super) fn is_busy(&self, now: Instant) -> bool {
        self.last_event.is_some_and(|at| now.duration_since(at) < BUSY)
    }

    /// The time until the next read; `None` until an event. `attended`: reads go on
    /// when events have ended.
    pub(super) fn next(&mut self, now: Instant, attended: bool) -> Option<Duration> {
        let since_read = self.last_read.map_or(LONGEST, |at| now.duration_since(at));
        let since_event = self.last_event.map_or(BUSY, |at| now.duration_since(at));
        let regular = (since_event / 2).clamp(self.pause, LONGEST).saturating_sub(since_read);
        if self.urgent > 0 && self.urgent_reads.allows(now) {
            let pause = RETRY * (1 << (RETRIES - self.urgent)) / 2;
            let pause = if self.urgent == RETRIES { Duration::ZERO } else { pause };
            return Some(pause.saturating_sub(since_read).min(regular));
        }
        (attended || since_event < BUSY).then_some(regular)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Reads whenever a read is due, for `seconds`; calls `each` every 100 µs.
    fn reads(seconds: u32, attended: bool, mut each: impl FnMut(&mut Pace, Instant, u32)) -> u32 {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        let mut reads = 0;
        for step in 0..seconds * 10_000 {
            each(&mut pace, now, step);
            if pace.next(now, attended) == Some(Duration::ZERO) {
                pace.read(now, 1);
                reads += 1;
            }
            now += Duration::from_micros(100);
        }
        reads
    }

    #[test]
    fn reads_have_a_bound_whatever_happens() {
        let most = BURST + 10 * (PER_SECOND + 1000 / 3);
        assert!(reads(10, true, |pace, now, _| pace.urgent(now)) <= most);
        let often = reads(10, true, |pace, now, _| pace.event(now));
        assert!((3200..=3400).contains(&often), "one in 3 ms: {often}");
    }

    /// A build holds its lock for as long as it runs. However many locks came before it, and
    /// however long the table is, it is looked at when one more urgent read is allowed.
    #[test]
    fn a_lock_that_stays_held_is_looked_at_soon_after_any_burst() {
        for locks in [1, 1000] {
            let (mut now, mut pace) = (Instant::now(), Pace::new(Instant::now()));
            let step = Duration::from_micros(50);
            for _ in 0..100_000 {
                pace.urgent(now);
                if pace.next(now, false) == Some(Duration::ZERO) {
                    pace.read(now, locks);
                }
                now += step;
            }
            assert!(!pace.urgent_reads.allows(now), "the burst has used up the allowance");
            let latest = now + Duration::from_secs(1) / PER_SECOND + step;
            pace.urgent(now);
            while pace.next(now, false) != Some(Duration::ZERO) {
                assert!(now < latest, "with {locks} locks");
                now += step;
            }
        }
    }

    #[test]
    fn reads_become_rare_when_nothing_happens() {
        let once = |pace: &mut Pace, now, step| {
            if step == 0 {
                pace.event(now);
            }
        };
        let attended = reads(10, true, once);
        assert!((150..=210).contains(&attended), "one in 64 ms: {attended}");
        let unattended = reads(10, false, once);
        assert!((10..=40).contains(&unattended), "they end: {unattended}");
        assert_eq!(reads(10, false, |_, _, _| ()), 0);
    }

    #[test]
    fn a_long_table_is_read_more_rarely() {
        let now = Instant::now();
        let mut pace = Pace::new(now);
        pace.event(now);
        let mut after = |locks| {
            pace.read(now, locks);
            pace.next(now, true).unwrap()
        };
        assert_eq!([after(0), after(60), after(240)], [3, 3, 12].map(Duration::from_millis));
        assert_eq!(after(usize::MAX), LONGEST);
        pace.urgent(now);
        assert_eq!(pace.next(now, true), Some(Duration::ZERO));
    }

    #[test]
    fn an_urgent_lock_is_looked_at_at_once_and_a_few_times_more() {
        let mut now = Instant::now();
        let mut pace = Pace::new(now);
        pace.urgent(now);
        pace.read(now, 1);
        now += Duration::from_micros(10);
        pace.urgent(now);
        assert_eq!(pace.next(now, false), Some(Duration::ZERO), "also right after another read");
        let mut pauses = Vec::new();
        for _ in 0..RETRIES {
            let pause = pace.next(now, false).unwrap();
            pauses.push(pause.as_micros());
            now += pause;
            pace.read(now, 1);
        }
        assert_eq!(pauses, [0, 120, 240, 480]);
        assert_eq!(pace.next(now, false), Some(SHORTEST), "then as after any event");
        pace.urgent(now);
        pace.calm();
        assert_eq!(pace.next(now, false), Some(SHORTEST));
    }
}
