//! How other threads reach the intake: a flag that wakes it up, and a bounded queue of
//! work. Must not know how the work is done.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};

use super::recheck::Recheck;
use crate::ledger::SessionRow;
use crate::types::{CacheId, StorePath};

/// Upper bound of the work that waits in the queue.
pub(super) const QUEUE: usize = 512;

/// A piece of work for the intake.
#[derive(Debug)]
pub(in crate::daemon) enum Work {
    /// Read the rows that are new in the Nix database.
    Look,
    /// Take named paths with their closure; see [`Named`](crate::daemon::inbox::Input::Named).
    Name(Naming),
    /// Find the makers of these paths again: a hook has named them.
    Hook(Vec<StorePath>),
    /// Confirm the closures of pushes again.
    Recheck(Recheck),
    /// Retry all failed pushes, also those that only the ledger has.
    Retry,
    /// End the intake's thread.
    Stop,
}

/// A set of named paths. Clones share it. Comparing two that differ costs little.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::daemon) struct NamedPaths {
    /// Compared first.
    digest: u64,
    paths: Arc<[StorePath]>,
}

impl From<Vec<StorePath>> for NamedPaths {
    fn from(mut paths: Vec<StorePath>) -> Self {
        paths.sort_unstable();
        paths.dedup();
        let mut digest = DefaultHasher::new();
        paths.hash(&mut digest);
        Self { digest: digest.finish(), paths: paths.into() }
    }
}

impl Deref for NamedPaths {
    type Target = [StorePath];

    fn deref(&self) -> &[StorePath] {
        &self.paths
    }
}

/// Paths that were named for a session.
#[derive(Debug)]
pub(in crate::daemon) struct Naming {
    /// Returned with the answer.
    pub(in crate::daemon) token: u64,
    /// The session that the paths belong to.
    pub(in crate::daemon) session: SessionRow,
    /// Whether the session's window closes: paths that become valid later are not its own.
    pub(in crate::daemon) close_window: bool,
    pub(in crate::daemon) cache: CacheId,
    pub(in crate::daemon) paths: NamedPaths,
    /// Whether failed pushes of these paths are retried.
    pub(in crate::daemon) retry: bool,
    /// Whether it is about everything in all caches, and names no paths.
    pub(in crate::daemon) everything: bool,
}

/// A handle that wakes the intake up and gives it work; clones reach the same intake.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct IntakeHandle {
    woken: Arc<AtomicBool>,
    queue: SyncSender<Work>,
}

impl IntakeHandle {
    /// Returns the handle and the intake's end of the queue.
    pub(in crate::daemon) fn new() -> (Self, WorkQueue) {
        let (queue, work) = sync_channel(QUEUE);
        let woken = Arc::new(AtomicBool::new(false));
        (Self { woken: Arc::clone(&woken), queue }, WorkQueue { woken, work })
    }

    /// Wakes the intake up, because a path may have become valid. Does nothing when the
    /// intake has been woken and has not looked yet.
    pub(in crate::daemon) fn wake(&self) {
        if !self.woken.swap(true, Ordering::AcqRel) {
            // With a full queue this is not needed: the intake reads new rows after each
            // piece of work.
            let _ = self.queue.try_send(Work::Look);
        }
    }

    /// Asks the intake to end. Does not wait for it.
    pub(in crate::daemon) fn stop(&self) {
        // With a full queue the intake ends when the driver does and closes its inbox.
        let _ = self.queue.try_send(Work::Stop);
    }

    /// Queues a naming. Returns it when the queue is full or the intake has ended.
    pub(in crate::daemon) fn name(&self, naming: Naming) -> Result<(), Naming> {
        match self.queue.try_send(Work::Name(naming)) {
            Err(TrySendError::Full(Work::Name(naming)) | TrySendError::Disconnected(Work::Name(naming))) => {
                Err(naming)
            }
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Something to do; false when the queue is full or the intake has ended.
    pub(in crate::daemon) fn ask(&self, work: Work) -> bool {
        self.queue.try_send(work).is_ok()
    }
}

/// The intake's end of the queue that an [`IntakeHandle`] writes to.
#[derive(Debug)]
pub(in crate::daemon) struct WorkQueue {
    pub(super) woken: Arc<AtomicBool>,
    pub(super) work: Receiver<Work>,
}
