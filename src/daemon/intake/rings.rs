//! What the doorbell's rings mean for the log: what is lost and found is told
//! once, and what comes in floods only now and then.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::attribution::LockWatcher;
use crate::daemon::intake::Bell;
use crate::observe::event;
use crate::store::WatchEvent;

/// Between two words about the same.
const APART: Duration = Duration::from_secs(60);

static OVERFLOW_SAID: Mutex<Option<Instant>> = Mutex::new(None);

/// What the doorbell's rings are for: a reason to look into the Nix database.
pub(in crate::daemon) fn pull(lock_watcher: LockWatcher, bell: Bell) -> impl Fn(WatchEvent) {
    move |ring| {
        tell(&ring);
        match &ring {
            WatchEvent::Remounted => lock_watcher.rescan(),
            WatchEvent::LockRemoved(_)
            | WatchEvent::Overflow
            | WatchEvent::Start
            | WatchEvent::Timer
            | WatchEvent::WatchLost(_) => {}
        }
        bell.ring();
    }
}

/// Tells what a person would want to know of.
fn tell(ring: &WatchEvent) {
    match ring {
        WatchEvent::WatchLost(why) => {
            event!(
                WATCH_LOST,
                error = why,
                "the store directory is not watched any more; until it is again, new paths are looked for by a timer"
            );
        }
        WatchEvent::Remounted => event!(WATCH_RESUMED, "the store directory is watched again"),
        WatchEvent::Overflow if due(&OVERFLOW_SAID, Instant::now()) => {
            event!(
                EVENTS_DROPPED,
                "the kernel dropped events of the store directory: the Nix database is read instead, nothing is lost"
            );
        }
        WatchEvent::Start | WatchEvent::LockRemoved(_) | WatchEvent::Overflow | WatchEvent::Timer => {}
    }
}

fn due(said: &Mutex<Option<Instant>>, now: Instant) -> bool {
    let mut said = said.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let due = said.is_none_or(|at| now.duration_since(at) >= APART);
    if due {
        *said = Some(now);
    }
    due
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_told_once_a_minute() {
        let said = Mutex::new(None);
        let now = Instant::now();
        let told: Vec<bool> =
            [0, 1, 59, 60, 61, 121].map(|s| due(&said, now + Duration::from_secs(s))).into();
        assert_eq!(told, [true, false, false, true, false, true]);
    }
}
