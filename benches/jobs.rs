//! How the number of uploads at a time that the daemon finds compares with
//! fixed ones, over lines of different length and before different servers.

use std::time::{Duration, Instant};

use crate::delay::Delay;
use crate::nix::PrivateNix;
use crate::plot::{Line, Texts, plot};
use crate::report::{figure, median};
use crate::rig::{Cache, Daemon, usage};
use crate::sink::{Manner, Sink};
use crate::trees;

/// Paths in each run.
const PATHS: usize = 1000;
/// Runs of each setting, unless `FLYWHEEL_RUNS` says otherwise. All settings take turns, since the
/// machine is shared.
const RUNS: usize = 3;
const FIXED: [u32; 8] = [1, 2, 4, 8, 16, 32, 64, 128];

/// What the paths are pushed to.
#[derive(Clone, Copy)]
enum Server {
    /// The built-in cache behind a line with this round trip, in milliseconds.
    BuiltIn(u64),
    /// A server that stores nothing.
    Sink(Manner),
}

const SERVERS: [(&str, Server); 6] = [
    ("0", Server::BuiltIn(0)),
    ("20", Server::BuiltIn(20)),
    ("50", Server::BuiltIn(50)),
    ("100", Server::BuiltIn(100)),
    ("serial", Server::Sink(Manner::Serial(Duration::from_millis(2)))),
    ("429", Server::Sink(Manner::PerSecond(300))),
];

/// What one run took, in seconds.
#[derive(Clone, Copy)]
struct Took {
    wall: f64,
    /// Processor time of this process, which serves the cache.
    server: f64,
}

/// Small paths with fixed `jobs` and with `auto`: to the built-in cache with added round trips of 0,
/// 20, 50 and 100 ms, to a server that does one upload after the other, and to one that answers 429
/// to more than so many a second. `FLYWHEEL_SERVERS` chooses some of them.
pub fn jobs() {
    let nix = PrivateNix::new();
    let paths = trees::build_many(&nix, "jobs", PATHS);
    let runs = std::env::var("FLYWHEEL_RUNS").map_or(RUNS, |runs| runs.parse().unwrap());
    let chosen = std::env::var("FLYWHEEL_SERVERS").unwrap_or_default();
    let chosen: Vec<&str> = chosen.split_whitespace().collect();
    let mut lines = Vec::new();
    for (name, server) in SERVERS.iter().filter(|(name, _)| chosen.is_empty() || chosen.contains(name)) {
        // One at a time over a long line takes a minute and is never the best.
        let fixed =
            FIXED.into_iter().filter(|n| !matches!(server, Server::BuiltIn(ms) if u64::from(*n) * 8 <= *ms));
        let settings: Vec<(Option<u32>, String)> =
            fixed.map(|n| (Some(n), n.to_string())).chain([(None, "\"auto\"".to_owned())]).collect();
        let mut took: Vec<Vec<Took>> = vec![Vec::new(); settings.len()];
        for run in 0..runs {
            for (n, (_, jobs)) in settings.iter().enumerate() {
                let dir = nix.path().join(format!("j-{name}-{run}-{n}"));
                took[n].push(push(&nix, &paths, *server, jobs, &dir));
                let _ = std::fs::remove_dir_all(&dir);
            }
        }
        let wall = |n: usize| -> Vec<f64> { took[n].iter().map(|took| took.wall).collect() };
        let cpu = |n: usize| -> Vec<f64> { took[n].iter().map(|took| took.server).collect() };
        for (n, (_, jobs)) in settings.iter().enumerate() {
            let what = format!("{PATHS} paths, server {name}, jobs = {}", jobs.trim_matches('"'));
            figure(&what, "s", &wall(n), "wall time");
            figure(&what, "s", &cpu(n), "processor time of the server");
        }
        let auto = settings.len() - 1;
        let best = (0..auto).min_by(|a, b| median(&wall(*a)).total_cmp(&median(&wall(*b)))).unwrap();
        for (what, values) in
            [("wall time", &wall as &dyn Fn(usize) -> Vec<f64>), ("processor time of the server", &cpu)]
        {
            figure(
                &format!("server {name}: auto against the best fixed number, {}", settings[best].1),
                "",
                &[median(&values(auto)) / median(&values(best))],
                &format!("ratio of the medians, {what}"),
            );
        }
        if let Server::BuiltIn(ms) = server {
            let points = (0..auto).map(|n| (f64::from(settings[n].0.unwrap()), median(&wall(n)))).collect();
            let level = median(&wall(auto));
            lines.push(Line {
                name: format!("round trip + {ms} ms"),
                points,
                level: Some((format!("auto: {level:.2} s"), level)),
            });
        }
    }
    if !lines.is_empty() {
        let title = format!("{PATHS} small paths to the built-in cache");
        let texts = Texts { title: &title, x: "jobs", y: "seconds" };
        plot("jobs", &texts, true, &lines);
    }
}

/// Pushes all paths to an empty server.
fn push(nix: &PrivateNix, paths: &[String], server: Server, jobs: &str, dir: &std::path::Path) -> Took {
    let mut parts: (Option<Cache>, Option<Delay>, Option<Sink>) = (None, None, None);
    let (endpoint, token) = match server {
        Server::BuiltIn(ms) => {
            let cache = parts.0.insert(Cache::start(&dir.join("served"), &nix.store_dir()));
            let delay = || Delay::before(cache.address(), Duration::from_millis(ms));
            let endpoint = if ms > 0 { parts.1.insert(delay()).endpoint() } else { cache.endpoint() };
            (endpoint, cache.token_file().to_owned())
        }
        Server::Sink(manner) => {
            let sink = parts.2.insert(Sink::with(dir, manner));
            (sink.endpoint(), sink.token_file().to_owned())
        }
    };
    let daemon = Daemon::start(nix, dir, (&endpoint, &token), &format!("[push]\njobs = {jobs}"));
    let args: Vec<&str> = ["push", "--wait"].into_iter().chain(paths.iter().map(String::as_str)).collect();
    let (began, before) = (Instant::now(), usage(std::process::id()));
    let answer = daemon.json(&args);
    let wall = began.elapsed().as_secs_f64();
    let server = usage(std::process::id()).cpu_s - before.cpu_s;
    assert_eq!(answer["pushed"], PATHS, "{answer}");
    drop(daemon);
    Took { wall, server }
}
