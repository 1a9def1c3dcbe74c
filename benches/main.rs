//! The figures: what the daemon costs and how fast it is, over the real parts.
//! `cargo bench` runs the default ones and prints one JSON object a line;
//! `cargo bench -- idle burst` runs those, `cargo bench -- list` names all.
//!
//! Real Nix in a private store, the release `flywheeld` as a process of its
//! own, the embedded cache in this process: so what `/proc` says of the daemon
//! is the daemon's alone. Both share the machine's processors with Nix and
//! with whatever else runs, so times say more about the order of magnitude
//! than about the last tenth. Nothing here judges: the budgets are elsewhere.

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

mod backlog;
mod delay;
mod jobs;
mod library;
mod live;
mod report;
mod rig;
mod slowdown;
mod trees;
mod watch;

/// A name, whether it runs when nothing is named, and what runs.
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
    ("closure", true, library::closure),
    ("ledger", true, library::ledger),
    ("backlog", false, backlog::backlog),
    ("overfull", false, backlog::overfull),
    ("huge", false, live::huge),
    ("jobs", false, jobs::jobs),
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
