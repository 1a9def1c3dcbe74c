//! Waits before retries: exponential, capped, with jitter.

use std::time::Duration;

/// The bounds of a series of waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Backoff {
    /// Upper bound of the first wait.
    pub(super) base: Duration,
    /// Upper bound of every wait.
    pub(super) cap: Duration,
}

impl Backoff {
    /// Between uploads of one path.
    pub(super) const UPLOAD: Self = Self { base: Duration::from_millis(500), cap: Duration::from_secs(60) };
    /// Between probes of a cache that does not answer. Because of the cap,
    /// uploads resume within a second after the cache is back.
    pub(super) const PROBE: Self = Self { base: Duration::from_millis(200), cap: Duration::from_millis(900) };
    /// Before the next probe of a cache that answers probes but is too loaded to
    /// take uploads.
    pub(super) const OVERLOAD: Self = Self { base: Duration::from_millis(500), cap: Duration::from_secs(8) };
    /// Between probes of a cache that refuses the token.
    pub(super) const REFUSED: Self = Self { base: Duration::from_secs(30), cap: Duration::from_secs(60) };

    /// Returns the wait after attempt number `attempt` (from 1) failed: uniform
    /// between a tenth of the bound and the bound, so that many hosts spread out
    /// and none retries at once.
    pub(super) fn wait(self, attempt: u32, rng: &mut Rng) -> Duration {
        let doubled = self.base.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        let bound = u64::try_from(doubled.min(self.cap).as_millis()).unwrap_or(u64::MAX);
        let floor = bound / 10;
        Duration::from_millis(floor + rng.below(bound - floor + 1))
    }
}

/// The upper bounds of the waits after uploads of one path that ended without a verdict,
/// before the cache is asked whether it has the path. After one more the push fails. The
/// first wait is short, since the server may have the path already. The others are long,
/// since each try sends the whole path again: a proxy that is overloaded or restarted for
/// two minutes costs no path.
pub(super) const NO_VERDICT: [Duration; 4] =
    [Duration::from_secs(2), Duration::from_secs(15), Duration::from_secs(60), Duration::from_secs(240)];

/// Returns the wait after an upload without a verdict, `earlier` of which came before it:
/// uniform between a half of its bound and the bound, so that all of them together take
/// minutes whatever the seed.
pub(super) fn after_no_verdict(earlier: u8, rng: &mut Rng) -> Duration {
    let last = NO_VERDICT.len() - 1;
    let bound = u64::try_from(NO_VERDICT[usize::from(earlier).min(last)].as_millis()).unwrap_or(u64::MAX);
    Duration::from_millis(bound / 2 + rng.below(bound / 2 + 1))
}

/// The random generator SplitMix64 (Steele, Lea and Flood 2014). The same seed
/// gives the same sequence, so that a run can be replayed.
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Returns a number below `bound`, or 0 when the bound is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }
}

/// Returns the wait that a server asks for, at most ten minutes.
pub(super) fn bounded(retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or_default().min(Duration::from_secs(600))
}
