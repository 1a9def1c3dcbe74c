//! The watchdog's side of the daemon: systemd gets its ping only when every
//! part has moved since the last one, so a part that hangs ends the daemon,
//! and the ledger and the Nix database know what was pending.
//!
//! Not proved by a ping: that a cache answers, that uploads get anywhere, that
//! the ledger can be written. Those have words of their own in `status`.

use std::time::{Duration, Instant};

use crate::daemon::host::parts::Part;
use crate::observe::{detail, event};

/// The part that reads the Nix database.
pub(in crate::daemon) const INTAKE: &str = "intake";
/// Looks within the time after which systemd gives up.
const LOOKS: u32 = 4;

/// Who is looked at, and when next.
#[derive(Debug)]
pub(in crate::daemon) struct Watchdog {
    parts: Vec<Part>,
    every: Duration,
    pub(in crate::daemon) next: Instant,
    /// Which stood still when it was last said.
    said: Option<String>,
}

impl Watchdog {
    /// `limit`: how long systemd waits for a ping.
    pub(in crate::daemon) fn new(mut parts: Vec<Part>, limit: Duration) -> Self {
        parts.iter_mut().for_each(Part::ask);
        let every = limit / LOOKS;
        Self { parts, every, next: Instant::now() + every, said: None }
    }

    pub(in crate::daemon) fn leave_out(&mut self, name: &str) {
        self.parts.retain(|part| part.name != name);
    }

    /// Whether all have moved since the last look; asks them to move again.
    pub(in crate::daemon) fn all_moved(&mut self) -> bool {
        let still: Vec<&str> = self.parts.iter().filter(|p| !p.has_moved()).map(|p| p.name).collect();
        let still = still.join(", ");
        match (still.is_empty(), &self.said) {
            (true, None) => {}
            (true, Some(part)) => {
                event!(PART_MOVES, part = part, "what stood still moves again");
                self.said = None;
            }
            (false, Some(said)) if *said == still => detail!(part = still, "still standing"),
            (false, _) => {
                event!(
                    PART_STUCK,
                    part = still,
                    "a part of the daemon stands still: no ping for the watchdog"
                );
                self.said = Some(still.clone());
            }
        }
        self.parts.iter_mut().for_each(Part::ask);
        self.next = Instant::now() + self.every;
        still.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Heartbeat;

    fn part(name: &'static str, lives: bool) -> (Part, Heartbeat) {
        let pulse = Heartbeat::default();
        let (asked, count) = (pulse.clone(), pulse.clone());
        let ask = move || {
            if lives {
                asked.beat();
            }
        };
        (Part::new(name, ask, move || count.count()), pulse)
    }

    #[test]
    fn one_that_stands_still_keeps_the_ping_back() {
        let ((moves, _), (hangs, hung)) = (part("driver", true), part(INTAKE, false));
        let mut watchdog = Watchdog::new(vec![moves, hangs], Duration::from_secs(8));
        assert!(!watchdog.all_moved() && !watchdog.all_moved());
        // It gets somewhere by itself, as with much to do.
        hung.beat();
        assert!(watchdog.all_moved() && !watchdog.all_moved());
        watchdog.leave_out(INTAKE);
        assert!(watchdog.all_moved() && watchdog.all_moved());
    }
}
