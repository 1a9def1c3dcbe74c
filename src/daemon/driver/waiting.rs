//! Callers that wait: for the intake to take in what they named, then for their pushes
//! to be settled; and when each is answered.

use std::time::Instant;

use super::Driver;
use crate::control::messages as m;
use crate::control::messages::{ErrorCode, Progress, Reply};
use crate::control::server::Responder;
use crate::daemon::intake;
use crate::daemon::sessions::{Answer, Asked, Caller, Engines, Naming, Waiter};
use crate::flow::Event;
use crate::ledger::SessionState;
use crate::observe::event;
use crate::types::{CacheId, SessionId, StorePath, Wall, millis};

impl Driver {
    /// Has the intake take in new rows, and the named paths with their closures.
    pub(super) fn name_paths(
        &mut self,
        row: SessionId,
        cache: CacheId,
        paths: Vec<StorePath>,
        retry: bool,
        caller: Caller,
    ) {
        let close_window = matches!(caller.asked, Asked::End(_));
        let token = self.parts.sessions.add_naming(Naming { row, caller: Some(caller) });
        let naming = intake::Naming { token, session: row, close_window, cache, paths, retry };
        if !self.parts.intake.ask(intake::Work::Name(naming))
            && let Some(Naming { caller: Some(caller), .. }) = self.parts.sessions.take_naming(token)
        {
            caller.responder.refuse(ErrorCode::Busy, "too much is asked at once: try again in a moment");
        }
    }

    /// The intake has finished a naming: from now on its caller waits for pushes.
    pub(super) fn named(&mut self, token: u64, invalid: &[StorePath]) {
        let Some(Naming { row, caller }) = self.parts.sessions.take_naming(token) else { return };
        if let Some(session) = self.parts.sessions.get_mut(row) {
            session.incomplete = false;
            for path in invalid {
                event!(
                    NAMED_INVALID,
                    session = session.id,
                    label = session.label,
                    store_path = self.parts.transfers.store().dir().full(path),
                    "named, but not valid in the store"
                );
                let text = format!("{path} is not valid in the store: it was not pushed");
                session.warn(&self.parts.ledger, text);
            }
        }
        if matches!(caller, Some(Caller { asked: Asked::Flush, .. })) {
            self.step(Event::WantAll(row));
        }
        let Some(Caller { asked, responder, wait, since, deadline }) = caller else {
            return self.step(Event::Flush(row));
        };
        if wait && !self.stopping.has_begun() {
            let total = u64::from(self.flow.unsettled(row));
            let waiter = Waiter { group: row, asked, responder, since, deadline, total };
            self.parts.sessions.add_waiter(waiter);
            // At once, because it carries the session's id: a caller that loses its
            // connection asks again by that id.
            self.report_progress();
            self.step(Event::Flush(row));
        } else {
            let warnings = self.warnings(asked);
            self.step(Event::Flush(row));
            self.answer_with(asked, responder, since, true, warnings);
        }
    }

    /// A group that somebody waits for has no unsettled push left.
    pub(super) fn quiet(&mut self, group: SessionId) {
        if self.parts.sessions.has_naming(group) {
            // More has been named. The group is flushed again when that is known.
            return;
        }
        let ready = self.parts.sessions.take_waiters(|waiter| waiter.group == group);
        let warnings: Vec<_> = ready.iter().map(|w| self.warnings(w.asked)).collect();
        self.close(group);
        for (waiter, warnings) in ready.into_iter().zip(warnings) {
            self.answer_with(waiter.asked, waiter.responder, waiter.since, false, warnings);
        }
    }

    /// Closes a session, if there is one with this number.
    pub(super) fn close(&mut self, row: SessionId) {
        self.step(Event::Forget(row));
        let Some(session) = self.parts.sessions.remove(row) else { return };
        let flush_ms = session.draining_since.map(|since| millis(since.elapsed()));
        let state = if session.abandoned { SessionState::Abandoned } else { SessionState::Closed };
        self.parts.ledger.session_state(row, state, Wall::now().0, flush_ms);
        self.parts.intake.forget_window(row);
        self.parts.reports.log_summary(row, session.id, session.label);
    }

    /// Answers the callers whose deadline has come.
    pub(super) fn answer_late_callers(&mut self) {
        let now = Instant::now();
        self.answer_waiters(|waiter| waiter.deadline <= now);
        self.answer_callers(|caller| caller.deadline <= now);
    }

    /// Answers the waiters where `which` is true with the present state.
    pub(super) fn answer_waiters(&mut self, which: impl Fn(&Waiter) -> bool) {
        for waiter in self.parts.sessions.take_waiters(which) {
            self.answer(waiter.asked, waiter.responder, waiter.since);
        }
    }

    /// Answers the callers where `which` is true, although the intake has not taken
    /// in yet what they named.
    pub(super) fn answer_callers(&mut self, which: impl Fn(&Caller) -> bool) {
        for caller in self.parts.sessions.take_callers(which) {
            let why = self.parts.intake.stuck().unwrap_or("it is being read");
            let text =
                format!("the store could not be looked through in time ({why}): there may be more to push");
            if let Some(session) = caller.asked.session().and_then(|row| self.parts.sessions.get_mut(row)) {
                session.warn(&self.parts.ledger, text);
                session.incomplete = true;
            }
            self.answer(caller.asked, caller.responder, caller.since);
        }
    }

    /// Reports to each caller that waits how far its pushes are.
    pub(super) fn report_progress(&mut self) {
        let uploading = self.flow.in_flight();
        let bytes_sent = self.parts.caches.iter().map(|cache| cache.tally.counts.bytes).sum();
        let note = self.parts.caches.ids().find_map(|cache| self.waits_for_client(cache));
        let mut ids = Vec::new();
        for waiter in self.parts.sessions.waiters() {
            let left = u64::from(self.flow.unsettled(waiter.group));
            waiter.total = waiter.total.max(left);
            ids.push((waiter.asked, left));
        }
        let ids: Vec<_> = ids
            .into_iter()
            .map(|(asked, left)| match asked {
                Asked::End(row) => (left, self.parts.sessions.get(row).map(|s| s.id.clone())),
                Asked::Push(_) | Asked::Flush => (left, None),
            })
            .collect();
        for (waiter, (left, session)) in self.parts.sessions.waiters().zip(ids) {
            waiter.responder.progress(Progress {
                settled: waiter.total - left,
                total: waiter.total,
                uploading,
                bytes_sent,
                note: note.clone(),
                session,
            });
        }
    }

    /// The warnings for a caller's job. To be taken before the session is closed.
    fn warnings(&self, asked: Asked) -> Vec<String> {
        let session = asked.session().and_then(|row| self.parts.sessions.get(row));
        session.map(|s| s.warnings.clone()).unwrap_or_default()
    }

    /// Answers a caller before everything is settled.
    fn answer(&self, asked: Asked, responder: Responder, since: Instant) {
        let mut warnings = self.warnings(asked);
        if let Some(row) = asked.session() {
            let cache = self.parts.sessions.get(row).and_then(|session| session.cache);
            let waits = cache.filter(|_| self.flow.unsettled(row) > 0).and_then(|c| self.waits_for_client(c));
            warnings
                .extend(waits.map(|why| format!("{why}; what is pending is pushed as soon as it is there")));
        }
        self.answer_with(asked, responder, since, true, warnings);
    }

    /// Answers a caller. `early`: not everything is settled, or nobody knows.
    fn answer_with(
        &self,
        asked: Asked,
        responder: Responder,
        since: Instant,
        early: bool,
        warnings: Vec<String>,
    ) {
        let (row, is_push) = match asked {
            Asked::End(row) => (row, false),
            Asked::Push(row) => (row, true),
            Asked::Flush => return responder.reply(Reply::Pushed(self.flush_summary(since, early))),
        };
        let incomplete = self.parts.sessions.get(row).is_some_and(|s| s.incomplete);
        let answer = Answer { row, is_push, incomplete, waited: since.elapsed(), warnings };
        self.parts.reports.answer(answer, self.engines(), responder);
    }

    fn flush_summary(&self, since: Instant, early: bool) -> m::Summary {
        let left = if early { self.pending() } else { 0 };
        let stuck = self.parts.intake.stuck().filter(|_| early);
        // While the intake is stuck nobody knows what is left.
        let unknown = left == 0 && stuck.is_some();
        m::Summary {
            outcome: if unknown { m::Outcome::Pending } else { m::Outcome::of(0, left) },
            pending: left,
            flush_ms: millis(since.elapsed()),
            duration_ms: millis(since.elapsed()),
            warnings: stuck.map(str::to_owned).into_iter().collect(),
            ..m::Summary::default()
        }
    }

    /// The number of unsettled pushes, those that are uploading included.
    pub(super) fn pending(&self) -> u64 {
        let views = self.parts.caches.ids().filter_map(|id| self.flow.view(id));
        views.map(|view| view.pending as u64).sum()
    }

    /// The engine of each cache, for summaries.
    pub(super) fn engines(&self) -> Engines {
        let view = self.parts.client.view();
        let since = view.record.filter(|_| view.program.is_some()).map(|record| record.first);
        Engines::new(&self.parts.settings, since)
    }
}
