//! The daemon in simulation: the real driver with its decisions, sessions and pushes, the
//! real intake with attribution windows and routes, the real ledger and the real reader of
//! the Nix database, in one thread and on simulated time. A seed decides everything.
//!
//! | real | simulated |
//! |---|---|
//! | `flow`, driver, sessions, reports, routes, intake, recheck, windows, hold counts of GC roots | order of turns, time |
//! | ledger: SQLite in a file, its writer, its restart | when changes that nobody waits for are written; `kill -9` between two commits; a power cut; a full disk |
//! | reload of the configuration file | when it comes, and what the file says |
//! | Nix database: SQLite in a file, its reader | the program that writes it: builds, collections, rollbacks |
//! | files of GC roots | Nix's collector, which respects them |
//! | reading the path's row before an upload | caches, their outages, deletions and wrong answers |
//! | anchors, by files like those in `/proc` | processes, the lock watcher's events, callers |
//!
//! Not part of it: the control socket, HTTP, NARs, the attic client, systemd.
//!
//! The daemon's parts take turns: an input of the driver, a turn of the intake, a write of
//! the ledger, an answer of a cache, something that the world does. A turn is not
//! interrupted, except that the world may act before each call of the ledger that
//! somebody waits for.

mod caches;
mod checks;
mod configuration;
mod contracts;
mod jobs;
mod life;
mod run;
mod store;
mod trace;

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use run::{Report, run};

/// How long a run of the tests tries seeds, in seconds, and how many at most.
const SECONDS: u64 = 60;
const SEEDS: u64 = 1_200;
/// Seeds that a run of the tests runs twice.
const TWICE: u64 = 12;
/// Runs of at least this many seeds must have covered what [`COVERED`] names.
const MANY: u64 = 200;
/// What must have happened in a run of at least [`MANY`] seeds, or the checks check nothing.
const COVERED: [(&str, u64); 29] = [
    ("builds", 1_000),
    ("scenes", 200),
    ("uploads", 1_000),
    ("sessions", 100),
    ("complete ends", 100),
    ("pushes", 100),
    ("flushes", 50),
    ("crashes", 50),
    ("collections", 100),
    ("hangs", 100),
    ("deletions", 100),
    ("outages", 100),
    ("rollbacks", 10),
    ("events within a turn", 100),
    ("reloads", 100),
    ("reloads refused", 30),
    ("full disks", 30),
    ("power cuts", 30),
    ("sessions lost", 5),
    ("pushes of other hosts", 50),
    ("outages: unreachable", 10),
    ("outages: 5xx", 10),
    ("outages: 401", 10),
    ("outages: 404", 10),
    ("outages: 5xx of uploads", 10),
    ("outages: 429", 10),
    ("outages: no verdict", 10),
    ("outages: 200, and nothing stored", 10),
    ("outages: NAR does not match", 10),
];

/// The number in an environment variable.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs seeds `first..first + count` on `threads` threads, no new one after `seconds` or when
/// `enough` have failed, and returns what they covered.
fn run_all(first: u64, count: u64, threads: u64, seconds: Option<u64>, enough: u64) -> Report {
    let began = Instant::now();
    let is_over = || seconds.is_some_and(|seconds| began.elapsed() > Duration::from_secs(seconds));
    let next = AtomicU64::new(first);
    let total = Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                while !is_over() {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= first + count {
                        return;
                    }
                    let report = run(seed, false);
                    let mut total = total.lock().unwrap();
                    total.add(seed, report);
                    if total.failed.len() as u64 >= enough {
                        next.store(first + count, Ordering::Relaxed);
                    }
                }
            });
        }
    });
    total.into_inner().unwrap()
}

/// Every seed keeps every invariant. A run of the tests tries the first seeds, as many as it
/// has time for; `tests/simulate.sh` names seeds in the environment.
#[test]
#[allow(clippy::print_stderr)]
fn every_seed_keeps_the_invariants() {
    if let Some(seed) = number("FLYWHEEL_SIM_SEED") {
        let report = run(seed, true);
        eprintln!("hash of the trace: {:016x}", report.trace_hash);
        assert_eq!(report.violation, None, "seed {seed}");
        return;
    }
    let first = number("FLYWHEEL_SIM_FIRST").unwrap_or(0);
    let total = match number("FLYWHEEL_SIM_SEEDS") {
        Some(count) => {
            let threads = number("FLYWHEEL_SIM_THREADS").unwrap_or(2);
            let enough = number("FLYWHEEL_SIM_ENOUGH").unwrap_or(1);
            run_all(first, count, threads, number("FLYWHEEL_SIM_SECONDS"), enough)
        }
        None => run_all(first, SEEDS, 2, Some(SECONDS), 1),
    };
    eprintln!("{total}");
    if let Some((seed, _)) = total.failed.first_key_value() {
        let report = run(*seed, false);
        panic!(
            "seed {seed}: {}\n{}\nreplay: tests/simulate.sh --seed {seed}",
            report.violation.unwrap_or_default(),
            report.tail
        );
    }
    if total.runs() >= MANY {
        for (what, least) in COVERED {
            assert!(total.seen(what) >= least, "{what}: {} in all runs, at least {least}", total.seen(what));
        }
    }
}

/// A run follows from its seed alone, to the byte of its trace: whatever else the machine
/// does, and on which thread.
#[test]
fn a_seed_decides_everything() {
    let once = run_all(0, TWICE, 1, None, TWICE);
    let again = run_all(0, TWICE, 3, None, TWICE);
    assert_eq!(once.hashes.len(), usize::try_from(TWICE).unwrap());
    assert_eq!(once.hashes, again.hashes, "seeds and the hashes of their traces differ");
    let different: std::collections::BTreeSet<u64> = once.hashes.values().copied().collect();
    assert_eq!(different.len(), once.hashes.len(), "two seeds do the same");
}
