//! `flush`: the intake takes in what is new, and the caller waits for everything that is
//! pending then.

use tokio::time::Instant;

use super::Driver;
use crate::control::messages as m;
use crate::control::server::Peer;
use crate::daemon::sessions::{Caller, Naming};
use crate::flow::{Event, SessionAction, SessionEvent};
use crate::ledger::Warnings;
use crate::types::{SessionId, millis};

impl Driver {
    pub(super) fn flush(&mut self, peer: Peer, caller: Caller) {
        // Those of one user that wait for the intake are answered together.
        let caller = match self.parts.sessions.join_naming(peer.uid, |naming| naming.everything, caller) {
            Ok(group) => return self.flush_step(group, SessionEvent::Join),
            Err(caller) => caller,
        };
        let group = self.parts.sessions.begin_flush();
        if !self.name_paths(group, peer.uid, self.default_cache(), Vec::new(), false, caller) {
            self.parts.sessions.end_flush(group);
        }
    }

    /// None of the pushes that a `flush` waits for is unsettled.
    pub(super) fn flush_quiet(&mut self, group: SessionId) {
        let Some(life) = self.parts.sessions.flush_mut(group) else { return };
        let uploaded = life.is_settling() && self.flow.take_uploaded(group);
        // Without a caller nobody needs a second question.
        let uploaded = uploaded && self.parts.sessions.callers().waits_for(group);
        self.flush_step(group, SessionEvent::Quiet { uploaded });
    }

    /// Hands an event to the life of a `flush` and has its actions carried out.
    pub(super) fn flush_step(&mut self, group: SessionId, event: SessionEvent) {
        let now = self.now();
        let Some(life) = self.parts.sessions.flush_mut(group) else { return };
        let mut warnings = Warnings::default();
        for action in life.step(event, now) {
            match action {
                // It has no record.
                SessionAction::Drain { .. } | SessionAction::Rejoined => {}
                SessionAction::Take | SessionAction::Confirm => {
                    let naming = Naming { row: group, uid: 0 };
                    self.begin_naming(naming, false, self.default_cache(), Vec::new(), false, None);
                }
                SessionAction::WarnUnstable => {
                    warnings.texts.push("a cache deleted paths repeatedly: some may be missing".to_owned());
                }
                SessionAction::Flush => self.step(Event::Flush(group)),
                SessionAction::Close { .. } => {
                    self.parts.sessions.end_flush(group);
                    self.step(Event::Forget(group));
                    for (knows, caller) in self.parts.sessions.callers().settled(group, now) {
                        self.answer(knows, caller, warnings.clone());
                    }
                }
            }
        }
    }

    /// The answer to a `flush`. `early`: not everything is settled, or nobody knows.
    pub(super) fn flush_summary(&self, since: Instant, early: bool, warnings: Vec<String>) -> m::Summary {
        let left = if early { self.pending() } else { 0 };
        let stuck = self.parts.intake.stuck().filter(|_| early);
        // While the intake is stuck, or has not finished, nobody knows what is left.
        let unknown = early && left == 0 && (stuck.is_some() || !warnings.is_empty());
        m::Summary {
            outcome: if unknown { m::Outcome::Pending } else { m::Outcome::of(0, left) },
            pending: left,
            flush_ms: millis(since.elapsed()),
            duration_ms: millis(since.elapsed()),
            warnings: stuck.map(str::to_owned).into_iter().chain(warnings).collect(),
            ..m::Summary::default()
        }
    }
}
