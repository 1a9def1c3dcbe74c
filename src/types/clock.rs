//! The two clocks: one that only goes forward and decides about waiting, and the
//! wall clock, which people and the ledger read.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// A moment on a clock that only goes forward, in milliseconds since a fixed
/// moment. The caller chooses that moment; two values are comparable only if
/// they come from the same clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Mono(pub u64);

impl Mono {
    /// A moment that never comes.
    pub const MAX: Self = Self(u64::MAX);

    /// Returns the moment that is `wait` later. Stops at the largest value.
    #[must_use]
    pub fn after(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }

    /// Returns how long after `earlier` this moment is; zero if it is not after it.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// A moment of the wall clock, in milliseconds since 1970-01-01 UTC. The clock
/// may be set forward and back: use it for people and records, never for waiting.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Wall(pub i64);

impl Wall {
    /// Reads the clock. A clock that stands before 1970 gives 0.
    #[must_use]
    pub fn now() -> Self {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Self(i64::try_from(now.as_millis()).unwrap_or(i64::MAX))
    }

    /// Returns the whole seconds since 1970, as Nix's database and JSON Web Tokens count them.
    #[must_use]
    pub fn seconds(self) -> i64 {
        self.0.div_euclid(1000)
    }
}

/// The whole milliseconds of a duration, for messages and the log. A duration of
/// more than 584 million years is cut.
#[must_use]
pub fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_and_differences_stay_in_range() {
        assert_eq!(Mono(5).after(Duration::from_millis(7)), Mono(12));
        assert_eq!(Mono(u64::MAX).after(Duration::from_secs(1)), Mono(u64::MAX));
        assert_eq!(Mono(12).since(Mono(5)), Duration::from_millis(7));
        assert_eq!(Mono(5).since(Mono(12)), Duration::ZERO);
        assert_eq!(Wall(-1).seconds(), -1);
        assert_eq!(Wall(1_999).seconds(), 1);
    }
}
