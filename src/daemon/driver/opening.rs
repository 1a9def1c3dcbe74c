//! Sessions that begin: `session start`, and the unnamed session that a `push` is.

use std::sync::Arc;

use super::{Done, Driver};
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::intake::Routes;
use crate::daemon::sessions::{self, AfterOpening, Asked, Caller, OpenParts, OpenRequest, Opening, Watch};
use crate::observe::event;

/// Most open sessions of one user.
const SESSIONS_PER_USER: usize = 256;
/// Most sessions and pushes of one user that are not settled.
const UNSETTLED_PER_USER: usize = 1024;

impl Driver {
    pub(super) fn session_start(
        &mut self,
        peer: Peer,
        responder: Responder,
        cache: Option<&str>,
        request: OpenRequest,
    ) {
        let open = self.parts.sessions.open_of(peer.uid);
        if open >= SESSIONS_PER_USER {
            let message =
                format!("uid {} has {open} open sessions, the most there may be: end some", peer.uid);
            return responder.refuse(ErrorCode::Busy, message);
        }
        match self.named_cache(cache) {
            Ok(cache) => self.open(peer, OpenRequest { cache, ..request }, AfterOpening::Start(responder)),
            Err(message) => responder.refuse(ErrorCode::BadRequest, message),
        }
    }

    pub(super) fn push(&mut self, peer: Peer, paths: &[String], cache: Option<&str>, caller: Caller) {
        match self.named_cache(cache).and_then(|cache| Ok((cache, self.parse_paths(paths)?))) {
            Ok((cache, paths)) => {
                let request = OpenRequest { prefix: "push-", cache, ..OpenRequest::default() };
                self.open(peer, request, AfterOpening::Push { paths, caller });
            }
            Err(message) => caller.responder.refuse(ErrorCode::BadRequest, message),
        }
    }

    /// Has a session opened elsewhere; [`Self::opened`] continues.
    fn open(&mut self, peer: Peer, request: OpenRequest, next: AfterOpening) {
        let unsettled = self.parts.sessions.all_of(peer.uid);
        if unsettled >= UNSETTLED_PER_USER {
            let message = format!(
                "uid {} has {unsettled} sessions and pushes with pending paths, the most there may be: try again when some are done",
                peer.uid
            );
            return next.into_responder().refuse(ErrorCode::Busy, message);
        }
        let parts = OpenParts {
            routes: Routes::new(
                Arc::clone(&self.parts.settings),
                self.parts.caches.names(),
                self.parts.intake.people().clone(),
            ),
            names: self.parts.caches.names(),
            ledger: self.parts.ledger.clone(),
            windows: Arc::clone(self.parts.intake.windows()),
            store: self.parts.transfers.store().clone(),
            cursor: self.parts.intake.cursor(),
        };
        self.work.spawn_blocking(move || Done::Opened(Box::new(sessions::open(&parts, peer, request, next))));
    }

    /// A session was opened, or could not be.
    pub(super) fn opened(&mut self, Opening { result, next }: Opening) {
        let (mut session, anchor) = match result {
            Ok(opened) => opened,
            Err((code, message)) => return next.into_responder().refuse(code, message),
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
                    "session {} started{}",
                    session.id,
                    session.label.as_deref().map(|label| format!(" ({label})")).unwrap_or_default()
                );
                session.watch = anchor.map(|a| Watch::start(row, a, self.parts.out.clone()));
                let reply = Reply::Started { session: session.id.clone(), cache: name.unwrap_or_default() };
                responder.reply(reply);
                self.parts.sessions.insert(session);
            }
            AfterOpening::Push { paths, mut caller } => {
                session.draining_since = Some(caller.since);
                caller.asked = Asked::Push(row);
                self.parts.sessions.insert(session);
                if let Some(cache) = cache {
                    self.name_paths(row, cache, paths, true, caller);
                } else {
                    let message = "a [[route]] of the configuration skips your paths";
                    caller.responder.refuse(ErrorCode::Denied, message);
                    self.close(row);
                }
            }
        }
    }
}
