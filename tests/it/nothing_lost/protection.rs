//! The protection of pending paths from garbage collection is bounded: `[nix] protect_max` and
//! `min_free`, with the real garbage collector while the cache is away.

use std::path::Path;
use std::process::Command;

use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{Daemon, until};
use crate::support::disk::SmallDisk;
use crate::support::nix::PrivateNix;

/// A daemon whose cache refuses all uploads.
struct Bench {
    daemon: Daemon,
    cache: StandaloneCache,
    gate: UploadGate,
}

fn bench(nix_keys: &str) -> Bench {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.rule(|_| Some(503));
    let mut daemon = Daemon::prepare(nix, "");
    daemon.configure_nix(&cache.config_at(&gate.url()), nix_keys);
    daemon.up();
    Bench { daemon, cache, gate }
}

/// An expression for a path of this many bytes.
fn large(name: &str, bytes: usize) -> String {
    PrivateNix::shell(name, &format!("head -c {bytes} /dev/zero > $out"))
}

impl Bench {
    /// Builds paths of 100 kB, one after another, and waits until each is pending.
    fn build(&self, names: &[&str]) -> Vec<String> {
        let before = self.pending();
        let built = |(n, name): (usize, &&str)| {
            let path = self.daemon.nix.build(&large(name, 100_000)).remove(0);
            until("it is pending", || self.pending() == before + n as u64 + 1);
            path
        };
        names.iter().enumerate().map(built).collect()
    }

    fn pending(&self) -> u64 {
        let queue = self.daemon.status()["queue"].clone();
        queue["pending"].as_u64().unwrap() + queue["uploading"].as_u64().unwrap()
    }

    fn unprotected(&self) -> u64 {
        self.daemon.status()["store"]["unprotected_paths"].as_u64().unwrap()
    }

    fn collect(&self) {
        let done = self.daemon.nix.run("nix-collect-garbage", &[]);
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }
}

fn exist(paths: &[String]) -> Vec<bool> {
    paths.iter().map(|path| Path::new(path).exists()).collect()
}

#[test]
fn beyond_protect_max_the_oldest_pending_paths_can_be_collected() {
    let bench = bench("protect_max = \"350kB\"");
    let paths = bench.build(&["p0", "p1", "p2", "p3", "p4"]);
    until("two have lost their protection", || bench.unprotected() == 2);
    let status = bench.daemon.status();
    let bytes = status["store"]["protected_bytes"].as_u64().unwrap();
    assert!((300_000..320_000).contains(&bytes), "{status}");
    let warnings = status["warnings"].to_string();
    assert!(
        warnings.contains("2 pending paths") && warnings.contains("[nix] protect_max is exceeded"),
        "{warnings}"
    );
    let metrics = bench.daemon.ctl(&["metrics"]).out;
    for line in [
        format!("flywheel_protected_bytes {bytes}"),
        "flywheel_unprotected_paths 2".to_owned(),
        "flywheel_protection_lost_total 2".to_owned(),
    ] {
        assert!(metrics.lines().any(|l| l == line), "{line} in\n{metrics}");
    }
    // The temporary roots end a moment after the files.
    until("the two oldest are collected", || {
        bench.collect();
        exist(&paths) == [false, false, true, true, true]
    });
    bench.gate.rule(|_| None);
    bench.daemon.flush();
    assert_eq!(bench.cache.main().having(&paths), [false, false, true, true, true]);
    let counts = bench.daemon.status()["cache"][0]["counts"].clone();
    assert_eq!((counts["pushed"].as_u64(), counts["collected"].as_u64()), (Some(3), Some(2)), "{counts}");
    until("nothing is protected any more", || bench.daemon.status()["store"]["protected_bytes"] == 0);
    assert_eq!(bench.unprotected(), 0);
    bench.daemon.assert_logged(1, "protect_max is exceeded");
    bench.daemon.assert_logged(1, "all pending paths are protected from garbage collection again");
}

#[test]
fn a_path_without_protection_is_still_pushed_when_it_exists() {
    let bench = bench("protect_max = 1");
    let paths = bench.build(&["q0", "q1"]);
    until("both have lost their protection", || bench.unprotected() == 2);
    bench.gate.rule(|_| None);
    bench.daemon.flush();
    assert_eq!(bench.cache.main().having(&paths), [true, true]);
}

#[test]
fn a_reload_changes_the_bounds() {
    let bench = bench("");
    let paths = bench.build(&["r0", "r1", "r2"]);
    assert_eq!(bench.unprotected(), 0);
    let config = bench.cache.config_at(&bench.gate.url());
    bench.daemon.configure_nix(&config, "protect_max = \"250kB\"");
    let said = bench.daemon.ctl(&["reload"]);
    assert!(said.out.contains("nix.protect_max") && !said.out.contains("restart"), "{said:?}");
    until("the oldest has lost its protection", || bench.unprotected() == 1);
    until("it is collected", || {
        bench.collect();
        exist(&paths) == [false, true, true]
    });
    // A higher bound protects again what still exists.
    bench.daemon.configure_nix(&config, "protect_max = \"1B\"");
    assert_eq!(bench.daemon.ctl(&["reload"]).code, 0);
    until("both have lost it", || bench.daemon.status()["store"]["protected_bytes"] == 0);
    bench.daemon.configure_nix(&config, "");
    assert_eq!(bench.daemon.ctl(&["reload"]).code, 0);
    until("all have it again", || bench.unprotected() == 0);
    bench.collect();
    assert_eq!(exist(&paths), [false, true, true]);
}

/// The store is on a small file system, in a mount namespace of its own.
#[test]
fn below_min_free_the_oldest_pending_paths_can_be_collected() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.rule(|_| Some(503));
    let Some(disk) = SmallDisk::mount(&nix.store_dir(), "64m") else { return };
    let mut daemon = Daemon::prepare(nix, "");
    daemon.configure_nix(&cache.config_at(&gate.url()), "min_free = \"16MiB\"");
    daemon.wrapper = disk.wrap();
    daemon.up();
    let run = |args: &[&str]| {
        let wrap = disk.wrap();
        let mut command = Command::new(&wrap[0]);
        command.args(&wrap[1..]).args(args).envs(daemon.nix.env()).env_remove("NIX_PATH");
        let done = command.output().unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
        String::from_utf8_lossy(&done.stdout).trim().to_owned()
    };
    let build = |name: &str| {
        let path = run(&["nix-build", "--no-out-link", "-E", &large(name, 2_000_000)]);
        until("it is protected", || {
            let status = daemon.status();
            status["store"]["protected_bytes"].as_u64().unwrap() / 2_000_000
                + status["store"]["unprotected_paths"].as_u64().unwrap()
                == 1 + name[1..].parse::<u64>().unwrap()
        });
        path
    };
    let paths: Vec<String> = ["s0", "s1", "s2", "s3"].map(build).to_vec();
    assert_eq!(daemon.status()["store"]["unprotected_paths"], 0);
    let there = |path: &String| {
        disk.file(Path::new(path).file_name().unwrap().to_str().unwrap()).symlink_metadata().is_ok()
    };
    // 64 MiB less four paths and this file: about 14 MB, which is 3 MB too little.
    std::fs::write(disk.file("filler"), vec![b'x'; 45_000_000]).unwrap();
    let warned = || {
        let status = daemon.status();
        status["store"]["unprotected_paths"] == 2 && status["warnings"].to_string().contains("min_free")
    };
    until("the two oldest have lost their protection", warned);
    until("they are collected", || {
        run(&["nix-collect-garbage"]);
        paths.iter().map(there).eq([false, false, true, true])
    });
    gate.rule(|_| None);
    daemon.flush();
    let counts = daemon.status()["cache"][0]["counts"].clone();
    assert_eq!((counts["pushed"].as_u64(), counts["collected"].as_u64()), (Some(2), Some(2)), "{counts}");
}
