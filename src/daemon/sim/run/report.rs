//! What a run did and found, and what many runs did together.

use std::collections::BTreeMap;
use std::fmt;

/// What happened in one run, or in many.
#[derive(Debug, Default)]
pub(in crate::daemon::sim) struct Report {
    pub(in crate::daemon::sim) violation: Option<String>,
    pub(in crate::daemon::sim) trace_hash: u64,
    pub(in crate::daemon::sim) tail: String,
    /// The seeds that failed, and what each has violated.
    pub(in crate::daemon::sim) failed: BTreeMap<u64, String>,
    /// The hash of each seed's trace.
    pub(in crate::daemon::sim) hashes: BTreeMap<u64, u64>,
    pub(super) runs: u64,
    pub(super) turns: u64,
    pub(super) seen: BTreeMap<&'static str, u64>,
}

impl Report {
    pub(in crate::daemon::sim) fn add(&mut self, seed: u64, one: Self) {
        self.runs += 1;
        self.turns += one.turns;
        self.hashes.insert(seed, one.trace_hash);
        self.failed.extend(one.violation.map(|violation| (seed, violation)));
        for (what, count) in one.seen {
            *self.seen.entry(what).or_default() += count;
        }
    }

    /// How often something happened.
    pub(in crate::daemon::sim) fn seen(&self, what: &str) -> u64 {
        self.seen.get(what).copied().unwrap_or(0)
    }

    pub(in crate::daemon::sim) fn runs(&self) -> u64 {
        self.runs
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{} runs, {} turns, {} failed", self.runs, self.turns, self.failed.len())?;
        for (seed, violation) in &self.failed {
            writeln!(f, "seed {seed}: {violation}")?;
        }
        for (what, count) in &self.seen {
            writeln!(f, "  {count:>8} {what}")?;
        }
        Ok(())
    }
}
