//! The answer to `status`, and the status line for systemd.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::Driver;
use crate::control::messages as m;
use crate::control::messages::Reply;
use crate::control::server::{Peer, Responder};
use crate::daemon::caches::Netrc;
use crate::daemon::sessions::{Engines, PATHS_MOST, Sight};
use crate::flow::BreakerState;
use crate::ledger::{Health, LedgerError};
use crate::types::millis;

/// How long `status` waits for the Nix database, and then for the ledger. It leaves out
/// what it could not read in time.
const PATIENCE: Duration = Duration::from_millis(500);
/// The warning when the ledger could not be read in time.
const LEDGER_SLOW: &str = "the ledger does not answer: sessions are not shown; \
     the disk with the state directory may be slow (`journalctl -k`, `iostat -x 1`)";

impl Driver {
    /// Serves `status`.
    pub(super) fn status(&self, peer: Peer, responder: Responder) {
        let parts = &self.parts;
        let mut status = m::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(self.began.elapsed()),
            draining: self.stopping.has_begun(),
            client: self.client_status(),
            warnings: parts.settings.warnings.clone(),
            ..m::Status::default()
        };
        self.fill_caches(&mut status);
        self.fill_failed(&mut status);
        let health = parts.store_watch.health();
        let unwatched = (!health.watching)
            .then(|| health.last_loss.unwrap_or_else(|| "the store is not watched".to_owned()));
        status.store.problem = parts.intake.stuck().map(str::to_owned).or(unwatched);
        status.store.cursor = parts.intake.cursor();
        status.warnings.extend(parts.built_in.as_ref().and_then(|b| b.port_trouble().borrow().clone()));
        status.warnings.extend(parts.gc_roots.trouble());
        let protection = parts.gc_roots.protection();
        status.store.protected_bytes = protection.bytes;
        status.store.unprotected_paths = protection.unprotected;
        status.store.let_go = protection.let_go;
        status.warnings.extend(protection.warning);
        status.warnings.extend(parts.netrc.as_ref().and_then(Netrc::trouble));
        status.ledger = match parts.ledger.health() {
            Health::Ok => m::LedgerStatus { state: "ok".to_owned(), detail: None },
            Health::Degraded { error, kept, .. } => m::LedgerStatus {
                state: "degraded".to_owned(),
                detail: Some(format!("{error}; {kept} changes are kept in memory until it can be written")),
            },
        };
        let (store, reports, cursor) =
            (parts.transfers.store().clone(), parts.reports.clone(), parts.intake.cursor());
        let (reads, forgotten) = (Arc::clone(&self.status_reads), self.flow.has_forgotten());
        let admins = parts.settings.admins.clone();
        tokio::spawn(async move {
            if let Some(Ok(head)) = read(&reads, move || store.head()).await {
                status.store.lag = u64::try_from(head - cursor).unwrap_or(0);
            }
            let from_ledger = move || {
                let failed = forgotten.then(|| reports.ledger().failed().ok()).flatten();
                let sight = reports.sight(peer, admins.as_deref());
                let read = || {
                    let sessions = reports.entries(false, |owner| sight.sees(owner))?;
                    let counts = reports.session_counts()?;
                    // Paths and reasons are for their users; others see the numbers.
                    let own = if let Sight::Own(uid) = sight { Some(reports.failed_of(uid)?) } else { None };
                    Ok::<_, LedgerError>((sessions, counts, own))
                };
                (failed, read())
            };
            match read(&reads, from_ledger).await {
                Some((failed, Ok((sessions, counts, own)))) => {
                    status.queue.failed = status.queue.failed.max(failed.unwrap_or(0));
                    status.sessions = sessions;
                    status.session_counts = counts;
                    status.failed = own.unwrap_or(status.failed);
                }
                // Without the ledger it is not known which paths the caller may see.
                Some((_, Err(error))) => {
                    status.failed.clear();
                    status.warnings.push(format!("the sessions cannot be read: {error}"));
                }
                None => {
                    status.failed.clear();
                    status.warnings.push(LEDGER_SLOW.to_owned());
                }
            }
            responder.reply(Reply::Status(status));
        });
    }

    fn fill_caches(&self, status: &mut m::Status) {
        for cache in self.parts.caches.iter() {
            let Some(view) = self.flow.view(cache.id()) else { continue };
            status.queue.pending += (view.pending as u64).saturating_sub(u64::from(view.uploading));
            status.queue.uploading += u64::from(view.uploading);
            status.queue.failed += view.failed as u64;
            status.cache.push(m::CacheStatus {
                name: cache.name().to_owned(),
                endpoint: cache.client().endpoint(),
                state: cache_state(view.state),
                engine: Engines::word(self.parts.settings.caches[cache.name()].engine).to_owned(),
                reason: (view.state != BreakerState::Online)
                    .then(|| self.trouble(cache.id()))
                    .flatten()
                    .or_else(|| self.waits_for_client(cache.id())),
                token_expires: cache.client().token_expiry(),
                counts: cache.tally.counts,
                verified: self.verifier.found(cache.name()),
            });
        }
    }

    fn fill_failed(&self, status: &mut m::Status) {
        if status.queue.failed == 0 {
            return;
        }
        let failures = self.parts.pushes.failures(|push| self.flow.is_failed(push), PATHS_MOST);
        let failed =
            failures.into_iter().map(|(path, class, error)| m::Failed { path, error, class: Some(class) });
        status.failed = failed.collect();
    }

    /// The line that `systemctl status` shows.
    pub(super) fn status_line(&self) -> String {
        let sessions = self.parts.sessions.len();
        let plural = if sessions == 1 { "" } else { "s" };
        let mut uploading = 0;
        let mut caches = Vec::new();
        for cache in self.parts.caches.iter() {
            let Some(view) = self.flow.view(cache.id()) else { continue };
            uploading += view.uploading;
            caches.push(format!("{} {}", cache.name(), cache_state(view.state).as_str()));
        }
        let queued = self.pending().saturating_sub(u64::from(uploading));
        let stopping = if self.stopping.has_begun() { "stopping, " } else { "" };
        format!(
            "{stopping}{sessions} session{plural}, {queued} queued, {uploading} uploading, {}",
            caches.join(", ")
        )
    }
}

/// Reads on a thread that may block. `None`: the read takes longer than [`PATIENCE`], or
/// earlier ones still have all places.
async fn read<R: Send + 'static>(
    places: &Arc<Semaphore>,
    read: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let place = Arc::clone(places).acquire_owned();
    let read = async {
        let place = place.await.ok()?;
        let read = spawn_blocking(move || {
            let result = read();
            drop(place);
            result
        });
        read.await.ok()
    };
    timeout(PATIENCE, read).await.ok().flatten()
}

fn cache_state(state: BreakerState) -> m::CacheState {
    match state {
        BreakerState::Online => m::CacheState::Online,
        BreakerState::Offline => m::CacheState::Offline,
        BreakerState::Refused => m::CacheState::Unauthorized,
    }
}
