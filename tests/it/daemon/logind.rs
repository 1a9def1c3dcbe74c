//! The host waits for pending paths before it shuts down or sleeps, and the daemon works without a
//! logind as well.

use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{Daemon, until};
use crate::support::logind::Bus;
use crate::support::nix::PrivateNix;

/// A daemon that uses this bus, and a cache behind an upload gate.
fn start(bus: &Bus, more: &str) -> (Daemon, StandaloneCache, UploadGate) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| ());
    let gate = cache.gate();
    let mut daemon = Daemon::prepare(nix, &format!("{}{more}", cache.config_at(&gate.url())));
    daemon.env.push(("FLYWHEEL_LOG".to_owned(), "debug".to_owned()));
    bus.under(&mut daemon);
    daemon.up();
    (daemon, cache, gate)
}

/// Longer than any test takes, in microseconds.
const LONG: u64 = 600_000_000;

#[test]
fn an_inhibitor_is_held_while_something_is_pending_and_no_longer() {
    let mut bus = Bus::new(LONG);
    bus.up();
    let (mut daemon, cache, gate) = start(&bus, "");
    daemon.nix.make("quick");
    daemon.flush();
    assert_eq!(bus.locks(), 0, "what is over at once needs none");
    gate.close();
    let path = daemon.nix.make("slow");
    let lock = bus.lock();
    let [what, who, why, mode] = &lock.asked;
    assert_eq!((what.as_str(), who.as_str(), mode.as_str()), ("shutdown:sleep", "flywheel", "delay"));
    assert!(why.contains("pushed"), "{why}");
    gate.open();
    lock.until_released();
    assert!(cache.main().has(&path));
    daemon.stop();
    assert_eq!(bus.locks(), 0, "no other one was asked for");
}

#[test]
fn a_shutdown_waits_for_what_is_pending() {
    let mut bus = Bus::new(LONG);
    bus.up();
    let (mut daemon, cache, gate) = start(&bus, "");
    gate.close();
    let path = daemon.nix.make("slow");
    let lock = bus.lock();
    bus.shutdown(true);
    until("it is logged", || daemon.log().contains("the host is shutting down"));
    gate.open();
    // The lock is released when everything is pushed, not when the delay is over.
    lock.until_released();
    assert!(cache.main().has(&path));
    daemon.stop();
}

#[test]
fn a_shutdown_is_held_up_no_longer_than_logind_allows() {
    let mut bus = Bus::new(1_000_000);
    bus.up();
    let (mut daemon, cache, gate) = start(&bus, "[drain]\ntimeout = \"0s\"\n");
    gate.close();
    let path = daemon.nix.make("slow");
    let lock = bus.lock();
    bus.shutdown(true);
    lock.until_released();
    assert!(!cache.main().has(&path), "nothing went through the gate");
    // The host is up again, and the rest is pushed.
    daemon.stop();
    gate.open();
    daemon.up();
    daemon.flush();
    assert!(cache.main().has(&path));
}

#[test]
fn before_a_sleep_uploads_may_end_and_none_begins() {
    let mut bus = Bus::new(LONG);
    bus.up();
    let (mut daemon, cache, gate) = start(&bus, "[push]\njobs = 1\n");
    gate.close();
    let paths: Vec<String> = ["one", "two", "three"].map(|name| daemon.nix.make(name)).into();
    let lock = bus.lock();
    let first = gate.until_came(1);
    bus.sleep(true);
    until("it is logged", || daemon.log().contains("the host goes to sleep"));
    gate.open();
    lock.until_released();
    assert_eq!(gate.came(), first, "no other upload began");
    assert_eq!(paths.iter().filter(|path| cache.main().has(path)).count(), 1);
    bus.sleep(false);
    daemon.flush();
    assert!(paths.iter().all(|path| cache.main().has(path)));
    assert!(daemon.log().contains("the host is awake"), "{}", daemon.log());
    daemon.stop();
}

#[test]
fn without_a_bus_everything_works_and_one_that_comes_is_used() {
    let mut bus = Bus::new(LONG);
    let (mut daemon, cache, gate) = start(&bus, "");
    gate.close();
    let path = daemon.nix.make("slow");
    let times = |daemon: &Daemon| daemon.log().matches("logind cannot be reached").count();
    until("it is said, quietly", || times(&daemon) == 1);
    let said =
        daemon.log().lines().find(|line| line.contains("logind cannot be reached")).unwrap().to_owned();
    assert!(said.contains("DEBUG"), "{said}");
    // The bus appears while something is pending, disappears, and appears again.
    bus.up();
    let first = bus.lock();
    bus.down();
    first.until_released();
    bus.up();
    let second = bus.lock();
    gate.open();
    second.until_released();
    assert!(cache.main().has(&path));
    assert!(!daemon.log().lines().any(|line| line.contains("logind") && !line.contains("DEBUG")));
    daemon.stop();
}
