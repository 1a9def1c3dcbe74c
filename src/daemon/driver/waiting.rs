//! Callers that wait: for the intake to take in what they named, then for their pushes
//! to be settled; and when each is answered.

use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::control::messages as m;
use crate::control::messages::{ErrorCode, Progress, Reply};
use crate::control::server::Responder;
use crate::daemon::intake;
use crate::daemon::sessions::{Answer, Asked, Caller, Engines, Naming, Waiter};
use crate::flow::{BreakerState, Event, SessionEvent, TUNING};
use crate::ledger::{SessionState, Warnings};
use crate::observe::event;
use crate::types::{CacheId, SessionId, StoreDir, StorePath, Wall, millis};

/// How long a caller waits that has not chosen a timeout, while its cache is away.
const SHORT_WAIT: Duration = Duration::from_secs(10);
/// How long an upload runs before progress names it.
const SLOW: Duration = Duration::from_secs(5);
/// How many of the paths that are not valid a warning names.
const NAMED: usize = 3;

/// A duration for people, in its largest unit.
fn span(duration: Duration) -> String {
    match duration.as_secs() {
        seconds @ 0..=119 => format!("{seconds} s"),
        seconds @ 120..=7199 => format!("{} min", seconds / 60),
        seconds => format!("{} h", seconds / 3600),
    }
}

/// The warning of named paths that are not valid; none when all are.
fn not_valid(invalid: &[StorePath], store_dir: &StoreDir) -> Option<String> {
    let (first, rest) = invalid.split_first()?;
    if rest.is_empty() {
        return Some(format!("{} is not valid in the store: it was not pushed", store_dir.full(first)));
    }
    let names: Vec<String> = invalid.iter().take(NAMED).map(|path| store_dir.full(path)).collect();
    let more = if invalid.len() > NAMED { ", …" } else { "" };
    let count = invalid.len();
    Some(format!("{count} paths are not valid in the store and were not pushed: {}{more}", names.join(", ")))
}

impl Driver {
    /// Has the intake take in new rows, and the named paths with their closures.
    /// Returns false when too many namings of the user wait: the caller has been
    /// refused. The end of a session without paths is never refused.
    pub(super) fn name_paths(
        &mut self,
        row: SessionId,
        uid: u32,
        cache: CacheId,
        paths: Vec<StorePath>,
        retry: bool,
        caller: Caller,
    ) -> bool {
        let close_window = matches!(caller.asked, Asked::End(_));
        if let Some(session) = self.parts.sessions.get_mut(row) {
            session.named.extend(paths.iter().cloned());
            session.named.sort_unstable();
            session.named.dedup();
        }
        self.begin_naming(Naming { row, uid, callers: vec![caller] }, close_window, cache, paths, retry)
    }

    /// Queues a naming and sends the intake those that it may have.
    pub(super) fn begin_naming(
        &mut self,
        naming: Naming,
        close_window: bool,
        cache: CacheId,
        paths: Vec<StorePath>,
        retry: bool,
    ) -> bool {
        let needed = naming.callers.is_empty() || (close_window && paths.is_empty());
        let (session, uid) = (naming.row, naming.uid);
        let token = self.parts.sessions.add_naming(naming);
        // A group that is no session is one of a `flush`.
        let everything = self.parts.sessions.get(session).is_none();
        let naming = intake::Naming { token, session, close_window, cache, paths, retry, everything };
        if !self.parts.sessions.queue_naming(naming, needed) {
            let dropped = self.parts.sessions.drop_naming(token);
            for caller in dropped.into_iter().flat_map(|naming| naming.callers) {
                let message = format!("uid {uid} names too much at once: try again in a moment");
                caller.responder.refuse(ErrorCode::Busy, message);
            }
            return false;
        }
        self.send_namings();
        true
    }

    /// Sends the intake the namings that it may have.
    pub(super) fn send_namings(&mut self) {
        let intake = &self.parts.intake;
        self.parts.sessions.send_namings(Instant::now(), |naming| intake.name(naming));
    }

    /// The intake has finished a naming: from now on its caller waits for pushes.
    pub(super) fn named(&mut self, token: u64, invalid: &[StorePath]) {
        let Some(Naming { row, callers, .. }) = self.parts.sessions.finish_naming(token) else { return };
        self.send_namings();
        if let Some(session) = self.parts.sessions.get_mut(row) {
            session.incomplete = false;
            if let Some(text) = not_valid(invalid, self.parts.transfers.store().dir()) {
                event!(
                    NAMED_INVALID,
                    session = session.id,
                    label = session.label,
                    store_path = self.parts.transfers.store().dir().full(&invalid[0]),
                    "session {}: {text}",
                    session.id
                );
                session.warn_invalid(&self.parts.ledger, invalid.len(), text);
            }
        }
        if callers.iter().any(|caller| matches!(caller.asked, Asked::Flush)) {
            self.step(Event::WantAll(row));
        }
        let running = !self.stopping.has_begun();
        let (waiting, others): (Vec<_>, Vec<_>) =
            callers.into_iter().partition(|caller| caller.wait && running);
        let total = u64::from(self.flow.unsettled(row));
        let waits = !waiting.is_empty();
        for Caller { asked, responder, since, deadline, patient, .. } in waiting {
            let waiter = Waiter { group: row, asked, responder, since, deadline, patient, total };
            self.parts.sessions.add_waiter(waiter);
        }
        if waits {
            // At once, because it carries the session's id: a caller that loses its
            // connection asks again by that id.
            self.report_progress();
        }
        let others: Vec<_> = others.into_iter().map(|other| (self.warnings(other.asked), other)).collect();
        self.flush_named(row);
        for (warnings, Caller { asked, responder, since, .. }) in others {
            self.step(Event::Unconfirmed(row));
            self.answer_with(asked, responder, since, true, warnings);
        }
    }

    /// A naming of a session is finished: its pushes go first once all are. A group
    /// that is no session has one naming.
    fn flush_named(&mut self, row: SessionId) {
        if self.parts.sessions.get(row).is_some() {
            self.session_step(row, SessionEvent::Named);
        } else {
            self.step(Event::Flush(row));
        }
    }

    /// A group that somebody waits for has no unsettled push left.
    pub(super) fn quiet(&mut self, group: SessionId) {
        if let Some(session) = self.parts.sessions.get(group) {
            // While more is being named, it is flushed again when that is known.
            let uploaded = session.life.is_settling() && self.flow.take_uploaded(group);
            return self.session_step(group, SessionEvent::Quiet { uploaded });
        }
        if self.flush_again(group) {
            return;
        }
        let ready = self.parts.sessions.take_waiters(|waiter| waiter.group == group);
        self.step(Event::Forget(group));
        for waiter in ready {
            self.answer_with(waiter.asked, waiter.responder, waiter.since, false, Warnings::default());
        }
    }

    /// Has the caches asked once more for a `flush` if something was uploaded since they
    /// were asked: an upload takes its time, and the answer is about this moment. What
    /// such a round uploads was deleted meanwhile, so there are at most as many rounds as
    /// for a session. Returns false when the callers can be answered.
    fn flush_again(&mut self, group: SessionId) -> bool {
        let uploaded = self.flow.take_uploaded(group);
        let waits = self.parts.sessions.waiters().any(|waiter| waiter.group == group);
        let rounds = self.flush_rounds.get(&group).map_or(1, |rounds| rounds + 1);
        if !(uploaded && waits) || rounds >= TUNING.rounds {
            self.flush_rounds.remove(&group);
            return false;
        }
        self.flush_rounds.insert(group, rounds);
        let naming = Naming { row: group, uid: 0, callers: Vec::new() };
        self.begin_naming(naming, false, self.default_cache(), Vec::new(), false)
    }

    /// Closes a session and answers the callers that wait for it.
    pub(super) fn close(&mut self, row: SessionId, abandoned: bool) {
        let ready = self.parts.sessions.take_waiters(|waiter| waiter.group == row);
        let warnings: Vec<_> = ready.iter().map(|w| self.warnings(w.asked)).collect();
        self.step(Event::Forget(row));
        let Some(session) = self.parts.sessions.remove(row) else { return };
        let flush_ms = session.draining_since.map(|since| millis(since.elapsed()));
        let state = if abandoned { SessionState::Abandoned } else { SessionState::Closed };
        self.parts.ledger.session_state(row, state, Wall::now().0, flush_ms);
        self.parts.intake.forget_window(row, &self.parts.blocking);
        if let Some(since) = session.draining_since {
            self.parts.metrics.closed(since.elapsed());
        }
        self.parts.pushes.log_session(&session.id);
        self.parts.reports.log_summary(row, session.id, session.label);
        for (waiter, warnings) in ready.into_iter().zip(warnings) {
            self.answer_with(waiter.asked, waiter.responder, waiter.since, false, warnings);
        }
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
            if waiter.asked.session().is_some() {
                self.step(Event::Unconfirmed(waiter.group));
            }
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
            let Some(row) = caller.asked.session() else {
                let warnings = Warnings { texts: vec![text], invalid: 0 };
                self.answer_with(caller.asked, caller.responder, caller.since, true, warnings);
                continue;
            };
            self.step(Event::Unconfirmed(row));
            if let Some(session) = self.parts.sessions.get_mut(row) {
                session.warn(&self.parts.ledger, text);
                session.incomplete = true;
            }
            self.answer(caller.asked, caller.responder, caller.since);
        }
    }

    /// Why nothing that a caller waits for can be uploaded now, if nothing can.
    fn holds(&self, asked: Asked) -> Option<String> {
        let why = |cache| self.away(cache).or_else(|| self.waits_for_client(cache));
        match asked.session() {
            Some(row) => self.parts.sessions.get(row).and_then(|session| session.cache).and_then(why),
            None => self.parts.caches.ids().find_map(why),
        }
    }

    /// The last error of a cache. It may come from the upload of any user, so the names of
    /// store paths are left out of it.
    pub(super) fn trouble(&self, id: CacheId) -> Option<String> {
        let store_dir = self.parts.transfers.store().dir().as_str();
        let words = self.parts.caches[id].tally.trouble.as_deref()?.split(' ');
        let words = words.map(|word| if word.starts_with(store_dir) { "a path" } else { word });
        Some(words.collect::<Vec<_>>().join(" "))
    }

    /// Why a cache takes no uploads, and since when. `None`: it takes them.
    pub(super) fn away(&self, id: CacheId) -> Option<String> {
        let what = match self.flow.view(id)?.state {
            BreakerState::Online => return None,
            BreakerState::Offline => "has not answered",
            BreakerState::Refused => "has refused the token",
        };
        let tally = &self.parts.caches[id].tally;
        let since =
            tally.away_since.map(|since| format!(" for {}", span(since.elapsed()))).unwrap_or_default();
        let reason = self.trouble(id).map(|reason| format!(": {reason}")).unwrap_or_default();
        Some(format!("cache {} {what}{since}{reason}", self.name(id)))
    }

    /// Answers the callers whose cache is away and who have not chosen how long they
    /// wait: nothing can be uploaded for them now.
    fn answer_impatient(&mut self) {
        let late = self.parts.sessions.waiters().filter(|w| !w.patient && w.since.elapsed() >= SHORT_WAIT);
        let late: Vec<_> = late.map(|w| (w.group, w.asked)).collect();
        for (group, asked) in late {
            let Some(row) = asked.session() else { continue };
            let cache = self.parts.sessions.get(row).and_then(|session| session.cache);
            let Some(why) = cache.and_then(|cache| self.away(cache)) else { continue };
            let text = format!(
                "{why}; the wait ended after {} because nothing can be uploaded (--timeout waits longer)",
                span(SHORT_WAIT)
            );
            if let Some(session) = self.parts.sessions.get_mut(row) {
                session.warnings.texts.push(text.clone());
            }
            self.answer_waiters(|waiter| waiter.group == group && !waiter.patient);
            // The reason is for this answer only: later the cache may be back.
            if let Some(session) = self.parts.sessions.get_mut(row) {
                session.warnings.texts.retain(|warning| *warning != text);
            }
        }
    }

    /// Reports to each caller that waits how far its pushes are.
    pub(super) fn report_progress(&mut self) {
        self.parts.sessions.forget_gone_waiters();
        self.answer_impatient();
        let waiters = self.parts.sessions.waiters().map(|waiter| (waiter.group, waiter.asked));
        let waiters: Vec<_> = waiters.collect();
        let running = self.parts.transfers.running();
        let reports: Vec<Progress> = waiters
            .into_iter()
            .map(|(group, asked)| {
                let of_group = self.flow.progress(group);
                let mine = || of_group.uploading.iter().filter_map(|push| Some((*push, running.get(push)?)));
                let under_way: u64 = mine().map(|(_, running)| running.sent()).sum();
                let slow = mine().filter(|(_, running)| running.elapsed() >= SLOW);
                let name = |cache| self.name(cache).to_owned();
                let mut slow: Vec<_> = slow
                    .filter_map(|(push, running)| self.parts.pushes.upload_status(push, running, name))
                    .collect();
                slow.sort_by_key(|upload| std::cmp::Reverse(upload.running_ms));
                slow.truncate(m::MAX_SLOW as usize);
                let session = match asked {
                    Asked::End(row) => self.parts.sessions.get(row).map(|session| session.id.clone()),
                    Asked::Push(_) | Asked::Flush => None,
                };
                Progress {
                    settled: 0,
                    total: u64::from(self.flow.unsettled(group)),
                    uploading: u32::try_from(of_group.uploading.len()).unwrap_or(u32::MAX),
                    bytes_sent: of_group.bytes + under_way,
                    bytes_left: of_group.left.saturating_sub(under_way),
                    slow,
                    note: self.holds(asked),
                    session,
                }
            })
            .collect();
        for (waiter, report) in self.parts.sessions.waiters().zip(reports) {
            let left = report.total;
            waiter.total = waiter.total.max(left);
            waiter.responder.progress(Progress {
                settled: waiter.total - left,
                total: waiter.total,
                ..report
            });
        }
    }

    /// The warnings for a caller's job. To be taken before the session is closed.
    fn warnings(&self, asked: Asked) -> Warnings {
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
                .texts
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
        warnings: Warnings,
    ) {
        let (row, is_push) = match asked {
            Asked::End(row) => (row, false),
            Asked::Push(row) => (row, true),
            Asked::Flush => {
                return responder.reply(Reply::Pushed(self.flush_summary(since, early, warnings.texts)));
            }
        };
        let incomplete = self.parts.sessions.get(row).is_some_and(|s| s.incomplete);
        let unsettled = early && self.flow.unsettled(row) > 0;
        let answer = Answer { row, is_push, incomplete, unsettled, waited: since.elapsed(), warnings };
        self.parts.reports.answer(answer, self.engines(), responder);
    }

    fn flush_summary(&self, since: Instant, early: bool, warnings: Vec<String>) -> m::Summary {
        let left = if early { self.pending() } else { 0 };
        let stuck = self.parts.intake.stuck().filter(|_| early);
        // While the intake is stuck, or has not finished, nobody knows what is left.
        let unknown = left == 0 && (stuck.is_some() || !warnings.is_empty());
        m::Summary {
            outcome: if unknown { m::Outcome::Pending } else { m::Outcome::of(0, left) },
            pending: left,
            flush_ms: millis(since.elapsed()),
            duration_ms: millis(since.elapsed()),
            warnings: stuck.map(str::to_owned).into_iter().chain(warnings).collect(),
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
