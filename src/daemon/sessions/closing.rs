//! Sessions that end: because their job says so, says so again, or is gone.

use std::time::{Duration, Instant};

use crate::control::messages::{CiJob, ErrorCode};
use crate::control::server::Peer;
use crate::daemon::driver::Driver;
use crate::daemon::inbox::Input;
use crate::daemon::intake::{Naming, Work};
use crate::daemon::sessions::session::{Asked, Caller, Pending, Session};
use crate::ledger::{SessionInfo, SessionState};
use crate::observe::event;
use crate::types::{SessionId, StorePath, Wall};

/// Until a naming that found the intake busy is tried again.
const AGAIN: Duration = Duration::from_millis(100);

/// An abandoned session that its job ends after all.
#[derive(Debug)]
pub(in crate::daemon) struct Rejoining {
    pub(in crate::daemon) info: SessionInfo,
    pub(in crate::daemon) paths: Vec<StorePath>,
    pub(in crate::daemon) caller: Caller,
}

/// How a caller names a session that is not live.
enum Which {
    Id(String),
    /// The CI job that it was of, and what to say when there was none.
    Job(String, String),
}

impl Driver {
    pub(in crate::daemon) fn session_end(
        &mut self,
        peer: &Peer,
        id: Option<&str>,
        ci_job: Option<&str>,
        push: &[String],
        mut caller: Caller,
    ) {
        let paths = match self.parse_paths(push) {
            Ok(paths) => paths,
            Err(message) => return caller.responder.refuse(ErrorCode::BadRequest, message),
        };
        let found = match id {
            Some(id) => match self.sessions.by_id(id) {
                Some(live) => live,
                None => return self.ended_before(peer, Which::Id(id.to_owned()), paths, caller),
            },
            None => {
                let of_job = ci_job.map_or(Ok(None), |key| self.sessions.of_job(peer.uid, key));
                match (of_job, self.sessions.only_open(peer.uid, ci_job), ci_job) {
                    (Err(message), _, _) => return caller.responder.refuse(ErrorCode::NotFound, message),
                    (Ok(Some(live)), _, _) | (Ok(None), Ok(live), _) => live,
                    // It may have closed by itself when the job's shell ended.
                    (Ok(None), Err(message), Some(key)) => {
                        let which = Which::Job(key.to_owned(), message);
                        return self.ended_before(peer, which, paths, caller);
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
        if let Some(live) = self.sessions.sessions.get_mut(&row) {
            live.watch = None;
            live.abandoned = false;
            if live.ending.is_none() {
                live.ending = Some(caller.since);
                self.ledger.session_state(row, SessionState::Draining, Wall::now().0, None);
            }
        }
        caller.asked = Asked::End(row);
        // A session whose paths are skipped has nothing to push, but it ends like any other.
        let (cache, paths) = match cache {
            Some(cache) => (cache, paths),
            None => (self.default_cache(), Vec::new()),
        };
        self.name_paths(row, cache, paths, true, caller);
    }

    /// A session that is not live: it closed, here or in an earlier life. One
    /// that was given up is taken up again.
    fn ended_before(&mut self, peer: &Peer, which: Which, paths: Vec<StorePath>, caller: Caller) {
        let (ledger, peer, own) = (self.ledger.clone(), *peer, self.own_uid);
        let (store_dir, ways) = (self.transfers.store_dir.clone(), self.ways());
        let out = self.transfers.out.clone();
        tokio::task::spawn_blocking(move || {
            let (found, otherwise) = match which {
                Which::Id(id) => {
                    let hint =
                        format!("there is no session {id:?} (`flywheelctl session list --all` shows them)");
                    (ledger.session(&id), hint)
                }
                Which::Job(key, message) => {
                    let all = ledger.sessions(true);
                    let of_job = |s: &SessionInfo| s.new.uid == peer.uid && is_of_job(s, &key);
                    (all.map(|all| all.into_iter().rev().find(of_job)), message)
                }
            };
            let responder = caller.responder;
            match found {
                Ok(Some(info)) if peer.uid == info.new.uid || peer.uid == 0 || peer.uid == own => {
                    let again = info.state == SessionState::Abandoned
                        && ledger.session_rejoin(info.row).unwrap_or(false);
                    if again {
                        let caller = Caller { responder, ..caller };
                        let _ =
                            out.blocking_send(Input::Rejoined(Box::new(Rejoining { info, paths, caller })));
                    } else {
                        let warnings = info.warnings.clone();
                        responder.reply(crate::daemon::sessions::report::ended(
                            &ledger, &store_dir, &ways, &info, warnings,
                        ));
                    }
                }
                Ok(Some(_)) => responder.refuse(ErrorCode::Denied, "the session belongs to another user"),
                Ok(None) => responder.refuse(ErrorCode::NotFound, otherwise),
                Err(error) => responder.refuse(ErrorCode::Internal, error.to_string()),
            }
        });
    }

    /// An abandoned session drains again, with what its job names now.
    pub(in crate::daemon) fn rejoined(&mut self, rejoining: Rejoining) {
        let Rejoining { info, paths, mut caller } = rejoining;
        let row = info.row;
        let cache = self.number_of(&info.new.cache);
        event!(
            SESSION_REJOINED,
            session = info.new.id,
            label = info.new.label,
            "the session's job ends it after all"
        );
        let live = Session {
            row,
            id: info.new.id,
            label: info.new.label,
            cache,
            uid: info.new.uid,
            ci: info.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok()),
            ending: Some(caller.since),
            abandoned: false,
            watch: None,
            unlooked: false,
            warnings: info.warnings,
        };
        self.sessions.sessions.insert(row, live);
        caller.asked = Asked::End(row);
        let (cache, paths) = cache.map_or((self.default_cache(), Vec::new()), |cache| (cache, paths));
        self.name_paths(row, cache, paths, true, caller);
    }

    /// The job went away without a word: what it made is pushed, then its
    /// session is over.
    pub(in crate::daemon) fn abandon(&mut self, row: SessionId) {
        let default = self.default_cache();
        if self.sessions.sessions.get(&row).is_none_or(|s| s.ending.is_some()) {
            return;
        }
        let token = self.sessions.expect(Pending { row, caller: None });
        let Some(live) = self.sessions.sessions.get_mut(&row) else { return };
        let cache = live.cache.unwrap_or(default);
        let naming =
            Naming { token, session: row, close_window: true, cache, paths: Vec::new(), retry: false };
        if !self.bell.ask(Work::Name(naming)) {
            self.sessions.namings.remove(&token);
            let out = self.transfers.out.clone();
            tokio::spawn(async move {
                tokio::time::sleep(AGAIN).await;
                let _ = out.send(Input::AnchorGone(row)).await;
            });
            return;
        }
        live.watch = None;
        live.abandoned = true;
        live.ending = Some(Instant::now());
        event!(
            SESSION_ABANDONED,
            session = live.id,
            label = live.label,
            "the session's job has gone without ending it: what it made is pushed"
        );
        self.ledger.session_state(row, SessionState::Draining, Wall::now().0, None);
    }
}

fn is_of_job(session: &SessionInfo, key: &str) -> bool {
    let ci: Option<CiJob> = session.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok());
    ci.is_some_and(|ci| ci.key() == key)
}
