//! The thread that owns the connection. Takes commands from a bounded queue,
//! puts what has piled up into one transaction, and answers after the commit.
//! What nobody waits for piles up for a moment first.
//! Must not know what the commands mean.
//!
//! When the storage fails (full, read-only, I/O errors), whoever waits gets the
//! error; what nobody waits for is kept in order and tried again before
//! anything else, with every batch and at least every second.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::error::LedgerError;
use super::model::{Health, ItemId, SessionRow, SessionState, Settle};
use super::{items, now_ms, sessions};

/// Commands in one transaction. Bounds how long the first of them waits.
const MAX_BATCH: usize = 4096;
/// Commands kept while nothing can be written.
const MAX_KEPT: usize = 65_536;
/// Kept commands tried at once: a failing write should fail after little work.
const RETRY_CHUNK: usize = 256;
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// How long changes that nobody waits for may wait for others to come along: a
/// commit costs as much as some twenty of them.
const LINGER: Duration = Duration::from_millis(10);

/// A change nobody waits for.
#[derive(Debug)]
pub(super) enum Note {
    Settle(ItemId, Settle),
    Uploading(ItemId, u32),
    Reopen(Vec<ItemId>),
    SessionState(SessionRow, SessionState, i64, Option<u64>),
    SessionUntil(SessionRow, i64),
}

impl Note {
    fn apply(&self, conn: &Connection) -> Result<(), LedgerError> {
        match self {
            Self::Settle(item, to) => items::settle(conn, *item, to),
            Self::Uploading(item, attempt) => items::uploading(conn, *item, *attempt),
            Self::Reopen(list) => items::reopen(conn, list),
            Self::SessionState(row, state, at, flush) => sessions::set_state(conn, *row, *state, *at, *flush),
            Self::SessionUntil(row, until) => sessions::set_until(conn, *row, *until),
        }
    }
}

/// A call somebody waits for.
pub(super) trait Ask: Send {
    /// Runs it and keeps the result; may be run again after a rollback. The
    /// error is given back only if the storage is at fault.
    fn run(&mut self, conn: &Connection) -> Result<(), LedgerError>;
    /// It ran and its result is an error.
    fn refused(&self) -> bool;
    /// Sends the result, or `failed` instead.
    fn answer(self: Box<Self>, failed: Option<LedgerError>);
}

/// An [`Ask`] from a function.
pub(super) struct Question<R, F> {
    pub(super) f: F,
    pub(super) result: Result<R, LedgerError>,
    pub(super) reply: SyncSender<Result<R, LedgerError>>,
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

    fn answer(self: Box<Self>, failed: Option<LedgerError>) {
        // Nobody there any more: then nobody wants to know.
        let _ = self.reply.send(failed.map_or(self.result, Err));
    }
}

pub(super) enum Command {
    Note(Note),
    Read(Box<dyn Ask>),
    Write(Box<dyn Ask>),
}

pub(super) struct Writer {
    conn: Connection,
    queue: Receiver<Command>,
    kept: VecDeque<Note>,
    lost: u64,
    failing: Option<(i64, LedgerError)>,
    health: Arc<Mutex<Health>>,
}

impl Writer {
    pub(super) fn new(conn: Connection, queue: Receiver<Command>, health: Arc<Mutex<Health>>) -> Self {
        Self { conn, queue, kept: VecDeque::new(), lost: 0, failing: None, health }
    }

    /// Until the last sender is gone and everything is written.
    pub(super) fn run(mut self) {
        loop {
            let next = if self.failing.is_some() {
                self.queue.recv_timeout(RETRY_EVERY)
            } else {
                self.queue.recv().map_err(|_| RecvTimeoutError::Disconnected)
            };
            match next {
                Ok(first) => {
                    let batch = self.gather(first);
                    self.batch(batch);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.catch_up();
                }
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        if self.failing.is_some() && !self.catch_up() {
            crate::observe::event!(
                LEDGER_UNWRITABLE,
                kept = self.kept.len(),
                lost = self.lost,
                "ledger: closed while it could not be written; what was not recorded is checked again at the next start"
            );
        }
    }

    /// What is there, and while nobody waits for an answer, what comes soon.
    fn gather(&self, first: Command) -> Vec<Command> {
        let until = Instant::now() + LINGER;
        let mut waited_for = !matches!(first, Command::Note(_));
        let mut batch = vec![first];
        while batch.len() < MAX_BATCH {
            let left =
                if waited_for { Duration::ZERO } else { until.saturating_duration_since(Instant::now()) };
            let next =
                if left.is_zero() { self.queue.try_recv().ok() } else { self.queue.recv_timeout(left).ok() };
            let Some(next) = next else { break };
            waited_for |= !matches!(next, Command::Note(_));
            batch.push(next);
        }
        batch
    }

    fn batch(&mut self, mut batch: Vec<Command>) {
        if self.failing.is_some() && !self.catch_up() {
            self.refuse(batch);
            return;
        }
        match self.commit(&mut batch) {
            Ok(()) => {
                for command in batch {
                    match command {
                        Command::Note(_) => {}
                        Command::Read(ask) | Command::Write(ask) => ask.answer(None),
                    }
                }
            }
            Err(error) => {
                self.fail(error);
                self.refuse(batch);
                // It may have been one large call that found no space; then the rest goes on.
                self.catch_up();
            }
        }
    }

    /// All of the batch in one transaction.
    fn commit(&mut self, batch: &mut [Command]) -> Result<(), LedgerError> {
        let writes = batch.iter().any(|command| !matches!(command, Command::Read(_)));
        let lost = &mut self.lost;
        transaction(&self.conn, writes, |conn| {
            batch.iter_mut().try_for_each(|command| match command {
                Command::Note(note) => apply(note, conn, lost),
                Command::Read(ask) => ask.run(conn),
                Command::Write(ask) => apart(conn, ask.as_mut()),
            })
        })
    }

    /// The storage fails: notes are kept, writes are answered with the error,
    /// reads see what was committed last.
    fn refuse(&mut self, batch: Vec<Command>) {
        let error = self.failing.as_ref().map_or(LedgerError::Stopped, |(_, error)| error.clone());
        for command in batch {
            match command {
                Command::Note(note) if self.kept.len() < MAX_KEPT => self.kept.push_back(note),
                Command::Note(_) => self.lost += 1,
                Command::Write(ask) => ask.answer(Some(error.clone())),
                Command::Read(mut ask) => {
                    let failed = ask.run(&self.conn).err();
                    ask.answer(failed);
                }
            }
        }
        self.report();
    }

    /// Writes what is kept, oldest first. True if the storage works again.
    fn catch_up(&mut self) -> bool {
        loop {
            let count = self.kept.len().min(RETRY_CHUNK);
            let (kept, lost) = (&self.kept, &mut self.lost);
            let tried = transaction(&self.conn, true, |conn| {
                kept.iter().take(count).try_for_each(|note| apply(note, conn, lost))?;
                // With nothing kept, something has to be written to know.
                conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('ledger.probe', ?1)")?
                    .execute([now_ms().to_string()])?;
                Ok(())
            });
            if let Err(error) = tried {
                self.fail(error);
                return false;
            }
            self.kept.drain(..count);
            if self.kept.is_empty() {
                if let Some((since, _)) = self.failing.take() {
                    crate::observe::event!(
                        LEDGER_WRITABLE,
                        since = since,
                        lost = self.lost,
                        "ledger: can be written again"
                    );
                }
                self.report();
                return true;
            }
        }
    }

    fn fail(&mut self, error: LedgerError) {
        match &mut self.failing {
            Some((_, last)) => *last = error,
            None => {
                crate::observe::event!(LEDGER_UNWRITABLE, error = %error, "ledger: cannot be written; changes are kept in memory and tried again");
                self.failing = Some((now_ms(), error));
            }
        }
        self.report();
    }

    fn report(&self) {
        let now = match &self.failing {
            None => Health::Ok,
            Some((since, error)) => Health::Degraded {
                since: *since,
                error: error.to_string(),
                kept: self.kept.len(),
                lost: self.lost,
            },
        };
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = now;
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

/// Rolls back on any error; some of SQLite's errors have done so already.
fn transaction(
    conn: &Connection,
    writes: bool,
    f: impl FnOnce(&Connection) -> Result<(), LedgerError>,
) -> Result<(), LedgerError> {
    let begin = if writes { "BEGIN IMMEDIATE" } else { "BEGIN" };
    let done = conn
        .execute_batch(begin)
        .map_err(LedgerError::from)
        .and_then(|()| f(conn))
        .and_then(|()| conn.execute_batch("COMMIT").map_err(LedgerError::from));
    if done.is_err() && !conn.is_autocommit() {
        // If this fails too, there was no transaction left.
        let _ = conn.execute_batch("ROLLBACK");
    }
    done
}
