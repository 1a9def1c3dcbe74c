//! Restores the sessions that the last run of the daemon left open or draining. Must
//! not know what is left to push.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::{Session, Sessions, anchors};
use crate::attribution::{Anchor, Proc, ProcId, Window, Windows};
use crate::flow::{AnchorNow, Left, Resume, SessionLife, TUNING};
use crate::ledger::{Ledger, LedgerError, SessionKind, SessionState};
use crate::observe::event;
use crate::types::{CacheId, Mono, PushId, SessionId, Wall};

/// What is done about a restored session when its pushes are known again.
#[derive(Debug)]
pub(in crate::daemon) struct Restored {
    pub(in crate::daemon) row: SessionId,
    pub(in crate::daemon) pending: Vec<PushId>,
    pub(in crate::daemon) resume: Resume,
    /// Its anchor, if it has one.
    pub(in crate::daemon) anchor: Option<ProcId>,
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
        let left = match info.state {
            SessionState::Open => Left::Open {
                anchor: match (anchor, &alive) {
                    (None, _) => AnchorNow::None,
                    (Some(_), Some(_)) => AnchorNow::Runs,
                    (Some(_), None) => AnchorNow::Ended,
                },
                open_for: Duration::from_millis(
                    u64::try_from(Wall::now().0.saturating_sub(info.new.started_at)).unwrap_or_default(),
                ),
            },
            SessionState::Draining | SessionState::Closed | SessionState::Abandoned => {
                Left::Draining { abandoned: info.abandoned }
            }
        };
        if info.new.kind == SessionKind::Job {
            let window = Window {
                session: info.row,
                after: info.new.after,
                until: info.until,
                uid: info.new.uid,
                cache: cache.map(|c| c.0),
                anchor: alive.or(anchor.map(ended)),
            };
            windows.lock().unwrap_or_else(PoisonError::into_inner).open(window);
        }
        // The driver's clock starts at 0.
        let (life, resume) = SessionLife::restored(&TUNING, left, Mono::default());
        let pending = ledger.session_pending(info.row)?;
        restored.push(Restored { row: info.row, pending, resume, anchor });
        let draining_since = (!life.is_open()).then(Instant::now);
        sessions.insert_known(Session::restored(info, cache, life, draining_since));
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
