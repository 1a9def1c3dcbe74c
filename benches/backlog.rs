//! A backlog: paths that became valid while the cache was away, or before the
//! daemon came. Takes minutes, so it runs only when it is named.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::io::Write as _;
use std::process::Stdio;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::{Cache, Daemon, ms};

/// Paths with files in the store, registered with Nix in one go.
fn fill(nix: &PrivateNix, count: usize) {
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
        let refs = if n % 10 == 0 { "0\n".to_owned() } else { format!("{refs}\n{before}") };
        let _ = write!(list, "{path}\n{hash}\n{size}\n\n{refs}");
    }
    let mut child = nix.command("nix-store").arg("--load-db").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(list.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success());
}

pub fn backlog() {
    for count in [25_000, 100_000] {
        let nix = PrivateNix::new();
        fill(&nix, count);
        let dir = nix.path().join("daemon");
        let cache = Cache::start(&dir.join("served"), &nix.store_dir());
        let began = Instant::now();
        let daemon =
            Daemon::start(&nix, &dir, (&cache.endpoint(), cache.token_file()), "[push]\nexisting = true");
        let mut seen = HashSet::new();
        loop {
            let status = daemon.json(&["status"]);
            let (queue, cursor) = (&status["queue"], status["store"]["cursor"].as_u64().unwrap());
            seen.insert(queue["pending"].as_u64().unwrap());
            if cursor >= count as u64 && queue["pending"] == 0 && queue["uploading"] == 0 {
                assert_eq!(queue["parked"], 0, "{status}");
                break;
            }
            std::thread::sleep(Duration::from_millis(200));
        }
        let usage = daemon.usage();
        let most = seen.into_iter().max().unwrap();
        figure(
            &format!("backlog of {count}: wall"),
            "s",
            &[ms(began) / 1e3],
            "start of the daemon to the last path in the cache",
        );
        figure(
            &format!("backlog of {count}: processor time"),
            "s",
            &[usage.cpu_s],
            "utime+stime of the daemon",
        );
        figure(
            &format!("backlog of {count}: peak memory"),
            "MB",
            &[usage.peak_mb],
            &format!("VmHWM of the daemon; at most {most} in the queue"),
        );
    }
}
