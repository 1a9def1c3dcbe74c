//! Callers that wait: the decisions say when each is answered ([`crate::flow::Callers`]),
//! and this has it done.

use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::control::messages as m;
use crate::control::messages::{ErrorCode, Progress};
use crate::control::server::Responder;
use crate::daemon::intake::{self, NamedPaths};
use crate::daemon::sessions::{Answer, Asked, Caller, Engines, Naming};
use crate::flow::{BreakerState, Event, Knows, SHORT_WAIT, SessionEvent, Subject};
use crate::ledger::{SessionState, Warnings};
use crate::observe::event;
use crate::types::{CacheId, SessionId, StoreDir, StorePath, Wall, millis};

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

/// What a naming is for.
pub(super) enum Question {
    /// The daemon ends a session: its window closes.
    Take,
    /// The daemon asks again about everything of a session.
    Confirm,
    /// Callers ask.
    Of(Subject<NamedPaths>, Vec<Caller>),
}

impl Driver {
    /// Queues a naming and sends the intake those that it may have. Returns false when too
    /// many namings of the user wait: the callers have been refused. The end of a session
    /// without paths and the daemon's own questions are never refused.
    pub(super) fn begin_naming(&mut self, naming: Naming, cache: CacheId, question: Question) -> bool {
        let Naming { row: session, uid } = naming;
        let (close_window, retry, subject, callers) = match question {
            Question::Take => (true, false, None, Vec::new()),
            Question::Confirm => (false, false, None, Vec::new()),
            Question::Of(subject, callers) => match subject {
                Subject::End(..) => (true, true, Some(subject), callers),
                Subject::Push(_) => (false, true, Some(subject), callers),
                Subject::Flush => (false, false, Some(subject), callers),
            },
        };
        let (paths, needed) = match &subject {
            None => (NamedPaths::default(), true),
            Some(Subject::End(_, paths)) => (paths.clone(), paths.is_empty()),
            Some(Subject::Push(push)) => (push.paths.clone(), false),
            Some(Subject::Flush) => (NamedPaths::default(), false),
        };
        let token = self.parts.sessions.add_naming(naming);
        // A group that is no session is one of a `flush`.
        let everything = self.parts.sessions.get(session).is_none();
        let naming = intake::Naming { token, session, close_window, cache, paths, retry, everything };
        if !self.parts.sessions.queue_naming(naming, subject, needed) {
            let message = format!("uid {uid} names too much at once: try again in a moment");
            for caller in callers {
                caller.responder.refuse(ErrorCode::Busy, message.clone());
            }
            return false;
        }
        for caller in callers {
            self.parts.sessions.wait(token, session, caller);
        }
        self.send_namings();
        true
    }

    /// Has a caller wait for a naming of an equal request.
    pub(super) fn join(&mut self, (token, group): (u64, SessionId), caller: Caller) {
        self.parts.sessions.wait(token, group, caller);
        if self.parts.sessions.get(group).is_some() {
            self.session_step(group, SessionEvent::Join);
        } else {
            self.flush_step(group, SessionEvent::Join);
        }
    }

    /// Sends the intake the namings that it may have.
    pub(super) fn send_namings(&mut self) {
        let intake = &self.parts.intake;
        self.parts.sessions.send_namings(Instant::now(), |naming| intake.name(naming));
    }

    /// The intake has finished a naming: from now on its callers wait for pushes.
    pub(super) fn named(&mut self, token: u64, invalid: &[StorePath]) {
        let Some(Naming { row, .. }) = self.parts.sessions.finish_naming(token) else { return };
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
        let now = self.now();
        let callers = self.parts.sessions.callers();
        let asked = callers.waits_in(token);
        let answered = callers.named(token, now);
        if asked && self.parts.sessions.get(row).is_none() {
            self.step(Event::WantAll(row));
        }
        if asked && self.parts.sessions.callers().waits_for(row) {
            // At once, because it carries the session's id: a caller that loses its
            // connection asks again by that id.
            self.report_progress();
        }
        // The session may be closed below, and its warnings with it.
        let answered: Vec<_> = answered
            .into_iter()
            .map(|(knows, caller)| (knows, self.warnings(caller.asked), caller))
            .collect();
        if self.parts.sessions.get(row).is_some() {
            self.session_step(row, SessionEvent::Named);
        } else {
            self.flush_step(row, SessionEvent::Named);
        }
        for (knows, warnings, caller) in answered {
            self.answer(knows, caller, warnings);
        }
    }

    /// A group that somebody waits for has no unsettled push left.
    pub(super) fn quiet(&mut self, group: SessionId) {
        if let Some(session) = self.parts.sessions.get(group) {
            // While more is being named, it is flushed again when that is known.
            let uploaded = session.life.is_settling() && self.flow.take_uploaded(group);
            return self.session_step(group, SessionEvent::Quiet { uploaded });
        }
        self.flush_quiet(group);
    }

    /// Closes a session and answers the callers that wait for it.
    pub(super) fn close(&mut self, row: SessionId, abandoned: bool) {
        let now = self.now();
        let answered = self.parts.sessions.callers().settled(row, now);
        let answered: Vec<_> = answered
            .into_iter()
            .map(|(knows, caller)| (knows, self.warnings(caller.asked), caller))
            .collect();
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
        for (knows, warnings, caller) in answered {
            self.answer(knows, caller, warnings);
        }
    }

    /// Answers the callers whose deadline has come.
    pub(super) fn answer_late_callers(&mut self) {
        let now = self.now();
        let answered = self.parts.sessions.callers().tick(now);
        self.answer_all(answered);
    }

    /// Answers callers, with the warnings of their sessions.
    pub(super) fn answer_all(&mut self, answered: Vec<(Knows, Caller)>) {
        for (knows, caller) in answered {
            let warnings = self.warnings(caller.asked);
            self.answer(knows, caller, warnings);
        }
    }

    /// Answers a caller.
    pub(super) fn answer(&mut self, knows: Knows, caller: Caller, mut warnings: Warnings) {
        let Caller { asked, responder, since, .. } = caller;
        let row = asked.session();
        // What is only remembered as confirmed counts as pending in an early answer.
        if let Some(row) = row.filter(|_| knows != Knows::All) {
            self.step(Event::Unconfirmed(row));
        }
        match knows {
            Knows::All | Knows::TakenIn => {}
            Knows::Settled => warnings.texts.extend(row.and_then(|row| self.waits_of(row))),
            Knows::Away => {
                warnings.texts.extend(row.and_then(|row| self.away_for(row)).map(|why| {
                    format!(
                        "{why}; the wait ended after {} because nothing can be uploaded (--timeout waits longer)",
                        span(SHORT_WAIT)
                    )
                }));
                warnings.texts.extend(row.and_then(|row| self.waits_of(row)));
            }
            Knows::NotAll => {
                let why = self.parts.intake.stuck().unwrap_or("it is being read");
                let text = format!(
                    "the store could not be looked through in time ({why}): there may be more to push"
                );
                match row.and_then(|row| self.parts.sessions.get_mut(row)) {
                    Some(session) => {
                        session.warn(&self.parts.ledger, text);
                        session.incomplete = true;
                        warnings = session.warnings.clone();
                    }
                    None => warnings.texts.push(text),
                }
                warnings.texts.extend(row.and_then(|row| self.waits_of(row)));
            }
        }
        self.answer_with(asked, responder, since, knows, warnings);
    }

    /// Why a session's pushes wait for the attic client, if they do.
    fn waits_of(&self, row: SessionId) -> Option<String> {
        let cache = self.parts.sessions.get(row).and_then(|session| session.cache);
        let why = cache.filter(|_| self.flow.unsettled(row) > 0).and_then(|c| self.waits_for_client(c))?;
        Some(format!("{why}; what is pending is pushed as soon as it is there"))
    }

    /// Why the cache of a session takes no uploads. `None`: it takes them.
    fn away_for(&self, row: SessionId) -> Option<String> {
        self.parts.sessions.get(row).and_then(|session| session.cache).and_then(|cache| self.away(cache))
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
        let now = self.now();
        let mut groups: Vec<SessionId> =
            self.parts.sessions.callers().settling().map(|(group, _)| group).collect();
        groups.retain(|group| self.away_for(*group).is_some());
        let answered = self.parts.sessions.callers().away(now, |group| groups.contains(&group));
        self.answer_all(answered);
    }

    /// Reports to each caller that waits how far its pushes are.
    pub(super) fn report_progress(&mut self) {
        self.parts.sessions.callers().forget(|caller| caller.responder.is_gone());
        self.answer_impatient();
        let callers = self.parts.sessions.callers().settling();
        let waiters: Vec<_> = callers.map(|(group, caller)| (group, caller.asked)).collect();
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
                    Asked::Push(_) | Asked::Flush(..) => None,
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
        for ((_, caller), report) in self.parts.sessions.callers().settling().zip(reports) {
            let left = report.total;
            caller.total = caller.total.max(left);
            caller.responder.progress(Progress {
                settled: caller.total - left,
                total: caller.total,
                ..report
            });
        }
    }

    /// The warnings for a caller's job. To be taken before the session is closed.
    fn warnings(&self, asked: Asked) -> Warnings {
        let session = asked.session().and_then(|row| self.parts.sessions.get(row));
        session.map(|s| s.warnings.clone()).unwrap_or_default()
    }

    /// Answers a caller.
    fn answer_with(
        &self,
        asked: Asked,
        responder: Responder,
        since: Instant,
        knows: Knows,
        warnings: Warnings,
    ) {
        let early = knows != Knows::All;
        let (row, is_push) = match asked {
            Asked::End(row) => (row, false),
            Asked::Push(row) => (row, true),
            Asked::Flush(group, peer) => {
                return self.answer_flush((group, peer), since, early, warnings.texts, responder);
            }
        };
        let session = self.parts.sessions.get(row);
        let incomplete = session.is_some_and(|s| s.incomplete);
        // After an upload the cache is asked once more about everything, as soon as the intake
        // comes to it; not while the daemon stops, which waits for uploads only.
        let another_round = matches!(knows, Knows::Settled | Knows::Away)
            && !self.stopping.has_begun()
            && session.is_some_and(|session| !session.life.is_settling());
        let unsettled = early && (another_round || self.flow.unsettled(row) > 0);
        let answer = Answer { row, is_push, incomplete, unsettled, waited: since.elapsed(), warnings };
        self.parts.reports.answer(answer, self.engines(), responder);
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
