//! How the intake is reached: a bell that is rung, and a bounded queue of things
//! to do. Must not know what is done about them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use super::recheck::Recheck;
use crate::ledger::SessionRow;
use crate::types::{CacheId, StorePath};

/// Things to do that may wait.
pub(super) const QUEUE: usize = 512;

/// What the intake is asked to do.
#[derive(Debug)]
pub(in crate::daemon) enum Work {
    /// Look at the store.
    Look,
    /// Take named paths with their closure; see [`Named`](crate::daemon::inbox::Input::Named).
    Name(Naming),
    /// See who a hook says made these.
    Hook(Vec<StorePath>),
    /// Confirm the closures of pushes again.
    Recheck(Recheck),
    /// Have everything that was given up tried again, also what only the ledger knows.
    Retry,
    /// End.
    Stop,
}

/// Paths that somebody named.
#[derive(Debug)]
pub(in crate::daemon) struct Naming {
    /// Returned with the answer.
    pub(in crate::daemon) token: u64,
    /// Whose they are.
    pub(in crate::daemon) session: SessionRow,
    /// The session takes nothing that becomes valid from here on.
    pub(in crate::daemon) close_window: bool,
    pub(in crate::daemon) cache: CacheId,
    pub(in crate::daemon) paths: Vec<StorePath>,
    /// Take up again what failed.
    pub(in crate::daemon) retry: bool,
}

/// The way to the intake.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Bell {
    rung: Arc<AtomicBool>,
    queue: SyncSender<Work>,
}

impl Bell {
    /// The bell, and what the intake listens to.
    pub(in crate::daemon) fn new() -> (Self, Ear) {
        let (queue, work) = sync_channel(QUEUE);
        let rung = Arc::new(AtomicBool::new(false));
        (Self { rung: Arc::clone(&rung), queue }, Ear { rung, work })
    }

    /// Something may have become valid. Costs nothing when it is known already.
    pub(in crate::daemon) fn ring(&self) {
        if !self.rung.swap(true, Ordering::AcqRel) {
            // A full queue is as good: the intake looks after each piece of work.
            let _ = self.queue.try_send(Work::Look);
        }
    }

    /// Nothing more is to be read.
    pub(in crate::daemon) fn stop(&self) {
        // A full queue ends as well: the driver's end closes the way back.
        let _ = self.queue.try_send(Work::Stop);
    }

    /// Something to do; false when the queue is full or the intake has ended.
    pub(in crate::daemon) fn ask(&self, work: Work) -> bool {
        self.queue.try_send(work).is_ok()
    }
}

/// The intake's end of a [`Bell`].
#[derive(Debug)]
pub(in crate::daemon) struct Ear {
    pub(super) rung: Arc<AtomicBool>,
    pub(super) work: Receiver<Work>,
}
