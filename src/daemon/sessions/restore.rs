//! Restores the sessions that the last run of the daemon left open or draining. Must
//! not know what is left to push.

use std::sync::{Mutex, PoisonError};
use tokio::time::Instant;

use super::{Session, Sessions, anchors};
use crate::attribution::{Anchor, Proc, ProcId, Window, Windows};
use crate::flow::{SessionLife, TUNING};
use crate::ledger::{Ledger, LedgerError, SessionKind, SessionState};
use crate::observe::event;
use crate::types::{CacheId, Mono, PushId, SessionId};

/// What is done about a restored session when its pushes are known again.
#[derive(Debug)]
pub(in crate::daemon) struct Restored {
    pub(in crate::daemon) row: SessionId,
    pub(in crate::daemon) pending: Vec<PushId>,
    pub(in crate::daemon) next: Next,
}

/// How a restored session continues.
#[derive(Debug)]
pub(in crate::daemon) enum Next {
    /// It is open. Its anchor, if it has one that runs, is watched.
    Open(Option<ProcId>),
    /// It drains. Its window may not have been closed, and what the cache said about its
    /// paths is only remembered, so the cache is asked again.
    Take,
}

/// Reads the sessions from the ledger into `sessions` and opens their windows.
/// `id` gives the number of a cache. Blocks.
pub(in crate::daemon) fn restore(
    ledger: &Ledger,
    id: impl Fn(&str) -> Option<CacheId>,
    sessions: &mut Sessions,
    windows: &Mutex<Windows>,
    proc: &Proc,
) -> Result<Vec<Restored>, LedgerError> {
    let mut restored = Vec::new();
    let same_boot = anchors::is_same_boot(ledger)?;
    for info in ledger.live_sessions()? {
        let cache = id(&info.new.cache);
        let anchor = info.new.anchor_pid.map(|(pid, start)| ProcId { pid, start });
        let alive = anchor.filter(|_| same_boot).and_then(|id| Anchor::of(proc, id));
        let is_job = info.new.kind == SessionKind::Job;
        let draining = info.state != SessionState::Open;
        if is_job {
            let window = Window {
                session: info.row,
                after: info.new.after,
                until: info.until,
                uid: info.new.uid,
                cache: cache.map(|c| c.0),
                anchor: alive.clone().or(anchor.map(ended)),
            };
            windows.lock().unwrap_or_else(PoisonError::into_inner).open(window);
        }
        let orphaned = anchor.is_some() && alive.is_none();
        let next = if draining { Next::Take } else { Next::Open(anchor.filter(|_| !orphaned)) };
        restored.push(Restored { row: info.row, pending: ledger.session_pending(info.row)?, next });
        let life = if draining {
            SessionLife::draining(&TUNING, info.abandoned)
        } else {
            // The driver's clock starts at 0.
            SessionLife::restored(&TUNING, orphaned, Mono::default())
        };
        sessions.insert_known(Session::restored(info, cache, life, draining.then(Instant::now)));
    }
    if !restored.is_empty() {
        event!(
            SESSIONS_RESUMED,
            sessions = restored.len(),
            "{} sessions from before the restart continue",
            restored.len()
        );
    }
    Ok(restored)
}

/// An anchor that has ended. It still keeps its session apart from what other
/// processes make.
fn ended(id: ProcId) -> Anchor {
    Anchor { id, session: None, cgroup: None }
}
