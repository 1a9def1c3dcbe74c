//! The faults that stop `attic watch-store`, one test each: after each of these it pushes nothing
//! more, or loses what was queued.

use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use super::proxy::{Fault, Kind};
use super::{Rig, set, until, upload_of};

fn uploads_wait(rig: &Rig) {
    rig.proxy.rule(|call| if call.kind == Kind::Upload { Fault::Hold } else { Fault::Pass });
}

/// `attic watch-store` takes the removal of the lock that the failed build left for a valid path,
/// and ends.
#[test]
fn a_failed_build_then_a_collection_then_a_build() {
    let rig = Rig::new();
    rig.site.build(&set("before", 1, 5, 20_000));
    rig.whole(|_| None);
    let fails = r#"derivation { name = "fails"; system = builtins.currentSystem; builder = "/bin/sh";
        args = [ "-c" "echo half > $out; exit 1" ]; }"#;
    let build = rig.site.run("nix-build", &["--no-out-link", "-E", fails]);
    assert!(!build.status.success());
    let locks = || {
        let entries = std::fs::read_dir(rig.daemon.nix.store_dir()).unwrap();
        entries.filter(|e| e.as_ref().unwrap().file_name().to_str().unwrap().ends_with("-fails.lock")).count()
    };
    assert_eq!(locks(), 1, "the failed build leaves its lock");
    let gc = rig.site.run("nix-store", &["--gc"]);
    assert!(gc.status.success(), "{gc:?}");
    assert_eq!(locks(), 0, "the collection takes it away");
    rig.site.build(&set("after", 2, 10, 20_000));
    rig.whole(|_| None);
    rig.nothing_twice();
    assert!(rig.cache.main().names().iter().all(|n| n != "fails"));
    rig.cache.main().assert_nix_takes(&rig.daemon.nix, &rig.site.named(|n| n.starts_with("after")));
}

/// The worker of `attic watch-store` ends with the first request that fails.
#[test]
fn an_outage_while_20_paths_appear_and_5_after() {
    let rig = Rig::new();
    rig.proxy.until("the daemon has found its cache", |_| true);
    rig.proxy.down();
    rig.site.build(&set("during", 2, 10, 20_000));
    let status = until("the daemon sees the outage", || {
        let status = rig.daemon.status();
        (status["cache"][0]["state"] == "offline" && status["queue"]["pending"] == 20).then_some(status)
    });
    assert_eq!(status["queue"]["parked"], 0, "{status}");
    rig.proxy.up();
    rig.site.build(&set("after", 1, 5, 20_000));
    rig.whole(|_| None);
    rig.nothing_twice();
    assert_eq!(rig.daemon.status()["cache"][0]["state"], "online");
    assert_eq!(rig.proxy.seen().done(), 25);
    rig.cache.main().assert_nix_takes(&rig.daemon.nix, &rig.site.named(|_| true));
}

/// `attic watch-store` handles no signal: none of 50 queued paths arrive.
#[test]
fn sigterm_with_50_queued() {
    let mut rig = Rig::new();
    uploads_wait(&rig);
    rig.site.build(&set("queued", 5, 10, 20_000));
    rig.until_queued(50);
    rig.proxy.until("an upload is under way", |tally| tally.uploads().next().is_some());
    rig.daemon.signal(Signal::TERM);
    rig.daemon.until_notified(|line| line == "STOPPING=1");
    // The running uploads may end now.
    rig.proxy.pass();
    let status = rig.daemon.ended();
    assert!(status.success(), "{status}");
    let seen = rig.proxy.seen();
    assert!(seen.calls.iter().all(|c| c.over), "what was under way has ended");
    let (first, items) = (seen.done(), rig.items());
    assert!((1..50).contains(&first), "{first} went out while it stopped");
    let confirmed = items.values().filter(|item| (2..=3).contains(&item.state)).count();
    assert_eq!((confirmed, items.len()), (first, 50), "the ledger has all of them, and those as done");
    rig.daemon.up();
    rig.site.build(&set("after", 1, 5, 20_000));
    rig.whole(|_| None);
    rig.nothing_twice();
    assert_eq!(rig.proxy.seen().done(), 55);
    rig.cache.main().assert_nix_takes(&rig.daemon.nix, &rig.site.named(|_| true));
}

/// One path that is not valid makes attic push none of its batch. Here there are two of that kind:
/// one that was never valid, and one whose file differs from what Nix registered.
#[test]
fn one_invalid_path_among_50() {
    let rig = Rig::new();
    uploads_wait(&rig);
    rig.site.build(&set("many", 5, 10, 20_000));
    let bad = &rig.site.named(|name| name == "many-4-o8")[0];
    let mut bytes = std::fs::read(bad).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    let mode = |mode| std::fs::set_permissions(bad, std::fs::Permissions::from_mode(mode)).unwrap();
    mode(0o644);
    std::fs::write(bad, &bytes).unwrap();
    mode(0o444);
    rig.proxy.pass();
    let invalid = format!("{}/{}-never", rig.daemon.nix.store_dir().display(), "0".repeat(32));
    let mut paths = rig.site.named(|_| true);
    paths.insert(25, invalid.clone());
    let mut args = vec!["--json", "push", "--wait"];
    args.extend(paths.iter().map(String::as_str));
    let push = rig.daemon.ctl(&args);
    assert_eq!(push.code, 3, "{push:?}");
    assert!(push.out.contains("-never") || push.err.contains("-never"), "it is named: {push:?}");
    // The reason says what happened, and how to verify and repair the path.
    let failed = push.json()["failed"].to_string();
    for words in ["the local store is damaged", "`nix-store --verify-path /", "`nix-store --repair-path /"] {
        assert!(failed.contains(words), "{words}: {failed}");
    }
    let fails = |name: &str| (name == "many-4-o8").then_some("mismatch");
    rig.whole(fails);
    rig.nothing_twice();
    let tries = rig.proxy.seen().uploads().filter(|c| upload_of(c, |n| n == "many-4-o8")).count();
    assert!(tries >= 2, "read again once before it is given up");
    rig.site.build(&set("after", 1, 5, 20_000));
    rig.whole(fails);
    // The file is repaired, and the daemon is asked to push it again.
    bytes[last] ^= 1;
    mode(0o644);
    std::fs::write(bad, &bytes).unwrap();
    mode(0o444);
    assert_eq!(rig.daemon.ctl(&["push", "--wait", bad]).code, 0);
    rig.whole(|_| None);
}
