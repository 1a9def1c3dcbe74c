//! Changes around the store are noticed, survived, and logged once.

use rustix::process::Signal;

use crate::attribution::sessions::evidence;
use crate::support::daemon::{CommandResult, Daemon, EMBEDDED, MAX_WAIT, until};
use crate::support::disk::SmallDisk;
use crate::support::nix::PrivateNix;

#[test]
fn the_kernel_drops_events() {
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit > 200_000 {
        eprintln!("skipped: the kernel's queue holds {limit} events here");
        return;
    }
    // The timer does not read the database before the test is over.
    let mut daemon = Daemon::prepare(PrivateNix::new(), "");
    daemon.configure_nix(EMBEDDED, "poll = \"1h\"\n");
    daemon.up();
    // Hard links need no inode each, so many can be made quickly. No lock is among them, so that
    // only the overflow itself wakes the reader.
    let seed = daemon.nix.path().join("seed");
    // Two names in turns, because the kernel merges two equal events in a row.
    let names = ["x", "y"].map(|name| daemon.nix.store_dir().join(name));
    std::fs::write(&seed, "").unwrap();
    for round in 0..2 {
        daemon.signal(Signal::STOP);
        for name in names.iter().cycle().take(limit + 1) {
            std::fs::hard_link(&seed, name).unwrap();
            std::fs::remove_file(name).unwrap();
        }
        // The daemon receives no event for the removal of this path's lock.
        let path = daemon.nix.make(&format!("unseen{round}"));
        daemon.signal(Signal::CONT);
        until("it comes without being asked for", || daemon.main().has(&path));
    }
    until("it is logged", || daemon.log().contains("the kernel dropped events"));
    daemon.assert_logged(1, "the kernel dropped events of the store directory");
    let next = daemon.nix.make("next");
    until("the watch still reports new paths", || daemon.main().has(&next));
}

#[test]
fn the_store_and_its_database_are_replaced() {
    let daemon = Daemon::embedded();
    let first = daemon.nix.make("one");
    daemon.flush();
    daemon.nix.wipe();
    let second = daemon.nix.make("two");
    daemon.flush();
    assert!(daemon.main().has(&first) && daemon.main().has(&second));
    until("the store is watched", || daemon.status()["store"]["problem"].is_null());
    let third = daemon.nix.make("three");
    until("it comes without being asked for", || daemon.main().has(&third));
    daemon.assert_logged(1, "the store directory is not watched any more");
    daemon.assert_logged(1, "the store directory is watched again");
    daemon.assert_logged(1, "the Nix database is another one than before");
}

/// A host's store moves to another disk while the service runs.
#[test]
fn the_store_directory_is_mounted_over() {
    let mut daemon = Daemon::prepare(PrivateNix::new(), "");
    daemon.configure_nix(EMBEDDED, "poll = \"200ms\"\n");
    // The daemon gets a mount namespace of its own, with a place to move to.
    let other = daemon.nix.path().join("other");
    let Some(disk) = SmallDisk::mount(&other, "64m") else { return };
    daemon.wrapper = disk.wrap();
    daemon.up();
    let within = |program: &str, args: &[&str]| {
        let wrap = disk.wrap();
        let mut command = daemon.nix.command(&wrap[0]);
        let said = CommandResult::of(&command.args(&wrap[1..]).arg(program).args(args).output().unwrap());
        assert_eq!(said.code, 0, "{said:?}");
        said.out.trim().to_owned()
    };
    let build = |name: &str, seconds: &str| {
        let expression = PrivateNix::shell(name, &format!("sleep {seconds}; echo {name} > $out"));
        within("nix-build", &["--no-out-link", "-E", &expression])
    };
    let first = build("one", "0");
    until("it comes without being asked for", || daemon.main().has(&first));
    let store = daemon.nix.store_dir();
    within("cp", &["-a", &format!("{}/.", store.display()), other.to_str().unwrap()]);
    within("mount", &["--bind", other.to_str().unwrap(), store.to_str().unwrap()]);
    let second = build("two", "0");
    until("it comes without being asked for", || daemon.main().has(&second));
    until("it is watched", || daemon.log().contains("the store directory is watched again"));
    // The builder is recognized in the new store as well.
    let session = daemon.session(&[]);
    build("three", "0.3");
    daemon.end(&session, &[]);
    assert_eq!(evidence(&daemon.json(&["session", "show", &session]), "-three"), "process");
    daemon.assert_logged(1, "the store directory is not watched any more");
    daemon.assert_logged(1, "the store directory is watched again");
    assert!(daemon.log().contains("is another directory now"), "{}", daemon.log());
}

#[test]
fn the_database_is_busy_for_longer_than_it_is_waited_for() {
    let nix = PrivateNix::new();
    let db = nix.without_wal();
    let daemon = Daemon::start(nix, EMBEDDED);
    let path = daemon.nix.make("before");
    db.busy_timeout(MAX_WAIT).unwrap();
    db.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // The removal of a lock makes the daemon read the database.
    let lock = daemon.nix.store_dir().join("0njnh3x9rb4hh40rpc0dwc3w75vjl545-x.lock");
    std::fs::write(&lock, "").unwrap();
    std::fs::remove_file(&lock).unwrap();
    until("status tells", || {
        daemon.status()["store"]["problem"].as_str().is_some_and(|p| p.contains("locked"))
    });
    // There were several tries, and one log entry.
    let said = daemon.ctl(&["--json", "flush", "--timeout", "3s"]).json();
    assert_eq!(said["outcome"], "pending", "{said}");
    daemon.assert_logged(1, "cannot be taken in for the moment");
    db.execute_batch("ROLLBACK").unwrap();
    drop(db);
    let next = daemon.nix.make("after");
    daemon.flush();
    assert!(daemon.main().has(&path) && daemon.main().has(&next));
    daemon.assert_logged(1, "are taken in again");
    assert!(daemon.status()["store"]["problem"].is_null());
}
