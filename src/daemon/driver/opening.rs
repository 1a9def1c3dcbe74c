//! Sessions that begin: `session start`, and the unnamed session that a `push` is. The
//! decisions say what follows ([`crate::flow::Openings`]), and this has it done.

use std::sync::Arc;

use super::requests::STOPPING;
use super::waiting::Question;
use super::{Done, Driver};
use crate::attribution::ProcId;
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::intake::{NamedPaths, Routes};
use crate::daemon::sessions::{
    self, Asked, Caller, Naming, OpenParts, OpenRequest, Opener, Recorded, Session, Watch,
};
use crate::flow::{Begun, OpenFor, Opened, OpeningStep, PushSubject, SessionEvent, Subject};
use crate::observe::event;
use crate::types::SessionId;

impl Driver {
    pub(super) fn session_start(
        &mut self,
        peer: Peer,
        responder: Responder,
        cache: Option<&str>,
        request: OpenRequest,
    ) {
        match self.named_cache(cache) {
            Ok(cache) => {
                self.open(peer, OpenRequest { cache, ..request }, OpenFor::Job, Opener::Start(responder));
            }
            Err(message) => responder.refuse(ErrorCode::BadRequest, message),
        }
    }

    pub(super) fn push(&mut self, peer: Peer, paths: &[String], cache: Option<&str>, caller: Caller<()>) {
        let (cache, paths) = match self.named_cache(cache).and_then(|c| Ok((c, self.parse_paths(paths)?))) {
            Ok(named) => named,
            Err(message) => return caller.responder.refuse(ErrorCode::BadRequest, message),
        };
        let rules = self.parts.sessions.rules();
        let subject = Subject::Push(PushSubject { rules, gid: peer.gid, cache, paths: paths.into() });
        if let Some(equal) = self.parts.sessions.equal_naming(peer.uid, &subject) {
            return self.join(equal, caller.about(Asked::Push(equal.1)));
        }
        let Subject::Push(subject) = subject else { return };
        let request = OpenRequest { prefix: "push-", cache, ..OpenRequest::default() };
        self.open(peer, request, OpenFor::Push(subject), Opener::Push(caller));
    }

    /// The routes in use.
    pub(super) fn routes(&self) -> Routes {
        let (settings, names) = (Arc::clone(&self.parts.settings), self.parts.caches.names());
        Routes::new(settings, names, self.parts.intake.people().clone())
    }

    /// Has a session opened elsewhere; [`Self::opened`] continues.
    fn open(&mut self, peer: Peer, request: OpenRequest, purpose: OpenFor<NamedPaths>, opener: Opener) {
        let is_job = matches!(purpose, OpenFor::Job);
        let ticket = match self.parts.sessions.begin(peer.uid, purpose, opener) {
            Begun::Record(ticket) => ticket,
            Begun::Joined => return,
            Begun::Refused(limit, opener) => return opener.refuse(ErrorCode::Busy, limit.to_string()),
            Begun::Stopping(opener) => return opener.refuse(ErrorCode::Draining, STOPPING),
        };
        let parts = OpenParts {
            routes: self.routes(),
            names: self.parts.caches.names(),
            ledger: self.parts.ledger.clone(),
            windows: Arc::clone(self.parts.intake.windows()),
            store: self.parts.transfers.store().clone(),
            cursor: self.parts.intake.cursor(),
            proc: self.parts.proc.clone(),
            now: self.now(),
        };
        let open = move || Done::Opened(ticket, Box::new(sessions::open(&parts, peer, request, is_job)));
        let lost = "the session could not be opened: the journal of flywheeld has the reason".to_owned();
        self.elsewhere(open, Done::Opened(ticket, Box::new(Err((ErrorCode::Internal, lost)))));
    }

    /// A session was opened, or could not be.
    pub(super) fn opened(&mut self, ticket: u64, recorded: Recorded) {
        let (session, anchor) = match recorded {
            Ok(recorded) => recorded,
            Err((code, message)) => {
                for opener in self.parts.sessions.not_recorded(ticket) {
                    opener.refuse(code, message.clone());
                }
                return;
            }
        };
        let Some(Opened { step, purpose, callers, outdated }) = self.parts.sessions.recorded(ticket) else {
            return;
        };
        let row = session.row;
        match step {
            OpeningStep::Answer => {
                let callers = callers.into_iter().filter_map(|opener| match opener {
                    Opener::Start(responder) => Some(responder),
                    Opener::Push(_) => None,
                });
                self.insert_started(session, anchor);
                callers.for_each(|responder| self.answer_start(ticket, row, responder));
            }
            OpeningStep::Abandon => {
                self.insert_started(session, anchor);
                self.session_step(row, SessionEvent::CallerGone);
            }
            OpeningStep::Take => {
                if let Some(OpenFor::Push(subject)) = purpose {
                    self.begin_push(session, subject, callers);
                }
            }
            OpeningStep::Stop | OpeningStep::Refuse => {
                callers.into_iter().for_each(|opener| opener.refuse(ErrorCode::Draining, STOPPING));
            }
            OpeningStep::Wait => {}
        }
        if outdated {
            self.confine();
        }
    }

    /// Inserts the session of a job.
    fn insert_started(&mut self, mut session: Session, anchor: Option<ProcId>) {
        let name = session.cache.map(|cache| self.name(cache).to_owned());
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
        let (proc, out) = (self.parts.proc.clone(), self.parts.out.clone());
        session.watch = anchor.map(|anchor| Watch::start(proc, session.row, anchor, out));
        self.parts.sessions.insert(session);
    }

    /// Answers the caller of `session start`. The ledger has the session as open before the
    /// caller knows of it, and not earlier: nobody would end it after a restart.
    fn answer_start(&mut self, ticket: u64, row: SessionId, responder: Responder) {
        let Some(session) = self.parts.sessions.get(row) else { return };
        let cache = session.cache.map(|cache| self.name(cache).to_owned()).unwrap_or_default();
        let reply = Reply::Started { session: session.id.clone(), cache };
        let ledger = self.parts.ledger.clone();
        let answer = move || {
            let heard = !responder.is_gone()
                && match ledger.session_answered(row) {
                    Ok(()) => responder.deliver(reply),
                    Err(error) => {
                        let message = format!("the session cannot be recorded: {error}");
                        responder.refuse(ErrorCode::Internal, message);
                        false
                    }
                };
            Done::Started { ticket, row, heard }
        };
        self.elsewhere(answer, Done::Started { ticket, row, heard: false });
    }

    /// The caller of `session start` was answered.
    pub(super) fn started(&mut self, ticket: u64, row: SessionId, heard: bool) {
        match self.parts.sessions.answered(ticket, heard) {
            OpeningStep::Abandon => self.session_step(row, SessionEvent::CallerGone),
            OpeningStep::Wait
            | OpeningStep::Answer
            | OpeningStep::Take
            | OpeningStep::Refuse
            | OpeningStep::Stop => {}
        }
    }

    /// Begins the naming of a push.
    fn begin_push(&mut self, mut session: Session, subject: PushSubject<NamedPaths>, callers: Vec<Opener>) {
        let (row, uid, cache) = (session.row, session.uid, session.cache);
        let callers = callers.into_iter().filter_map(|opener| match opener {
            Opener::Push(caller) => Some(caller.about(Asked::Push(row))),
            Opener::Start(_) => None,
        });
        let callers: Vec<_> = callers.collect();
        session.draining_since = callers.first().map(|caller| caller.since);
        self.parts.sessions.insert(session);
        let queued = match cache {
            Some(cache) => {
                self.begin_naming(Naming { row, uid }, cache, Question::Of(Subject::Push(subject), callers))
            }
            None => {
                for caller in callers {
                    let message = "a [[route]] of the configuration skips your paths";
                    caller.responder.refuse(ErrorCode::Denied, message);
                }
                false
            }
        };
        if !queued {
            self.session_step(row, SessionEvent::Named);
        }
    }
}
