//! What the ledger's thread can be asked to do. Must not know when it does it.

use std::sync::mpsc::SyncSender;

use rusqlite::Connection;

use super::error::LedgerError;
use super::model::{PushId, SessionRow, SessionState, Settle};
use super::{pushes, sessions};

/// A change nobody waits for.
#[derive(Debug)]
pub(super) enum Note {
    Settle(PushId, Settle),
    Uploading(PushId, u32),
    Reopen(Vec<PushId>),
    SessionState(SessionRow, SessionState, i64, Option<u64>),
    SessionUntil(SessionRow, i64),
    SessionWarnings(SessionRow, Vec<String>),
}

impl Note {
    pub(super) fn apply(&self, conn: &Connection) -> Result<(), LedgerError> {
        match self {
            Self::Settle(item, to) => pushes::settle(conn, *item, to),
            Self::Uploading(item, attempt) => pushes::uploading(conn, *item, *attempt),
            Self::Reopen(list) => pushes::reopen(conn, list),
            Self::SessionState(row, state, at, flush) => sessions::set_state(conn, *row, *state, *at, *flush),
            Self::SessionUntil(row, until) => sessions::set_until(conn, *row, *until),
            Self::SessionWarnings(row, list) => sessions::set_warnings(conn, *row, list),
        }
    }
}

/// A call somebody waits for.
pub(super) trait Ask: Send {
    /// Runs it and keeps the result; may be run again after a rollback, also
    /// when it has been answered. The error is given back only if the storage
    /// is at fault.
    fn run(&mut self, conn: &Connection) -> Result<(), LedgerError>;
    /// It ran and its result is an error.
    fn refused(&self) -> bool;
    /// Sends the result, or `failed` instead. To be called once.
    fn answer(&mut self, failed: Option<LedgerError>);
    /// About how many rows it writes.
    fn weight(&self) -> usize;
}

/// An [`Ask`] from a function.
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
        // Nobody there any more: then nobody wants to know.
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
    /// Answered when all that came before is in the file.
    Sync(SyncSender<Result<(), LedgerError>>),
}

impl Command {
    /// About how many rows it writes.
    pub(super) fn weight(&self) -> usize {
        match self {
            Self::Note(Note::Reopen(items)) => items.len(),
            Self::Note(_) => 1,
            Self::Write(ask) => ask.weight(),
            Self::Read(_) | Self::Sync(_) => 0,
        }
    }

    /// Has it done, inside a transaction.
    pub(super) fn run(&mut self, conn: &Connection, lost: &mut u64) -> Result<(), LedgerError> {
        match self {
            Self::Note(note) => apply(note, conn, lost),
            Self::Read(ask) => ask.run(conn),
            Self::Write(ask) => apart(conn, ask.as_mut()),
            Self::Sync(_) => Ok(()),
        }
    }

    /// Tells who waits.
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

/// A note that fails for another cause than the storage would fail for ever:
/// it is dropped, loudly, and does not hold up the others.
fn apply(note: &Note, conn: &Connection, lost: &mut u64) -> Result<(), LedgerError> {
    match note.apply(conn) {
        Err(error) if !error.is_storage() => {
            crate::observe::event!(LEDGER_FAULT, error = %error, note = ?note, "ledger: a change could not be recorded");
            *lost += 1;
            Ok(())
        }
        other => other,
    }
}

/// A call that is refused half way takes back its own changes, not its neighbours'.
fn apart(conn: &Connection, ask: &mut dyn Ask) -> Result<(), LedgerError> {
    conn.prepare_cached("SAVEPOINT call")?.execute([])?;
    ask.run(conn)?;
    if ask.refused() {
        conn.prepare_cached("ROLLBACK TO call")?.execute([])?;
    }
    conn.prepare_cached("RELEASE call")?.execute([])?;
    Ok(())
}
