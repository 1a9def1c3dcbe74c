//! The watchdog: systemd gets its ping only when every part of the daemon has
//! taken a turn since the last look. A part that hangs therefore ends the daemon,
//! and the next one continues from the ledger and the Nix database.
//!
//! A ping does not prove that a cache answers, that uploads succeed, or that the
//! ledger can be written; `status` reports those.

use std::time::{Duration, Instant};

use super::parts::Part;
use crate::observe::{detail, event};

/// The name of the part that reads the Nix database.
pub(in crate::daemon) const INTAKE: &str = "intake";
/// Number of looks within the time after which systemd kills the daemon.
const LOOKS: u32 = 4;

/// The parts that are observed, and when they are looked at next.
#[derive(Debug)]
pub(super) struct Watchdog {
    parts: Vec<Part>,
    every: Duration,
    pub(super) next: Instant,
    /// The parts that the last log message named as stuck.
    reported: Option<String>,
}

impl Watchdog {
    /// Starts to observe `parts`. `limit`: how long systemd waits for a ping.
    pub(super) fn new(mut parts: Vec<Part>, limit: Duration) -> Self {
        parts.iter_mut().for_each(Part::ask);
        let every = limit / LOOKS;
        Self { parts, every, next: Instant::now() + every, reported: None }
    }

    /// Stops observing the part with this name.
    pub(super) fn leave_out(&mut self, name: &str) {
        self.parts.retain(|part| part.name != name);
    }

    /// Returns whether every part has taken a turn since the last look, and asks
    /// each for another one.
    pub(super) fn all_moved(&mut self) -> bool {
        let stuck: Vec<&str> = self.parts.iter().filter(|p| !p.has_moved()).map(|p| p.name).collect();
        let stuck = stuck.join(", ");
        match (stuck.is_empty(), &self.reported) {
            (true, None) => {}
            (true, Some(part)) => {
                event!(PART_MOVES, part = part, "this part of flywheeld responds again: {part}");
                self.reported = None;
            }
            (false, Some(reported)) if *reported == stuck => detail!(part = stuck, "still no response"),
            (false, _) => {
                event!(
                    PART_STUCK,
                    part = stuck,
                    "this part of flywheeld does not respond: {stuck}; systemd's watchdog gets no ping, and restarts flywheeld if this lasts"
                );
                self.reported = Some(stuck.clone());
            }
        }
        self.parts.iter_mut().for_each(Part::ask);
        self.next = Instant::now() + self.every;
        stuck.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::Heartbeat;

    fn part(name: &'static str, responds: bool) -> (Part, Heartbeat) {
        let heartbeat = Heartbeat::default();
        let (asked, count) = (heartbeat.clone(), heartbeat.clone());
        let ask = move || {
            if responds {
                asked.beat();
            }
        };
        (Part::new(name, ask, move || count.count()), heartbeat)
    }

    #[test]
    fn a_part_that_hangs_keeps_the_ping_back() {
        let ((moves, _), (hangs, hung)) = (part("driver", true), part(INTAKE, false));
        let mut watchdog = Watchdog::new(vec![moves, hangs], Duration::from_secs(8));
        assert!(!watchdog.all_moved() && !watchdog.all_moved());
        // It takes a turn by itself, as it does while it is busy.
        hung.beat();
        assert!(watchdog.all_moved() && !watchdog.all_moved());
        watchdog.leave_out(INTAKE);
        assert!(watchdog.all_moved() && watchdog.all_moved());
    }
}
