//! Requests on the control socket: who may make them, and what they set in motion.

use super::Driver;
use crate::control::messages::{ErrorCode, MAX_PATHS, Reply, Request};
use crate::control::server::{Incoming, Peer};
use crate::daemon::sessions::{Caller, OpenRequest};
use crate::types::{CacheId, StorePath};

/// Most paths in one request.
pub(super) const PATHS_IN_REQUEST: usize = MAX_PATHS as usize;

/// The answer to a request that comes while the daemon is stopping.
pub(super) const STOPPING: &str = "the daemon is stopping: try again when it runs again";

impl Driver {
    /// Serves one request. It is answered exactly once, at once or later.
    pub(super) fn serve(&mut self, incoming: Incoming) {
        let Incoming { request, peer, responder } = incoming;
        match request {
            // The next run of the daemon continues, and a caller that asks again
            // finds its session there.
            Request::SessionStart { .. }
            | Request::SessionEnd { .. }
            | Request::Push { .. }
            | Request::Flush { .. }
                if self.stopping.has_begun() =>
            {
                responder.refuse(ErrorCode::Draining, STOPPING);
            }
            Request::SessionStart { label, cache, anchor_pid, strict, ci, log_paths } => {
                let request =
                    OpenRequest { label, anchor_pid, strict, ci, log_paths, ..OpenRequest::default() };
                self.session_start(peer, responder, cache.as_deref(), request);
            }
            Request::SessionEnd { session, ci_job, push, timeout_ms, wait, patient } => {
                let mut caller = Caller::new(responder, wait, timeout_ms, self.now());
                caller.patience.patient = patient;
                self.session_end(peer, session.as_deref(), ci_job.as_deref(), &push, caller);
            }
            Request::SessionList { all } => {
                let admins = self.parts.settings.admins.clone();
                self.parts.reports.list(peer, admins, all, responder);
            }
            Request::SessionShow { session } => {
                let admins = self.parts.settings.admins.clone();
                self.parts.reports.show(peer, admins, session, self.engines(), responder);
            }
            Request::Push { paths, cache, wait, timeout_ms } => {
                let caller = Caller::new(responder, wait, timeout_ms, self.now());
                self.push(peer, &paths, cache.as_deref(), caller);
            }
            Request::Flush { timeout_ms } => {
                self.flush(peer, Caller::new(responder, true, timeout_ms, self.now()));
            }
            Request::Hook { derivation, outputs } => self.hook(peer, derivation, outputs, responder),
            Request::Status => self.status(peer, responder),
            Request::Metrics => self.metrics_page(move |page| responder.reply(Reply::Metrics(page))),
            Request::Why { paths } => self.why(peer, &paths, responder),
            Request::Diagnose { push } => self.diagnose(peer, push, responder),
            Request::Verify { scope, cache, timeout_ms } => {
                self.verify(peer, scope, cache.as_deref(), timeout_ms, responder);
            }
            Request::Reload => self.reload(peer, responder),
            Request::Client { check } => self.client_info(check, responder),
        }
    }

    pub(super) fn default_cache(&self) -> CacheId {
        self.parts.caches.id(&self.parts.settings.default_cache).unwrap_or(CacheId(0))
    }

    /// Whether the caller may see and end what belongs to the user `uid`.
    pub(super) fn may(&self, peer: Peer, uid: u32) -> bool {
        self.parts.reports.may_see(peer.uid, uid)
    }

    /// The cache that a caller has named. An error says which there are.
    pub(super) fn named_cache(&self, name: Option<&str>) -> Result<Option<CacheId>, String> {
        let Some(name) = name else { return Ok(None) };
        let caches = &self.parts.caches;
        let unknown =
            || format!("there is no cache {name:?} here; configured: {}", caches.names().join(", "));
        caches.id(name).map(Some).ok_or_else(unknown)
    }

    /// The paths that a caller has named. An error says which is none.
    pub(super) fn parse_paths(&self, paths: &[String]) -> Result<Vec<StorePath>, String> {
        if paths.len() > PATHS_IN_REQUEST {
            return Err(format!(
                "{} paths in one request, at most {PATHS_IN_REQUEST}: name fewer",
                paths.len()
            ));
        }
        let store_dir = self.parts.transfers.store().dir();
        paths.iter().map(|p| store_dir.parse(p).map_err(|e| format!("{p}: {e}"))).collect()
    }
}
