//! The watch when its directory is removed or replaced, and when the kernel drops events.

use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Barrier};
use std::time::Duration;

use flywheel::store::{StoreWatch, WatchEvent};
use flywheel::types::StoreDir;

const NEVER: Duration = Duration::from_secs(3600);
const MAX_WAIT: Duration = Duration::from_secs(60);

struct Place {
    _tmp: tempfile::TempDir,
    dir: StoreDir,
}

impl Place {
    fn new() -> Self {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("store");
        std::fs::create_dir(&path).unwrap();
        Self { dir: StoreDir::new(path.to_str().unwrap()).unwrap(), _tmp: tmp }
    }

    fn start(&self, slow: Duration) -> (StoreWatch, Receiver<WatchEvent>) {
        let (sender, events) = channel();
        let watch = StoreWatch::start(&self.dir, slow, move |r| drop(sender.send(r))).unwrap();
        assert_eq!(events.recv().unwrap(), WatchEvent::Start);
        (watch, events)
    }

    fn lock(&self, name: &str) {
        let file = self.dir.as_path().join(name);
        std::fs::write(&file, "").unwrap();
        std::fs::remove_file(&file).unwrap();
    }
}

/// Waits for the next wake-up that the timer did not cause.
fn next(events: &Receiver<WatchEvent>) -> WatchEvent {
    loop {
        match events.recv_timeout(MAX_WAIT).expect("a wake-up") {
            WatchEvent::Timer => {}
            event => return event,
        }
    }
}

#[test]
fn only_removed_locks_wake_the_reader() {
    let place = Place::new();
    let (watch, events) = place.start(NEVER);
    place.lock("a-path");
    std::fs::create_dir(place.dir.as_path().join("b.locks")).unwrap();
    place.lock("c.lock");
    assert_eq!(next(&events), WatchEvent::LockRemoved("c".into()));
    assert!(watch.health().watching);
    // A dropped watch does not wake anybody, and its callback is dropped too.
    drop(watch);
    place.lock("d.lock");
    assert_eq!(events.iter().count(), 0);
}

#[test]
fn the_timer_wakes_the_reader() {
    let place = Place::new();
    let (_watch, events) = place.start(Duration::from_millis(5));
    assert_eq!(events.recv_timeout(MAX_WAIT), Ok(WatchEvent::Timer));
    assert_eq!(events.recv_timeout(MAX_WAIT), Ok(WatchEvent::Timer));
}

#[test]
fn a_directory_that_is_removed_and_comes_back() {
    let place = Place::new();
    let (watch, events) = place.start(Duration::from_millis(20));
    std::fs::remove_dir(place.dir.as_path()).unwrap();
    assert!(matches!(next(&events), WatchEvent::WatchLost(_)));
    // The timer goes on meanwhile.
    assert_eq!(events.recv_timeout(MAX_WAIT), Ok(WatchEvent::Timer));
    assert!(!watch.health().watching);
    std::fs::create_dir(place.dir.as_path()).unwrap();
    assert_eq!(next(&events), WatchEvent::Remounted);
    assert!(watch.health().watching && watch.health().restarts == 1);
    place.lock("c.lock");
    assert_eq!(next(&events), WatchEvent::LockRemoved("c".into()));
}

/// No event reports that another file system was mounted over the directory.
#[test]
fn another_directory_at_the_same_place() {
    let place = Place::new();
    let (_watch, events) = place.start(Duration::from_millis(20));
    let aside = place.dir.as_path().with_file_name("aside");
    std::fs::rename(place.dir.as_path(), &aside).unwrap();
    std::fs::create_dir(place.dir.as_path()).unwrap();
    assert!(matches!(next(&events), WatchEvent::WatchLost(_)));
    assert_eq!(next(&events), WatchEvent::Remounted);
    std::fs::write(aside.join("old.lock"), "").unwrap();
    std::fs::remove_file(aside.join("old.lock")).unwrap();
    place.lock("new.lock");
    assert_eq!(next(&events), WatchEvent::LockRemoved("new".into()));
}

#[test]
fn an_overflow_wakes_the_reader() {
    let place = Place::new();
    let gate = Arc::new(Barrier::new(2));
    let (sender, events) = channel();
    let held = Arc::clone(&gate);
    let watch = StoreWatch::start(&place.dir, NEVER, move |r| {
        if r == WatchEvent::LockRemoved("hold".into()) {
            held.wait();
            held.wait();
        }
        drop(sender.send(r));
    })
    .unwrap();
    place.lock("hold.lock");
    gate.wait();
    // The queue's length is a sysctl; this makes more events than that, unless it was set very
    // high.
    let limit = std::fs::read_to_string("/proc/sys/fs/inotify/max_queued_events").unwrap();
    let limit: usize = limit.trim().parse().unwrap();
    if limit <= 200_000 {
        for i in 0..=limit + 1 {
            place.lock(&format!("{i}"));
        }
    }
    gate.wait();
    if limit <= 200_000 {
        assert!(events.iter().any(|r| r == WatchEvent::Overflow));
        assert_eq!(watch.health().overflows, 1);
    }
}

#[test]
fn a_callback_that_panics_costs_one_wake_up() {
    let place = Place::new();
    let (sender, events) = channel();
    let _watch = StoreWatch::start(&place.dir, NEVER, move |r| {
        assert!(r != WatchEvent::LockRemoved("panic".into()), "a panic for the test");
        drop(sender.send(r));
    })
    .unwrap();
    assert_eq!(next(&events), WatchEvent::Start);
    place.lock("panic.lock");
    place.lock("next.lock");
    assert_eq!(next(&events), WatchEvent::LockRemoved("next".into()));
}

/// On a fresh host Nix makes the store later, or it is mounted later.
#[test]
fn a_directory_that_appears_later_is_watched_from_then_on() {
    let place = Place::new();
    std::fs::remove_dir(place.dir.as_path()).unwrap();
    let (watch, events) = place.start(NEVER);
    assert!(!watch.health().watching && watch.health().last_loss.is_some(), "{:?}", watch.health());
    std::fs::create_dir(place.dir.as_path()).unwrap();
    assert_eq!(next(&events), WatchEvent::Remounted);
    place.lock("late.lock");
    assert_eq!(next(&events), WatchEvent::LockRemoved("late".into()));
    assert!(watch.health().watching);
}
