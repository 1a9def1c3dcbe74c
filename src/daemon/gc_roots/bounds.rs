//! How many bytes of pending paths may be kept from garbage collection. Pure: what the
//! bounds say about given figures. Must not know how protection is ended.

use crate::config::Nix;

/// The bounds of the configuration.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Bounds {
    /// The most bytes of NARs that are protected; `None`: no limit.
    pub(in crate::daemon) protect_max: Option<u64>,
    /// Free bytes of the store's file system below which the oldest paths lose their
    /// protection; 0: never.
    pub(in crate::daemon) min_free: u64,
}

/// A bound that is passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Passed {
    ProtectMax,
    MinFree,
}

impl Passed {
    /// The key of the configuration.
    pub(super) fn key(self) -> &'static str {
        match self {
            Self::ProtectMax => "protect_max",
            Self::MinFree => "min_free",
        }
    }
}

/// The figures that the bounds are compared with, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Figures {
    /// NARs of the protected paths.
    pub(super) held: u64,
    /// NARs of unprotected paths that a collection may delete and has not deleted yet.
    pub(super) unprotected: u64,
    /// Free space of the store's file system; `None` when it is not known.
    pub(super) free: Option<u64>,
}

impl Bounds {
    pub(in crate::daemon) fn of(nix: &Nix) -> Self {
        Self { protect_max: nix.protect_max, min_free: nix.min_free }
    }

    /// The bound that is passed, and how many bytes of held paths lose their protection.
    pub(super) fn surplus(&self, figures: Figures) -> Option<(Passed, u64)> {
        let Figures { held, unprotected, free } = figures;
        let max = self.protect_max.unwrap_or(u64::MAX);
        // A tenth more than necessary, so that not every further path ends a protection:
        // each time, all temporary roots are written again.
        let over = if held > max { held - (max - max / 10) } else { 0 };
        // What is unprotected already counts as free: the next collection deletes it.
        let short = self.min_free.saturating_sub(free.unwrap_or(u64::MAX)).saturating_sub(unprotected);
        match (over, short) {
            (0, 0) => None,
            (over, short) if over >= short => Some((Passed::ProtectMax, over)),
            (_, short) => Some((Passed::MinFree, short)),
        }
    }

    /// How many bytes of unprotected paths can be protected again. It is 0 until there
    /// is ample room, so that a path does not change sides all the time.
    pub(super) fn room(&self, figures: Figures) -> u64 {
        let Figures { held, free, .. } = figures;
        let max = self.protect_max.unwrap_or(u64::MAX);
        let enough_free = free.is_none_or(|free| free >= self.min_free.saturating_add(self.min_free / 4));
        if enough_free { (max - max / 4).saturating_sub(held) } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figures(held: u64, unprotected: u64, free: u64) -> Figures {
        Figures { held, unprotected, free: Some(free) }
    }

    #[test]
    fn what_loses_its_protection() {
        let bounds = Bounds { protect_max: Some(1000), min_free: 100 };
        for (held, unprotected, free, expected) in [
            (1000, 0, 100, None),
            (1001, 0, 100, Some((Passed::ProtectMax, 101))),
            (500, 0, 40, Some((Passed::MinFree, 60))),
            (500, 60, 40, None),
            (500, 20, 40, Some((Passed::MinFree, 40))),
            (2000, 0, 0, Some((Passed::ProtectMax, 1100))),
        ] {
            assert_eq!(bounds.surplus(figures(held, unprotected, free)), expected, "{held} {free}");
        }
        let unlimited = Bounds { protect_max: None, min_free: 0 };
        assert_eq!(unlimited.surplus(figures(u64::MAX, 0, 0)), None);
        let unknown = Figures { held: 10, unprotected: 0, free: None };
        assert_eq!(bounds.surplus(unknown), None);
    }

    #[test]
    fn what_is_protected_again() {
        let bounds = Bounds { protect_max: Some(1000), min_free: 100 };
        for (held, free, room) in [(900, 200, 0), (750, 200, 0), (700, 200, 50), (0, 124, 0), (0, 125, 750)] {
            assert_eq!(bounds.room(figures(held, 0, free)), room, "{held} {free}");
        }
        // Ending and beginning a protection never take turns.
        for held in 0..=2000 {
            for free in [0, 99, 100, 125, 1000] {
                let now = figures(held, 0, free);
                assert!(bounds.surplus(now).is_none() || bounds.room(now) == 0, "{held} {free}");
            }
        }
    }
}
