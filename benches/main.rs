//! The benchmarks: what the daemon costs and how fast it is, measured over the real parts. `cargo
//! bench` runs the default ones and prints one JSON object a line; `cargo bench -- idle burst` runs
//! those two, `cargo bench -- list` lists all.
//!
//! Real Nix in a private store, the release `flywheeld` as a process of its own, and the built-in
//! cache in this process, so that `/proc` shows the daemon alone. Both share the machine's
//! processors with Nix and everything else that runs, so times show the order of magnitude rather
//! than the last tenth. Nothing here passes or fails: the budgets are in docs/figures.md.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    unreachable_pub,
    dead_code
)]

#[path = "../tests/it/support/nix.rs"]
mod nix;

mod atticd;
mod backlog;
mod compare;
mod delay;
mod fleet;
mod http2;
mod jobs;
mod library;
mod live;
mod plot;
mod rate;
mod report;
mod rig;
mod sink;
mod slowdown;
mod start;
mod trees;
mod watch;
mod wide;

/// A name, whether it runs when nothing is named, and the function.
type Figure = (&'static str, bool, fn());

const FIGURES: &[Figure] = &[
    ("idle", true, live::idle),
    ("session", true, live::session_start),
    ("latency", true, live::latency),
    ("burst", true, live::burst),
    ("small", true, live::small),
    ("flush", true, live::flush),
    ("large", true, live::large),
    ("slowdown", true, slowdown::slowdown),
    ("wide", false, wide::wide),
    ("closure", true, library::closure),
    ("ledger", true, library::ledger),
    ("backlog", false, backlog::backlog),
    ("overfull", false, backlog::overfull),
    ("first-start", false, backlog::first_start),
    ("huge", false, live::huge),
    ("jobs", false, jobs::jobs),
    ("http2", false, http2::http2),
    ("max-rate", false, rate::max_rate),
    ("line", false, rate::line),
    ("start", false, start::start),
    ("fleet", false, fleet::fleet),
    ("small-sink", false, live::small_sink),
    ("compare", false, compare::compare),
];

fn main() {
    // cargo adds `--bench`.
    let named: Vec<String> = std::env::args().skip(1).filter(|a| !a.starts_with("--")).collect();
    if named.iter().any(|n| n == "list") {
        FIGURES.iter().for_each(|(name, ..)| println!("{name}"));
        return;
    }
    if let Some(unknown) = named.iter().find(|n| FIGURES.iter().all(|(name, ..)| name != n)) {
        eprintln!("there is no figure {unknown:?}; `cargo bench -- list` names them");
        std::process::exit(2);
    }
    for (name, usual, run) in FIGURES {
        if named.iter().any(|n| n == name) || (named.is_empty() && *usual) {
            run();
        }
    }
}
