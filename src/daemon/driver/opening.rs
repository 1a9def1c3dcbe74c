//! Sessions that begin: `session start`, and the unnamed session that a `push` is.

use std::sync::Arc;

use super::{Done, Driver};
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::intake::Routes;
use crate::daemon::sessions::{self, AfterOpening, Asked, Caller, OpenParts, OpenRequest, Opening, Watch};
use crate::flow::SessionEvent;
use crate::observe::event;

impl Driver {
    pub(super) fn session_start(
        &mut self,
        peer: Peer,
        responder: Responder,
        cache: Option<&str>,
        request: OpenRequest,
    ) {
        match self.named_cache(cache) {
            Ok(cache) => self.open(peer, OpenRequest { cache, ..request }, AfterOpening::Start(responder)),
            Err(message) => responder.refuse(ErrorCode::BadRequest, message),
        }
    }

    pub(super) fn push(&mut self, peer: Peer, paths: &[String], cache: Option<&str>, caller: Caller<()>) {
        match self.named_cache(cache).and_then(|cache| Ok((cache, self.parse_paths(paths)?))) {
            Ok((cache, paths)) => {
                let request = OpenRequest { prefix: "push-", cache, ..OpenRequest::default() };
                self.open(peer, request, AfterOpening::Push { paths, caller });
            }
            Err(message) => caller.responder.refuse(ErrorCode::BadRequest, message),
        }
    }

    /// The routes in use.
    pub(super) fn routes(&self) -> Routes {
        let (settings, names) = (Arc::clone(&self.parts.settings), self.parts.caches.names());
        Routes::new(settings, names, self.parts.intake.people().clone())
    }

    /// Has a session opened elsewhere; [`Self::opened`] continues.
    fn open(&mut self, peer: Peer, request: OpenRequest, next: AfterOpening) {
        if let Err(message) = self.parts.sessions.begin(peer.uid, next.is_job()) {
            return next.into_responder().refuse(ErrorCode::Busy, message);
        }
        let parts = OpenParts {
            routes: self.routes(),
            names: self.parts.caches.names(),
            ledger: self.parts.ledger.clone(),
            windows: Arc::clone(self.parts.intake.windows()),
            store: self.parts.transfers.store().clone(),
            cursor: self.parts.intake.cursor(),
            proc: self.parts.proc.clone(),
        };
        let open = move || Done::Opened(Box::new(sessions::open(&parts, peer, request, next)));
        self.work.spawn(self.parts.blocking.run(open));
    }

    /// A session was opened, or could not be.
    pub(super) fn opened(&mut self, Opening { uid, result, next }: Opening) {
        let (mut session, anchor) = match result {
            Ok(opened) => opened,
            Err((code, message)) => {
                self.parts.sessions.not_opened(uid, next.is_job());
                return next.into_responder().refuse(code, message);
            }
        };
        let (row, cache) = (session.row, session.cache);
        match next {
            AfterOpening::Start(responder) => {
                let name = cache.map(|c| self.name(c).to_owned());
                event!(
                    SESSION_STARTED,
                    session = session.id,
                    label = session.label,
                    cache = name,
                    uid = session.uid,
                    anchor = anchor.map(|a| a.pid),
                    "session {} started{}: {}",
                    session.id,
                    session.label.as_deref().map(|label| format!(" ({label})")).unwrap_or_default(),
                    name.as_deref().map_or_else(
                        || "a route skips its paths".to_owned(),
                        |name| format!("its paths go to cache {name}")
                    )
                );
                session.watch =
                    anchor.map(|a| Watch::start(self.parts.proc.clone(), row, a, self.parts.out.clone()));
                let reply = Reply::Started { session: session.id.clone(), cache: name.unwrap_or_default() };
                self.parts.sessions.insert(session);
                // The ledger has it as open before the caller knows of it, and not earlier:
                // nobody would end it after a restart.
                let ledger = self.parts.ledger.clone();
                self.work.spawn(self.parts.blocking.run(move || {
                    let heard = !responder.is_gone()
                        && match ledger.session_answered(row) {
                            Ok(()) => responder.deliver(reply),
                            Err(error) => {
                                let message = format!("the session cannot be recorded: {error}");
                                responder.refuse(ErrorCode::Internal, message);
                                false
                            }
                        };
                    Done::Started { row, heard }
                }));
            }
            AfterOpening::Push { paths, caller } => {
                session.draining_since = Some(caller.since);
                let caller = caller.about(Asked::Push(row));
                self.parts.sessions.insert(session);
                let queued = match cache {
                    Some(cache) => self.name_paths(row, uid, cache, paths, true, caller),
                    None => {
                        let message = "a [[route]] of the configuration skips your paths";
                        caller.responder.refuse(ErrorCode::Denied, message);
                        false
                    }
                };
                if !queued {
                    self.session_step(row, SessionEvent::Named);
                }
            }
        }
    }
}
