//! The driver's side of the intake: asking it, and what it has reported. Must not know
//! how the intake works.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use crate::attribution::{LockWatcher, Windows};
use crate::daemon::blocking::Blocking;
use crate::daemon::intake::{IntakeHandle, Naming, NewPolicy, People, PushPolicy, Work};
use crate::types::SessionId;

/// The intake as the driver reaches it.
pub(in crate::daemon) struct IntakeLink {
    handle: IntakeHandle,
    new_policy: NewPolicy,
    windows: Arc<Mutex<Windows>>,
    lock_watcher: LockWatcher,
    people: People,
    /// How many pushes the decisions know. The intake reads it.
    known: Arc<AtomicUsize>,
    /// Why the intake cannot go on for the moment.
    stuck: Option<String>,
    /// The last row that the intake has taken in.
    cursor: i64,
}

impl IntakeLink {
    pub(in crate::daemon) fn new(
        handle: IntakeHandle,
        new_policy: NewPolicy,
        windows: Arc<Mutex<Windows>>,
        lock_watcher: LockWatcher,
        people: People,
        known: Arc<AtomicUsize>,
    ) -> Self {
        Self { handle, new_policy, windows, lock_watcher, people, known, stuck: None, cursor: 0 }
    }

    /// Queues work. Returns false when the queue is full.
    pub(super) fn ask(&self, work: Work) -> bool {
        self.handle.ask(work)
    }

    /// Queues a naming. Returns it when the queue is full.
    pub(super) fn name(&self, naming: Naming) -> Result<(), Naming> {
        self.handle.name(naming)
    }

    /// Replaces the policy on new paths, from the intake's next turn on.
    pub(super) fn set_policy(&self, policy: PushPolicy) {
        *self.new_policy.lock().unwrap_or_else(PoisonError::into_inner) = Some(policy);
        self.handle.wake();
    }

    /// Ends the intake.
    pub(super) fn stop(&self) {
        self.handle.stop();
    }

    pub(super) fn handle(&self) -> &IntakeHandle {
        &self.handle
    }

    pub(super) fn lock_watcher(&self) -> &LockWatcher {
        &self.lock_watcher
    }

    /// Who the users are.
    pub(super) fn people(&self) -> &People {
        &self.people
    }

    pub(super) fn windows(&self) -> &Arc<Mutex<Windows>> {
        &self.windows
    }

    /// Tells the lock watcher whether evidence is needed.
    pub(super) fn attend(&self, sessions_open: bool, has_routes: bool) {
        self.lock_watcher.attend(sessions_open, has_routes);
    }

    /// Removes the window of a closed session. The windows may be locked for some
    /// seconds, so a thread that may block removes it.
    pub(super) fn forget_window(&self, row: SessionId, blocking: &Blocking) {
        let windows = Arc::clone(&self.windows);
        blocking.start(move || {
            windows.lock().unwrap_or_else(PoisonError::into_inner).forget(row);
        });
    }

    pub(super) fn set_known(&self, known: usize) {
        self.known.store(known, Ordering::Relaxed);
    }

    pub(super) fn set_stuck(&mut self, why: Option<String>) {
        self.stuck = why;
    }

    /// Why the intake cannot go on for the moment.
    pub(super) fn stuck(&self) -> Option<&str> {
        self.stuck.as_deref()
    }

    pub(super) fn set_cursor(&mut self, cursor: i64) {
        self.cursor = cursor;
    }

    /// The last row that the intake has taken in.
    pub(super) fn cursor(&self) -> i64 {
        self.cursor
    }
}
