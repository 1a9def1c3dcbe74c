//! How the number of uploads at a time that the daemon finds compares with
//! fixed ones, over lines of different length.

use std::time::{Duration, Instant};

use crate::delay::Delay;
use crate::nix::PrivateNix;
use crate::plot::{Line, Texts, plot};
use crate::report::figure;
use crate::rig::{Cache, Daemon};
use crate::trees;

/// Paths in each run.
const PATHS: usize = 1000;
/// Runs of each setting; the quickest counts, since the machine is shared.
const RUNS: usize = 3;
const FIXED: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// Small paths to the built-in cache, `jobs` fixed and found, with added
/// round trips of 0, 20, 50 and 100 ms.
pub fn jobs() {
    let nix = PrivateNix::new();
    let paths = trees::build_many(&nix, "jobs", PATHS);
    let mut lines = Vec::new();
    for round_trip in [0_u64, 20, 50, 100] {
        let run = |jobs: &str| -> f64 {
            let once = |n: usize| {
                push(&nix, &paths, round_trip, jobs, &format!("j{round_trip}-{n}-{}", jobs.trim_matches('"')))
            };
            (0..RUNS).map(once).fold(f64::MAX, f64::min)
        };
        // One at a time over a long line takes a minute and is never the best.
        let fixed = FIXED.iter().filter(|n| u64::from(**n) * 8 > round_trip);
        let fixed: Vec<(u32, f64)> = fixed.map(|n| (*n, run(&n.to_string()))).collect();
        let auto = run("\"auto\"");
        for (n, took) in &fixed {
            figure(&format!("{PATHS} paths, {round_trip} ms, jobs = {n}"), "s", &[*took], "built-in cache");
        }
        figure(&format!("{PATHS} paths, {round_trip} ms, jobs = auto"), "s", &[auto], "built-in cache");
        let best = fixed.iter().map(|(_, took)| *took).fold(f64::MAX, f64::min);
        figure(
            &format!("{round_trip} ms: auto against the best fixed number"),
            "",
            &[auto / best],
            "ratio of wall times",
        );
        lines.push(Line {
            name: format!("round trip + {round_trip} ms"),
            points: fixed.iter().map(|(n, took)| (f64::from(*n), *took)).collect(),
            level: Some((format!("auto: {auto:.2} s"), auto)),
        });
    }
    let title = format!("{PATHS} small paths to the built-in cache");
    let texts = Texts { title: &title, x: "jobs", y: "seconds" };
    plot("jobs", &texts, true, &lines);
}

/// Seconds until all paths are pushed, into an empty cache.
fn push(nix: &PrivateNix, paths: &[String], round_trip: u64, jobs: &str, name: &str) -> f64 {
    let dir = nix.path().join(name);
    let cache = Cache::start(&dir.join("served"), &nix.store_dir());
    let delay = (round_trip > 0).then(|| Delay::before(cache.address(), Duration::from_millis(round_trip)));
    let endpoint = delay.as_ref().map_or_else(|| cache.endpoint(), Delay::endpoint);
    let daemon = Daemon::start(nix, &dir, (&endpoint, cache.token_file()), &format!("[push]\njobs = {jobs}"));
    let args: Vec<&str> = ["push", "--wait"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let began = Instant::now();
    let answer = daemon.json(&args);
    let took = began.elapsed().as_secs_f64();
    assert_eq!(answer["pushed"], PATHS, "{answer}");
    drop(daemon);
    drop(cache);
    let _ = std::fs::remove_dir_all(&dir);
    took
}
