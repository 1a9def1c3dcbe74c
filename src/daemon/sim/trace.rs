//! The trace of a run, and the source of its random choices.

use std::collections::VecDeque;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash as _, Hasher as _};

/// Lines that are kept for a failing seed.
const KEPT: usize = 400;

/// A point of a run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Moment {
    /// Simulated milliseconds.
    pub(super) ms: u64,
    /// How many lines the trace had. It orders what happens within one millisecond.
    pub(super) line: u64,
}

/// One line for each turn. All lines are hashed, and the last ones are kept.
pub(super) struct Trace {
    hash: DefaultHasher,
    last: VecDeque<String>,
    lines: u64,
    print: bool,
}

impl Trace {
    pub(super) fn new(print: bool) -> Self {
        Self { hash: DefaultHasher::new(), last: VecDeque::new(), lines: 0, print }
    }

    #[allow(clippy::print_stderr)]
    pub(super) fn line(&mut self, now: u64, text: &str) {
        let line = format!("{:>5}.{:03} {text}", now / 1000, now % 1000);
        line.hash(&mut self.hash);
        self.lines += 1;
        if self.print {
            eprintln!("{line}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back(line);
    }

    pub(super) fn hash(&self) -> u64 {
        self.hash.finish()
    }

    /// How many lines it has.
    pub(super) fn lines(&self) -> u64 {
        self.lines
    }

    pub(super) fn tail(&self) -> String {
        self.last.iter().map(|line| format!("{line}\n")).collect()
    }
}

/// Random numbers that a seed decides (splitmix64).
#[derive(Debug, Clone)]
pub(super) struct Rng(u64);

impl Rng {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) ^ 0xD1B5_4A32_D192_ED03)
    }

    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// A number below `most`, which is not 0.
    pub(super) fn below(&mut self, most: u64) -> u64 {
        self.next() % most
    }

    pub(super) fn index(&mut self, len: usize) -> usize {
        usize::try_from(self.below(len as u64)).unwrap()
    }

    /// True once in `n` times.
    pub(super) fn one_in(&mut self, n: u64) -> bool {
        self.below(n) == 0
    }

    pub(super) fn pick<'a, T>(&mut self, all: &'a [T]) -> Option<&'a T> {
        if all.is_empty() { None } else { Some(&all[self.index(all.len())]) }
    }
}
