//! The queue of commands to the ledger's thread. Sending never waits, so that a slow
//! disk cannot stop a sender; [`Sender::len`] tells a sender when it should hold back.
//! Changes that no caller waits for are collected for a moment: waking the thread for
//! each of them would cost more than writing it. Must not know what a command does.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::command::Command;

/// Makes a queue.
pub(super) fn queue() -> (Sender, Receiver) {
    let shared = Arc::new(Shared::default());
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    /// Notified when the thread is to look at the queue.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Command>,
    /// How many of them a caller waits for.
    awaited: usize,
    /// The end of the senders has come.
    closed: bool,
    /// The thread has ended.
    ended: bool,
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn wait<'a>(&'a self, state: MutexGuard<'a, State>, until: Option<Instant>) -> MutexGuard<'a, State> {
        match until {
            None => self.changed.wait(state).unwrap_or_else(PoisonError::into_inner),
            Some(until) => {
                let left = until.saturating_duration_since(Instant::now());
                self.changed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0
            }
        }
    }
}

/// Whether a caller waits for the command.
fn is_awaited(command: &Command) -> bool {
    !matches!(command, Command::Note(_))
}

/// The end of those that send. Dropping it closes the queue.
pub(super) struct Sender(Arc<Shared>);

impl Sender {
    /// Adds a command. Fails when the ledger's thread has ended.
    pub(super) fn send(&self, command: Command) -> Result<(), ()> {
        let mut state = self.0.state();
        if state.ended {
            return Err(());
        }
        let awaited = is_awaited(&command);
        state.awaited += usize::from(awaited);
        state.waiting.push_back(command);
        // The thread waits for the first one, for one with a caller, and otherwise for the time.
        let wakes = awaited || state.waiting.len() == 1;
        drop(state);
        if wakes {
            self.0.changed.notify_one();
        }
        Ok(())
    }

    /// How many commands wait.
    pub(super) fn len(&self) -> usize {
        self.0.state().waiting.len()
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        self.0.state().closed = true;
        self.0.changed.notify_one();
    }
}

/// What [`Receiver::batch`] returns.
pub(super) enum Batch {
    /// At least one command, in the order in which they were sent.
    Commands(Vec<Command>),
    /// The time is over, and there is no command.
    Late,
    /// No sender is left, and no command.
    Closed,
}

/// The end of the ledger's thread.
pub(super) struct Receiver(Arc<Shared>);

impl Receiver {
    /// Waits for commands, until this time if one is given, and takes at most `most`. When no
    /// caller waits for any of them, it waits for `linger` from the first one on, or until a
    /// caller waits.
    pub(super) fn batch(&self, until: Option<Instant>, most: usize, linger: Duration) -> Batch {
        let mut state = self.0.state();
        while state.waiting.is_empty() {
            if state.closed {
                return Batch::Closed;
            }
            if until.is_some_and(|until| until <= Instant::now()) {
                return Batch::Late;
            }
            state = self.0.wait(state, until);
        }
        let until = Instant::now() + linger;
        while state.awaited == 0 && !state.closed && Instant::now() < until {
            state = self.0.wait(state, Some(until));
        }
        let count = state.waiting.len().min(most);
        let commands: Vec<_> = state.waiting.drain(..count).collect();
        state.awaited -= commands.iter().filter(|command| is_awaited(command)).count();
        Batch::Commands(commands)
    }
}

impl Drop for Receiver {
    /// Callers that wait for a command of the queue learn that it will not be carried out.
    fn drop(&mut self) {
        let left = {
            let mut state = self.0.state();
            state.ended = true;
            std::mem::take(&mut state.waiting)
        };
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::command::Note;
    use std::sync::mpsc::sync_channel;

    const LONG: Duration = Duration::from_secs(60);

    fn note(push: i64) -> Command {
        Command::Note(Note::Uploading(push, 1))
    }

    fn count(batch: &Batch) -> usize {
        match batch {
            Batch::Commands(commands) => commands.len(),
            Batch::Late | Batch::Closed => 0,
        }
    }

    #[test]
    fn a_call_ends_the_wait_for_more_changes() {
        let (sender, receiver) = queue();
        sender.send(note(1)).unwrap();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| receiver.batch(None, 100, LONG));
            sender.send(note(2)).unwrap();
            let (reply, _answer) = sync_channel(1);
            sender.send(Command::Sync(reply)).unwrap();
            assert_eq!(count(&taken.join().unwrap()), 3, "in one batch");
        });
        assert_eq!(sender.len(), 0);
    }

    #[test]
    fn the_rest_of_a_large_queue_is_taken_next() {
        let (sender, receiver) = queue();
        (0..5).for_each(|push| sender.send(note(push)).unwrap());
        let (reply, _answer) = sync_channel(1);
        sender.send(Command::Sync(reply)).unwrap();
        assert_eq!(count(&receiver.batch(None, 4, LONG)), 4);
        assert_eq!(count(&receiver.batch(None, 4, LONG)), 2, "the call is still waited for");
        let late = receiver.batch(Some(Instant::now()), 4, LONG);
        assert!(matches!(late, Batch::Late));
        drop(sender);
        assert!(matches!(receiver.batch(None, 4, LONG), Batch::Closed));
    }

    #[test]
    fn the_end_of_either_side_is_noticed() {
        let (sender, receiver) = queue();
        sender.send(note(1)).unwrap();
        std::thread::scope(|scope| {
            let taken = scope.spawn(|| receiver.batch(None, 100, LONG));
            drop(sender);
            assert_eq!(count(&taken.join().unwrap()), 1, "what was sent is carried out at once");
        });

        let (sender, receiver) = queue();
        let (reply, answer) = sync_channel(1);
        sender.send(Command::Sync(reply)).unwrap();
        drop(receiver);
        assert!(answer.recv().is_err(), "the caller does not wait for ever");
        assert!(sender.send(note(1)).is_err());
    }
}
