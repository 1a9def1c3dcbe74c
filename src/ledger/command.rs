//! The commands that the ledger's thread takes.
//!
//! Must not know: when a command runs.

use std::sync::mpsc::SyncSender;

use rusqlite::Connection;

use super::error::LedgerError;
use super::model::{PushId, SessionRow, SessionState, Settle, Warnings};
use super::{pushes, sessions};

/// A change that no caller waits for.
#[derive(Debug)]
pub(super) enum Note {
    Settle(PushId, Settle),
    FailedFor(PushId, Vec<SessionRow>),
    Uploading(PushId, u32),
    Reopen(Vec<PushId>),
    Unconfirm(Vec<PushId>),
    SessionState(SessionRow, SessionState, i64, Option<u64>),
    SessionDraining(SessionRow, bool, i64),
    SessionUntil(SessionRow, i64),
    SessionWarnings(SessionRow, Warnings),
}

impl Note {
    /// Returns what the change is, for messages.
    const fn word(&self) -> &'static str {
        match self {
            Self::Settle(..) => "the end of a push",
            Self::FailedFor(..) => "the sessions that need a failed push",
            Self::Uploading(..) => "the beginning of an upload",
            Self::Reopen(_) => "failed pushes that are retried",
            Self::Unconfirm(_) => "pushes that are pending again",
            Self::SessionState(..) => "the state of a session",
            Self::SessionDraining(..) => "the end of a session",
            Self::SessionUntil(..) => "the window of a session",
            Self::SessionWarnings(..) => "the warnings of a session",
        }
    }

    /// Makes the change.
    pub(super) fn apply(&self, conn: &Connection) -> Result<(), LedgerError> {
        match self {
            Self::Settle(push, to) => pushes::settle(conn, *push, to),
            Self::FailedFor(push, list) => {
                list.iter().try_for_each(|row| pushes::failed_for(conn, *push, *row))
            }
            Self::Uploading(push, attempt) => pushes::uploading(conn, *push, *attempt),
            Self::Reopen(list) => pushes::reopen(conn, list),
            Self::Unconfirm(list) => pushes::unconfirm(conn, list),
            Self::SessionState(row, state, at, flush) => sessions::set_state(conn, *row, *state, *at, *flush),
            Self::SessionDraining(row, abandoned, at) => sessions::set_draining(conn, *row, *abandoned, *at),
            Self::SessionUntil(row, until) => sessions::set_until(conn, *row, *until),
            Self::SessionWarnings(row, list) => sessions::set_warnings(conn, *row, list),
        }
    }
}

/// A call that a caller waits for.
pub(super) trait Ask: Send {
    /// Runs the call and keeps its result. It may run again after a rollback, also
    /// when it has been answered. Returns an error only if the storage failed.
    fn run(&mut self, conn: &Connection) -> Result<(), LedgerError>;
    /// Returns whether it ran and its result is an error.
    fn refused(&self) -> bool;
    /// Sends the result to the caller, or `failed` in its place. Called once.
    fn answer(&mut self, failed: Option<LedgerError>);
    /// Returns about how many rows it writes.
    fn weight(&self) -> usize;
}

/// An [`Ask`] made from a function.
pub(super) struct Question<R, F> {
    pub(super) f: F,
    pub(super) result: Result<R, LedgerError>,
    pub(super) reply: SyncSender<Result<R, LedgerError>>,
    pub(super) weight: usize,
}

impl<R, F> Ask for Question<R, F>
where
    R: Send,
    F: FnMut(&Connection) -> Result<R, LedgerError> + Send,
{
    fn run(&mut self, conn: &Connection) -> Result<(), LedgerError> {
        self.result = (self.f)(conn);
        match &self.result {
            Err(error) if error.is_storage() => Err(error.clone()),
            _ => Ok(()),
        }
    }

    fn refused(&self) -> bool {
        self.result.is_err()
    }

    fn answer(&mut self, failed: Option<LedgerError>) {
        let result = std::mem::replace(&mut self.result, Err(LedgerError::Stopped));
        // Fails when the caller no longer waits.
        let _ = self.reply.send(failed.map_or(result, Err));
    }

    fn weight(&self) -> usize {
        self.weight
    }
}

pub(super) enum Command {
    Note(Note),
    Read(Box<dyn Ask>),
    Write(Box<dyn Ask>),
    /// Is answered when everything before it is in the file.
    Sync(SyncSender<Result<(), LedgerError>>),
}

impl Command {
    /// Returns about how many rows it writes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Note(Note::Reopen(pushes)) => pushes.len(),
            Self::Note(_) => 1,
            Self::Write(ask) => ask.weight(),
            Self::Read(_) | Self::Sync(_) => 0,
        }
    }

    /// Runs the command inside a transaction.
    pub(super) fn run(&mut self, conn: &Connection, lost: &mut u64) -> Result<(), LedgerError> {
        match self {
            Self::Note(note) => apply(note, conn, lost),
            Self::Read(ask) => ask.run(conn),
            Self::Write(ask) => apart(conn, ask.as_mut()),
            Self::Sync(_) => Ok(()),
        }
    }

    /// Sends the result to the caller, if one waits.
    pub(super) fn answer(&mut self, failed: Option<LedgerError>) {
        match self {
            Self::Note(_) => {}
            Self::Read(ask) | Self::Write(ask) => ask.answer(failed),
            Self::Sync(reply) => {
                let _ = reply.send(failed.map_or(Ok(()), Err));
            }
        }
    }
}

/// Makes a note's change. A note that fails although the storage works would fail
/// each time: it is dropped with a log entry.
fn apply(note: &Note, conn: &Connection, lost: &mut u64) -> Result<(), LedgerError> {
    match note.apply(conn) {
        Err(error) if !error.is_storage() => {
            crate::observe::event!(LEDGER_FAULT, error = %error, note = note.word(), "ledger: a change ({}) could not be recorded: {error}", note.word());
            *lost += 1;
            Ok(())
        }
        other => other,
    }
}

/// Runs a call so that a refusal rolls back its own changes only.
fn apart(conn: &Connection, ask: &mut dyn Ask) -> Result<(), LedgerError> {
    conn.prepare_cached("SAVEPOINT call")?.execute([])?;
    ask.run(conn)?;
    if ask.refused() {
        conn.prepare_cached("ROLLBACK TO call")?.execute([])?;
    }
    conn.prepare_cached("RELEASE call")?.execute([])?;
    Ok(())
}
