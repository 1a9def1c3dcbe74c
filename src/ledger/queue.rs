//! The queue of commands to the ledger's thread. Sending never waits, so that a slow
//! disk cannot stop a sender; [`Sender::len`] tells a sender when it should hold back.
//! Must not know what a command does.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, RecvTimeoutError};
use std::time::Duration;

use super::command::Command;

/// Makes a queue.
pub(super) fn queue() -> (Sender, Receiver) {
    let (sender, receiver) = mpsc::channel();
    let len = Arc::new(AtomicUsize::new(0));
    (Sender { queue: sender, len: Arc::clone(&len) }, Receiver { queue: receiver, len })
}

/// The end of those that send.
pub(super) struct Sender {
    queue: mpsc::Sender<Command>,
    len: Arc<AtomicUsize>,
}

impl Sender {
    /// Adds a command. Fails when the ledger's thread has ended.
    pub(super) fn send(&self, command: Command) -> Result<(), ()> {
        self.len.fetch_add(1, Ordering::Relaxed);
        self.queue.send(command).map_err(drop)
    }

    /// How many commands wait.
    pub(super) fn len(&self) -> usize {
        self.len.load(Ordering::Relaxed)
    }
}

/// The end of the ledger's thread.
pub(super) struct Receiver {
    queue: mpsc::Receiver<Command>,
    len: Arc<AtomicUsize>,
}

impl Receiver {
    /// Waits for a command. `None`: no sender is left.
    pub(super) fn recv(&self) -> Option<Command> {
        self.queue.recv().ok().inspect(|_| self.taken())
    }

    /// Waits for a command for this long at most.
    pub(super) fn recv_timeout(&self, wait: Duration) -> Result<Command, RecvTimeoutError> {
        self.queue.recv_timeout(wait).inspect(|_| self.taken())
    }

    /// Takes a command if there is one.
    pub(super) fn try_recv(&self) -> Option<Command> {
        self.queue.try_recv().ok().inspect(|_| self.taken())
    }

    fn taken(&self) {
        self.len.fetch_sub(1, Ordering::Relaxed);
    }
}
