//! The real attic client and flywheel beside each other, against the same real atticd, new and empty
//! for each run, in turns. Prints a table in Markdown. `benches/compare.sh` runs it.

use std::io::Write as _;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use crate::atticd::{Atticd, Programs};
use crate::delay::Delay;
use crate::nix::PrivateNix;
use crate::report::median;
use crate::rig::{Daemon, children_cpu_s, ms, usage};
use crate::trees;

/// Runs of each side.
const RUNS: usize = 3;
const SMALL: usize = 2000;
const FAR: usize = 500;
const LARGE: u64 = 256 << 20;

/// What one side needed for a push.
#[derive(Default)]
struct Cost {
    wall_s: Vec<f64>,
    client_s: Vec<f64>,
    server_s: Vec<f64>,
    peak_mib: Vec<f64>,
}

impl Cost {
    fn add(&mut self, wall: f64, client: f64, server: f64, peak: f64) {
        self.wall_s.push(wall);
        self.client_s.push(client);
        self.server_s.push(server);
        self.peak_mib.push(peak);
    }
}

fn row(what: &str, unit: &str, attic: &[f64], flywheel: &[f64], aim: &str) {
    let (a, f) = (median(attic), median(flywheel));
    println!(
        "| {what} | {a:.2} {unit} (n = {}) | {f:.2} {unit} (n = {}) | {:.2} | {aim} |",
        attic.len(),
        flywheel.len(),
        f / a
    );
}

fn rows(what: &str, attic: &Cost, flywheel: &Cost, aims: [&str; 3]) {
    row(&format!("{what}: wall"), "s", &attic.wall_s, &flywheel.wall_s, aims[0]);
    row(&format!("{what}: processor time of the client"), "s", &attic.client_s, &flywheel.client_s, aims[1]);
    row(&format!("{what}: processor time of the server"), "s", &attic.server_s, &flywheel.server_s, aims[2]);
}

/// A closure is pushed by its root as well as by all names, so paths are pushed without closures.
fn push(programs: &Programs, nix: &PrivateNix, name: &str, paths: &[String], far: bool) -> (Cost, Cost) {
    let (mut attic, mut flywheel) = (Cost::default(), Cost::default());
    for run in 0..RUNS {
        for by_attic in [run % 2 == 0, run % 2 == 1] {
            let dir = nix.path().join(format!("{name}-{run}-{by_attic}"));
            let server = Atticd::start(programs, nix, &dir.join("server"));
            let delay = far.then(|| Delay::before(server.address(), Duration::from_millis(50)));
            let endpoint = delay.as_ref().map_or_else(|| server.endpoint(), Delay::endpoint);
            let before = server.cpu_s();
            let (wall, client, peak) = if by_attic {
                by_client(programs, nix, &server, &endpoint, paths)
            } else {
                by_daemon(nix, &server, &endpoint, &dir, paths)
            };
            let side = if by_attic { &mut attic } else { &mut flywheel };
            side.add(wall, client, server.cpu_s() - before, peak);
        }
    }
    (attic, flywheel)
}

/// Wall and processor time in seconds, and the peak memory in MiB, of `attic push`.
fn by_client(
    programs: &Programs,
    nix: &PrivateNix,
    server: &Atticd,
    endpoint: &str,
    paths: &[String],
) -> (f64, f64, f64) {
    let mut command = server.attic(programs, nix, endpoint);
    command
        .args(["push", "--no-closure", "local:main", "--stdin"])
        .stdin(Stdio::piped())
        .stderr(Stdio::null());
    let (before, began) = (children_cpu_s(), Instant::now());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all((paths.join("\n") + "\n").as_bytes()).unwrap();
    let mut peak = 0.0_f64;
    let status = loop {
        if let Some(status) = child.try_wait().unwrap() {
            break status;
        }
        // A process that has ended and was not waited for has no memory.
        peak = peak.max(usage(child.id()).peak_mib);
        std::thread::sleep(Duration::from_millis(2));
    };
    let wall = began.elapsed().as_secs_f64();
    assert!(status.success(), "attic push");
    paths.iter().for_each(|path| server.wait_for(path));
    (wall, children_cpu_s() - before, peak)
}

fn by_daemon(
    nix: &PrivateNix,
    server: &Atticd,
    endpoint: &str,
    dir: &Path,
    paths: &[String],
) -> (f64, f64, f64) {
    let daemon = Daemon::start(nix, dir, (endpoint, &server.token), "");
    let before = daemon.usage().cpu_s;
    let args: Vec<&str> = ["push", "--wait"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let began = Instant::now();
    let answer = daemon.json(&args);
    let wall = began.elapsed().as_secs_f64();
    assert_eq!(answer["pushed"], paths.len(), "{answer}");
    let usage = daemon.usage();
    (wall, usage.cpu_s - before, usage.peak_mib)
}

/// Milliseconds from the end of a build to the narinfo, of each side, and its memory when idle.
fn latency(programs: &Programs, nix: &PrivateNix) {
    let server = Atticd::start(programs, nix, &nix.path().join("latency"));
    let build = |tag: &str| nix.build(&trees::one(tag)).remove(0);
    let one = |tag: &str| {
        let path = build(tag);
        let began = Instant::now();
        server.wait_for(&path);
        ms(began)
    };
    let mut command = server.attic(programs, nix, &server.endpoint());
    let mut watcher = command.args(["watch-store", "local:main"]).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_secs(2));
    let attic: Vec<f64> = (0..7).map(|n| one(&format!("attic-{n}"))).collect();
    std::thread::sleep(Duration::from_secs(5));
    let attic_idle = usage(watcher.id()).rss_mib;
    let _ = watcher.kill();
    let _ = watcher.wait();
    let daemon = Daemon::start(nix, &nix.path().join("watching"), (&server.endpoint(), &server.token), "");
    one("warm");
    let flywheel: Vec<f64> = (0..20).map(|n| one(&format!("flywheel-{n}"))).collect();
    row("valid → in atticd, one at a time", "ms", &attic, &flywheel, "≤ 15 ms");
    std::thread::sleep(Duration::from_secs(5));
    let idle = daemon.usage().rss_mib;
    row("memory when idle, watching", "MiB", &[attic_idle], &[idle], "≤ 12 MB");
}

/// A closure of which the server has everything.
fn flush(programs: &Programs, nix: &PrivateNix) {
    let server = Atticd::start(programs, nix, &nix.path().join("flush"));
    let root = trees::build_closure(nix, "flush", SMALL);
    let daemon = Daemon::start(nix, &nix.path().join("flushing"), (&server.endpoint(), &server.token), "");
    daemon.json(&["push", "--wait", &root]);
    let attic: Vec<f64> = (0..7)
        .map(|_| {
            let mut command = server.attic(programs, nix, &server.endpoint());
            let began = Instant::now();
            assert!(command.args(["push", "local:main", &root]).output().unwrap().status.success());
            ms(began)
        })
        .collect();
    let flywheel: Vec<f64> = (0..20)
        .map(|n| {
            let started = daemon.json(&["session", "start", "--label", &format!("f{n}")]);
            let began = Instant::now();
            daemon.json(&["session", "end", started["session"].as_str().unwrap(), "--push", &root]);
            ms(began)
        })
        .collect();
    row("flush with nothing to do, closure of 2,001", "ms", &attic, &flywheel, "≤ 50 ms");
}

/// The whole table.
pub fn compare() {
    let programs = match Programs::find() {
        Ok(programs) => programs,
        Err(why) => {
            eprintln!("{why}; usage: benches/compare.sh ATTIC ATTICD");
            std::process::exit(2);
        }
    };
    let nix = PrivateNix::new();
    println!("| | attic | flywheel | flywheel ÷ attic | aim |\n|---|---|---|---|---|");
    latency(&programs, &nix);
    flush(&programs, &nix);
    let paths = trees::build_many(&nix, "compare", SMALL);
    let (attic, flywheel) = push(&programs, &nix, "small", &paths, false);
    rows("2,000 small paths by name", &attic, &flywheel, ["≤ 0.9", "≤ 0.5", "≤ 1.0"]);
    let (attic, flywheel) = push(&programs, &nix, "far", &paths[..FAR], true);
    rows("500 small paths, round trip of 50 ms", &attic, &flywheel, ["≤ 0.25", "–", "–"]);
    let large = nix.build(&PrivateNix::shell("large", &format!("head -c {LARGE} /dev/urandom > $out")));
    let (attic, flywheel) = push(&programs, &nix, "large", &large, false);
    rows("a NAR of 256 MiB", &attic, &flywheel, ["–", "≤ 0.18 s", "–"]);
    row("a NAR of 256 MiB: peak memory", "MiB", &attic.peak_mib, &flywheel.peak_mib, "≤ 32 MB");
    let load = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let cpus = std::thread::available_parallelism().map_or(0, usize::from);
    println!("\nMedians; {cpus} processors, load at the end {load}");
}
