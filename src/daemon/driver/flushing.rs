//! `flush`: the intake takes in what is new, and the caller waits for everything that is
//! pending then.

use tokio::time::Instant;

use super::Driver;
use super::waiting::Question;
use crate::control::messages as m;
use crate::control::messages::Reply;
use crate::control::server::{Peer, Responder};
use crate::daemon::sessions::{Asked, Caller, Naming, Sight};
use crate::flow::{Event, SessionAction, SessionEvent, Subject};
use crate::ledger::{LedgerError, Warnings};
use crate::types::{SessionId, millis};

impl Driver {
    /// Serves `flush`. It is answered when everything that is pending, or that the intake finds
    /// now, has settled or failed, or at the caller's deadline.
    pub(super) fn flush(&mut self, peer: Peer, caller: Caller<()>) {
        // Those of one user that wait for the intake are answered together.
        if let Some(equal) = self.parts.sessions.equal_naming(peer.uid, &Subject::Flush) {
            return self.join(equal, caller.about(Asked::Flush(equal.1, peer)));
        }
        let group = self.parts.sessions.begin_flush();
        let caller = caller.about(Asked::Flush(group, peer));
        self.step(Event::WantAll(group));
        let naming = Naming { row: group, uid: peer.uid };
        if !self.begin_naming(naming, self.default_cache(), Question::Of(Subject::Flush, vec![caller])) {
            self.parts.sessions.end_flush(group);
            self.step(Event::Forget(group));
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
                    self.begin_naming(naming, self.default_cache(), Question::Confirm);
                }
                SessionAction::WarnUnstable => {
                    warnings.texts.push("a cache deleted paths repeatedly: some may be missing".to_owned());
                }
                SessionAction::Flush => self.step(Event::Flush(group)),
                SessionAction::Close { .. } => {
                    self.parts.sessions.end_flush(group);
                    for (knows, caller) in self.parts.sessions.callers().settled(group, now) {
                        self.answer(knows, caller, warnings.clone());
                    }
                    self.step(Event::Forget(group));
                }
            }
        }
    }

    /// What became of the pushes of a `flush`. Failed paths are those of all caches: a path
    /// that failed earlier is not in the cache either. `early`: not everything is settled, or
    /// nobody knows.
    fn flush_summary(
        &self,
        group: SessionId,
        since: Instant,
        early: bool,
        warnings: Vec<String>,
    ) -> m::Summary {
        let left = if early { self.pending() } else { 0 };
        let stuck = self.parts.intake.stuck().filter(|_| early);
        // While the intake is stuck, or has not finished, nobody knows what is left.
        let unknown = early && left == 0 && (stuck.is_some() || !warnings.is_empty());
        let counts = self.flow.counts(group);
        let views = self.parts.caches.ids().filter_map(|id| self.flow.view(id));
        let failed = views.map(|view| view.failed as u64).sum();
        m::Summary {
            outcome: if unknown { m::Outcome::Pending } else { m::Outcome::of(failed, left) },
            pushed: counts.pushed,
            already_cached: counts.cached,
            upstream: counts.upstream,
            collected: counts.collected,
            bytes: counts.bytes,
            failed_total: failed,
            pending: left,
            flush_ms: millis(since.elapsed()),
            duration_ms: millis(since.elapsed()),
            warnings: stuck.map(str::to_owned).into_iter().chain(warnings).collect(),
            ..m::Summary::default()
        }
    }

    /// Answers a `flush`, with the failed paths that the caller may see. `early`: as for
    /// [`Self::flush_summary`].
    pub(super) fn answer_flush(
        &self,
        (group, peer): (SessionId, Peer),
        since: Instant,
        early: bool,
        warnings: Vec<String>,
        responder: Responder,
    ) {
        let mut summary = self.flush_summary(group, since, early, warnings);
        let forgotten = self.flow.has_forgotten();
        if summary.failed_total == 0 && !forgotten {
            return responder.reply(Reply::Pushed(summary));
        }
        summary.failed = self.failures();
        let (reports, admins) = (self.parts.reports.clone(), self.parts.settings.admins.clone());
        self.parts.blocking.start(move || {
            let fill = |summary: &mut m::Summary| {
                if let Sight::Own(uid) = reports.sight(peer, admins.as_deref()) {
                    summary.failed = Vec::new();
                    summary.failed = reports.failed_of(uid)?;
                }
                if forgotten {
                    summary.failed_total = summary.failed_total.max(reports.ledger().failed()?);
                }
                Ok::<_, LedgerError>(())
            };
            if let Err(error) = fill(&mut summary) {
                summary.warnings.push(format!("not every failed path is counted and listed: {error}"));
            }
            if summary.outcome == m::Outcome::Complete {
                summary.outcome = m::Outcome::of(summary.failed_total, summary.pending);
            }
            responder.reply(Reply::Pushed(summary));
        });
    }
}
