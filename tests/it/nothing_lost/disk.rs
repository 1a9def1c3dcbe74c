//! Nothing is lost, and nothing waits, while the disk of `state_dir` is full.

use std::path::PathBuf;

use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{Daemon, until};
use crate::support::disk::SmallDisk;
use crate::support::nix::PrivateNix;

struct Bench {
    daemon: Daemon,
    disk: SmallDisk,
    gate: UploadGate,
    cache: StandaloneCache,
}

impl Bench {
    /// A running daemon with one path in the cache, on a disk that is full now.
    fn full() -> Option<Self> {
        let bench = Self::new()?;
        bench.disk.fill();
        Some(bench)
    }

    /// The same, while the disk has room.
    fn new() -> Option<Self> {
        let nix = PrivateNix::new();
        let cache = StandaloneCache::start(&nix, |_| {});
        let gate = cache.gate();
        let config = format!("{}[drain]\ntimeout = \"1s\"\n", cache.config_at(&gate.url()));
        let mut daemon = Daemon::prepare(nix, &config);
        let disk = SmallDisk::mount(&daemon.state_dir(), "2m")?;
        daemon.wrapper = disk.wrap();
        daemon.up();
        let bench = Self { daemon, disk, gate, cache };
        bench.daemon.nix.make("before");
        bench.daemon.flush();
        until("what was answered is written a moment later", || bench.recorded() == 1);
        Some(bench)
    }

    fn ledger(&self) -> serde_json::Value {
        self.daemon.status()["ledger"].clone()
    }

    /// The number of paths that the ledger on the disk has as pushed or already cached.
    fn recorded(&self) -> i64 {
        // Reads a copy, because opening the ledger itself creates files beside it.
        let copy: PathBuf = self.daemon.nix.path().join("copy");
        for part in ["", "-wal"] {
            let from = self.disk.file(&format!("ledger.sqlite{part}"));
            std::fs::copy(from, format!("{}{part}", copy.display())).unwrap();
        }
        let db = rusqlite::Connection::open(copy).unwrap();
        db.query_row("select count(*) from item where state in (2, 3)", [], |row| row.get(0)).unwrap()
    }
}

#[test]
fn paths_are_pushed_from_memory_and_recorded_when_there_is_room() {
    let Some(mut bench) = Bench::full() else { return };
    let daemon = &bench.daemon;
    let session = daemon.session(&["--label", "on a full disk"]);
    let names: Vec<String> = (0..10).map(|n| format!("full{n}")).collect();
    let paths: Vec<String> = names.iter().map(|name| bench.daemon.nix.make(name)).collect();
    until("pushed from memory", || bench.cache.main().having(&paths).iter().all(|there| *there));
    let said = bench.ledger();
    assert_eq!(said["state"], "degraded", "{said}");
    assert!(said["detail"].as_str().unwrap().contains("full"), "{said}");
    assert_eq!(bench.recorded(), 1, "nothing of it is on the disk");
    // The summary is true; it comes from memory.
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (summary["pushed"].as_u64(), &summary["outcome"]),
        (Some(10), &"complete".into()),
        "{summary}"
    );
    bench.disk.free();
    until("it is written again", || bench.ledger()["state"] == "ok");
    assert_eq!(bench.recorded(), 11, "all at once");
    let log = daemon.log();
    let times = |what: &str| log.lines().filter(|line| line.contains(what)).count();
    assert_eq!(times("ledger: it cannot be written"), 1, "{log}");
    assert_eq!(times("ledger: it can be written again"), 1, "{log}");
    assert_eq!(times("cannot be taken in"), 0, "{log}");
    // This holds also for the session that was opened and closed while the disk was full.
    bench.daemon.kill();
    bench.daemon.up();
    let shown = bench.daemon.json(&["session", "show", &session]);
    assert_eq!(shown["summary"]["pushed"], 10, "{shown}");
    assert_eq!(bench.daemon.flush()["pending"], 0);
    assert_eq!(bench.gate.came().len(), 11, "nothing is sent twice");
}

#[test]
fn killed_while_the_disk_is_full() {
    let Some(mut bench) = Bench::full() else { return };
    let sent = bench.daemon.nix.make("sent");
    until("pushed from memory", || bench.cache.main().has(&sent));
    bench.gate.close();
    let held = bench.daemon.nix.make("held");
    bench.gate.until_came(3);
    assert_eq!(bench.ledger()["state"], "degraded");
    bench.daemon.kill();
    // The path is not in the ledger, and is protected from collection.
    assert!(bench.daemon.nix.run("nix-store", &["--gc"]).status.success());
    assert!(std::path::Path::new(&held).exists(), "collected while the daemon was away");
    bench.disk.free();
    bench.gate.open();
    bench.daemon.up();
    bench.daemon.flush();
    assert!(bench.cache.main().has(&held));
    // The ledger did not contain the path when the daemon started.
    assert!(!bench.daemon.log().contains("stale GC roots"), "its protection was taken away for a moment");
    // The uploaded path was not in the ledger and was collected; nothing is missing.
    until("those that are there are recorded", || bench.recorded() == 2);
}

#[test]
fn stopped_and_started_while_the_disk_is_full() {
    let Some(mut bench) = Bench::full() else { return };
    bench.gate.close();
    let held = bench.daemon.nix.make("held");
    bench.gate.until_came(2);
    bench.daemon.stop();
    assert!(bench.daemon.nix.run("nix-store", &["--gc"]).status.success());
    assert!(std::path::Path::new(&held).exists(), "collected while the daemon was away");
    bench.gate.open();
    bench.daemon.up();
    let session = bench.daemon.session(&["--label", "started on a full disk"]);
    let new = bench.daemon.nix.make("new");
    until("pushed from memory", || bench.cache.main().having(&[held.clone(), new.clone()]) == [true, true]);
    let said = bench.ledger();
    assert_eq!(said["state"], "degraded", "{said}");
    assert_eq!(bench.daemon.end(&session, &[])["pushed"], 1);
    assert_eq!(bench.recorded(), 1, "nothing of it is on the disk");
    bench.disk.free();
    until("it is written again", || bench.ledger()["state"] == "ok");
    bench.daemon.restart();
    assert_eq!(bench.daemon.json(&["session", "show", &session])["summary"]["pushed"], 1);
    assert_eq!(bench.recorded(), 3);
}

/// A ledger that was closed in order has no files beside it, and the full disk has no room to make
/// them.
#[test]
fn started_on_a_disk_that_has_filled_up_meanwhile() {
    let Some(mut bench) = Bench::new() else { return };
    bench.daemon.stop();
    let away = bench.daemon.nix.make("away");
    bench.disk.fill();
    bench.daemon.up();
    until("pushed from memory", || bench.cache.main().has(&away));
    let said = bench.ledger();
    assert_eq!(said["state"], "degraded", "{said}");
    bench.disk.free();
    until("it is written", || bench.ledger()["state"] == "ok");
    bench.daemon.kill();
    bench.daemon.up();
    bench.daemon.flush();
    until("both are recorded", || bench.recorded() == 2);
    assert_eq!(bench.gate.came().len(), 2, "nothing is sent twice");
}

/// There is room only after the daemon's last periodic try to write; the stop itself writes.
#[test]
fn room_is_made_just_before_a_stop() {
    let Some(mut bench) = Bench::full() else { return };
    let session = bench.daemon.session(&["--label", "on a full disk"]);
    bench.daemon.nix.make("full");
    assert_eq!(bench.daemon.end(&session, &[])["pushed"], 1);
    assert_eq!(bench.recorded(), 1, "nothing of it is on the disk");
    bench.disk.free();
    bench.daemon.restart();
    assert_eq!(bench.daemon.json(&["session", "show", &session])["summary"]["pushed"], 1);
    bench.daemon.flush();
    assert_eq!(bench.gate.came().len(), 2, "nothing is sent twice");
}
