//! The truth, told: summaries, lists and status, made from the ledger and from
//! where the decisions stand.

mod wording;

use crate::control::messages as m;
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::Peer;
use crate::control::server::Responder;
use crate::daemon::driver::Driver;
use crate::daemon::driver::readers::word;
use crate::daemon::sessions::session::Asked;
use crate::flow::BreakerState;
use crate::ledger::{Health, LedgerError};
use crate::observe::event;

use crate::types::{CacheId, Wall};
pub(in crate::daemon) use wording::ended;
use wording::{detail, entry, internal};

/// Paths that one `session show` lists.
const PATHS_MOST: usize = m::MAX_ENTRIES as usize;

/// How long `status` waits for the Nix database to say how far behind we are.
const HEAD: std::time::Duration = std::time::Duration::from_millis(500);

impl Driver {
    /// Answers a caller that waited, or did not want to. `early`: not because
    /// everything is settled.
    pub(in crate::daemon) fn answer(
        &self,
        asked: Asked,
        responder: Responder,
        since: std::time::Instant,
        early: bool,
    ) {
        let mut warnings = self.warnings(asked);
        if let (Asked::End(row) | Asked::Push(row), true) = (asked, early) {
            let cache = self.sessions.sessions.get(&row).and_then(|session| session.cache);
            let held = cache.filter(|_| self.flow.unsettled(row) > 0).and_then(|c| self.waits_for_client(c));
            warnings
                .extend(held.map(|why| format!("{why}; what is pending is pushed as soon as it is there")));
        }
        self.answer_warning(asked, responder, since, early, warnings);
    }

    /// What the caller's job should know. To be taken before the session closes.
    pub(in crate::daemon) fn warnings(&self, asked: Asked) -> Vec<String> {
        match asked {
            Asked::End(row) | Asked::Push(row) => {
                self.sessions.sessions.get(&row).map(|s| s.warnings.clone()).unwrap_or_default()
            }
            Asked::Flush => Vec::new(),
        }
    }

    /// The same, with what was to be warned of when the session still was live.
    pub(in crate::daemon) fn answer_warning(
        &self,
        asked: Asked,
        responder: Responder,
        since: std::time::Instant,
        early: bool,
        warnings: Vec<String>,
    ) {
        let (row, push) = match asked {
            Asked::End(row) => (row, false),
            Asked::Push(row) => (row, true),
            Asked::Flush => {
                let left = if early { self.pending() } else { 0 };
                // Unknown is never told as success.
                let unknown = early && left == 0 && self.stuck.is_some();
                let summary = m::Summary {
                    outcome: if unknown { m::Outcome::Pending } else { m::Outcome::of(0, left) },
                    pending: left,
                    flush_ms: millis(since.elapsed()),
                    duration_ms: millis(since.elapsed()),
                    warnings: self.stuck.iter().filter(|_| early).cloned().collect(),
                    ..m::Summary::default()
                };
                return responder.reply(Reply::Pushed(summary));
            }
        };
        let unlooked = self.sessions.sessions.get(&row).is_some_and(|s| s.unlooked);
        let (ledger, store_dir) = (self.ledger.clone(), self.transfers.store_dir.clone());
        let ways = self.ways();
        let flush_ms = millis(since.elapsed());
        tokio::task::spawn_blocking(move || {
            let reply = match ledger.session_by_row(row) {
                // One that goes on has waited as long as its caller.
                Ok(Some(mut info)) => {
                    info.flush_ms.get_or_insert(flush_ms);
                    ended(&ledger, &store_dir, &ways, &info, warnings)
                }
                Ok(None) => Reply::Error {
                    code: ErrorCode::Internal,
                    message: "the session is not in the ledger any more".to_owned(),
                },
                Err(error) => internal(&error),
            };
            let reply = match reply {
                Reply::Ended(mut summary) if unlooked => {
                    summary.outcome = m::Outcome::Pending;
                    Reply::Ended(summary)
                }
                other => other,
            };
            responder.reply(match reply {
                Reply::Ended(mut summary) if push => {
                    summary.session = None;
                    summary.flush_ms = flush_ms;
                    Reply::Pushed(summary)
                }
                other => other,
            });
        });
    }

    pub(in crate::daemon) fn pending(&self) -> u64 {
        (0..self.caches.len())
            .filter_map(|n| self.flow.view(CacheId(u16::try_from(n).ok()?)))
            .map(|v| v.pending as u64)
            .sum()
    }

    /// One line for the log when a session has closed.
    pub(in crate::daemon) fn log_summary(&self, row: i64, session: String, label: Option<String>) {
        let ledger = self.ledger.clone();
        let told = move || {
            let info = ledger.session_by_row(row)?;
            Ok((info, ledger.summary(row)?))
        };
        tokio::task::spawn_blocking(move || match told() {
            Ok((info, c)) => event!(
                SESSION_SUMMARY,
                session = session,
                label = label,
                cache = info.as_ref().map(|info| info.new.cache.as_str()),
                pushed = c.pushed,
                already_cached = c.already_cached,
                upstream = c.upstream,
                failed = c.failed_total,
                skipped = c.skipped,
                collected = c.collected,
                bytes = c.bytes,
                duration_ms = info
                    .as_ref()
                    .map(|info| info.ended_at.unwrap_or_else(|| Wall::now().0) - info.new.started_at),
                "watch-store pushed {} store paths incrementally",
                c.pushed
            ),
            Err::<_, LedgerError>(error) => event!(
                SESSION_UNREADABLE,
                session = session,
                label = label,
                error = %error,
                "the session's summary cannot be read"
            ),
        });
    }

    /// `session list`: the caller's own, or everybody's for who may see them.
    pub(in crate::daemon) fn list(&self, peer: &Peer, all: bool, responder: Responder) {
        let (ledger, peer, own) = (self.ledger.clone(), *peer, self.own_uid);
        tokio::task::spawn_blocking(move || {
            let see_all = peer.uid == 0 || peer.uid == own;
            let reply = ledger.sessions(all).and_then(|sessions| {
                let seen = sessions.into_iter().filter(|s| see_all || s.new.uid == peer.uid);
                seen.map(|s| Ok(entry(&s, &ledger.summary(s.row)?))).collect::<Result<Vec<_>, LedgerError>>()
            });
            responder.reply(reply.map_or_else(|e| internal(&e), Reply::Sessions));
        });
    }

    /// `session show`.
    pub(in crate::daemon) fn show(&self, peer: &Peer, id: String, responder: Responder) {
        let (ledger, peer, own) = (self.ledger.clone(), *peer, self.own_uid);
        let (store_dir, ways) = (self.transfers.store_dir.clone(), self.ways());
        tokio::task::spawn_blocking(move || {
            let reply = match ledger.session(&id) {
                Ok(Some(info)) if peer.uid == info.new.uid || peer.uid == 0 || peer.uid == own => {
                    detail(&ledger, &store_dir, &ways, &info).unwrap_or_else(|e| internal(&e))
                }
                Ok(Some(_)) => Reply::Error {
                    code: ErrorCode::Denied,
                    message: "the session belongs to another user".to_owned(),
                },
                Ok(None) => Reply::Error {
                    code: ErrorCode::NotFound,
                    message: format!(
                        "there is no session {id:?} (`flywheelctl session list --all` shows them)"
                    ),
                },
                Err(error) => internal(&error),
            };
            responder.reply(reply);
        });
    }

    /// `status`.
    pub(in crate::daemon) fn status(&self, responder: Responder) {
        let mut status = m::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: millis(self.began.elapsed()),
            draining: self.stopping.is_some(),
            client: crate::daemon::driver::readers::client(&self.client.view(), &self.settings),
            warnings: self.settings.warnings.clone(),
            ..m::Status::default()
        };
        for (number, name) in (0_u16..).zip(&self.caches) {
            let Some(view) = self.flow.view(CacheId(number)) else { continue };
            let client = &self.transfers.clients[usize::from(number)];
            status.queue.pending += (view.pending as u64).saturating_sub(u64::from(view.uploading));
            status.queue.uploading += u64::from(view.uploading);
            status.queue.failed += view.failed as u64;
            status.cache.push(m::CacheStatus {
                name: name.clone(),
                endpoint: client.endpoint(),
                state: cache_state(view.state),
                engine: word(self.settings.caches[name].engine).to_owned(),
                reason: self.troubles[usize::from(number)]
                    .clone()
                    .or_else(|| self.waits_for_client(CacheId(number))),
                token_expires: client.token_expiry(),
                counts: self.counts[usize::from(number)],
            });
        }
        let store_dir = &self.transfers.store_dir;
        let failed = self.wares.iter().filter(|(id, _)| status.queue.failed > 0 && self.flow.is_failed(**id));
        status.failed = failed
            .filter_map(|(_, ware)| Some((ware, ware.error.as_deref()?)))
            .take(PATHS_MOST)
            .map(|(ware, (class, error))| m::Failed {
                path: store_dir.full(&ware.path),
                error: error.clone(),
                class: Some(class.clone()),
            })
            .collect();
        let health = self.store_watch.health();
        let blind = (!health.watching)
            .then(|| health.last_loss.unwrap_or_else(|| "the store is not watched".to_owned()));
        status.store.problem = self.stuck.clone().or(blind);
        status.warnings.extend(self.gc_roots.trouble());
        status.warnings.extend(self.netrc.as_ref().and_then(crate::daemon::caches::netrc::Netrc::trouble));
        status.store.cursor = self.cursor;
        status.ledger = match self.ledger.health() {
            Health::Ok => m::LedgerStatus { state: "ok".to_owned(), detail: None },
            Health::Degraded { error, kept, .. } => m::LedgerStatus {
                state: "degraded".to_owned(),
                detail: Some(format!("{error}; {kept} changes are kept in memory until it can be written")),
            },
        };
        let (ledger, transfers, cursor) = (self.ledger.clone(), self.transfers.clone(), self.cursor);
        let forgotten = self.flow.has_forgotten();
        tokio::spawn(async move {
            // The Nix database may be busy, and status tells of that, too.
            let head = tokio::task::spawn_blocking(move || transfers.head());
            if let Ok(Ok(Ok(head))) = tokio::time::timeout(HEAD, head).await {
                status.store.lag = u64::try_from(head - cursor).unwrap_or(0);
            }
            tokio::task::spawn_blocking(move || {
                if forgotten && let Ok(failed) = ledger.failed() {
                    status.queue.failed = status.queue.failed.max(failed);
                }
                let sessions = ledger.sessions(false).and_then(|sessions| {
                    sessions.iter().map(|s| Ok(entry(s, &ledger.summary(s.row)?))).collect()
                });
                match sessions {
                    Ok(sessions) => status.sessions = sessions,
                    Err(error) => status.warnings.push(format!("the sessions cannot be read: {error}")),
                }
                responder.reply(Reply::Status(status));
            });
        });
    }

    /// The line that `systemctl status` shows.
    pub(in crate::daemon) fn status_line(&self) -> String {
        let open = self.sessions.sessions.len();
        let plural = if open == 1 { "" } else { "s" };
        let mut uploading = 0;
        let mut caches = Vec::new();
        for (number, name) in (0_u16..).zip(&self.caches) {
            let Some(view) = self.flow.view(CacheId(number)) else { continue };
            uploading += view.uploading;
            caches.push(format!("{name} {}", cache_state(view.state).as_str()));
        }
        let queued = self.pending().saturating_sub(u64::from(uploading));
        let stopping = if self.stopping.is_some() { "stopping, " } else { "" };
        format!(
            "{stopping}{open} session{plural}, {queued} queued, {uploading} uploading, {}",
            caches.join(", ")
        )
    }
}

fn millis(d: std::time::Duration) -> u64 {
    u64::try_from(d.as_millis()).unwrap_or(u64::MAX)
}

fn cache_state(state: BreakerState) -> m::CacheState {
    match state {
        BreakerState::Online => m::CacheState::Online,
        BreakerState::Offline => m::CacheState::Offline,
        BreakerState::Refused => m::CacheState::Unauthorized,
    }
}
