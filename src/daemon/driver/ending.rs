//! Sessions that end: because their job ends them, ends them again, or has ended itself. The
//! decisions say what follows ([`crate::flow`]), and this has it done.

use tokio::time::Instant;

use super::requests::STOPPING;
use super::waiting::Question;
use super::{Done, Driver};
use crate::control::messages::ErrorCode;
use crate::control::server::Peer;
use crate::daemon::intake::NamedPaths;
use crate::daemon::sessions::{self, Answer, Asked, Caller, Found, Name, Naming, Restored, Session, Watch};
use crate::flow::{
    Ended, Event, Meant, Moment, NoSession, Otherwise, Record, Resume, Return, SessionAction, SessionEvent,
    Target, meant, returns,
};
use crate::ledger::LedgerError;
use crate::observe::event;
use crate::types::{CacheId, SessionId, Wall};

/// A look into the ledger for a session that is not live, for a caller that ends it.
pub(super) struct LookedUp {
    asked: LateEnd,
    found: Result<Option<Found>, LedgerError>,
}

/// The end of a session that is not live.
struct LateEnd {
    peer: Peer,
    name: Name,
    otherwise: Otherwise,
    /// The ledger is read for the second time.
    again: bool,
    paths: NamedPaths,
    caller: Caller<()>,
}

/// Why there is no session to end, in words.
fn no_session(why: NoSession, name: Option<&Name>) -> (ErrorCode, String) {
    let message = match (why, name) {
        (NoSession::Unknown, Some(Name::Id(id) | Name::Job(id))) => {
            format!("there is no session {id:?} (`flywheelctl session list --all` shows them)")
        }
        (NoSession::Unknown, None) => "there is no such session".to_owned(),
        (NoSession::AnotherUsers, _) => {
            return (ErrorCode::Denied, "the session belongs to another user".to_owned());
        }
        (NoSession::NoneOpen, _) => "you have no open session: `flywheelctl session start` opens one".to_owned(),
        (NoSession::SeveralOpen, _) => {
            "you have several open sessions: name one, or set FLYWHEEL_SESSION (`flywheelctl session list` shows them)"
                .to_owned()
        }
        (NoSession::SeveralOfJob, _) => {
            "your CI job has several open sessions: name one (`flywheelctl session list` shows them)".to_owned()
        }
    };
    (ErrorCode::NotFound, message)
}

impl Driver {
    pub(super) fn session_end(
        &mut self,
        peer: Peer,
        id: Option<&str>,
        ci_job: Option<&str>,
        push: &[String],
        caller: Caller<()>,
    ) {
        let paths = match self.parse_paths(push) {
            Ok(paths) => NamedPaths::from(paths),
            Err(message) => return caller.responder.refuse(ErrorCode::BadRequest, message),
        };
        let sessions = &self.parts.sessions;
        let target = match id {
            Some(id) => Target::Id(sessions.by_id(id).map(|one| (one.row, self.may(peer, one.uid)))),
            None => sessions.unnamed(peer.uid, ci_job),
        };
        let name = id.map(|id| Name::Id(id.to_owned())).or(ci_job.map(|key| Name::Job(key.to_owned())));
        match (meant(target), name) {
            (Meant::Live(row), _) => self.end_live(row, paths, caller),
            (Meant::Recorded(otherwise), Some(name)) => {
                self.look_up(LateEnd { peer, name, otherwise, again: false, paths, caller });
            }
            (Meant::Recorded(Otherwise::End(row)), None) => self.end_live(row, paths, caller),
            (Meant::Recorded(Otherwise::Refuse(why)) | Meant::Refused(why), name) => {
                let (code, message) = no_session(why, name.as_ref());
                caller.responder.refuse(code, message);
            }
        }
    }

    /// Ends a live session, which the caller may end.
    fn end_live(&mut self, row: SessionId, paths: NamedPaths, caller: Caller<()>) {
        let Some(found) = self.parts.sessions.get(row) else {
            let (code, message) = no_session(NoSession::NoneOpen, None);
            return caller.responder.refuse(code, message);
        };
        let (uid, subject, cache) = (found.uid, found.end_subject(paths), found.cache);
        let caller = caller.about(Asked::End(row));
        if let Some(equal) = self.parts.sessions.equal_naming(uid, &subject) {
            return self.join(equal, caller);
        }
        // Queued first: a refusal changes nothing.
        let cache = cache.unwrap_or(self.default_cache());
        if self.begin_naming(Naming { row, uid }, cache, Question::Of(subject, vec![caller])) {
            self.session_step(row, SessionEvent::End);
        }
    }

    /// Has a session that is not live looked up elsewhere; [`Self::looked_up`] continues. It
    /// was closed, by this run of the daemon or an earlier one.
    fn look_up(&mut self, asked: LateEnd) {
        let reports = self.parts.reports.clone();
        let (routes, names) = (self.routes(), self.parts.caches.names());
        let look = move || {
            let found = sessions::lookup(&reports, asked.peer.uid, &asked.name, &asked.paths, |info| {
                let cache = names.iter().position(|name| *name == info.new.cache)?;
                let cache = CacheId(u16::try_from(cache).ok()?);
                routes.may_continue((info.new.uid, info.new.gid), info.new.label.as_deref(), cache).err()
            });
            Done::LookedUp(Box::new(LookedUp { asked, found }))
        };
        self.elsewhere(look, Done::Lost);
    }

    pub(super) fn looked_up(&mut self, LookedUp { asked, found }: LookedUp) {
        let found = match found {
            Ok(found) => found,
            Err(error) => {
                return asked.caller.responder.refuse(ErrorCode::Internal, format!("the ledger: {error}"));
            }
        };
        let record = found.as_ref().map_or(Record::None, |found| found.record);
        let live = found.as_ref().is_some_and(|found| self.parts.sessions.get(found.info.row).is_some());
        let moment = Moment { live, again: asked.again, stopping: self.stopping.has_begun() };
        let LateEnd { caller, paths, .. } = asked;
        match (returns(record, moment), found) {
            (Return::Stopping, _) => caller.responder.refuse(ErrorCode::Draining, STOPPING),
            (Return::LookAgain, _) => self.look_up(LateEnd { again: true, caller, paths, ..asked }),
            (Return::AnotherUsers, _) => {
                let (code, message) = no_session(NoSession::AnotherUsers, None);
                caller.responder.refuse(code, message);
            }
            (Return::End, Some(found)) => self.end_live(found.info.row, paths, caller),
            (Return::Rejoin { limited }, Some(found)) => self.rejoin(found, limited, paths, caller),
            (Return::Report { early }, Some(Found { info, .. })) => {
                let (waited, warnings) = (caller.since.elapsed(), info.warnings);
                let (incomplete, unsettled) = (early, early);
                let answer =
                    Answer { row: info.row, is_push: false, incomplete, unsettled, waited, warnings };
                self.parts.reports.answer(answer, self.engines(), caller.responder);
            }
            (Return::Nothing | Return::End | Return::Rejoin { .. } | Return::Report { .. }, _) => {
                match asked.otherwise {
                    Otherwise::End(row) => self.end_live(row, paths, caller),
                    Otherwise::Refuse(why) => {
                        let (code, message) = no_session(why, Some(&asked.name));
                        caller.responder.refuse(code, message);
                    }
                }
            }
        }
    }

    /// A session that was closed drains again, with what its job names now.
    fn rejoin(&mut self, found: Found, limited: bool, paths: NamedPaths, caller: Caller<()>) {
        let Found { info, record, forbidden } = found;
        let (row, uid) = (info.row, info.new.uid);
        let cache = self.parts.caches.id(&info.new.cache);
        let (id, label) = (info.new.id.clone(), info.new.label.clone());
        let mut session = Session::rejoined(info, cache, caller.since);
        if let Some(why) = forbidden {
            session.confine(&self.parts.ledger, why);
        }
        let subject = session.end_subject(paths);
        if let Err(limit) = self.parts.sessions.insert_again(session, limited) {
            return caller.responder.refuse(ErrorCode::Busy, limit);
        }
        self.parts.ledger.session_rejoin(row);
        if record == Record::Abandoned {
            event!(
                SESSION_REJOINED,
                session = id,
                label = label,
                "session {id} is ended by its job after all"
            );
        }
        let question = Question::Of(subject, vec![caller.about(Asked::End(row))]);
        let cache = cache.unwrap_or(self.default_cache());
        if !self.begin_naming(Naming { row, uid }, cache, question) {
            self.session_step(row, SessionEvent::Named);
        }
    }

    /// Hands an event to a session's life and has its actions carried out.
    pub(super) fn session_step(&mut self, row: SessionId, event: SessionEvent) {
        let now = self.now();
        let Some(session) = self.parts.sessions.get_mut(row) else { return };
        for action in session.life.step(event, now) {
            self.session_act(row, action);
        }
    }

    fn session_act(&mut self, row: SessionId, action: SessionAction) {
        let Some(session) = self.parts.sessions.get_mut(row) else { return };
        let (uid, cache) = (session.uid, session.cache);
        match action {
            SessionAction::Drain(why) => {
                session.watch = None;
                session.draining_since.get_or_insert_with(Instant::now);
                let reason = match why {
                    Ended::ByJob => None,
                    Ended::AnchorGone => Some("its job ended without `flywheelctl session end`"),
                    Ended::CallerGone => {
                        Some("the caller of `flywheelctl session start` did not wait for its id")
                    }
                    Ended::OpenTooLong => {
                        Some("the daemon cannot see its job's processes, and nobody has ended it for a week")
                    }
                };
                if let Some(reason) = reason {
                    event!(
                        SESSION_ABANDONED,
                        session = session.id,
                        label = session.label,
                        "session {} is abandoned: {reason}; the paths it made are pushed",
                        session.id
                    );
                }
                self.parts.ledger.session_draining(row, why.abandoned(), Wall::now().0);
                self.parts.sessions.drains(uid);
            }
            SessionAction::Rejoined => {
                event!(
                    SESSION_REJOINED,
                    session = session.id,
                    label = session.label,
                    "session {} is ended by its job after all",
                    session.id
                );
                self.parts.ledger.session_draining(row, false, Wall::now().0);
            }
            SessionAction::Take => {
                let cache = cache.unwrap_or(self.default_cache());
                self.begin_naming(Naming { row, uid }, cache, Question::Take);
            }
            SessionAction::Confirm => {
                let cache = cache.unwrap_or(self.default_cache());
                self.begin_naming(Naming { row, uid }, cache, Question::Confirm);
            }
            SessionAction::WarnUnstable => {
                let text = "paths of the session were deleted by the cache repeatedly: some may be missing";
                session.warn(&self.parts.ledger, text.to_owned());
            }
            SessionAction::Flush => self.step(Event::Flush(row)),
            SessionAction::Close { abandoned } => self.close(row, abandoned),
        }
    }

    /// Has the routes examined for the sessions that are open, after they have changed;
    /// [`Self::confined`] continues.
    pub(super) fn confine(&mut self) {
        let sessions = self.parts.sessions.unconfined();
        let asked: Vec<_> = sessions
            .map(|(session, cache)| (session.row, (session.uid, session.gid), session.label.clone(), cache))
            .collect();
        let routes = self.routes();
        let examine = move || {
            let forbidden = asked.into_iter().filter_map(|(row, person, label, cache)| {
                Some((row, routes.may_continue(person, label.as_deref(), cache).err()?))
            });
            Done::Confined(forbidden.collect())
        };
        self.elsewhere(examine, Done::Lost);
    }

    /// Closes sessions to further paths whose caches the routes do not allow any more.
    pub(super) fn confined(&mut self, forbidden: Vec<(SessionId, String)>) {
        for (row, why) in forbidden {
            if let Some(session) = self.parts.sessions.get_mut(row).filter(|session| !session.confined) {
                session.confine(&self.parts.ledger, why);
                self.parts.intake.forget_window(row, &self.parts.blocking);
            }
        }
    }

    /// Has each session step for which something is due.
    pub(super) fn due_sessions(&mut self) {
        for row in self.parts.sessions.due(self.now()) {
            self.session_step(row, SessionEvent::Tick);
        }
    }

    /// The pushes of the last run are known again: its sessions wait for theirs.
    pub(super) fn restored(&mut self) {
        for Restored { row, pending, resume, anchor } in std::mem::take(&mut self.parts.restored) {
            self.step(Event::Want(row, pending));
            match resume {
                Resume::Watch => {
                    let (proc, out) = (self.parts.proc.clone(), self.parts.out.clone());
                    if let Some(session) = self.parts.sessions.get_mut(row).filter(|s| s.is_open()) {
                        session.watch = anchor.map(|anchor| Watch::start(proc, row, anchor, out));
                    }
                }
                Resume::Wait => {}
                Resume::Take => self.session_act(row, SessionAction::Take),
            }
        }
    }
}
