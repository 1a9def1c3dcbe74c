//! The daemon in simulation: the real driver with its decisions, sessions and pushes, the
//! real intake with attribution windows and routes, the real ledger and the real reader of
//! the Nix database, in one thread and on simulated time. A seed decides everything.
//!
//! | real | simulated |
//! |---|---|
//! | `flow`, driver, sessions, reports, routes, intake, recheck, windows, hold counts of GC roots | order of turns, time |
//! | ledger: SQLite in a file, its writer, its restart | when changes that nobody waits for are written; `kill -9` between two commits |
//! | Nix database: SQLite in a file, its reader | the program that writes it: builds, collections, rollbacks |
//! | files of GC roots | Nix's collector, which respects them |
//! | reading the path's row before an upload | caches, their outages, deletions and wrong answers |
//! | anchors, by files like those in `/proc` | processes, the lock watcher's events, callers |
//!
//! Not part of it: the control socket, HTTP, NARs, the attic client, systemd, reload.
//!
//! The daemon's parts take turns: an input of the driver, a turn of the intake, a write of
//! the ledger, an answer of a cache, something that the world does. A turn is not
//! interrupted, except that the world may act before each call of the ledger that
//! somebody waits for.

mod caches;
mod checks;
mod jobs;
mod life;
mod run;
mod store;
mod trace;

use run::{Report, run};

/// How many seeds a run of the tests tries.
const SEEDS: u64 = 12;
/// Runs of at least this many seeds must have covered what [`COVERED`] names.
const MANY: u64 = 200;
/// What must have happened in a run of at least [`MANY`] seeds, or the checks check nothing.
const COVERED: [(&str, u64); 12] = [
    ("builds", 1_000),
    ("uploads", 1_000),
    ("sessions", 100),
    ("complete ends", 100),
    ("pushes", 100),
    ("flushes", 50),
    ("crashes", 50),
    ("collections", 100),
    ("deletions", 100),
    ("outages", 100),
    ("rollbacks", 10),
    ("events within a turn", 100),
];

/// The number in an environment variable.
fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok()?.parse().ok()
}

/// Runs seeds `first..first + count` on `threads` threads, and returns what they covered.
fn run_all(first: u64, count: u64, threads: u64) -> Report {
    let until = number("FLYWHEEL_SIM_SECONDS").map(std::time::Duration::from_secs);
    let began = std::time::Instant::now();
    let next = std::sync::atomic::AtomicU64::new(first);
    let total = std::sync::Mutex::new(Report::default());
    std::thread::scope(|scope| {
        for _ in 0..threads {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    if seed >= first + count || until.is_some_and(|until| began.elapsed() > until) {
                        return;
                    }
                    let report = run(seed, false);
                    let failed = report.violation.is_some();
                    total.lock().unwrap().add(seed, report);
                    if failed && number("FLYWHEEL_SIM_ALL").is_none() {
                        next.store(first + count, std::sync::atomic::Ordering::Relaxed);
                    }
                }
            });
        }
    });
    total.into_inner().unwrap()
}

/// In a run of the tests this shows that the simulation runs, and no more: not all seeds
/// keep every invariant yet, see docs/simulation.md. `tests/simulate.sh` names seeds in the
/// environment, and each of these must keep every invariant.
#[test]
#[allow(clippy::print_stderr)]
fn the_simulation_runs() {
    if let Some(seed) = number("FLYWHEEL_SIM_SEED") {
        let report = run(seed, true);
        eprintln!("hash of the trace: {:016x}", report.trace_hash);
        assert_eq!(report.violation, None, "seed {seed}");
        return;
    }
    let first = number("FLYWHEEL_SIM_FIRST").unwrap_or(0);
    let Some(count) = number("FLYWHEEL_SIM_SEEDS") else {
        let total = run_all(first, SEEDS, 2);
        for what in ["builds", "uploads", "sessions", "complete ends", "collections", "outages"] {
            assert!(total.seen(what) > 0, "{what}: none\n{total}");
        }
        return;
    };
    let total = run_all(first, count, 2);
    eprintln!("{total}");
    if total.failed.is_empty() && total.runs() >= MANY {
        for (what, least) in COVERED {
            assert!(total.seen(what) >= least, "{what}: {} in all runs, at least {least}", total.seen(what));
        }
    }
    if let Some(seed) = total.failed.first() {
        let report = run(*seed, false);
        panic!(
            "seed {seed}: {}\n{}\nreplay: tests/simulate.sh --seed {seed}",
            report.violation.unwrap_or_default(),
            report.tail
        );
    }
}
