//! What callers are told of sessions: summaries, lists and details, read from the
//! ledger on threads that may block. Must not know what is left to push.

mod engines;
mod wording;

use std::time::Duration;

use tokio::task::spawn_blocking;

use crate::control::messages as m;
use crate::control::messages::{ErrorCode, Reply};
use crate::control::server::{Peer, Responder};
use crate::ledger::{Ledger, LedgerError, SessionInfo};
use crate::observe::event;
use crate::types::{SessionId, StoreDir, Wall, millis};

pub(in crate::daemon) use engines::Engines;
use wording::{detail, entry, internal, summary};

/// Most paths that one `session show` or `status` lists.
pub(in crate::daemon) const PATHS_MOST: usize = m::MAX_ENTRIES as usize;

/// Reports from the ledger. Clones are the same.
#[derive(Clone)]
pub(in crate::daemon) struct Reports {
    ledger: Ledger,
    store_dir: StoreDir,
    /// The daemon's own user, who may see every session, as root may.
    own_uid: u32,
}

/// An answer to a caller that waited for a session, or did not want to.
#[derive(Debug)]
pub(in crate::daemon) struct Answer {
    pub(in crate::daemon) row: SessionId,
    /// The caller asked for a `push`, not for a `session end`.
    pub(in crate::daemon) is_push: bool,
    /// The intake has not taken in yet what was named.
    pub(in crate::daemon) incomplete: bool,
    /// How long the caller has waited.
    pub(in crate::daemon) waited: Duration,
    pub(in crate::daemon) warnings: Vec<String>,
}

impl Reports {
    pub(in crate::daemon) fn new(ledger: Ledger, store_dir: StoreDir, own_uid: u32) -> Self {
        Self { ledger, store_dir, own_uid }
    }

    pub(in crate::daemon) fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Whether the user `uid` may see and end the sessions of the user `owner`.
    pub(in crate::daemon) fn may_see(&self, uid: u32, owner: u32) -> bool {
        uid == owner || self.may_see_all(uid)
    }

    /// Whether the user is root or the daemon's own.
    pub(in crate::daemon) fn may_see_all(&self, uid: u32) -> bool {
        uid == 0 || uid == self.own_uid
    }

    /// The summary of a session. Blocks.
    pub(super) fn ended(&self, engines: &Engines, info: &SessionInfo, warnings: Vec<String>) -> Reply {
        match self.ledger.summary(info.row) {
            Ok(counts) => Reply::Ended(summary(&self.store_dir, engines, info, counts, warnings)),
            Err(error) => internal(&error),
        }
    }

    /// Answers a caller with the summary of a session.
    pub(in crate::daemon) fn answer(&self, answer: Answer, engines: Engines, responder: Responder) {
        let this = self.clone();
        spawn_blocking(move || {
            let Answer { row, is_push, incomplete, waited, warnings } = answer;
            let waited_ms = millis(waited);
            let reply = match this.ledger.session_by_row(row) {
                Ok(Some(mut info)) => {
                    // A session that is not closed has no duration of its flush yet.
                    info.flush_ms.get_or_insert(waited_ms);
                    this.ended(&engines, &info, warnings)
                }
                Ok(None) => Reply::Error {
                    code: ErrorCode::Internal,
                    message: "the session is not in the ledger any more".to_owned(),
                },
                Err(error) => internal(&error),
            };
            responder.reply(match reply {
                Reply::Ended(mut summary) => {
                    if incomplete {
                        summary.outcome = m::Outcome::Pending;
                    }
                    if is_push {
                        summary.session = None;
                        summary.flush_ms = waited_ms;
                        Reply::Pushed(summary)
                    } else {
                        Reply::Ended(summary)
                    }
                }
                other => other,
            });
        });
    }

    /// Logs the summary of a session that was closed.
    pub(in crate::daemon) fn log_summary(&self, row: SessionId, session: String, label: Option<String>) {
        let ledger = self.ledger.clone();
        let read = move || Ok((ledger.session_by_row(row)?, ledger.summary(row)?));
        spawn_blocking(move || match read() {
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

    /// Answers `session list`: with the caller's own sessions, or with everybody's if
    /// the caller may see them. `all`: closed ones too.
    pub(in crate::daemon) fn list(&self, peer: Peer, all: bool, responder: Responder) {
        let this = self.clone();
        spawn_blocking(move || {
            let reply = this.entries(all, |owner| this.may_see(peer.uid, owner));
            responder.reply(reply.map_or_else(|e| internal(&e), Reply::Sessions));
        });
    }

    /// One entry for each session whose user `which` admits. Blocks.
    pub(in crate::daemon) fn entries(
        &self,
        all: bool,
        which: impl Fn(u32) -> bool,
    ) -> Result<Vec<m::SessionEntry>, LedgerError> {
        let sessions = self.ledger.sessions(all)?;
        let sessions = sessions.iter().filter(|s| which(s.new.uid));
        sessions.map(|s| Ok(entry(s, &self.ledger.summary(s.row)?))).collect()
    }

    /// Answers `session show`.
    pub(in crate::daemon) fn show(&self, peer: Peer, id: String, engines: Engines, responder: Responder) {
        let this = self.clone();
        spawn_blocking(move || {
            let reply = match this.ledger.session(&id) {
                Ok(Some(info)) if this.may_see(peer.uid, info.new.uid) => {
                    detail(&this.ledger, &this.store_dir, &engines, &info).unwrap_or_else(|e| internal(&e))
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
}
