//! What the intake remembers of each row and cache: whether the driver has the row's
//! push, and when the cache was last known to have the row's whole closure. Three bits
//! a row, so that a million rows take 375 KB. Must not know how a cache is asked.

use std::time::Duration;

use crate::types::Mono;

/// Rows of one database and one cache.
#[derive(Debug)]
pub(in crate::daemon) struct Confirmed {
    /// How long a confirmation counts.
    recheck_after: Duration,
    /// Rows whose pushes the driver has.
    handed_on: Bits,
    /// Confirmations in two generations; they move on every half `recheck_after`, so
    /// that none counts for longer than that.
    current: Generation,
    older: Generation,
}

/// Rows that were confirmed at `since` or later.
#[derive(Debug, Default)]
struct Generation {
    since: Mono,
    rows: Bits,
}

/// What is remembered of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Memory {
    /// Nothing is remembered: the cache must be asked.
    Unknown,
    /// The driver has the row's push.
    HandedOn,
    /// The cache had the whole closure at this time or later.
    Since(Mono),
}

impl Confirmed {
    pub(super) fn new(recheck_after: Duration) -> Self {
        Self {
            recheck_after,
            handed_on: Bits::default(),
            current: Generation::default(),
            older: Generation::default(),
        }
    }

    /// Forgets confirmations that are too old by now. To be called before [`Self::of`].
    pub(super) fn turn(&mut self, now: Mono) {
        if now.since(self.current.since) >= self.recheck_after / 2 {
            let next = Generation { since: now, rows: Bits::default() };
            self.older = std::mem::replace(&mut self.current, next);
        }
        if now.since(self.older.since) > self.recheck_after {
            // Nothing that is confirmed later than this is added to it.
            self.older = Generation { since: Mono::MAX, rows: Bits::default() };
        }
    }

    pub(super) fn of(&self, row: i64) -> Memory {
        if self.handed_on.contains(row) {
            return Memory::HandedOn;
        }
        let generation = [&self.current, &self.older].into_iter().find(|g| g.rows.contains(row));
        generation.map_or(Memory::Unknown, |generation| Memory::Since(generation.since))
    }

    /// Notes that the driver has the row's push.
    pub(super) fn hand_on(&mut self, row: i64) {
        self.handed_on.insert(row);
    }

    /// Notes that the driver has settled or forgotten the row's push. `confirmed` is when
    /// the driver began to ask the cache, if the cache has the whole closure.
    pub(super) fn settled(&mut self, row: i64, confirmed: Option<Mono>) {
        self.handed_on.remove(row);
        let Some(at) = confirmed else { return };
        if at >= self.current.since {
            self.current.rows.insert(row);
        } else if at >= self.older.since {
            self.older.rows.insert(row);
        }
    }

    /// Forgets all confirmations from before this time, because the cache has deleted paths.
    pub(super) fn distrust(&mut self, before: Mono) {
        self.current = Generation { since: self.current.since.max(before), rows: Bits::default() };
        self.older = Generation { since: Mono::MAX, rows: Bits::default() };
    }

    /// Forgets everything, because rows have other numbers now.
    pub(super) fn clear(&mut self) {
        self.current.rows.clear();
        self.older.rows.clear();
        self.handed_on.clear();
    }
}

/// A growing set of small numbers, as one bit each. Rows are numbered densely, so no
/// other set is smaller.
#[derive(Debug, Default)]
struct Bits {
    words: Vec<u64>,
}

/// Upper bound of the rows that are remembered. The cache is asked each time about rows
/// above it.
const MOST: usize = 1 << 28;

impl Bits {
    fn contains(&self, row: i64) -> bool {
        let Some((word, bit)) = place(row) else { return false };
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    fn insert(&mut self, row: i64) {
        let Some((word, bit)) = place(row) else { return };
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
    }

    fn remove(&mut self, row: i64) {
        let Some((word, bit)) = place(row) else { return };
        if let Some(w) = self.words.get_mut(word) {
            *w &= !bit;
        }
    }

    fn clear(&mut self) {
        self.words = Vec::new();
    }
}

fn place(row: i64) -> Option<(usize, u64)> {
    let row = usize::try_from(row).ok().filter(|row| *row < MOST)?;
    Some((row / 64, 1 << (row % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_hold_what_was_inserted_and_nothing_else() {
        let mut bits = Bits::default();
        for row in [0, 1, 63, 64, 1000] {
            assert!(!bits.contains(row));
            bits.insert(row);
            assert!(bits.contains(row));
        }
        assert!(!bits.contains(65) && !bits.contains(-1));
        bits.insert(-1);
        bits.insert(i64::MAX);
        assert!(!bits.contains(i64::MAX));
        bits.remove(64);
        assert!(!bits.contains(64) && bits.contains(63));
    }

    #[test]
    fn a_confirmation_counts_for_its_time_and_no_longer() {
        let mut memory = Confirmed::new(Duration::from_millis(100));
        memory.turn(Mono(0));
        memory.hand_on(7);
        assert_eq!(memory.of(7), Memory::HandedOn);
        memory.settled(7, Some(Mono(10)));
        assert_eq!(memory.of(7), Memory::Since(Mono(0)));
        for now in 0..100 {
            memory.turn(Mono(now));
            assert_eq!(memory.of(7), Memory::Since(Mono(0)), "at {now}");
        }
        memory.turn(Mono(100));
        assert_eq!(memory.of(7), Memory::Unknown);
    }

    #[test]
    fn whatever_the_times_no_confirmation_counts_for_too_long() {
        let mut memory = Confirmed::new(Duration::from_millis(100));
        let mut confirmed = Vec::new();
        for step in 0..1_000_u64 {
            let now = Mono(step * 7);
            memory.turn(now);
            // An answer comes up to 60 ms after its question.
            let at = Mono(now.0.saturating_sub(step % 60));
            memory.settled(step.cast_signed(), Some(at));
            confirmed.push(at);
            for (row, at) in confirmed.iter().enumerate() {
                match memory.of(row as i64) {
                    Memory::Since(since) => assert!(since <= *at && now.since(since).as_millis() <= 100),
                    Memory::Unknown => {}
                    Memory::HandedOn => panic!("{row} was not handed on"),
                }
            }
        }
    }

    #[test]
    fn distrust_forgets_confirmations_and_not_what_is_under_way() {
        let mut memory = Confirmed::new(Duration::from_secs(600));
        memory.settled(1, Some(Mono(0)));
        memory.hand_on(2);
        memory.distrust(Mono(9));
        assert_eq!((memory.of(1), memory.of(2)), (Memory::Unknown, Memory::HandedOn));
        memory.settled(1, Some(Mono(8)));
        assert_eq!(memory.of(1), Memory::Unknown, "it was confirmed before");
        memory.settled(1, Some(Mono(9)));
        assert_eq!(memory.of(1), Memory::Since(Mono(9)), "no confirmation seems older than that");
        memory.settled(2, None);
        assert_eq!(memory.of(2), Memory::Unknown);
        memory.hand_on(3);
        memory.clear();
        assert_eq!(memory.of(3), Memory::Unknown);
    }
}
