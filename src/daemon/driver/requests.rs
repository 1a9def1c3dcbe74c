//! What callers ask on the socket: who may ask it, and what is set in motion.

use std::sync::{MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::attribution::Windows;
use crate::control::messages::{ErrorCode, Request};
use crate::control::server::Responder;
use crate::control::server::{Incoming, Peer};
use crate::daemon::driver::Driver;
use crate::daemon::intake::{Naming, Work};
use crate::daemon::sessions::opening::OpenRequest;
use crate::daemon::sessions::session::{Asked, Caller, Pending, Waiter};
use crate::flow::Event;
use crate::observe::event;
use crate::types::{CacheId, SessionId, StoreDir, StorePath};

/// Paths named in one request.
pub(in crate::daemon) const NAMED_MOST: usize = 10_000;
/// Longest wait that a caller may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What a caller hears who comes too late.
pub(in crate::daemon) const STOPPING: &str = "the daemon is stopping: ask again when it is back";

impl Driver {
    /// Takes one request; the answer comes at once or later, exactly once.
    pub(in crate::daemon) fn serve(&mut self, incoming: Incoming) {
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
                let wish = OpenRequest { label, anchor_pid, strict, ci, ..OpenRequest::default() };
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
                let row = self.sessions.new_group();
                let caller = caller(Asked::Flush, responder, true, timeout_ms);
                self.name_paths(row, self.default_cache(), Vec::new(), false, caller);
            }
            Request::Hook { derivation, outputs } => self.hook(&peer, derivation, outputs, responder),
            Request::Status => self.status(responder),
            Request::Reload => self.reload(&peer, responder),
            Request::Client { check } => self.readers(check, responder),
        }
    }

    pub(in crate::daemon) fn windows(&self) -> MutexGuard<'_, Windows> {
        self.windows.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::daemon) fn number_of(&self, name: &str) -> Option<CacheId> {
        self.caches.iter().position(|c| c == name).and_then(|n| u16::try_from(n).ok()).map(CacheId)
    }

    pub(in crate::daemon) fn default_cache(&self) -> CacheId {
        self.number_of(&self.settings.default_cache).unwrap_or(CacheId(0))
    }

    /// Whether the caller may see and end what belongs to `uid`.
    pub(in crate::daemon) fn may(&self, peer: &Peer, uid: u32) -> bool {
        peer.uid == uid || peer.uid == 0 || peer.uid == self.own_uid
    }

    pub(in crate::daemon) fn known_cache(&self, name: &str) -> Result<CacheId, String> {
        self.number_of(name)
            .ok_or_else(|| format!("there is no cache {name:?} here; configured: {}", self.caches.join(", ")))
    }

    pub(in crate::daemon) fn parse_paths(&self, paths: &[String]) -> Result<Vec<StorePath>, String> {
        if paths.len() > NAMED_MOST {
            return Err(format!("{} paths in one request, at most {NAMED_MOST}: name fewer", paths.len()));
        }
        let store_dir: &StoreDir = &self.transfers.store_dir;
        paths.iter().map(|p| store_dir.parse(p).map_err(|e| format!("{p}: {e}"))).collect()
    }

    /// Has the intake take in what became valid, and named paths with their closure.
    pub(in crate::daemon) fn name_paths(
        &mut self,
        row: SessionId,
        cache: CacheId,
        paths: Vec<StorePath>,
        retry: bool,
        caller: Caller,
    ) {
        let close_window = matches!(caller.asked, Asked::End(_));
        let token = self.sessions.expect(Pending { row, caller: Some(caller) });
        let naming = Naming { token, session: row, close_window, cache, paths, retry };
        if !self.bell.ask(Work::Name(naming))
            && let Some(Pending { caller: Some(caller), .. }) = self.sessions.namings.remove(&token)
        {
            caller.responder.refuse(ErrorCode::Busy, "too much is asked at once: try again in a moment");
        }
    }

    /// What was named is in the queue: the wait begins.
    pub(in crate::daemon) fn named(&mut self, token: u64, invalid: &[StorePath]) {
        let Some(Pending { row, caller }) = self.sessions.namings.remove(&token) else { return };
        if let Some(live) = self.sessions.sessions.get_mut(&row) {
            live.unlooked = false;
            for path in invalid {
                event!(
                    NAMED_INVALID,
                    session = live.id,
                    label = live.label,
                    store_path = self.transfers.store_dir.full(path),
                    "named, but not valid in the store"
                );
                live.warn(&self.ledger, format!("{path} is not valid in the store: it was not pushed"));
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
            self.sessions.waiters.push(Waiter { group: row, asked, responder, since, deadline, total });
            // At once: a caller who loses the connection asks again by the session's id.
            self.report_progress();
            self.step(Event::Flush(row));
        } else {
            let warnings = self.warnings(asked);
            self.step(Event::Flush(row));
            self.answer_warning(asked, responder, since, true, warnings);
        }
    }
}

fn caller(asked: Asked, responder: Responder, wait: bool, timeout_ms: u64) -> Caller {
    let since = Instant::now();
    let deadline = since + Duration::from_millis(timeout_ms).min(LONGEST);
    Caller { asked, responder, wait, since, deadline }
}
