//! A backlog: paths that became valid while the cache was away or before the daemon started. Takes
//! minutes, so it runs only when it is named.

use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::nix::PrivateNix;
use crate::plot::{Line, Texts, plot};
use crate::report::figure;
use crate::rig::{Cache, Daemon, ms};

/// Paths with files in the store, registered with Nix in one command.
pub fn fill(nix: &PrivateNix, count: usize) {
    let store = nix.store_dir();
    let mut list = String::new();
    for n in 0..count {
        let path = store.join(format!("{n:032}-backlog-{n}"));
        std::fs::write(&path, format!("backlog {n}\n")).unwrap();
        let mut nar = Vec::new();
        flywheel::store::nar::dump(&path, &mut nar).unwrap();
        let hash: String = Sha256::digest(&nar).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        // `nix-store --load-db`: path, hash, size, deriver, number of references, each reference.
        let (refs, before) = match n {
            0 => (0, String::new()),
            _ => (1, format!("{}\n", store.join(format!("{:032}-backlog-{}", n - 1, n - 1)).display())),
        };
        let (path, size) = (path.display(), nar.len());
        let deriver = format!("{path}.drv");
        let refs = if n % 10 == 0 { "0\n".to_owned() } else { format!("{refs}\n{before}") };
        let _ = write!(list, "{path}\n{hash}\n{size}\n{deriver}\n{refs}");
    }
    let mut child = nix.command("nix-store").arg("--load-db").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

/// Waits until the daemon's status satisfies a condition; returns the largest queue that was seen.
pub fn until(daemon: &Daemon, so: impl Fn(&serde_json::Value) -> bool) -> u64 {
    let mut most = 0;
    loop {
        let status = daemon.json(&["status"]);
        most = most.max(status["queue"]["pending"].as_u64().unwrap());
        if so(&status) {
            return most;
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

fn all_in(status: &serde_json::Value, count: usize) -> bool {
    let (queue, cursor) = (&status["queue"], status["store"]["cursor"].as_u64().unwrap());
    assert_eq!(queue["parked"], 0, "{status}");
    cursor >= count as u64 && queue["pending"] == 0 && queue["uploading"] == 0
}

pub fn backlog() {
    let mut points = Vec::new();
    for count in [1_000, 10_000, 25_000, 50_000, 100_000] {
        let nix = PrivateNix::new();
        fill(&nix, count);
        let dir = nix.path().join("daemon");
        let cache = Cache::start(&dir.join("served"), &nix.store_dir());
        let began = Instant::now();
        let daemon =
            Daemon::start(&nix, &dir, (&cache.endpoint(), cache.token_file()), "[push]\nexisting = true");
        let most = until(&daemon, |status| all_in(status, count));
        let usage = daemon.usage();
        let what = |figure: &str| format!("backlog of {count}: {figure}");
        let wall = ms(began) / 1e3;
        figure(&what("wall"), "s", &[wall], "start of the daemon to the last path in the cache");
        figure(&what("processor time"), "s", &[usage.cpu_s], "utime+stime of the daemon");
        let how = format!("VmHWM of the daemon; at most {most} in the queue");
        figure(&what("peak memory"), "MiB", &[usage.peak_mib], &how);
        points.push((count as f64, usage.peak_mib));
    }
    let line = Line { name: "peak memory".to_owned(), points, level: None };
    let texts = Texts { title: "Memory over a backlog", x: "pending paths at the start", y: "MiB" };
    plot("backlog", &texts, false, &[line]);
}

/// More paths than the daemon keeps in memory, while the cache is away; then the cache returns.
pub fn overfull() {
    const COUNT: usize = 210_000;
    let nix = PrivateNix::new();
    fill(&nix, COUNT);
    let dir = nix.path().join("daemon");
    // Starts the cache once, for its token and a free port.
    let cache = Cache::start(&dir.join("served"), &nix.store_dir());
    let (endpoint, token) = (cache.endpoint(), cache.token_file().to_owned());
    drop(cache);
    let daemon = Daemon::start(&nix, &dir, (&endpoint, &token), "[push]\nexisting = true");
    let most = until(&daemon, |status| {
        status["store"]["problem"].as_str().is_some_and(|problem| problem.contains("kept in memory"))
    });
    let how = format!("VmHWM of the daemon; {most} in the queue, the rest waits in the Nix database");
    figure("a cache that is away for 210,000: peak memory", "MiB", &[daemon.usage().peak_mib], &how);
    let began = Instant::now();
    let address = endpoint.strip_prefix("http://").unwrap();
    let _cache = Cache::start_at(address, &dir.join("served"), &nix.store_dir());
    until(&daemon, |status| all_in(status, COUNT));
    let wall = ms(began) / 1e3;
    figure("a cache that is away for 210,000: wall", "s", &[wall], "its return to the last path in it");
}

/// Adds rows of valid paths to the Nix database, without files.
pub fn old_rows(nix: &PrivateNix, count: i64) {
    let mut db = rusqlite::Connection::open(nix.state_dir().join("db/db.sqlite")).unwrap();
    let tx = db.transaction().unwrap();
    for n in 0..count {
        tx.prepare_cached(
            "insert into ValidPaths (path, hash, registrationTime, narSize) values (?1, ?2, 1, 120)",
        )
        .unwrap()
        .execute((format!("{}/{n:032}-old-{n}", nix.store_dir().display()), format!("sha256:{n:064}")))
        .unwrap();
    }
    tx.commit().unwrap();
}

/// The first start on a host with a million valid paths, which count as old. A path that is built
/// right after it does not wait until all of them were read.
pub fn first_start() {
    const COUNT: i64 = 1_000_000;
    let nix = PrivateNix::new();
    nix.make("before");
    old_rows(&nix, COUNT);
    let dir = nix.path().join("daemon");
    let cache = Cache::start(&dir.join("served"), &nix.store_dir());
    let began = Instant::now();
    let daemon = Daemon::start(&nix, &dir, (&cache.endpoint(), cache.token_file()), "");
    let what = |figure: &str| format!("first start with a million valid paths: {figure}");
    figure(
        &what("until it answers"),
        "ms",
        &[ms(began)],
        "spawn to the first status, which is asked every 5 ms",
    );
    let mut waits = Vec::new();
    for n in 0.. {
        if dir.join("state/baseline").exists() && n > 0 {
            break;
        }
        nix.make(&format!("new-{n}"));
        let built = Instant::now();
        daemon.json(&["flush"]);
        waits.push(ms(built));
    }
    figure(
        &what("until all are noted"),
        "s",
        &[ms(began) / 1e3],
        "spawn until the file of fingerprints is there",
    );
    figure(&what("flush meanwhile"), "ms", &waits, "built until flywheelctl flush has answered");
    let usage = daemon.usage();
    figure(&what("processor time"), "s", &[usage.cpu_s], "utime+stime of the daemon");
    figure(&what("peak memory"), "MiB", &[usage.peak_mib], "VmHWM of the daemon");
}
