//! Sessions that end: because their job ends them, ends them again, or has gone.

use std::time::{Duration, Instant};

use super::{Done, Driver};
use crate::control::messages::ErrorCode;
use crate::control::server::Peer;
use crate::daemon::inbox::Input;
use crate::daemon::intake;
use crate::daemon::sessions::{self, Asked, Caller, Found, Name, Naming, Session, Watch};
use crate::flow::Event;
use crate::ledger::{SessionInfo, SessionState};
use crate::observe::event;
use crate::types::{CacheId, SessionId, StorePath, Wall};

/// Delay before an abandoned session is tried again that found the intake's queue full.
const RETRY: Duration = Duration::from_millis(100);

/// A lookup of a session that is not live, for a caller that ends it.
pub(super) struct LookedUp {
    found: Found,
    paths: Vec<StorePath>,
    caller: Caller,
}

impl Driver {
    pub(super) fn session_end(
        &mut self,
        peer: Peer,
        id: Option<&str>,
        ci_job: Option<&str>,
        push: &[String],
        mut caller: Caller,
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
        let (row, cache, uid) = (found.row, found.cache, found.uid);
        if !self.may(peer, uid) {
            let message = format!("the session belongs to uid {uid}, you are uid {}", peer.uid);
            return caller.responder.refuse(ErrorCode::Denied, message);
        }
        if let Some(session) = self.parts.sessions.get_mut(row) {
            session.watch = None;
            session.abandoned = false;
            if session.is_open() {
                session.draining_since = Some(caller.since);
                self.parts.ledger.session_state(row, SessionState::Draining, Wall::now().0, None);
            }
        }
        caller.asked = Asked::End(row);
        let (cache, paths) = self.destination(cache, paths);
        self.name_paths(row, cache, paths, true, caller);
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
    fn look_up(&mut self, peer: Peer, name: Name, paths: Vec<StorePath>, caller: Caller) {
        let (reports, engines) = (self.parts.reports.clone(), self.engines());
        self.work.spawn_blocking(move || {
            let found = sessions::lookup(&reports, &engines, peer.uid, name);
            Done::LookedUp(LookedUp { found, paths, caller })
        });
    }

    pub(super) fn looked_up(&mut self, LookedUp { found, paths, caller }: LookedUp) {
        match found {
            Found::Abandoned(info) => self.rejoin(*info, paths, caller),
            Found::Reply(reply) => caller.responder.reply(*reply),
        }
    }

    /// An abandoned session drains again, with what its job names now.
    fn rejoin(&mut self, info: SessionInfo, paths: Vec<StorePath>, mut caller: Caller) {
        let row = info.row;
        let cache = self.parts.caches.id(&info.new.cache);
        event!(
            SESSION_REJOINED,
            session = info.new.id,
            label = info.new.label,
            "the session's job ends it after all"
        );
        self.parts.sessions.insert(Session::rejoined(info, cache, caller.since));
        caller.asked = Asked::End(row);
        let (cache, paths) = self.destination(cache, paths);
        self.name_paths(row, cache, paths, true, caller);
    }

    /// The anchor of a session has ended: what the job made is pushed, then the
    /// session is closed.
    pub(super) fn abandon(&mut self, row: SessionId) {
        let default = self.default_cache();
        let Some(cache) =
            self.parts.sessions.get(row).filter(|s| s.is_open()).map(|s| s.cache.unwrap_or(default))
        else {
            return;
        };
        let token = self.parts.sessions.add_naming(Naming { row, caller: None });
        let naming = intake::Naming {
            token,
            session: row,
            close_window: true,
            cache,
            paths: Vec::new(),
            retry: false,
        };
        if !self.parts.intake.ask(intake::Work::Name(naming)) {
            self.parts.sessions.take_naming(token);
            let out = self.parts.out.clone();
            tokio::spawn(async move {
                tokio::time::sleep(RETRY).await;
                let _ = out.send(Input::AnchorGone(row)).await;
            });
            return;
        }
        let Some(session) = self.parts.sessions.get_mut(row) else { return };
        session.watch = None;
        session.abandoned = true;
        session.draining_since = Some(Instant::now());
        event!(
            SESSION_ABANDONED,
            session = session.id,
            label = session.label,
            "the session's job has gone without ending it: what it made is pushed"
        );
        self.parts.ledger.session_state(row, SessionState::Draining, Wall::now().0, None);
    }

    /// The pushes of the last run are known again: its sessions wait for theirs.
    pub(super) fn restored(&mut self) {
        for restored in std::mem::take(&mut self.parts.restored) {
            let row = restored.row;
            self.step(Event::Want(row, restored.pending));
            if restored.abandoned {
                self.abandon(row);
            } else if restored.draining {
                self.step(Event::Flush(row));
            } else if let (Some(session), Some(anchor)) = (self.parts.sessions.get_mut(row), restored.anchor)
            {
                session.watch = Some(Watch::start(row, anchor, self.parts.out.clone()));
            }
        }
    }
}
