//! Events of the store directory's watcher: each wakes the intake up. The log has an
//! entry when the watch is lost and when it is back, and at most one a minute about
//! dropped events.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::attribution::LockWatcher;
use crate::daemon::intake::IntakeHandle;
use crate::observe::event;
use crate::store::WatchEvent;

/// Least time between two log entries about dropped events.
const APART: Duration = Duration::from_secs(60);

static OVERFLOW_LOGGED: Mutex<Option<Instant>> = Mutex::new(None);

/// Returns the watcher's callback. It logs the event, has all locks read again after a
/// remount, and wakes the intake up to read the Nix database.
pub(in crate::daemon) fn on_watch_event(
    lock_watcher: LockWatcher,
    handle: IntakeHandle,
) -> impl Fn(WatchEvent) {
    move |event| {
        log(&event);
        match &event {
            WatchEvent::Remounted => lock_watcher.rescan(),
            WatchEvent::LockRemoved(_)
            | WatchEvent::Overflow
            | WatchEvent::Start
            | WatchEvent::Timer
            | WatchEvent::WatchLost(_) => {}
        }
        handle.wake();
    }
}

/// Logs the events that an administrator may want to know about.
fn log(event: &WatchEvent) {
    match event {
        WatchEvent::WatchLost(why) => {
            event!(
                WATCH_LOST,
                error = why,
                "the store directory is not watched any more ({why}); until it is again, new paths are looked for by a timer"
            );
        }
        WatchEvent::Remounted => event!(WATCH_RESUMED, "the store directory is watched again"),
        WatchEvent::Overflow if due(&OVERFLOW_LOGGED, Instant::now()) => {
            event!(
                EVENTS_DROPPED,
                "the kernel dropped events of the store directory: the Nix database is read instead, nothing is lost"
            );
        }
        WatchEvent::Start | WatchEvent::LockRemoved(_) | WatchEvent::Overflow | WatchEvent::Timer => {}
    }
}

/// Whether the last log entry is at least [`APART`] old; notes `now` if so.
fn due(logged: &Mutex<Option<Instant>>, now: Instant) -> bool {
    let mut logged = logged.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let due = logged.is_none_or(|at| now.duration_since(at) >= APART);
    if due {
        *logged = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_logged_once_a_minute() {
        let logged = Mutex::new(None);
        let now = Instant::now();
        let entries: Vec<bool> =
            [0, 1, 59, 60, 61, 121].map(|s| due(&logged, now + Duration::from_secs(s))).into();
        assert_eq!(entries, [true, false, false, true, false, true]);
    }
}
