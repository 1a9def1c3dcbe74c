//! Sessions that begin: `session start`, and the unnamed one that a push is.

use std::sync::PoisonError;

use crate::attribution::{Anchor, Proc, ProcId, Window};
use crate::control::messages::{CiJob, ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::daemon::driver::Driver;
use crate::daemon::inbox::Input;
use crate::daemon::intake::routes::destination;
use crate::daemon::sessions::session::{Asked, Caller, Session};
use crate::ledger::{NewSession, SessionRow};
use crate::observe::{detail, event};
use crate::types::{CacheId, StorePath, Wall};

/// Open sessions of one user.
const SESSIONS_PER_UID: usize = 256;

/// A session on its way to being open.
#[derive(Debug)]
pub(in crate::daemon) struct Opening {
    pub(in crate::daemon) live: Session,
    pub(in crate::daemon) result: Result<SessionRow, (ErrorCode, String)>,
    pub(in crate::daemon) anchor: Option<ProcId>,
    pub(in crate::daemon) caller: Opened,
}

/// What opens a session, besides who asks for it.
#[derive(Debug, Default)]
pub(in crate::daemon) struct OpenRequest {
    pub(in crate::daemon) prefix: &'static str,
    pub(in crate::daemon) label: Option<String>,
    pub(in crate::daemon) cache: Option<CacheId>,
    pub(in crate::daemon) anchor_pid: Option<u32>,
    pub(in crate::daemon) strict: bool,
    pub(in crate::daemon) ci: Option<CiJob>,
}

/// What follows when it is.
#[derive(Debug)]
pub(in crate::daemon) enum Opened {
    /// `session start`: its id is told.
    Start(Responder),
    /// `push`: the paths are named at once.
    Push { paths: Vec<StorePath>, caller: Caller },
}

impl Driver {
    pub(in crate::daemon) fn session_start(
        &mut self,
        peer: &Peer,
        responder: Responder,
        cache: Option<&str>,
        wish: OpenRequest,
    ) {
        let open =
            self.sessions.sessions.values().filter(|s| s.uid == peer.uid && s.ending.is_none()).count();
        if open >= SESSIONS_PER_UID {
            let message =
                format!("uid {} has {open} open sessions, the most there may be: end some", peer.uid);
            return responder.refuse(ErrorCode::Busy, message);
        }
        let cache = match cache.map(|name| self.known_cache(name)).transpose() {
            Ok(cache) => cache,
            Err(message) => return responder.refuse(ErrorCode::BadRequest, message),
        };
        self.open(peer, OpenRequest { cache, ..wish }, Opened::Start(responder));
    }

    pub(in crate::daemon) fn push(
        &mut self,
        peer: &Peer,
        paths: &[String],
        cache: Option<&str>,
        caller: Caller,
    ) {
        let cache = match cache.map(|name| self.known_cache(name)).transpose() {
            Ok(cache) => cache,
            Err(message) => return caller.responder.refuse(ErrorCode::BadRequest, message),
        };
        match self.parse_paths(paths) {
            Ok(paths) => {
                let wish = OpenRequest { prefix: "push-", cache, ..OpenRequest::default() };
                self.open(peer, wish, Opened::Push { paths, caller });
            }
            Err(message) => caller.responder.refuse(ErrorCode::BadRequest, message),
        }
    }

    /// Writes a new session down; [`Driver::opened`] goes on.
    fn open(&mut self, peer: &Peer, wish: OpenRequest, caller: Opened) {
        let OpenRequest { prefix, label, cache, anchor_pid, strict, ci } = wish;
        let id = format!("{prefix}{}", crate::daemon::sessions::identity::new_id());
        let label = label.map(|l| l.chars().take(200).collect::<String>());
        let mut live = Session {
            row: 0,
            id,
            label,
            cache,
            uid: peer.uid,
            ci,
            ending: None,
            abandoned: false,
            watch: None,
            warnings: Vec::new(),
            unlooked: false,
        };
        let peer = *peer;
        let settings = std::sync::Arc::clone(&self.settings);
        let names = self.caches.clone();
        let (ledger, windows) = (self.ledger.clone(), std::sync::Arc::clone(&self.windows));
        let transfers = self.transfers.clone();
        let cursor = self.cursor;
        let work = move || {
            live.cache = match live.cache {
                Some(named) => Some(named),
                None => destination(&settings, &names, (peer.uid, peer.gid), live.label.as_deref()),
            };
            let resolve = |pid| Anchor::resolve(&Proc::default(), pid, peer.pid, peer.uid);
            let anchor = match anchor_pid.map(resolve).transpose() {
                Ok(anchor) => anchor.flatten(),
                Err(error) => {
                    let result = Err((ErrorCode::BadRequest, error.to_string()));
                    return Input::Opened(Box::new(Opening { live, result, anchor: None, caller }));
                }
            };
            if anchor.is_none() && anchor_pid.is_some() {
                detail!(pid = anchor_pid, "the job's processes cannot be seen from here");
            }
            let id = anchor.as_ref().map(|a| a.id);
            let is_push = matches!(caller, Opened::Push { .. });
            // The window is set under its lock: what becomes valid from this
            // moment on is looked at by the intake only afterwards.
            let mut windows = windows.lock().unwrap_or_else(PoisonError::into_inner);
            // Unreadable just now: what was not taken in yet may be its own, and
            // too much is better than to say that there was nothing.
            let after = transfers.head().unwrap_or(cursor);
            let result = ledger.session_open(NewSession {
                id: live.id.clone(),
                label: live.label.clone(),
                cache: live.cache.map(|c| names[usize::from(c.0)].clone()).unwrap_or_default(),
                uid: peer.uid,
                gid: peer.gid,
                anchor_pid: id.map(|id| (id.pid, id.start)),
                strict,
                ci: live.ci.as_ref().and_then(|ci| serde_json::to_string(ci).ok()),
                started_at: Wall::now().0,
                after,
            });
            if let Ok(row) = result {
                live.row = row;
                if !is_push {
                    let cache = live.cache.map(|c| c.0);
                    windows.open(Window { session: row, after, until: None, cache, anchor });
                }
            }
            drop(windows);
            let refusal = |e| (ErrorCode::Internal, format!("the session cannot be recorded: {e}"));
            let result = result.map_err(refusal);
            Input::Opened(Box::new(Opening { live, result, anchor: id, caller }))
        };
        let out = self.transfers.out.clone();
        tokio::spawn(async move {
            if let Ok(input) = tokio::task::spawn_blocking(work).await {
                let _ = out.send(input).await;
            }
        });
    }

    /// A session is written down.
    pub(in crate::daemon) fn opened(&mut self, opening: Opening) {
        let Opening { mut live, result, anchor, caller } = opening;
        let row = match result {
            Ok(row) => row,
            Err((code, message)) => {
                let responder = match caller {
                    Opened::Start(responder) => responder,
                    Opened::Push { caller, .. } => caller.responder,
                };
                return responder.refuse(code, message);
            }
        };
        let cache = live.cache;
        let name = cache.map(|c| self.name(c).to_owned());
        match caller {
            Opened::Start(responder) => {
                event!(
                    SESSION_STARTED,
                    session = live.id,
                    label = live.label,
                    cache = name,
                    uid = live.uid,
                    anchor = anchor.map(|a| a.pid),
                    "session started"
                );
                live.watch = anchor
                    .map(|a| crate::daemon::sessions::anchors::watch(row, a, self.transfers.out.clone()));
                responder.reply(Reply::Started { session: live.id.clone(), cache: name.unwrap_or_default() });
                self.sessions.sessions.insert(row, live);
            }
            Opened::Push { paths, mut caller } => {
                live.ending = Some(caller.since);
                caller.asked = Asked::Push(row);
                self.sessions.sessions.insert(row, live);
                match cache {
                    Some(cache) => self.name_paths(row, cache, paths, true, caller),
                    None => {
                        caller
                            .responder
                            .refuse(ErrorCode::Denied, "a [[route]] of the configuration skips your paths");
                        self.close(row);
                    }
                }
            }
        }
    }
}
