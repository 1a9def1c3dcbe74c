//! The answer to `status`, and the status line for systemd.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::Driver;
use crate::control::messages as m;
use crate::control::messages::Reply;
use crate::control::server::{Peer, Responder};
use crate::daemon::blocking::Blocking;
use crate::daemon::caches::Netrc;
use crate::daemon::metrics::{CacheNumbers, Numbers};
use crate::daemon::sessions::{Engines, PATHS_MOST, Sight};
use crate::flow::BreakerState;
use crate::ledger::{Health, LedgerError};
use crate::observe::recent;
use crate::types::{Wall, millis};

/// How long `status` waits for the Nix database, and then for the ledger. It leaves out
/// what it could not read in time.
const PATIENCE: Duration = Duration::from_millis(500);
/// The warning when the ledger could not be read in time.
const LEDGER_SLOW: &str = "the ledger does not answer: sessions are not shown; \
     the disk with the state directory may be slow (`journalctl -k`, `iostat -x 1`)";

impl Driver {
    /// What `status` and the metrics have without reading a file.
    fn present(&self) -> m::Status {
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
        status.warnings.extend(parts.caches.iter().filter_map(|cache| {
            let why = cache.client().supplied()?.problem()?;
            Some(format!("cache {}: token_command gave no token: {why}", cache.name()))
        }));
        status.warnings.extend(parts.gc_roots.trouble());
        let protection = parts.gc_roots.protection();
        status.store.protected_bytes = protection.bytes;
        status.store.unprotected_paths = protection.unprotected;
        status.store.let_go = protection.let_go;
        let files = parts.settings.nix.root.is_some().then(|| parts.transfers.store().dir().as_path());
        status.store.files = files.map(|files| files.display().to_string());
        status.warnings.extend(protection.warning);
        status.warnings.extend(parts.intake.lock_watcher().trouble());
        status.warnings.extend(parts.netrc.as_ref().and_then(Netrc::trouble));
        status.warnings.extend(parts.metrics.trouble());
        status.ledger = match parts.ledger.health() {
            Health::Ok => m::LedgerStatus { state: "ok".to_owned(), detail: None },
            Health::Degraded { error, kept, .. } => m::LedgerStatus {
                state: "degraded".to_owned(),
                detail: Some(format!("{error}; {kept} changes are kept in memory until it can be written")),
            },
        };
        status
    }

    /// Makes the page of metrics, and hands it to `then`.
    pub(super) fn metrics_page(&self, then: impl FnOnce(String) + Send + 'static) {
        let parts = &self.parts;
        let mut status = self.present();
        let oldest = parts.pushes.oldest(|push| !self.flow.is_failed(push));
        let now = Wall::now().0;
        let caches = parts.caches.iter().filter_map(|cache| {
            let view = self.flow.view(cache.id())?;
            let age = oldest.get(&cache.id()).map_or(0, |at| now.saturating_sub(*at).max(0));
            Some(CacheNumbers {
                pending: view.pending.saturating_sub(parts.pushes.rechecks(cache.id())) as u64,
                oldest_pending_s: age.unsigned_abs() / 1000,
                upload_limit: u64::from(view.limit),
            })
        });
        let numbers = Numbers {
            sent_bytes: parts.transfers.sent(),
            ledger_queued: parts.ledger.queued() as u64,
            caches: caches.collect(),
        };
        let (store, reports, cursor) =
            (parts.transfers.store().clone(), parts.reports.clone(), parts.intake.cursor());
        let (reads, metrics) = (Arc::clone(&self.status_reads), parts.metrics.clone());
        let forgotten = self.flow.has_forgotten();
        let blocking = parts.blocking.clone();
        tokio::spawn(async move {
            if let Some(Ok(head)) = read(&blocking, &reads, move || store.head()).await {
                status.store.lag = u64::try_from(head - cursor).unwrap_or(0);
            }
            let from_ledger = move || {
                let failed = forgotten.then(|| reports.ledger().failed().ok()).flatten();
                (failed, reports.session_counts())
            };
            if let Some((failed, Ok(counts))) = read(&blocking, &reads, from_ledger).await {
                status.queue.failed = status.queue.failed.max(failed.unwrap_or(0));
                status.session_counts = counts;
            }
            then(metrics.page(&status, &numbers));
        });
    }

    /// Serves `status`.
    pub(super) fn status(&self, peer: Peer, responder: Responder) {
        let parts = &self.parts;
        let mut status = self.present();
        let (store, reports, cursor) =
            (parts.transfers.store().clone(), parts.reports.clone(), parts.intake.cursor());
        status.sent_bytes = parts.transfers.sent();
        let uploads = self.running_uploads();
        let (reads, forgotten) = (Arc::clone(&self.status_reads), self.flow.has_forgotten());
        let admins = parts.settings.admins.clone();
        let blocking = parts.blocking.clone();
        tokio::spawn(async move {
            if let Some(Ok(head)) = read(&blocking, &reads, move || store.head()).await {
                status.store.lag = u64::try_from(head - cursor).unwrap_or(0);
            }
            let from_ledger = move || {
                let failed = forgotten.then(|| reports.ledger().failed().ok()).flatten();
                let sight = reports.sight(peer, admins.as_deref());
                let read = || {
                    let sessions = reports.entries(false, sight)?;
                    let counts = reports.session_counts()?;
                    // Paths and reasons are for their users; others see the numbers.
                    let own = if let Sight::Own(uid) = sight { Some(reports.failed_of(uid)?) } else { None };
                    Ok::<_, LedgerError>((sessions, counts, own, sight))
                };
                (failed, read())
            };
            match read(&blocking, &reads, from_ledger).await {
                Some((failed, Ok((sessions, counts, own, sight)))) => {
                    let seen = |owners: &[u32]| sight == Sight::All || owners.iter().any(|o| sight.sees(*o));
                    let uploads = uploads.into_iter().filter(|(_, owners)| seen(owners));
                    status.uploads = uploads.map(|(upload, _)| upload).collect();
                    status.events = visible_events(sight, &sessions);
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
            // What is only asked about again, for a flush, is not pending: in an outage there may be
            // thousands of these, and nothing to upload.
            let pending = view.pending.saturating_sub(self.parts.pushes.rechecks(cache.id()));
            status.queue.pending += (pending as u64).saturating_sub(u64::from(view.uploading));
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

    /// The running uploads, the longest first, each with the users whose sessions it is for.
    fn running_uploads(&self) -> Vec<(m::UploadStatus, Vec<u32>)> {
        let parts = &self.parts;
        let owners = |push| {
            let sessions = self.flow.sessions_of(push);
            sessions.filter_map(|row| Some(parts.sessions.get(row)?.uid)).collect()
        };
        let name = |cache| self.name(cache).to_owned();
        let running = parts.transfers.running();
        let running = running.iter().filter_map(|(push, running)| {
            Some((parts.pushes.upload_status(*push, running, name)?, owners(*push)))
        });
        let mut uploads: Vec<(m::UploadStatus, Vec<u32>)> = running.collect();
        uploads.sort_by_key(|(upload, _)| std::cmp::Reverse(upload.running_ms));
        uploads
    }

    fn fill_failed(&self, status: &mut m::Status) {
        if status.queue.failed > 0 {
            status.failed = self.failures();
        }
    }

    /// The failed paths with their reasons, at most [`PATHS_MOST`].
    pub(super) fn failures(&self) -> Vec<m::Failed> {
        let failures = self.parts.pushes.failures(|push| self.flow.is_failed(push), PATHS_MOST);
        failures
            .into_iter()
            .map(|(path, class, error)| m::Failed { path, error, class: Some(class) })
            .collect()
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

/// The last entries of the log that a caller may see. Those who may not see everything
/// see what is about the daemon and its caches, and about their own sessions.
fn visible_events(sight: Sight, sessions: &[m::SessionEntry]) -> Vec<m::LogLine> {
    let own = |id: &str| sessions.iter().any(|session| session.session == id);
    recent()
        .into_iter()
        .filter(|entry| sight == Sight::All || entry.public || entry.session.as_deref().is_some_and(own))
        .map(|entry| m::LogLine { at: entry.at, level: entry.level.to_owned(), text: entry.text })
        .collect()
}

/// Reads on a thread that may block. `None`: the read takes longer than [`PATIENCE`], or
/// earlier ones still have all places.
async fn read<R: Send + 'static>(
    blocking: &Blocking,
    places: &Arc<Semaphore>,
    read: impl FnOnce() -> R + Send + 'static,
) -> Option<R> {
    let place = Arc::clone(places).acquire_owned();
    let read = async {
        let place = place.await.ok()?;
        let read = blocking.run(move || {
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
