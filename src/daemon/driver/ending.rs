//! Sessions that end: because their job ends them, ends them again, or has gone.

use tokio::time::Instant;

use super::waiting::Question;
use super::{Done, Driver};
use crate::control::messages::ErrorCode;
use crate::control::server::Peer;
use crate::daemon::sessions::{self, Asked, Caller, Found, Name, Naming, Next, Restored, Session, Watch};
use crate::flow::{Event, SessionAction, SessionEvent, Subject};
use crate::ledger::SessionInfo;
use crate::observe::event;
use crate::types::{CacheId, SessionId, StorePath, Wall};

/// A lookup of a session that is not live, for a caller that ends it.
pub(super) struct LookedUp {
    found: Found,
    paths: Vec<StorePath>,
    caller: Caller<()>,
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
            Ok(paths) => paths,
            Err(message) => return caller.responder.refuse(ErrorCode::BadRequest, message),
        };
        let sessions = &self.parts.sessions;
        let found = match id {
            Some(id) => match sessions.by_id(id) {
                Some(session) => session,
                None => return self.look_up(peer, Name::Id(id.to_owned()), paths, caller),
            },
            None => {
                let of_job = ci_job.map_or(Ok(None), |key| sessions.of_job(peer.uid, key));
                match (of_job, sessions.only_open(peer.uid, ci_job), ci_job) {
                    (Err(message), _, _) => return caller.responder.refuse(ErrorCode::NotFound, message),
                    (Ok(Some(session)), _, _) | (Ok(None), Ok(session), _) => session,
                    // It may have been closed when the job's shell ended.
                    (Ok(None), Err(otherwise), Some(key)) => {
                        let name = Name::Job { key: key.to_owned(), otherwise };
                        return self.look_up(peer, name, paths, caller);
                    }
                    (Ok(None), Err(message), None) => {
                        return caller.responder.refuse(ErrorCode::NotFound, message);
                    }
                }
            }
        };
        let (row, cache, uid, confined) = (found.row, found.cache, found.uid, found.confined);
        if !self.may(peer, uid) {
            let message = format!("the session belongs to uid {uid}, you are uid {}", peer.uid);
            return caller.responder.refuse(ErrorCode::Denied, message);
        }
        let caller = caller.about(Asked::End(row));
        let (cache, paths) = self.destination(cache, if confined { Vec::new() } else { paths });
        let subject = Subject::End(row, paths.into());
        if let Some(equal) = self.parts.sessions.equal_naming(uid, &subject) {
            return self.join(equal, caller);
        }
        // Queued first: a refusal changes nothing.
        if self.begin_naming(Naming { row, uid }, cache, Question::Of(subject, vec![caller])) {
            self.session_step(row, SessionEvent::End);
        }
    }

    /// Where the named paths of a session go. A session whose paths are skipped
    /// pushes none, but its window is closed as any other's.
    fn destination(&self, cache: Option<CacheId>, paths: Vec<StorePath>) -> (CacheId, Vec<StorePath>) {
        match cache {
            Some(cache) => (cache, paths),
            None => (self.default_cache(), Vec::new()),
        }
    }

    /// Has a session that is not live looked up elsewhere; [`Self::looked_up`]
    /// continues. It was closed, by this run of the daemon or an earlier one.
    fn look_up(&mut self, peer: Peer, name: Name, paths: Vec<StorePath>, caller: Caller<()>) {
        let (reports, engines) = (self.parts.reports.clone(), self.engines());
        let (routes, names) = (self.routes(), self.parts.caches.names());
        let look = move || {
            let found = sessions::lookup(&reports, &engines, peer.uid, name, |info| {
                let cache = names.iter().position(|name| *name == info.new.cache)?;
                let cache = CacheId(u16::try_from(cache).ok()?);
                routes.may_continue((info.new.uid, info.new.gid), info.new.label.as_deref(), cache).err()
            });
            Done::LookedUp(LookedUp { found, paths, caller })
        };
        self.elsewhere(look, Done::Lost);
    }

    pub(super) fn looked_up(&mut self, LookedUp { found, paths, caller }: LookedUp) {
        match found {
            Found::Abandoned(info, forbidden) => self.rejoin(*info, forbidden, paths, caller),
            Found::Reply(reply) => caller.responder.reply(*reply),
        }
    }

    /// An abandoned session drains again, with what its job names now.
    fn rejoin(
        &mut self,
        info: SessionInfo,
        forbidden: Option<String>,
        paths: Vec<StorePath>,
        caller: Caller<()>,
    ) {
        let row = info.row;
        let cache = self.parts.caches.id(&info.new.cache);
        event!(
            SESSION_REJOINED,
            session = info.new.id,
            label = info.new.label,
            "session {} is ended by its job after all",
            info.new.id
        );
        let uid = info.new.uid;
        let mut session = Session::rejoined(info, cache, caller.since);
        if let Some(why) = forbidden {
            session.confine(&self.parts.ledger, why);
        }
        let (cache, paths) = self.destination(cache, if session.confined { Vec::new() } else { paths });
        self.parts.sessions.insert_known(session);
        let caller = caller.about(Asked::End(row));
        let question = Question::Of(Subject::End(row, paths.into()), vec![caller]);
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
            SessionAction::Drain { abandoned } => {
                session.watch = None;
                session.draining_since.get_or_insert_with(Instant::now);
                if abandoned {
                    event!(
                        SESSION_ABANDONED,
                        session = session.id,
                        label = session.label,
                        "session {} is abandoned: its job ended without `flywheelctl session end`; the paths it made are pushed",
                        session.id
                    );
                }
                self.parts.ledger.session_draining(row, abandoned, Wall::now().0);
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
        for Restored { row, pending, next } in std::mem::take(&mut self.parts.restored) {
            self.step(Event::Want(row, pending));
            match next {
                Next::Open(anchor) => {
                    let (proc, out) = (self.parts.proc.clone(), self.parts.out.clone());
                    if let Some(session) = self.parts.sessions.get_mut(row).filter(|s| s.is_open()) {
                        session.watch = anchor.map(|anchor| Watch::start(proc, row, anchor, out));
                    }
                }
                Next::Take => self.session_act(row, SessionAction::Take),
            }
        }
    }
}
