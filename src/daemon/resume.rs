//! Sessions go on from before a restart.

use std::sync::Mutex;
use std::time::Instant;

use anyhow::Result;

use super::driver::Driver;
use super::live::{Desk, Live};
use super::{anchors, position};
use crate::attribution::{Anchor, Proc, ProcId, Window, Windows};
use crate::flow::Event;
use crate::ledger::{Ledger, SessionState};
use crate::observe::event;
use crate::types::{CacheId, PushId, SessionId};

/// A session of an earlier life.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) row: SessionId,
    pub(super) draining: bool,
    pub(super) pending: Vec<PushId>,
    /// To be watched.
    pub(super) anchor: Option<ProcId>,
    /// Its anchor ended while nobody watched.
    pub(super) abandoned: bool,
}

/// Sessions that an earlier life left open or draining.
pub(super) fn resume(
    ledger: &Ledger,
    caches: &[String],
    desk: &mut Desk,
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
        desk.sessions.insert(
            session.row,
            Live {
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
pub(super) fn gone(id: ProcId) -> Anchor {
    Anchor { id, session: None, cgroup: None }
}

impl Driver {
    /// The pushes of an earlier life are known again: its sessions wait for theirs.
    pub(super) fn resume(&mut self) {
        for Resumed { row, draining, pending, anchor, abandoned } in std::mem::take(&mut self.resumed) {
            self.step(Event::Want(row, pending));
            if abandoned {
                self.abandon(row);
            } else if draining {
                self.step(Event::Flush(row));
            } else if let (Some(live), Some(anchor)) = (self.desk.sessions.get_mut(&row), anchor) {
                live.watch = Some(anchors::watch(row, anchor, self.transfers.out.clone()));
            }
        }
    }
}
