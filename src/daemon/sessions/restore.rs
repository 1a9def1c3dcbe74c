//! Restores the sessions that the last run of the daemon left open or draining. Must
//! not know what is left to push.

use std::sync::{Mutex, PoisonError};
use std::time::Instant;

use super::{Session, Sessions, anchors};
use crate::attribution::{Anchor, Proc, ProcId, Window, Windows};
use crate::ledger::{Ledger, LedgerError, SessionState};
use crate::observe::event;
use crate::types::{CacheId, PushId, SessionId};

/// What is done about a restored session when its pushes are known again.
#[derive(Debug)]
pub(in crate::daemon) struct Restored {
    pub(in crate::daemon) row: SessionId,
    pub(in crate::daemon) draining: bool,
    pub(in crate::daemon) pending: Vec<PushId>,
    /// The process that is watched, if the session is open.
    pub(in crate::daemon) anchor: Option<ProcId>,
    /// The anchor ended while no daemon ran.
    pub(in crate::daemon) abandoned: bool,
}

/// Reads the sessions from the ledger into `sessions` and opens their windows.
/// `id` gives the number of a cache. Blocks.
pub(in crate::daemon) fn restore(
    ledger: &Ledger,
    id: impl Fn(&str) -> Option<CacheId>,
    sessions: &mut Sessions,
    windows: &Mutex<Windows>,
) -> Result<Vec<Restored>, LedgerError> {
    let mut restored = Vec::new();
    let same_boot = anchors::is_same_boot(ledger)?;
    for info in ledger.sessions(false)? {
        let draining = info.state != SessionState::Open;
        let cache = id(&info.new.cache);
        let anchor = info.new.anchor_pid.map(|(pid, start)| ProcId { pid, start });
        let alive = anchor.filter(|_| same_boot).and_then(|id| Anchor::of(&Proc::default(), id));
        if !info.new.id.starts_with("push-") {
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
        restored.push(Restored {
            row: info.row,
            draining,
            pending: ledger.session_pending(info.row)?,
            anchor: anchor.filter(|_| !draining),
            abandoned: !draining && anchor.is_some() && alive.is_none(),
        });
        sessions.insert(Session::restored(info, cache, draining.then(Instant::now)));
    }
    if !restored.is_empty() {
        event!(SESSIONS_RESUMED, sessions = restored.len(), "sessions of the last run continue");
    }
    Ok(restored)
}

/// An anchor that has ended. It still keeps its session apart from what other
/// processes make.
fn ended(id: ProcId) -> Anchor {
    Anchor { id, session: None, cgroup: None }
}
