//! Who waits for what, and when each is told.

use std::time::Instant;

use crate::control::messages::Progress;
use crate::daemon::driver::Driver;
use crate::daemon::sessions::session::{Asked, Caller, Waiter};
use crate::flow::Event;
use crate::ledger::SessionState;
use crate::types::{CacheId, SessionId, Wall};

impl Driver {
    /// A group that somebody waits for has nothing unsettled left.
    pub(in crate::daemon) fn quiet(&mut self, group: SessionId) {
        if self.sessions.namings.values().any(|n| n.row == group) {
            // More has been named meanwhile; it is flushed again when that is known.
            return;
        }
        let (ready, rest): (Vec<Waiter>, Vec<Waiter>) =
            std::mem::take(&mut self.sessions.waiters).into_iter().partition(|w| w.group == group);
        self.sessions.waiters = rest;
        let warnings: Vec<_> = ready.iter().map(|w| self.warnings(w.asked)).collect();
        self.close(group);
        for (waiter, warnings) in ready.into_iter().zip(warnings) {
            self.answer_warning(waiter.asked, waiter.responder, waiter.since, false, warnings);
        }
    }

    /// A session has settled: it is closed, once.
    pub(in crate::daemon) fn close(&mut self, row: SessionId) {
        self.step(Event::Forget(row));
        let Some(session) = self.sessions.sessions.remove(&row) else { return };
        let flush_ms = session.ending.map(|t| u64::try_from(t.elapsed().as_millis()).unwrap_or(u64::MAX));
        let state = if session.abandoned { SessionState::Abandoned } else { SessionState::Closed };
        self.ledger.session_state(row, state, Wall::now().0, flush_ms);
        self.windows().forget(row);
        self.log_summary(row, session.id, session.label);
    }

    /// Waiters whose deadline has come are told how far it is.
    pub(in crate::daemon) fn let_go_of_waiters(&mut self) {
        let now = Instant::now();
        let (late, rest): (Vec<Waiter>, Vec<Waiter>) =
            std::mem::take(&mut self.sessions.waiters).into_iter().partition(|w| w.deadline <= now);
        self.sessions.waiters = rest;
        for waiter in late {
            self.answer(waiter.asked, waiter.responder, waiter.since, true);
        }
        let late = self.sessions.namings.values_mut();
        let late: Vec<_> = late.filter_map(|n| n.caller.take_if(|caller| caller.deadline <= now)).collect();
        for caller in late {
            self.answer_unlooked(caller);
        }
    }

    /// A caller whose paths could not even be looked at in its time.
    pub(in crate::daemon) fn answer_unlooked(&mut self, caller: Caller) {
        let why = self.stuck.clone().unwrap_or_else(|| "it is being read".to_owned());
        let text =
            format!("the store could not be looked through in time ({why}): there may be more to push");
        if let Asked::End(row) | Asked::Push(row) = caller.asked
            && let Some(live) = self.sessions.sessions.get_mut(&row)
        {
            live.warn(&self.ledger, text);
            live.unlooked = true;
        }
        self.answer(caller.asked, caller.responder, caller.since, true);
    }

    pub(in crate::daemon) fn report_progress(&mut self) {
        self.sessions.waiters.retain(|w| !w.responder.is_gone());
        let uploading = self.flow.in_flight();
        let bytes_sent = self.counts.iter().map(|c| c.bytes).sum();
        let numbers = 0..u16::try_from(self.caches.len()).unwrap_or(u16::MAX);
        let note = numbers.map(CacheId).find_map(|cache| self.waits_for_client(cache));
        for waiter in &mut self.sessions.waiters {
            let left = u64::from(self.flow.unsettled(waiter.group));
            waiter.total = waiter.total.max(left);
            let session = match &waiter.asked {
                Asked::End(row) => self.sessions.sessions.get(row).map(|s| s.id.clone()),
                Asked::Push(_) | Asked::Flush => None,
            };
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
}
