//! What the daemon costs builds of which most wait for a slot, and builds of which each is short:
//! Nix opens their locks again and again, and the daemon looks for the holders.

use std::path::Path;
use std::process::Command;
use std::time::Instant;

use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::{Cache, Daemon, children_cpu_s};
use crate::trees;
use crate::watch::Watch;

/// Pairs of builds, one without and one with the daemon, unless `FLYWHEEL_PAIRS` says another number.
const PAIRS: usize = 3;

/// Paths in one request.
const ASKED: usize = 100;

/// A name, Nix's `max-jobs`, how many paths are made whose makers count, and how.
type Shape = (&'static str, u32, usize, Make);

enum Make {
    /// Nix builds the expression for a tag.
    Build(fn(&str) -> String),
    /// Nix substitutes the paths from a binary cache in a directory.
    Substitute,
}

const SHAPES: &[Shape] = &[
    ("240 derivations, -j2", 2, 240, Make::Build(|tag| trees::each(tag, 240))),
    ("500 derivations, -j16", 16, 500, Make::Build(|tag| trees::each(tag, 500))),
    ("a chain of 150 derivations", 2, 150, Make::Build(|tag| trees::chain(tag, 150))),
    ("2,000 added sources and one derivation", 2, 1, Make::Build(|tag| trees::sources(tag, 2000))),
    ("10,000 added sources and one derivation", 2, 1, Make::Build(|tag| trees::sources(tag, 10_000))),
    ("5,000 substitutions", 2, 5000, Make::Substitute),
];

/// Each shape with and without the daemon in turns. Nix has the first processor, and the daemon, the
/// cache and this process have the last, so that wall time shows only what Nix itself has to wait for.
/// `FLYWHEEL_SHAPES`: a part of the names of the shapes to measure.
pub fn wide() {
    let pairs = std::env::var("FLYWHEEL_PAIRS").map_or(PAIRS, |n| n.parse().unwrap());
    let wanted = std::env::var("FLYWHEEL_SHAPES").unwrap_or_default();
    let processors = sched_getaffinity(None).unwrap();
    let own: Vec<usize> = (0..CpuSet::MAX_CPU).filter(|n| processors.is_set(*n)).collect();
    let (nix_runs_on, last) = (own[0], own[own.len() - 1]);
    pin(&[last]);
    for shape in SHAPES.iter().filter(|(name, ..)| name.contains(&wanted)) {
        measure(shape, pairs, nix_runs_on);
    }
    pin(&own);
}

/// Has this thread, and what it starts from now on, run on these processors.
fn pin(processors: &[usize]) {
    let mut set = CpuSet::new();
    processors.iter().for_each(|n| set.set(*n));
    sched_setaffinity(None, &set).unwrap();
}

#[derive(Default)]
struct Side {
    wall: Vec<f64>,
    cpu: Vec<f64>,
}

impl Side {
    fn build(&mut self, nix: &PrivateNix, args: &[String], processor: usize) -> Vec<String> {
        let mut command = Command::new("taskset");
        command.args(["-c", &processor.to_string()]).args(args);
        command.envs(nix.env()).current_dir(nix.work_dir());
        let (before, began) = (children_cpu_s(), Instant::now());
        let out = command.output().unwrap();
        self.wall.push(began.elapsed().as_secs_f64());
        self.cpu.push(children_cpu_s() - before);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().lines().map(str::to_owned).collect()
    }
}

/// Prepares the store for a shape. Returns the command that makes its paths.
fn prepare(nix: &PrivateNix, shape: &Shape, tag: &str) -> Vec<String> {
    match shape.3 {
        Make::Build(expression) => {
            ["nix-build", "--no-out-link", "-E", &expression(tag)].map(str::to_owned).to_vec()
        }
        Make::Substitute => {
            let paths = trees::substitutable(nix, &nix.path().join("substituter"), tag, shape.2);
            [vec!["nix-store".to_owned(), "--realise".to_owned()], paths].concat()
        }
    }
}

#[derive(Default)]
struct Costs {
    daemon: Vec<f64>,
    watcher: Vec<f64>,
    seen: Vec<f64>,
}

fn measure(shape: &Shape, pairs: usize, processor: usize) {
    let nix = PrivateNix::new();
    nix.configure(&format!("max-jobs = {}", shape.1));
    let dir = nix.path().join("wide");
    let cache = Cache::start(&dir.join("served"), &nix.store_dir());
    let (mut without, mut with, mut costs) = (Side::default(), Side::default(), Costs::default());
    for pair in 0..pairs {
        let mut alone = || {
            let args = prepare(&nix, shape, &format!("alone-{pair}"));
            drop(without.build(&nix, &args, processor));
        };
        if pair % 2 == 0 {
            alone();
        }
        let args = prepare(&nix, shape, &format!("beside-{pair}"));
        beside(&nix, &dir.join(pair.to_string()), &cache, &mut costs, |nix| {
            with.build(nix, &args, processor)
        });
        if pair % 2 == 1 {
            alone();
        }
    }
    let name = |what: &str| format!("{}: {what}", shape.0);
    let slower = |with: &[f64], without: &[f64]| -> Vec<f64> {
        with.iter().zip(without).map(|(with, without)| (with / without - 1.0) * 100.0).collect()
    };
    figure(&name("wall without the daemon"), "s", &without.wall, "nix-build on a processor of its own");
    figure(&name("wall"), "%", &slower(&with.wall, &without.wall), "with the daemon, over without, less 1");
    figure(
        &name("processor time of Nix and its builders"),
        "%",
        &slower(&with.cpu, &without.cpu),
        "the same",
    );
    figure(&name("processor time of the daemon"), "s", &costs.daemon, "until all is in the cache");
    figure(&name("of that, the lock watcher"), "s", &costs.watcher, "schedstat of its thread");
    let how = format!("paths of the session that a process of it was seen to make, of {}", shape.2);
    figure(&name("makers seen"), "", &costs.seen, &how);
}

/// One build beside a new daemon, with a session open.
fn beside(
    nix: &PrivateNix,
    dir: &Path,
    cache: &Cache,
    costs: &mut Costs,
    build: impl FnOnce(&PrivateNix) -> Vec<String>,
) {
    let daemon = Daemon::start(nix, dir, (&cache.endpoint(), cache.token_file()), "");
    let watch = Watch::new(&nix.state_dir(), &cache.dir);
    let session = daemon.json(&["session", "start"])["session"].as_str().unwrap().to_owned();
    let before = (daemon.usage().cpu_s, daemon.thread_cpu_s("lock_watcher"));
    let paths = build(nix);
    watch.cached(&paths);
    costs.daemon.push(daemon.usage().cpu_s - before.0);
    costs.watcher.push(daemon.thread_cpu_s("lock_watcher") - before.1);
    costs.seen.push(paths.chunks(ASKED).map(|some| seen(&daemon, &session, some)).sum::<usize>() as f64);
}

/// How many of these paths belong to the session because a process of it was seen to make them.
fn seen(daemon: &Daemon, session: &str, paths: &[String]) -> usize {
    let paths: Vec<&str> = paths.iter().map(String::as_str).collect();
    let why = daemon.json(&[&["why"], &paths[..]].concat());
    let is_seen = |story: &&serde_json::Value| {
        let of = story["sessions"].as_array().unwrap();
        of.iter().any(|of| of["session"] == session && of["evidence"] == "process")
    };
    why["paths"].as_array().unwrap().iter().filter(is_seen).count()
}
