//! What callers ask on the socket: who may ask it, and what is set in motion.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::{debug, info, warn};

use super::driver::Driver;
use super::identity::who_is;
use super::input::Input;
use super::intake::{Naming, Work};
use super::live::{Asked, Caller, Live, Pending, Waiter};
use super::wall_ms;
use crate::attribution::{Anchor, Lineage, Proc, ProcId, Window, Windows};
use crate::config::{Destination, Who};
use crate::control::messages::{CiJob, ErrorCode, Reply, Request};
use crate::control::server::Responder;
use crate::control::server::{Incoming, Peer};
use crate::flow::{CacheId, Event, SessionId};
use crate::ledger::{NewSession, SessionInfo, SessionRow, SessionState};
use crate::store::{StoreDir, StorePath};

/// Open sessions of one user.
const SESSIONS_PER_UID: usize = 256;
/// Bytes of a derivation that are read; its outputs stand at the beginning.
const DERIVATION_MOST: u64 = 4 << 20;
/// Paths named in one request.
const NAMED_MOST: usize = 10_000;
/// Until a naming that found the intake busy is tried again.
const AGAIN: Duration = Duration::from_millis(100);
/// Longest wait that a caller may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What a caller hears who comes too late.
pub(super) const STOPPING: &str = "the daemon is stopping: ask again when it is back";

/// A session on its way to being open.
#[derive(Debug)]
pub(super) struct Opening {
    pub(super) live: Live,
    pub(super) result: Result<SessionRow, (ErrorCode, String)>,
    pub(super) anchor: Option<ProcId>,
    pub(super) caller: Opened,
}

/// An abandoned session that its job ends after all.
#[derive(Debug)]
pub(super) struct Rejoining {
    pub(super) info: SessionInfo,
    pub(super) paths: Vec<StorePath>,
    pub(super) caller: Caller,
}

/// What opens a session, besides who asks for it.
#[derive(Debug, Default)]
struct Wish {
    prefix: &'static str,
    label: Option<String>,
    cache: Option<CacheId>,
    anchor_pid: Option<u32>,
    strict: bool,
    ci: Option<CiJob>,
}

/// How a caller names a session that is not live.
enum Which {
    Id(String),
    /// The CI job that it was of, and what to say when there was none.
    Job(String, String),
}

/// What follows when it is.
#[derive(Debug)]
pub(super) enum Opened {
    /// `session start`: its id is told.
    Start(Responder),
    /// `push`: the paths are named at once.
    Push { paths: Vec<StorePath>, caller: Caller },
}

impl Driver {
    /// Takes one request; the answer comes at once or later, exactly once.
    pub(super) fn serve(&mut self, incoming: Incoming) {
        let Incoming { request, peer, responder } = incoming;
        let stopping = self.stopping.is_some();
        match request {
            // The next start goes on where this one ends; who asks again finds it.
            Request::SessionStart { .. }
            | Request::SessionEnd { .. }
            | Request::Push { .. }
            | Request::Flush { .. }
                if stopping =>
            {
                responder.refuse(ErrorCode::Draining, STOPPING);
            }
            Request::SessionStart { label, cache, anchor_pid, strict, ci } => {
                let wish = Wish { label, anchor_pid, strict, ci, ..Wish::default() };
                self.session_start(&peer, responder, cache.as_deref(), wish);
            }
            Request::SessionEnd { session, ci_job, push, timeout_ms, wait } => {
                let caller = caller(Asked::Flush, responder, wait, timeout_ms);
                self.session_end(&peer, session.as_deref(), ci_job.as_deref(), &push, caller);
            }
            Request::SessionList { all } => self.list(&peer, all, responder),
            Request::SessionShow { session } => self.show(&peer, session, responder),
            Request::Push { paths, cache, wait, timeout_ms } => {
                self.push(&peer, &paths, cache.as_deref(), caller(Asked::Flush, responder, wait, timeout_ms));
            }
            Request::Flush { timeout_ms } => {
                let row = self.desk.new_group();
                let caller = caller(Asked::Flush, responder, true, timeout_ms);
                self.name_paths(row, self.default_cache(), Vec::new(), false, caller);
            }
            Request::Hook { derivation, outputs } => self.hook(&peer, derivation, outputs, responder),
            Request::Status => self.status(responder),
            Request::Reload => self.reload(&peer, responder),
        }
    }

    pub(super) fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn number_of(&self, name: &str) -> Option<CacheId> {
        self.caches.iter().position(|c| c == name).and_then(|n| u16::try_from(n).ok()).map(CacheId)
    }

    pub(super) fn default_cache(&self) -> CacheId {
        self.number_of(&self.settings.default_cache).unwrap_or(CacheId(0))
    }

    /// Whether the caller may see and end what belongs to `uid`.
    pub(super) fn may(&self, peer: &Peer, uid: u32) -> bool {
        peer.uid == uid || peer.uid == 0 || peer.uid == self.own_uid
    }

    fn known_cache(&self, name: &str) -> Result<CacheId, String> {
        self.number_of(name)
            .ok_or_else(|| format!("there is no cache {name:?} here; configured: {}", self.caches.join(", ")))
    }

    fn session_start(&mut self, peer: &Peer, responder: Responder, cache: Option<&str>, wish: Wish) {
        let open = self.desk.sessions.values().filter(|s| s.uid == peer.uid && s.ending.is_none()).count();
        if open >= SESSIONS_PER_UID {
            let message =
                format!("uid {} has {open} open sessions, the most there may be: end some", peer.uid);
            return responder.refuse(ErrorCode::Busy, message);
        }
        let cache = match cache.map(|name| self.known_cache(name)).transpose() {
            Ok(cache) => cache,
            Err(message) => return responder.refuse(ErrorCode::BadRequest, message),
        };
        self.open(peer, Wish { cache, ..wish }, Opened::Start(responder));
    }

    fn push(&mut self, peer: &Peer, paths: &[String], cache: Option<&str>, caller: Caller) {
        let cache = match cache.map(|name| self.known_cache(name)).transpose() {
            Ok(cache) => cache,
            Err(message) => return caller.responder.refuse(ErrorCode::BadRequest, message),
        };
        match self.parse_paths(paths) {
            Ok(paths) => {
                let wish = Wish { prefix: "push-", cache, ..Wish::default() };
                self.open(peer, wish, Opened::Push { paths, caller });
            }
            Err(message) => caller.responder.refuse(ErrorCode::BadRequest, message),
        }
    }

    /// Writes a new session down; [`Driver::opened`] goes on.
    fn open(&mut self, peer: &Peer, wish: Wish, caller: Opened) {
        let Wish { prefix, label, cache, anchor_pid, strict, ci } = wish;
        let id = format!("{prefix}{}", super::identity::new_id());
        let label = label.map(|l| l.chars().take(200).collect::<String>());
        let mut live = Live {
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
        let default = self.default_cache();
        let (ledger, windows) = (self.ledger.clone(), std::sync::Arc::clone(&self.windows));
        let transfers = self.transfers.clone();
        let cursor = self.cursor;
        let work = move || {
            live.cache = match live.cache {
                Some(named) => Some(named),
                None if settings.routes.is_empty() => Some(default),
                None => {
                    let person = who_is(peer.uid, peer.gid);
                    let label = live.label.as_deref().unwrap_or_default();
                    let who = Who { user: (peer.uid, person.name.as_deref()), groups: &person.groups, label };
                    match settings.route(&who) {
                        Destination::Cache(name) => names
                            .iter()
                            .position(|c| c == name)
                            .and_then(|n| u16::try_from(n).ok())
                            .map(CacheId),
                        Destination::Skip => None,
                    }
                }
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
                debug!(pid = anchor_pid, "the job's processes cannot be seen from here");
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
                started_at: wall_ms(),
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
    pub(super) fn opened(&mut self, opening: Opening) {
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
                info!(
                    session = live.id,
                    label = live.label,
                    cache = name,
                    uid = live.uid,
                    anchor = anchor.map(|a| a.pid),
                    "session started"
                );
                live.watch = anchor.map(|a| super::anchors::watch(row, a, self.transfers.out.clone()));
                responder.reply(Reply::Started { session: live.id.clone(), cache: name.unwrap_or_default() });
                self.desk.sessions.insert(row, live);
            }
            Opened::Push { paths, mut caller } => {
                live.ending = Some(caller.since);
                caller.asked = Asked::Push(row);
                self.desk.sessions.insert(row, live);
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

    fn session_end(
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
            Some(id) => match self.desk.by_id(id) {
                Some(live) => live,
                None => return self.ended_before(peer, Which::Id(id.to_owned()), paths, caller),
            },
            None => {
                let of_job = ci_job.map_or(Ok(None), |key| self.desk.of_job(peer.uid, key));
                match (of_job, self.desk.only_open(peer.uid, ci_job), ci_job) {
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
        if let Some(live) = self.desk.sessions.get_mut(&row) {
            live.watch = None;
            live.abandoned = false;
            if live.ending.is_none() {
                live.ending = Some(caller.since);
                self.ledger.session_state(row, SessionState::Draining, wall_ms(), None);
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
        let store_dir = self.transfers.store_dir.clone();
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
                        responder.reply(super::report::ended(&ledger, &store_dir, &info, Vec::new()));
                    }
                }
                Ok(Some(_)) => responder.refuse(ErrorCode::Denied, "the session belongs to another user"),
                Ok(None) => responder.refuse(ErrorCode::NotFound, otherwise),
                Err(error) => responder.refuse(ErrorCode::Internal, error.to_string()),
            }
        });
    }

    /// An abandoned session drains again, with what its job names now.
    pub(super) fn rejoined(&mut self, rejoining: Rejoining) {
        let Rejoining { info, paths, mut caller } = rejoining;
        let row = info.row;
        let cache = self.number_of(&info.new.cache);
        info!(session = info.new.id, "the session's job ends it after all");
        let live = Live {
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
            warnings: Vec::new(),
        };
        self.desk.sessions.insert(row, live);
        caller.asked = Asked::End(row);
        let (cache, paths) = cache.map_or((self.default_cache(), Vec::new()), |cache| (cache, paths));
        self.name_paths(row, cache, paths, true, caller);
    }

    /// The job went away without a word: what it made is pushed, then its
    /// session is over.
    pub(super) fn abandon(&mut self, row: SessionId) {
        let default = self.default_cache();
        if self.desk.sessions.get(&row).is_none_or(|s| s.ending.is_some()) {
            return;
        }
        let token = self.desk.expect(Pending { row, caller: None });
        let Some(live) = self.desk.sessions.get_mut(&row) else { return };
        let cache = live.cache.unwrap_or(default);
        let naming =
            Naming { token, session: row, close_window: true, cache, paths: Vec::new(), retry: false };
        if !self.bell.ask(Work::Name(naming)) {
            self.desk.namings.remove(&token);
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
        info!(
            session = live.id,
            label = live.label,
            "the session's job has gone without ending it: what it made is pushed"
        );
        self.ledger.session_state(row, SessionState::Draining, wall_ms(), None);
    }

    /// A builder's hook names what was built. Only who owns the store, or
    /// root, is a builder; others could claim what is not theirs.
    fn hook(&self, peer: &Peer, derivation: Option<String>, outputs: Vec<String>, responder: Responder) {
        if outputs.len() > NAMED_MOST {
            return responder.refuse(ErrorCode::BadRequest, "too many paths in one request");
        }
        let (witness, bell, peer) = (self.witness.clone(), self.bell.clone(), *peer);
        let store_dir = self.transfers.store_dir.clone();
        tokio::task::spawn_blocking(move || {
            let owner =
                std::fs::metadata(store_dir.as_path()).map(|m| std::os::unix::fs::MetadataExt::uid(&m));
            if peer.uid != 0 && owner.ok() != Some(peer.uid) {
                return responder.refuse(ErrorCode::Denied, "only a builder of this store has a hook");
            }
            // Nix 2.8 leaves OUT_PATHS empty; the derivation says it too.
            let outputs = match derivation.filter(|_| outputs.is_empty()) {
                Some(drv) => {
                    store_dir.parse(&drv).map(|drv| outputs_of(&store_dir, &drv)).unwrap_or_default()
                }
                None => outputs,
            };
            let paths: Vec<StorePath> = outputs.iter().filter_map(|p| store_dir.parse(p).ok()).collect();
            if let Some(lineage) = peer.pid.and_then(|pid| Lineage::of(&Proc::default(), pid)) {
                let bases: Vec<String> = paths.iter().map(|p| p.base().to_owned()).collect();
                witness.hooked(&bases, &std::sync::Arc::new(lineage));
                bell.ask(Work::Hook(paths));
            }
            responder.reply(Reply::Done { message: "noted".to_owned() });
        });
    }

    fn parse_paths(&self, paths: &[String]) -> Result<Vec<StorePath>, String> {
        if paths.len() > NAMED_MOST {
            return Err(format!("{} paths in one request, at most {NAMED_MOST}: name fewer", paths.len()));
        }
        let store_dir: &StoreDir = &self.transfers.store_dir;
        paths.iter().map(|p| store_dir.parse(p).map_err(|e| format!("{p}: {e}"))).collect()
    }

    /// Has the intake take in what became valid, and named paths with their closure.
    fn name_paths(
        &mut self,
        row: SessionId,
        cache: CacheId,
        paths: Vec<StorePath>,
        retry: bool,
        caller: Caller,
    ) {
        let close_window = matches!(caller.asked, Asked::End(_));
        let token = self.desk.expect(Pending { row, caller: Some(caller) });
        let naming = Naming { token, session: row, close_window, cache, paths, retry };
        if !self.bell.ask(Work::Name(naming))
            && let Some(Pending { caller: Some(caller), .. }) = self.desk.namings.remove(&token)
        {
            caller.responder.refuse(ErrorCode::Busy, "too much is asked at once: try again in a moment");
        }
    }

    /// What was named is in the queue: the wait begins.
    pub(super) fn named(&mut self, token: u64, invalid: &[StorePath]) {
        let Some(Pending { row, caller }) = self.desk.namings.remove(&token) else { return };
        if let Some(live) = self.desk.sessions.get_mut(&row) {
            live.unlooked = false;
            for path in invalid {
                warn!(session = live.id, path = %path, "named, but not valid in the store");
                live.warnings.push(format!("{path} is not valid in the store: it was not pushed"));
            }
        }
        if matches!(caller, Some(Caller { asked: Asked::Flush, .. })) {
            self.step(Event::WantAll(row));
        }
        let Some(Caller { asked, responder, wait, since, deadline }) = caller else {
            return self.step(Event::Flush(row));
        };
        if wait && self.stopping.is_none() {
            let total = u64::from(self.flow.unsettled(row));
            self.desk.waiters.push(Waiter { group: row, asked, responder, since, deadline, total });
            // At once: a caller who loses the connection asks again by the session's id.
            self.report_progress();
            self.step(Event::Flush(row));
        } else {
            let warnings = self.warnings(asked);
            self.step(Event::Flush(row));
            self.answer_warning(asked, responder, since, true, warnings);
        }
    }

    fn reload(&mut self, peer: &Peer, responder: Responder) {
        if !self.may(peer, self.own_uid) {
            let message = "only root and the daemon's own user may have it reload";
            return responder.refuse(ErrorCode::Denied, message);
        }
        let mut notes = Vec::new();
        for (number, client) in (0_u16..).zip(self.transfers.clients.iter()) {
            match client.reload_token() {
                Ok(true) => notes.push(format!("{}: a new token", self.name(CacheId(number)))),
                Ok(false) => {}
                Err(error) => notes.push(format!("{}: {error}", self.name(CacheId(number)))),
            }
        }
        for number in 0..u16::try_from(self.caches.len()).unwrap_or(u16::MAX) {
            self.step(Event::Nudge(CacheId(number)));
        }
        self.step(Event::Retry(None));
        let notes = if notes.is_empty() { "tokens unchanged".to_owned() } else { notes.join("; ") };
        let message = format!("{notes}; what was given up is tried again");
        info!("reload: {message}");
        responder.reply(Reply::Done { message });
    }
}

/// What a derivation makes; nothing when its file cannot be read.
fn outputs_of(store_dir: &StoreDir, derivation: &StorePath) -> Vec<String> {
    use std::io::Read as _;
    let mut text = String::new();
    let file = std::fs::File::open(store_dir.as_path().join(derivation.base()));
    let read = file.and_then(|file| file.take(DERIVATION_MOST).read_to_string(&mut text));
    if read.is_ok() { crate::store::derivation::outputs(&text) } else { Vec::new() }
}

fn is_of_job(session: &SessionInfo, key: &str) -> bool {
    let ci: Option<CiJob> = session.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok());
    ci.is_some_and(|ci| ci.key() == key)
}

fn caller(asked: Asked, responder: Responder, wait: bool, timeout_ms: u64) -> Caller {
    let since = Instant::now();
    let deadline = since + Duration::from_millis(timeout_ms).min(LONGEST);
    Caller { asked, responder, wait, since, deadline }
}
