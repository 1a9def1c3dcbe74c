//! The thread that owns the connection. It takes commands from a queue,
//! runs those that are there in one transaction, and answers after the commit.
//! Changes that no caller waits for are collected for a moment first.
//!
//! Must not know: what the commands mean.
//!
//! ```text
//!   Fine ── a commit fails ──► InMemory ── it succeeds ──► Fine
//!     ▲                           │ no transaction can begin
//!     └── it succeeds ───────── Stuck
//! ```
//!
//! In memory: the disk is full. Commands run in a transaction that stays open,
//! with its pages in memory, and callers get their results from it. It is
//! committed when there is room. When that fails, SQLite rolls it back, and the
//! kept commands run again in the same order, with the same results, since no
//! other process writes. Stuck: no transaction can begin, because another
//! process has locked the file or reading fails. Callers that wait get the
//! error; other changes are kept and retried before anything else.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use rusqlite::Connection;

use super::checkpoint::Checkpoints;
use super::command::{Command, without_superseded};
use super::error::LedgerError;
use super::queue::{Batch, Receiver};
use crate::types::Wall;

/// Most commands in one transaction. Bounds how long the first of them waits.
const MAX_BATCH: usize = 4096;
/// Most rows that are kept while the file cannot be written. Calls that would use
/// more than half of them are refused, so that admitted pushes can still settle.
const MAX_KEPT: usize = 65_536;
/// Kept commands in one attempt when stuck, so that a failing attempt costs little.
const RETRY_CHUNK: usize = 256;
/// Wait between attempts to write.
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// At most one part in this many of the time goes into attempts that fail.
const RETRY_SHARE: u32 = 20;
/// How long changes that no caller waits for are collected: a commit costs as much as
/// about twenty of them.
const LINGER: Duration = Duration::from_millis(20);
/// How long a command waits while another process, an administrator's for example,
/// locks the file.
pub(super) const BUSY: Duration = Duration::from_millis(500);

/// Whether the file can be written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// It can.
    Ok,
    /// The last write failed. On a full disk commands run in memory. If that is
    /// not possible either, only changes that no caller waits for are kept. The
    /// writer retries until it succeeds.
    Degraded {
        /// Since when, unix ms.
        since: i64,
        /// The last error.
        error: String,
        /// About how many changed rows are kept.
        kept: usize,
        /// How many changes were dropped because too many are kept. Their pushes
        /// are found unsettled at the next start and checked again.
        lost: u64,
    },
}

/// The writer's state.
pub(super) struct Writer {
    conn: Connection,
    queue: Receiver,
    /// Notes and writes that are not in the file, the oldest first.
    kept: VecDeque<Command>,
    kept_rows: usize,
    /// The open transaction in memory has all kept commands and this many more
    /// changes. `None`: there is no such transaction.
    in_memory: Option<u64>,
    lost: u64,
    failing: Option<(i64, LedgerError)>,
    next_try: Instant,
    health: Arc<Mutex<Health>>,
}

impl Writer {
    pub(super) fn new(conn: Connection, queue: Receiver, health: Arc<Mutex<Health>>) -> Self {
        Self {
            conn,
            queue,
            kept: VecDeque::new(),
            kept_rows: 0,
            in_memory: None,
            lost: 0,
            failing: None,
            next_try: Instant::now(),
            health,
        }
    }

    #[cfg(test)]
    pub(super) fn conn(&self) -> &Connection {
        &self.conn
    }

    #[cfg(test)]
    pub(super) fn into_conn(self) -> Connection {
        self.conn
    }

    /// Whether the last write failed, so that changes are kept in memory.
    #[cfg(test)]
    pub(super) fn is_failing(&self) -> bool {
        self.failing.is_some()
    }

    /// Runs until the last sender is dropped and everything is written.
    pub(super) fn run(mut self) {
        let mut checkpoints = Checkpoints::of(&self.conn);
        loop {
            let until = self.failing.is_some().then(|| self.next_try.into_std());
            match self.queue.batch(until, MAX_BATCH, LINGER) {
                Batch::Commands(batch) => {
                    let writes = writes(&batch);
                    self.batch(batch);
                    if writes {
                        checkpoints.wrote();
                    }
                }
                Batch::Late => {
                    self.catch_up();
                }
                Batch::Closed => break,
            }
        }
        if self.failing.is_some() && !self.catch_up() {
            crate::observe::event!(
                LEDGER_UNWRITABLE,
                kept = self.kept_rows,
                lost = self.lost,
                "ledger: it could not be written before flywheeld ended; {} changes that were not recorded are looked for again at the next start",
                self.kept_rows
            );
        }
    }

    /// Runs commands and answers them.
    pub(super) fn batch(&mut self, batch: Vec<Command>) {
        let mut batch = without_superseded(batch);
        let due = self.in_memory.is_none() || self.next_try <= Instant::now();
        if self.failing.is_some() && !(due && self.catch_up()) {
            return self.hold(batch);
        }
        match self.commit(&mut batch) {
            Ok(()) => batch.iter_mut().for_each(|command| command.answer(None)),
            Err(error) => {
                self.fail(error);
                self.hold(batch);
                if self.in_memory.is_none() {
                    // If one large call found no space, the others can be written.
                    self.catch_up();
                }
            }
        }
    }

    /// Runs a batch in one transaction.
    fn commit(&mut self, batch: &mut [Command]) -> Result<(), LedgerError> {
        let writes = writes(batch);
        let lost = &mut self.lost;
        transaction(&self.conn, writes, |conn| {
            batch.iter_mut().try_for_each(|command| command.run(conn, lost))
        })
    }

    /// Runs a batch in memory because the storage fails, or refuses it if that is
    /// not possible.
    fn hold(&mut self, batch: Vec<Command>) {
        if self.in_memory.is_none() {
            self.go_on_in_memory();
        }
        for command in batch {
            if self.in_memory.is_some() {
                self.remember(command);
            } else {
                self.refuse(command);
            }
        }
        self.report();
    }

    /// Opens the transaction in memory and runs all kept commands in it.
    fn go_on_in_memory(&mut self) {
        let began = Instant::now();
        let Self { conn, kept, lost, .. } = self;
        // The failed attempt has waited for a lock already.
        let opened = conn
            .busy_timeout(Duration::ZERO)
            .and_then(|()| {
                conn.execute_batch("PRAGMA cache_spill = OFF; PRAGMA temp_store = MEMORY; BEGIN IMMEDIATE")
            })
            .map_err(LedgerError::from)
            .and_then(|()| kept.iter_mut().try_for_each(|command| command.run(conn, lost)));
        // Sets a value of the connection and cannot fail for the file's sake.
        let _ = self.conn.busy_timeout(BUSY);
        match opened {
            Ok(()) => self.in_memory = Some(0),
            Err(_) => self.leave_memory(),
        }
        self.next_try = Instant::now() + RETRY_EVERY.max(began.elapsed() * RETRY_SHARE);
    }

    /// Rolls back the transaction in memory. Kept commands stay and are retried.
    fn leave_memory(&mut self) {
        self.lost += self.in_memory.take().unwrap_or(0);
        if !self.conn.is_autocommit() {
            // Fails only if there is no transaction.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }

    /// Runs a command in memory, answers it, and keeps it for a repetition.
    fn remember(&mut self, mut command: Command) {
        let weight = command.weight();
        let full = matches!(command, Command::Write(_)) && self.kept_rows + weight > MAX_KEPT / 2;
        if full || matches!(command, Command::Sync(_)) {
            return command.answer(Some(self.error()));
        }
        if let Err(error) = command.run(&self.conn, &mut self.lost) {
            if matches!(command, Command::Read(_)) {
                return command.answer(Some(error));
            }
            self.fail(error);
            self.leave_memory();
            return self.refuse(command);
        }
        // A refused call has changed nothing and is not kept.
        let refused = matches!(&command, Command::Write(ask) if ask.refused());
        command.answer(None);
        match command {
            Command::Write(_) if refused => {}
            Command::Write(_) => self.keep(command, weight),
            Command::Note(_) if self.kept_rows + weight <= MAX_KEPT => self.keep(command, weight),
            // It is in the transaction, and lost if that is rolled back.
            Command::Note(_) => self.in_memory = self.in_memory.map(|more| more + 1),
            Command::Read(_) | Command::Sync(_) => {}
        }
    }

    /// Keeps a command for a later attempt.
    fn keep(&mut self, command: Command, weight: usize) {
        self.kept_rows += weight;
        self.kept.push_back(command);
    }

    /// Handles a command while stuck: a note is kept, a write is answered with the
    /// error, a read sees the last commit.
    fn refuse(&mut self, mut command: Command) {
        let weight = command.weight();
        match &mut command {
            Command::Note(_) if self.kept_rows + weight <= MAX_KEPT => self.keep(command, weight),
            Command::Note(_) => self.lost += 1,
            Command::Read(ask) => {
                let failed = ask.run(&self.conn).err();
                ask.answer(failed);
            }
            Command::Write(_) | Command::Sync(_) => {
                let error = self.error();
                command.answer(Some(error));
            }
        }
    }

    /// Returns the error that the storage gave last.
    fn error(&self) -> LedgerError {
        self.failing.as_ref().map_or(LedgerError::Stopped, |(_, error)| error.clone())
    }

    /// Writes the kept commands, the oldest first. Returns whether the storage works
    /// again.
    fn catch_up(&mut self) -> bool {
        if self.in_memory.is_some() {
            if let Err(error) = self.conn.execute_batch("COMMIT") {
                self.fail(error.into());
                self.leave_memory();
                self.go_on_in_memory();
                self.report();
                return false;
            }
            self.in_memory = None;
            self.kept.clear();
            self.kept_rows = 0;
            return self.recovered();
        }
        loop {
            let count = self.kept.len().min(RETRY_CHUNK);
            let (kept, lost) = (&mut self.kept, &mut self.lost);
            let tried = transaction(&self.conn, true, |conn| {
                kept.iter_mut().take(count).try_for_each(|command| command.run(conn, lost))?;
                // With nothing kept, only a write shows whether the file can be written.
                conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES ('ledger.probe', ?1)")?
                    .execute([Wall::now().0.to_string()])?;
                Ok(())
            });
            if let Err(error) = tried {
                self.fail(error);
                self.next_try = Instant::now() + RETRY_EVERY;
                return false;
            }
            self.kept_rows -= self.kept.drain(..count).map(|command| command.weight()).sum::<usize>();
            if self.kept.is_empty() {
                return self.recovered();
            }
        }
    }

    /// Ends the degraded state.
    fn recovered(&mut self) -> bool {
        if let Some((since, _)) = self.failing.take() {
            crate::observe::event!(
                LEDGER_WRITABLE,
                since = since,
                lost = self.lost,
                "ledger: it can be written again; {} changes could not be recorded",
                self.lost
            );
        }
        // A failure here costs memory only.
        let _ = self
            .conn
            .execute_batch("PRAGMA cache_spill = ON; PRAGMA temp_store = DEFAULT; PRAGMA shrink_memory");
        self.report();
        true
    }

    /// Records an error of the storage.
    fn fail(&mut self, error: LedgerError) {
        match &mut self.failing {
            Some((_, last)) => *last = error,
            None => {
                crate::observe::event!(LEDGER_UNWRITABLE, error = %error, "ledger: it cannot be written ({error}); changes are kept in memory, and the write is retried; check the file system of state_dir");
                self.failing = Some((Wall::now().0, error));
            }
        }
        self.report();
    }

    /// Publishes the health.
    fn report(&self) {
        let now = match &self.failing {
            None => Health::Ok,
            Some((since, error)) => Health::Degraded {
                since: *since,
                error: error.to_string(),
                kept: self.kept_rows,
                lost: self.lost,
            },
        };
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
}

/// Whether one of these commands changes the file.
fn writes(batch: &[Command]) -> bool {
    batch.iter().any(|command| !matches!(command, Command::Read(_)))
}

/// Runs `f` in a transaction and rolls back on any error. After some errors SQLite
/// has rolled back already.
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
        // Fails only if there is no transaction.
        let _ = conn.execute_batch("ROLLBACK");
    }
    done
}
