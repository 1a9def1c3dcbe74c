//! How long to wait before the next try: exponential, capped, full jitter.

use std::time::Duration;

/// The bounds of a wait.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The upper bound of the first wait.
    pub base: Duration,
    /// The upper bound of every wait.
    pub cap: Duration,
}

impl Backoff {
    /// Between uploads of one path.
    pub const UPLOAD: Self = Self { base: Duration::from_millis(500), cap: Duration::from_secs(60) };
    /// Between probes of a cache that does not answer. The cap is what keeps
    /// uploads from resuming later than a second after the cache's return.
    pub const PROBE: Self = Self { base: Duration::from_millis(200), cap: Duration::from_millis(900) };
    /// Before the next probe of a cache that answers probes but not the work:
    /// it has too much of it, so its return is no reason to hurry.
    pub const OVERLOAD: Self = Self { base: Duration::from_millis(500), cap: Duration::from_secs(8) };
    /// Between looks at a cache that refuses the token.
    pub const REFUSED: Self = Self { base: Duration::from_secs(30), cap: Duration::from_secs(60) };

    /// The wait before try number `attempt + 1`, after `attempt` (from 1) failed:
    /// uniform between a tenth of the bound and the bound, so that many hosts
    /// spread out and nobody spins.
    pub(super) fn wait(self, attempt: u32, rng: &mut Rng) -> Duration {
        let doubled = self.base.saturating_mul(1 << attempt.saturating_sub(1).min(20));
        let bound = u64::try_from(doubled.min(self.cap).as_millis()).unwrap_or(u64::MAX);
        let floor = bound / 10;
        Duration::from_millis(floor + rng.below(bound - floor + 1))
    }
}

/// SplitMix64 (Steele, Lea and Flood 2014): small, and the same sequence for
/// the same seed, which is what a replay needs.
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

    /// A number below `bound`; 0 when the bound is 0.
    pub(super) fn below(&mut self, bound: u64) -> u64 {
        if bound == 0 { 0 } else { self.next() % bound }
    }
}

/// What a server asks for, as far as we follow it.
pub(super) fn bounded(retry_after: Option<Duration>) -> Duration {
    retry_after.unwrap_or_default().min(Duration::from_secs(600))
}
