//! Sessions go on from before a restart.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::Result;

use super::anchors;
use crate::attribution::{Anchor, Proc, ProcId, Window, Windows};
use crate::daemon::driver::Driver;
use crate::daemon::position;
use crate::daemon::sessions::session::{Session, Sessions};
use crate::flow::Event;
use crate::ledger::{Ledger, SessionState};
use crate::observe::event;
use crate::types::{CacheId, PushId, SessionId};

/// A session of an earlier life.
#[derive(Debug)]
pub(in crate::daemon) struct Resumed {
    pub(in crate::daemon) row: SessionId,
    pub(in crate::daemon) draining: bool,
    pub(in crate::daemon) pending: Vec<PushId>,
    /// To be watched.
    pub(in crate::daemon) anchor: Option<ProcId>,
    /// Its anchor ended while nobody watched.
    pub(in crate::daemon) abandoned: bool,
}

/// Sessions that an earlier life left open or draining.
pub(in crate::daemon) fn resume(
    ledger: &Ledger,
    caches: &[String],
    sessions: &mut Sessions,
    windows: &Mutex<Windows>,
) -> Result<Vec<Resumed>> {
    let mut resumed = Vec::new();
    let same_boot = anchors::is_same_boot(ledger)?;
    for session in ledger.sessions(false)? {
        let draining = session.state != SessionState::Open;
        let cache = position(caches, &session.new.cache);
        let anchor = session.new.anchor_pid.map(|(pid, start)| ProcId { pid, start });
        let alive = anchor.filter(|_| same_boot).and_then(|id| Anchor::of(&Proc::default(), id));
        if !session.new.id.starts_with("push-") {
            let window = Window {
                session: session.row,
                after: session.new.after,
                until: session.until,
                cache,
                anchor: alive.clone().or(anchor.map(gone)),
            };
            windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).open(window);
        }
        resumed.push(Resumed {
            row: session.row,
            draining,
            pending: ledger.session_pending(session.row)?,
            anchor: anchor.filter(|_| !draining),
            abandoned: !draining && anchor.is_some() && alive.is_none(),
        });
        sessions.sessions.insert(
            session.row,
            Session {
                row: session.row,
                id: session.new.id,
                label: session.new.label,
                cache: cache.map(CacheId),
                uid: session.new.uid,
                ci: session.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok()),
                ending: draining.then(Instant::now),
                abandoned: false,
                watch: None,
                warnings: session.warnings,
                unlooked: false,
            },
        );
    }
    if !resumed.is_empty() {
        event!(SESSIONS_RESUMED, sessions = resumed.len(), "sessions go on from before the restart");
    }
    Ok(resumed)
}

/// An anchor that is not there any more: it keeps its session apart from what
/// others make.
pub(in crate::daemon) fn gone(id: ProcId) -> Anchor {
    Anchor { id, session: None, cgroup: None }
}

impl Driver {
    /// The pushes of an earlier life are known again: its sessions wait for theirs.
    pub(in crate::daemon) fn resume(&mut self) {
        for Resumed { row, draining, pending, anchor, abandoned } in std::mem::take(&mut self.resumed) {
            self.step(Event::Want(row, pending));
            if abandoned {
                self.abandon(row);
            } else if draining {
                self.step(Event::Flush(row));
            } else if let (Some(live), Some(anchor)) = (self.sessions.sessions.get_mut(&row), anchor) {
                live.watch = Some(anchors::watch(row, anchor, self.transfers.out.clone()));
            }
        }
    }
}
