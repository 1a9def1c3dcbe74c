//! How soon a daemon is ready that has much to remember.

use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::backlog::{fill, old_rows, until};
use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::{Cache, Daemon, ms, usage};

const OLD: i64 = 1_000_000;
const PENDING: usize = 100_000;
const RUNS: usize = 5;

/// READY after a restart on a host with a million valid paths, while 100,000 are pending because the
/// cache cannot be reached.
pub fn start() {
    let nix = PrivateNix::new();
    let dir = nix.path().join("daemon");
    // Starts a cache once, for its token and an address where nothing listens afterwards.
    let cache = Cache::start(&dir.join("served"), &nix.store_dir());
    let (endpoint, token) = (cache.endpoint(), cache.token_file().to_owned());
    drop(cache);
    nix.make("before");
    old_rows(&nix, OLD);
    let daemon = Daemon::start(&nix, &dir, (&endpoint, &token), "");
    let began = Instant::now();
    while !dir.join("state/baseline").exists() {
        assert!(began.elapsed() < Duration::from_secs(120), "{}", daemon.log());
        std::thread::sleep(Duration::from_millis(50));
    }
    fill(&nix, PENDING);
    until(&daemon, |status| status["queue"]["pending"].as_u64() >= Some(PENDING as u64));
    let peak = daemon.usage().peak_mib;
    let what = |figure: &str| format!("a million valid paths, 100,000 pending: {figure}");
    figure(&what("peak memory"), "MiB", &[peak], "VmHWM while they are taken in");
    drop(daemon);
    let (mut ready, mut known, mut memory) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..RUNS {
        let (took, again) = ready_after(&dir);
        ready.push(took);
        known.push(again.0);
        memory.push(again.1);
    }
    figure(&what("READY"), "ms", &ready, "spawn to READY=1 on the socket of systemd, a restart");
    figure(&what("all known again"), "s", &known, "spawn to a status that names all pending paths");
    figure(&what("memory then"), "MiB", &memory, "VmRSS of the daemon at that moment");
}

/// Milliseconds from spawn to READY; seconds until all pending paths are known, and the memory then.
fn ready_after(dir: &Path) -> (f64, (f64, f64)) {
    let address = dir.join("notify");
    let _ = std::fs::remove_file(&address);
    let notify = UnixDatagram::bind(&address).unwrap();
    notify.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let began = Instant::now();
    let mut child = Daemon::command(dir).env("NOTIFY_SOCKET", &address).spawn().unwrap();
    let mut text = [0; 4096];
    loop {
        let length = notify.recv(&mut text).unwrap();
        if String::from_utf8_lossy(&text[..length]).lines().any(|line| line == "READY=1") {
            break;
        }
    }
    let ready = ms(began);
    notify.set_nonblocking(true).unwrap();
    let status = || -> serde_json::Value {
        while notify.recv(&mut [0; 4096]).is_ok() {}
        let out = Daemon::ask(dir, &["--strict", "--json", "status"]);
        serde_json::from_slice(&out.stdout).unwrap_or_default()
    };
    while status()["queue"]["pending"].as_u64() < Some(PENDING as u64) {
        assert!(began.elapsed() < Duration::from_secs(120));
        std::thread::sleep(Duration::from_millis(20));
    }
    let known = (ms(began) / 1e3, usage(child.id()).rss_mib);
    let pid = rustix::process::Pid::from_child(&child);
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
    while child.try_wait().unwrap().is_none() {
        while notify.recv(&mut [0; 4096]).is_ok() {}
        std::thread::sleep(Duration::from_millis(5));
    }
    (ready, known)
}
