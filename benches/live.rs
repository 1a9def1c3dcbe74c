//! Figures of the running daemon.

use std::time::{Duration, Instant};

use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::{Cache, Daemon, ms};
use crate::sink::Sink;
use crate::trees;
use crate::watch::Watch;

/// Everything that one measurement needs; dropped from the first field to the last.
struct Rig {
    daemon: Daemon,
    cache: Cache,
}

fn rig(nix: &PrivateNix, name: &str) -> Rig {
    let dir = nix.path().join(name);
    let cache = Cache::start(&dir.join("served"), &nix.store_dir());
    let daemon = Daemon::start(nix, &dir, (&cache.endpoint(), cache.token_file()), "");
    Rig { daemon, cache }
}

const IDLE_FOR: Duration = Duration::from_secs(60);

/// Memory and processor time of a daemon that has pushed one path and then has nothing to do.
pub fn idle() {
    let nix = PrivateNix::new();
    let rig = rig(&nix, "idle");
    let watch = Watch::new(&nix.state_dir(), &rig.cache.dir);
    watch.cached(&nix.build(&trees::one("warm")));
    drop(watch);
    std::thread::sleep(Duration::from_secs(5));
    let (before, cpu) = (rig.daemon.usage(), rig.daemon.threads_cpu_s());
    std::thread::sleep(IDLE_FOR);
    let (after, cpu) = (rig.daemon.usage(), rig.daemon.threads_cpu_s() - cpu);
    let per_hour = cpu * 3600.0 / IDLE_FOR.as_secs_f64();
    figure("idle memory", "MiB", &[before.rss_mib], "VmRSS of the daemon 5 s after its only push");
    figure("idle memory, its own", "MiB", &[before.anon_mib], "RssAnon: without the program's file");
    figure("idle threads", "", &[after.threads], "of the daemon");
    figure("idle processor time", "s/h", &[per_hour], "schedstat of its threads over a minute, times 60");
}

/// Sessions that are begun: a user may have 256 open ones.
const SESSIONS: usize = 240;

/// `flywheelctl session start`, including the start of the process.
pub fn session_start() {
    let nix = PrivateNix::new();
    let rig = rig(&nix, "session");
    let took: Vec<f64> = (0..SESSIONS)
        .map(|n| {
            let began = Instant::now();
            let out = rig.daemon.ctl(&["--strict", "session", "start", "--label", &format!("s{n}")]);
            let took = ms(began);
            assert!(out.status.success());
            took
        })
        .collect();
    figure("session start", "ms", &took, "flywheelctl session start from spawn to exit");
    let took: Vec<f64> = (0..30)
        .map(|_| {
            let began = Instant::now();
            assert!(rig.daemon.ctl(&["--version"]).status.success());
            ms(began)
        })
        .collect();
    figure("flywheelctl --version", "ms", &took, "for comparison: spawn to exit without a daemon");
}

/// One path at a time, each built after the one before is in the cache.
pub fn latency() {
    let nix = PrivateNix::new();
    let rig = rig(&nix, "latency");
    let watch = Watch::new(&nix.state_dir(), &rig.cache.dir);
    watch.cached(&nix.build(&trees::one("warm")));
    let before = rig.daemon.usage().cpu_s;
    let took: Vec<f64> = (0..40)
        .map(|n| {
            let (valid, cached) = watch.cached(&nix.build(&trees::one(&format!("one-{n}"))))[0];
            cached.saturating_duration_since(valid).as_secs_f64() * 1e3
        })
        .collect();
    let cpu = (rig.daemon.usage().cpu_s - before) * 1e3 / took.len() as f64;
    figure("latency, idle", "ms", &took, "row in Nix's database to row in the cache's, one path at a time");
    figure("latency, idle: processor time", "ms/path", &[cpu], "utime+stime of the daemon");
}

/// 2,000 paths that become valid nearly at once while the daemon runs.
pub fn burst() {
    let nix = PrivateNix::new();
    let rig = rig(&nix, "burst");
    let watch = Watch::new(&nix.state_dir(), &rig.cache.dir);
    watch.cached(&nix.build(&trees::one("warm")));
    let before = rig.daemon.usage().cpu_s;
    let times = watch.cached(&trees::build_many(&nix, "burst", 2000));
    let after = rig.daemon.usage();
    let took: Vec<f64> =
        times.iter().map(|(v, c)| c.saturating_duration_since(*v).as_secs_f64() * 1e3).collect();
    let first = times.iter().map(|(v, _)| *v).min().unwrap();
    let last_valid = times.iter().map(|(v, _)| *v).max().unwrap();
    let last = times.iter().map(|(_, c)| *c).max().unwrap();
    figure(
        "burst of 2,000: latency",
        "ms",
        &took,
        "each path's row in Nix's database to its row in the cache's",
    );
    let wall = last.duration_since(first).as_secs_f64();
    figure(
        "burst of 2,000: wall",
        "s",
        &[wall],
        "first path valid to last path in the cache, while Nix builds them",
    );
    let behind = last.saturating_duration_since(last_valid).as_secs_f64();
    figure("burst of 2,000: behind", "s", &[behind], "last path valid to last path in the cache");
    figure("burst of 2,000: processor time", "s", &[after.cpu_s - before], "utime+stime of the daemon");
    figure("burst of 2,000: peak memory", "MiB", &[after.peak_mib], "VmHWM of the daemon");
}

/// 2,000 paths that are valid already, pushed by name, as with `attic push --stdin`.
pub fn small() {
    let nix = PrivateNix::new();
    let paths = trees::build_many(&nix, "small", 2000);
    let mut figures: [Vec<f64>; 4] = Default::default();
    for round in 0..3 {
        let rig = rig(&nix, &format!("small-{round}"));
        push_small(&rig.daemon, &paths, &mut figures);
    }
    show_small("2,000 small paths", &figures);
}

/// The same to a server that stores nothing: what the paths cost the daemon alone.
pub fn small_sink() {
    let nix = PrivateNix::new();
    let paths = trees::build_many(&nix, "small", 2000);
    let sink = Sink::start(nix.path());
    let mut figures: [Vec<f64>; 4] = Default::default();
    for round in 0..5 {
        sink.clear();
        let dir = nix.path().join(format!("sink-{round}"));
        let daemon = Daemon::start(&nix, &dir, (&sink.endpoint(), sink.token_file()), "");
        push_small(&daemon, &paths, &mut figures);
    }
    show_small("2,000 small paths, a server that stores nothing", &figures);
}

fn push_small(daemon: &Daemon, paths: &[String], figures: &mut [Vec<f64>; 4]) {
    let args: Vec<&str> = ["push", "--wait"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let (before, began) = (daemon.usage().cpu_s, Instant::now());
    let answer = daemon.json(&args);
    let took = began.elapsed().as_secs_f64();
    assert_eq!(answer["pushed"], paths.len(), "{answer}");
    let after = daemon.usage();
    std::thread::sleep(Duration::from_millis(5500));
    let values = [took, after.cpu_s - before, after.peak_mib, daemon.usage().rss_mib];
    figures.iter_mut().zip(values).for_each(|(all, value)| all.push(value));
}

fn show_small(what: &str, figures: &[Vec<f64>; 4]) {
    let show = |n: usize, of: &str, unit: &str, how: &str| {
        figure(&format!("{what}: {of}"), unit, &figures[n], how);
    };
    show(0, "wall", "s", "flywheelctl push --wait from spawn to exit, empty cache");
    show(1, "processor time", "s", "utime+stime of the daemon");
    show(2, "peak memory", "MiB", "VmHWM of the daemon");
    show(3, "memory after", "MiB", "VmRSS of the daemon 5 s later");
}

/// The end of a session that names a closure of 2,001 paths, all of them in the cache.
pub fn flush() {
    let nix = PrivateNix::new();
    let root = trees::build_closure(&nix, "closure", 2000);
    let rig = rig(&nix, "flush");
    rig.daemon.json(&["push", "--wait", &root]);
    let (mut trip, mut inside) = (Vec::new(), Vec::new());
    let before = rig.daemon.usage().cpu_s;
    for n in 0..20 {
        let started = rig.daemon.json(&["session", "start", "--label", &format!("s{n}")]);
        let began = Instant::now();
        let end = rig.daemon.json(&["session", "end", started["session"].as_str().unwrap(), "--push", &root]);
        trip.push(ms(began));
        assert_eq!(end["already_cached"], 2001, "{end}");
        inside.push(end["flush_ms"].as_f64().unwrap());
    }
    let cpu = (rig.daemon.usage().cpu_s - before) * 1e3 / trip.len() as f64;
    figure(
        "flush with nothing to do",
        "ms",
        &trip,
        "flywheelctl session end --push, closure of 2,001, spawn to exit",
    );
    figure("flush with nothing to do: inside", "ms", &inside, "flush_ms as the daemon says it");
    figure("flush with nothing to do: processor time", "ms", &[cpu], "utime+stime of the daemon, for each");
    let mut trip = Vec::new();
    for n in 0..20 {
        let started = rig.daemon.json(&["session", "start", "--label", &format!("e{n}")]);
        let began = Instant::now();
        rig.daemon.json(&["session", "end", started["session"].as_str().unwrap()]);
        trip.push(ms(began));
    }
    figure("end of an empty session", "ms", &trip, "flywheelctl session end, spawn to exit");
}

const GIB: u64 = 1 << 30;

/// One NAR of 1 GiB that does not compress.
pub fn large() {
    one_file("1 GiB NAR", &format!("head -c {GIB} /dev/urandom > $out"));
}

/// One NAR of 8 GiB from a sparse file; Nix and the daemon read it like any other.
pub fn huge() {
    one_file("8 GiB NAR, sparse", &format!("truncate -s {} $out", 8 * GIB));
}

fn one_file(what: &str, script: &str) {
    let nix = PrivateNix::new();
    let rig = rig(&nix, "large");
    let watch = Watch::new(&nix.state_dir(), &rig.cache.dir);
    watch.cached(&nix.build(&trees::one("warm")));
    let before = rig.daemon.usage();
    let (valid, cached) = watch.cached(&nix.build(&PrivateNix::shell("big", script)))[0];
    let after = rig.daemon.usage();
    let wall = cached.duration_since(valid).as_secs_f64();
    let how = "path valid to path in the cache, which hashes, compresses and syncs it";
    figure(&format!("{what}: wall"), "s", &[wall], how);
    let cpu = after.cpu_s - before.cpu_s;
    figure(&format!("{what}: processor time"), "s", &[cpu], "utime+stime of the daemon");
    figure(&format!("{what}: peak memory"), "MiB", &[after.peak_mib], "VmHWM of the daemon");
}
