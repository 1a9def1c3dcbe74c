//! The thread that owns the connection. Takes commands from a bounded queue,
//! puts what has piled up into one transaction, and answers after the commit.
//! What nobody waits for piles up for a moment first.
//! Must not know what the commands mean.
//!
//! ```text
//!   Fine ──a commit fails──► InMemory ──it succeeds──► Fine
//!     ▲                         │ nothing can be begun
//!     └───it succeeds─────── Stuck
//! ```
//!
//! In memory: the disk is full, and everything is done in a transaction that
//! stays open, its pages in memory; who asks is answered from it. It is
//! committed when there is room; when that fails, SQLite takes it back and it is
//! done again from what is kept, in the same order and with the same result,
//! since nobody else writes. Stuck: not even that is possible (another process
//! has the file locked, reading fails); who waits gets the error, and what
//! nobody waits for is kept and tried again before anything else.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::command::Command;
use super::error::LedgerError;
use crate::types::Wall;

/// Commands in one transaction. Bounds how long the first of them waits.
const MAX_BATCH: usize = 4096;
/// Rows kept in memory while nothing can be written. Calls that write more than
/// half of them are refused, so that what is taken in can also end.
const MAX_KEPT: usize = 65_536;
/// Kept commands tried at once when stuck: a failing write should fail after little work.
const RETRY_CHUNK: usize = 256;
const RETRY_EVERY: Duration = Duration::from_secs(1);
/// Of the time at most one part in so many goes into tries that fail.
const RETRY_SHARE: u32 = 20;
/// How long changes that nobody waits for may wait for others to come along: a
/// commit costs as much as some twenty of them.
const LINGER: Duration = Duration::from_millis(10);
/// How long somebody who looks at the file may lock it; longer, and everything
/// that only wants to read would wait as well.
pub(super) const BUSY: Duration = Duration::from_millis(500);

/// Whether what is sent is being written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Health {
    /// Yes.
    Ok,
    /// No: the last write failed. On a full disk everything goes on in memory;
    /// when not even that is possible, what was sent without waiting is kept.
    /// It is tried again until it succeeds.
    Degraded {
        /// Since when, unix ms.
        since: i64,
        /// Why.
        error: String,
        /// About how many changed rows wait.
        kept: usize,
        /// How many had to be dropped because too many wait. Their items are
        /// found unsettled at the next start and checked again.
        lost: u64,
    },
}

pub(super) struct Writer {
    conn: Connection,
    queue: Receiver<Command>,
    /// Notes and writes that are not in the file, oldest first.
    kept: VecDeque<Command>,
    kept_rows: usize,
    /// All that is kept is in an open transaction, and this many more changes.
    in_memory: Option<u64>,
    lost: u64,
    failing: Option<(i64, LedgerError)>,
    next_try: Instant,
    health: Arc<Mutex<Health>>,
}

impl Writer {
    pub(super) fn new(conn: Connection, queue: Receiver<Command>, health: Arc<Mutex<Health>>) -> Self {
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

    /// Until the last sender is gone and everything is written.
    pub(super) fn run(mut self) {
        loop {
            let next = if self.failing.is_some() {
                self.queue.recv_timeout(self.next_try.saturating_duration_since(Instant::now()))
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
                kept = self.kept_rows,
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
                    // It may have been one large call that found no space; then the rest goes on.
                    self.catch_up();
                }
            }
        }
    }

    /// All of the batch in one transaction.
    fn commit(&mut self, batch: &mut [Command]) -> Result<(), LedgerError> {
        let writes = batch.iter().any(|command| !matches!(command, Command::Read(_)));
        let lost = &mut self.lost;
        transaction(&self.conn, writes, |conn| batch.iter_mut().try_for_each(|c| c.run(conn, lost)))
    }

    /// The storage fails: all of it in memory if that can be, else refused.
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

    /// Opens the transaction that stays open, with all that is kept.
    fn go_on_in_memory(&mut self) {
        let began = Instant::now();
        let Self { conn, kept, lost, .. } = self;
        // Whoever locks the file has been waited for already.
        let opened = conn
            .busy_timeout(Duration::ZERO)
            .and_then(|()| {
                conn.execute_batch("PRAGMA cache_spill = OFF; PRAGMA temp_store = MEMORY; BEGIN IMMEDIATE")
            })
            .map_err(LedgerError::from)
            .and_then(|()| kept.iter_mut().try_for_each(|command| command.run(conn, lost)));
        // Neither has anything to do with the file.
        let _ = self.conn.busy_timeout(BUSY);
        match opened {
            Ok(()) => self.in_memory = Some(0),
            Err(_) => self.leave_memory(),
        }
        self.next_try = Instant::now() + RETRY_EVERY.max(began.elapsed() * RETRY_SHARE);
    }

    /// Takes back what was done in memory; what is kept stays to be tried again.
    fn leave_memory(&mut self) {
        self.lost += self.in_memory.take().unwrap_or(0);
        if !self.conn.is_autocommit() {
            // If this fails too, there was no transaction left.
            let _ = self.conn.execute_batch("ROLLBACK");
        }
    }

    /// Does it in memory, answers, and keeps it in case it has to be done again.
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
        // What was refused has changed nothing, and does not again.
        let refused = matches!(&command, Command::Write(ask) if ask.refused());
        command.answer(None);
        match command {
            Command::Write(_) if refused => {}
            Command::Write(_) => self.keep(command, weight),
            Command::Note(_) if self.kept_rows + weight <= MAX_KEPT => self.keep(command, weight),
            // In the transaction, and lost if that has to be done again.
            Command::Note(_) => self.in_memory = self.in_memory.map(|more| more + 1),
            Command::Read(_) | Command::Sync(_) => {}
        }
    }

    fn keep(&mut self, command: Command, weight: usize) {
        self.kept_rows += weight;
        self.kept.push_back(command);
    }

    /// Nothing can be done: notes are kept, writes are answered with the error,
    /// reads see what was committed last.
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

    fn error(&self) -> LedgerError {
        self.failing.as_ref().map_or(LedgerError::Stopped, |(_, error)| error.clone())
    }

    /// Writes what is kept, oldest first. True if the storage works again.
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
                // With nothing kept, something has to be written to know.
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

    fn recovered(&mut self) -> bool {
        if let Some((since, _)) = self.failing.take() {
            crate::observe::event!(
                LEDGER_WRITABLE,
                since = since,
                lost = self.lost,
                "ledger: can be written again"
            );
        }
        // Of no consequence but for memory.
        let _ = self
            .conn
            .execute_batch("PRAGMA cache_spill = ON; PRAGMA temp_store = DEFAULT; PRAGMA shrink_memory");
        self.report();
        true
    }

    fn fail(&mut self, error: LedgerError) {
        match &mut self.failing {
            Some((_, last)) => *last = error,
            None => {
                crate::observe::event!(LEDGER_UNWRITABLE, error = %error, "ledger: cannot be written; changes are kept in memory and tried again");
                self.failing = Some((Wall::now().0, error));
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
                kept: self.kept_rows,
                lost: self.lost,
            },
        };
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }
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
