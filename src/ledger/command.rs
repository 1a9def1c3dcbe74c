//! The commands that the ledger's thread takes.
//!
//! Must not know: when a command runs.

use std::collections::HashSet;
use std::sync::mpsc::SyncSender;

use rusqlite::Connection;

use super::error::LedgerError;
use super::model::{PushId, PushState, SessionRow, SessionState, Settle, Warnings};
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
    SessionRejoin(SessionRow),
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
            Self::SessionRejoin(..) => "the late end of a session",
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
            Self::SessionRejoin(row) => sessions::rejoin(conn, *row),
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

/// Removes the beginning of each upload whose success is among the later commands: the
/// record of the success contains it.
pub(super) fn without_superseded(batch: Vec<Command>) -> Vec<Command> {
    let mut pushed = HashSet::new();
    let mut kept: Vec<Command> = Vec::with_capacity(batch.len());
    for command in batch.into_iter().rev() {
        match &command {
            Command::Note(Note::Settle(push, to)) if to.state == PushState::Pushed => {
                pushed.insert(*push);
            }
            // What another end means depends on whether an upload came before it.
            Command::Note(Note::Settle(push, _)) => {
                pushed.remove(push);
            }
            Command::Note(Note::Uploading(push, _)) if pushed.contains(push) => continue,
            // What it reads or changes may depend on the state of an upload.
            Command::Read(_) | Command::Write(_) => pushed.clear(),
            Command::Note(_) | Command::Sync(_) => {}
        }
        kept.push(command);
    }
    kept.reverse();
    kept
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Steps;

    fn begun(push: PushId) -> Command {
        Command::Note(Note::Uploading(push, 1))
    }

    fn ended(push: PushId, state: PushState) -> Command {
        let (error_class, error, steps) = (None, None, Steps::default());
        Command::Note(Note::Settle(push, Settle { state, error_class, error, attempts: 1, steps, at: 7 }))
    }

    fn left(batch: Vec<Command>) -> Vec<String> {
        let word = |command: &Command| match command {
            Command::Note(Note::Uploading(push, _)) => format!("begun {push}"),
            Command::Note(Note::Settle(push, to)) => format!("{} {push}", to.state.word()),
            _ => "other".to_owned(),
        };
        without_superseded(batch).iter().map(word).collect()
    }

    #[test]
    fn the_beginning_of_an_upload_is_left_out_when_its_success_says_the_same() {
        use PushState::{Cached, Pushed};
        assert_eq!(left(vec![begun(1), begun(2), ended(1, Pushed)]), ["begun 2", "pushed 1"]);
        // The path was sent before the cache was asked, and counts as pushed.
        assert_eq!(left(vec![begun(1), ended(1, Cached)]), ["begun 1", "already_cached 1"]);
        let twice = vec![begun(1), ended(1, Cached), begun(1), ended(1, Pushed)];
        assert_eq!(left(twice), ["begun 1", "already_cached 1", "pushed 1"]);
        let (reply, _answer) = std::sync::mpsc::sync_channel(1);
        let call = Command::Write(Box::new(Question {
            f: |_: &Connection| Ok(()),
            result: Ok(()),
            reply,
            weight: 1,
        }));
        assert_eq!(left(vec![begun(1), call, ended(1, Pushed)]), ["begun 1", "other", "pushed 1"]);
    }
}
