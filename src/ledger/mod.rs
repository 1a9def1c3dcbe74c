//! What is known durably: how far the store was read, which paths wait for
//! which cache, how each ended, which session each belongs to. One SQLite file,
//! one thread that owns it, commits in groups.
//!
//! Must not know HTTP or Nix: caches and paths are plain strings here.
//!
//! Invariant: a call that was answered is in the file, and so is everything
//! that was sent before it, or while [`Health`] is degraded, all of it is kept
//! in memory until there is room; a process killed at any moment leaves a prefix
//! of what it sent. Invariant: a session counts each of its items exactly once.
//! Not guaranteed: that the last moments before a power cut are there
//! (synchronous=NORMAL). They are lost together with the cursor and the queue
//! entries of the same moments, so they are read from the store again.

mod command;
mod error;
mod model;
mod open;
mod prune;
mod pushes;
mod schema;
mod sessions;
mod writer;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc::{self, SyncSender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, OptionalExtension};

pub use error::LedgerError;
pub use model::{
    Admit, Admitted, Counts, Cursor, Evidence, Failure, NewPushRow, NewSession, Outcome, Pruned, PushId,
    PushRow, PushState, SessionInfo, SessionPush, SessionRow, SessionState, Settle,
};
pub use open::Opened;
pub use writer::Health;

use crate::types::Wall;
use command::{Ask, Command, Note, Question};
use writer::Writer;

/// Commands on their way to the writer; a sender waits when there are more.
const QUEUE: usize = 1024;
/// Bytes kept of an error's text.
pub const MAX_ERROR: usize = 2000;
/// Failures listed in [`Counts`].
pub const MAX_FAILURES: usize = 1000;
/// Sessions that [`Ledger::sessions`] lists, the latest ones.
pub const MAX_SESSIONS: usize = 1000;

type Result<T> = std::result::Result<T, LedgerError>;

/// The ledger. Clones are the same one; when the last is dropped, everything
/// that was sent is written and the file is closed.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Option<SyncSender<Command>>,
    writer: Option<JoinHandle<()>>,
    health: Arc<Mutex<Health>>,
}

impl Drop for Inner {
    fn drop(&mut self) {
        drop(self.queue.take());
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            crate::observe::event!(LEDGER_FAULT, "ledger: its thread panicked");
        }
    }
}

impl Ledger {
    /// Opens or makes the ledger at `path`; see [`Opened`] for what was found.
    pub fn open(path: &Path) -> Result<(Self, Opened)> {
        let (conn, opened) = open::open(path)?;
        let (sender, queue) = mpsc::sync_channel(QUEUE);
        let health = Arc::new(Mutex::new(Health::Ok));
        let writer = Writer::new(conn, queue, Arc::clone(&health));
        let thread = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| LedgerError::Open { path: path.to_owned(), reason: e.to_string() })?;
        let inner = Inner { queue: Some(sender), writer: Some(thread), health };
        Ok((Self { inner: Arc::new(inner) }, opened))
    }

    /// Whether what is sent is being written. Never blocks on the disk.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn send(&self, command: Command) -> Result<()> {
        let queue = self.inner.queue.as_ref().ok_or(LedgerError::Stopped)?;
        queue.send(command).map_err(|_| LedgerError::Stopped)
    }

    fn note(&self, note: Note) {
        if let Err(error) = self.send(Command::Note(note)) {
            crate::observe::event!(LEDGER_FAULT, error = %error, "a change could not be recorded");
            *self.inner.health.lock().unwrap_or_else(PoisonError::into_inner) =
                Health::Degraded { since: Wall::now().0, error: error.to_string(), kept: 0, lost: 0 };
        }
    }

    fn ask<R: Send + 'static>(
        &self,
        kind: fn(Box<dyn Ask>) -> Command,
        weight: usize,
        f: impl FnMut(&Connection) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(kind(Box::new(Question { f, result: Err(LedgerError::Stopped), reply, weight })))?;
        answer.recv().map_err(|_| LedgerError::Stopped)?
    }

    fn read<R: Send + 'static>(&self, f: impl FnMut(&Connection) -> Result<R> + Send + 'static) -> Result<R> {
        self.ask(Command::Read, 0, f)
    }

    fn write<R: Send + 'static>(
        &self,
        f: impl FnMut(&Connection) -> Result<R> + Send + 'static,
    ) -> Result<R> {
        self.ask(Command::Write, 1, f)
    }

    /// How far the store was read; none before the first [`Ledger::admit`] with a cursor.
    pub fn cursor(&self) -> Result<Option<Cursor>> {
        self.read(pushes::cursor)
    }

    /// Takes a batch in, all of it or nothing: makes unknown items known, takes
    /// settled ones up again where there is cause to, attaches sessions, moves
    /// the cursor.
    pub fn admit(&self, batch: Admit) -> Result<Admitted> {
        self.ask(Command::Write, 1 + batch.items.len(), move |conn| pushes::admit(conn, &batch))
    }

    /// Where these paths of one cache stand, in their order: id, state, when settled.
    pub fn lookup(&self, cache: &str, paths: &[String]) -> Result<Vec<Option<(PushId, PushState, i64)>>> {
        let (cache, paths) = (cache.to_owned(), paths.to_vec());
        self.read(move |conn| pushes::lookup(conn, &cache, &paths))
    }

    /// Pending, Uploading and Failed items after `after`, in id order.
    pub fn unsettled(&self, after: PushId, limit: usize) -> Result<Vec<PushRow>> {
        self.read(move |conn| pushes::unsettled(conn, after, limit))
    }

    /// How many items have failed, over all caches.
    pub fn failed(&self) -> Result<u64> {
        // The index of what is unsettled holds them and little else.
        let count =
            "SELECT count(*) FROM item INDEXED BY item_unsettled WHERE state IN (0, 1, 5) AND state = 5";
        self.read(move |conn| Ok(number(conn.prepare_cached(count)?.query_row([], |row| row.get(0))?)))
    }

    /// Records how an item ended. Sent, not waited for.
    pub fn settle(&self, item: PushId, outcome: Settle) {
        self.note(Note::Settle(item, outcome));
    }

    /// Records that an upload begins. Sent, not waited for.
    pub fn uploading(&self, item: PushId, attempt: u32) {
        self.note(Note::Uploading(item, attempt));
    }

    /// Failed items become Pending again. Sent, not waited for.
    pub fn reopen(&self, items: &[PushId]) {
        self.note(Note::Reopen(items.to_vec()));
    }

    /// Opens a session; its id must be new.
    pub fn session_open(&self, new: NewSession) -> Result<SessionRow> {
        self.write(move |conn| sessions::open(conn, &new))
    }

    /// Moves a session on; Closed is final, and Abandoned but for
    /// [`Ledger::session_rejoin`]: later calls change nothing. Sent, not waited for.
    pub fn session_state(&self, row: SessionRow, state: SessionState, at: i64, flush_ms: Option<u64>) {
        self.note(Note::SessionState(row, state, at, flush_ms));
    }

    /// Takes an abandoned session up again, because its job ends it after all:
    /// it is draining. False when it is not abandoned.
    pub fn session_rejoin(&self, row: SessionRow) -> Result<bool> {
        self.write(move |conn| sessions::rejoin(conn, row))
    }

    /// Takes paths from live sessions that had them only by window or shared
    /// evidence, for the one that is known to have made them.
    pub fn claim(&self, owner: SessionRow, paths: &[String]) -> Result<()> {
        let paths = paths.to_vec();
        self.write(move |conn| sessions::claim(conn, owner, &paths))
    }

    /// Open and draining sessions, or all (the latest [`MAX_SESSIONS`]), oldest first.
    pub fn sessions(&self, all: bool) -> Result<Vec<SessionInfo>> {
        self.read(move |conn| sessions::list(conn, all))
    }

    /// The session of that id.
    pub fn session(&self, id: &str) -> Result<Option<SessionInfo>> {
        let id = id.to_owned();
        self.read(move |conn| sessions::by_name(conn, &id))
    }

    /// Nothing of the store's journal above `until` is the session's. The first
    /// call counts. Sent, not waited for.
    pub fn session_until(&self, row: SessionRow, until: i64) {
        self.note(Note::SessionUntil(row, until));
    }

    /// What the session's end warns of from now on. Sent, not waited for.
    pub fn session_warnings(&self, row: SessionRow, warnings: &[String]) {
        self.note(Note::SessionWarnings(row, warnings.to_vec()));
    }

    /// The session in that row.
    pub fn session_by_row(&self, row: SessionRow) -> Result<Option<SessionInfo>> {
        self.read(move |conn| sessions::by_row(conn, row))
    }

    /// A session's items that are not settled.
    pub fn session_pending(&self, row: SessionRow) -> Result<Vec<PushId>> {
        self.read(move |conn| sessions::pending(conn, row))
    }

    /// How a session's items ended so far.
    pub fn summary(&self, row: SessionRow) -> Result<Counts> {
        self.read(move |conn| sessions::summary(conn, row))
    }

    /// A session's items after `after`, in id order.
    pub fn session_items(&self, row: SessionRow, after: PushId, limit: usize) -> Result<Vec<SessionPush>> {
        self.read(move |conn| sessions::items(conn, row, after, limit))
    }

    /// Forgets sessions that were over before `before_ms`, and items settled
    /// before that which no remaining session names. Others get their turn in between.
    pub fn prune(&self, before_ms: i64) -> Result<Pruned> {
        let mut pruned = Pruned::default();
        let mut step = prune::Step::Sessions;
        while step != prune::Step::Done {
            let (next, sum) = self.write(move |conn| {
                let mut sum = Pruned::default();
                Ok((prune::step(conn, step, before_ms, &mut sum)?, sum))
            })?;
            step = next;
            pruned.sessions += sum.sessions;
            pruned.items += sum.items;
        }
        Ok(pruned)
    }

    /// A value the daemon put by.
    pub fn meta(&self, key: &str) -> Result<Option<String>> {
        let key = key.to_owned();
        self.read(move |conn| {
            let mut find = conn.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
            Ok(find.query_row([&key], |row| row.get(0)).optional()?)
        })
    }

    /// Puts a value by. Keys that begin with `ledger.` are the ledger's own.
    pub fn set_meta(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.write(move |conn| {
            conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
                .execute((&key, &value))?;
            Ok(())
        })
    }

    /// Returns when everything that was sent before is committed; fails while
    /// it can only be kept in memory.
    pub fn sync(&self) -> Result<()> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(Command::Sync(reply))?;
        answer.recv().map_err(|_| LedgerError::Stopped)?
    }

    /// Runs blocking calls from async code, on tokio's threads for that.
    pub async fn call<R: Send + 'static>(&self, f: impl FnOnce(&Self) -> R + Send + 'static) -> R {
        let ledger = self.clone();
        match tokio::task::spawn_blocking(move || f(&ledger)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // Only when the runtime is shutting down, and this future with it.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// SQLite's integers have a sign; what is larger is not a size.
fn stored(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn number(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
