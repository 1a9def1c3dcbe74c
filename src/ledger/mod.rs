//! What must survive a restart: how far the Nix database was read, the pushes of
//! every cache and how each ended, the sessions and their paths. One SQLite
//! file, owned by one thread that commits in groups.
//!
//! Must not know: HTTP, Nix. Caches and paths are strings here.
//!
//! Invariant: a call that was answered is in the file, with everything sent
//! before it. While [`Health`] is degraded, it is kept in memory instead, until
//! the file can be written. A process killed at any moment leaves a prefix of
//! the calls it sent. Invariant: a session counts each of its pushes once.
//! Not guaranteed: that the commits of the last moments before a power cut are
//! in the file (synchronous=NORMAL). They are lost together with the cursor's
//! last moves, so their paths are read from the Nix database again.
//!
//! The tables keep the names of the first format: an `item` is a push, and
//! `session_item` says which pushes are a session's.

mod checkpoint;
mod command;
mod error;
mod model;
mod open;
mod prune;
mod pushes;
mod queue;
mod schema;
mod sessions;
#[cfg(test)]
mod simulated;
mod story;
mod undecided;
mod writer;

#[cfg(test)]
pub(crate) use simulated::Disk;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::mpsc;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;

use rusqlite::{Connection, OptionalExtension};

pub use error::LedgerError;
pub use model::{
    Admit, Admitted, Counts, Cursor, Evidence, Failure, ListedSession, NewPushRow, NewSession, Outcome,
    Pruned, PushId, PushRow, PushState, SessionInfo, SessionKind, SessionPush, SessionRow, SessionState,
    Settle, Steps, Warnings,
};
pub use open::Opened;
pub use story::{PushHistory, SessionShare};
pub use writer::Health;

use crate::types::Wall;
use command::{Ask, Command, Note, Question};
use writer::Writer;

/// Bytes that are kept of an error's text.
const MAX_ERROR: usize = 2000;
/// Most failures that [`Counts`] lists.
const MAX_FAILURES: usize = 1000;
/// Most sessions that [`Ledger::list_sessions`] lists; the latest ones are listed.
const MAX_SESSIONS: usize = 1000;
/// Bytes of labels and CI jobs after which [`Ledger::list_sessions`] lists no more.
const MAX_LISTED_TEXT: usize = 512 * 1024;
/// Pushes of the listed sessions after which [`Ledger::list_sessions`] lists no more: counting them takes time.
const MAX_LISTED_PUSHES: u64 = 200_000;

type Result<T> = std::result::Result<T, LedgerError>;

/// A handle to the ledger. All clones share one file and one thread. When the last
/// clone is dropped, everything that was sent is written and the file is closed.
#[derive(Clone)]
pub struct Ledger {
    inner: Arc<Inner>,
}

struct Inner {
    queue: Option<queue::Sender>,
    /// Takes the commands in place of the queue and its thread.
    #[cfg(test)]
    disk: Option<Disk>,
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
    /// Opens or creates the ledger at `path`. [`Opened`] says which.
    pub fn open(path: &Path) -> Result<(Self, Opened)> {
        let (conn, opened) = open::open(path)?;
        let (sender, receiver) = queue::queue();
        let health = Arc::new(Mutex::new(Health::Ok));
        let writer = Writer::new(conn, receiver, Arc::clone(&health));
        let thread = std::thread::Builder::new()
            .name("ledger".to_owned())
            .spawn(move || writer.run())
            .map_err(|e| LedgerError::Open { path: path.to_owned(), reason: e.to_string() })?;
        let inner = Inner {
            queue: Some(sender),
            #[cfg(test)]
            disk: None,
            writer: Some(thread),
            health,
        };
        Ok((Self { inner: Arc::new(inner) }, opened))
    }

    /// Returns whether the file can be written. Never waits for the disk.
    #[must_use]
    pub fn health(&self) -> Health {
        self.inner.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns how many changes and calls wait for the ledger's thread. More than a
    /// few thousand mean that the disk is slow; sending more only takes memory.
    #[must_use]
    pub fn queued(&self) -> usize {
        #[cfg(test)]
        if let Some(disk) = &self.inner.disk {
            return disk.waiting();
        }
        self.inner.queue.as_ref().map_or(0, queue::Sender::len)
    }

    fn send(&self, command: Command) -> Result<()> {
        #[cfg(test)]
        if let Some(disk) = &self.inner.disk {
            return disk.take(command);
        }
        let queue = self.inner.queue.as_ref().ok_or(LedgerError::Stopped)?;
        queue.send(command).map_err(|()| LedgerError::Stopped)
    }

    /// Sends a change that no caller waits for.
    fn note(&self, note: Note) {
        if let Err(error) = self.send(Command::Note(note)) {
            crate::observe::event!(LEDGER_FAULT, error = %error, "ledger: a change could not be recorded: {error}");
            *self.inner.health.lock().unwrap_or_else(PoisonError::into_inner) =
                Health::Degraded { since: Wall::now().0, error: error.to_string(), kept: 0, lost: 0 };
        }
    }

    /// Sends a call and waits for its result. `weight` is about how many rows it
    /// writes.
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

    /// Returns how far the Nix database was read, or `None` before the first
    /// [`Ledger::admit`] with a cursor.
    pub fn cursor(&self) -> Result<Option<Cursor>> {
        self.read(pushes::cursor)
    }

    /// Records a batch of the intake in one transaction: new pushes, settled pushes
    /// that are pending again, the sessions they belong to, and the cursor.
    pub fn admit(&self, batch: Admit) -> Result<Admitted> {
        self.ask(Command::Write, 1 + batch.pushes.len(), move |conn| pushes::admit(conn, &batch))
    }

    /// Returns id, state and time of settlement (unix ms) for each of these paths of
    /// one cache, in their order.
    pub fn lookup(&self, cache: &str, paths: &[String]) -> Result<Vec<Option<(PushId, PushState, i64)>>> {
        let (cache, paths) = (cache.to_owned(), paths.to_vec());
        self.read(move |conn| pushes::lookup(conn, &cache, &paths))
    }

    /// Returns pending, uploading and failed pushes with an id above `after`, in the
    /// order of their ids.
    pub fn unsettled(&self, after: PushId, limit: usize) -> Result<Vec<PushRow>> {
        self.read(move |conn| pushes::unsettled(conn, after, limit))
    }

    /// Returns the pushes that are recorded as pushed or already cached and have an id
    /// of at least `from`: each with its cache and path, in the order of their ids.
    pub fn confirmed(&self, from: PushId, limit: usize) -> Result<Vec<(PushId, String, String)>> {
        self.read(move |conn| pushes::confirmed(conn, from, limit))
    }

    /// Returns the id of the first of the latest `count` pushes that are recorded as
    /// pushed or already cached, 0 when there are fewer.
    pub fn latest_confirmed(&self, count: usize) -> Result<PushId> {
        self.read(move |conn| pushes::latest_confirmed(conn, count))
    }

    /// The pushes of all paths with this hash, the 32 characters that a base name begins
    /// with, and the sessions that they belong to.
    pub fn history_of(&self, hash: &str) -> Result<Vec<PushHistory>> {
        let hash = hash.to_owned();
        self.read(move |conn| story::of_hash(conn, &hash))
    }

    /// Returns cache and base name of up to `count` pushes that a cache has confirmed,
    /// chosen at random. Pushes after a gap of the ids are chosen more often.
    pub fn sample(&self, count: usize) -> Result<Vec<(String, String)>> {
        self.read(move |conn| pushes::sample(conn, count))
    }

    /// Returns the number of failed pushes over all caches.
    pub fn failed(&self) -> Result<u64> {
        // The index of unsettled pushes has these and few others.
        let count = "SELECT count(*) FROM item INDEXED BY item_unsettled WHERE state = 5";
        self.read(move |conn| Ok(number(conn.prepare_cached(count)?.query_row([], |row| row.get(0))?)))
    }

    /// Records the end of an attempt. Returns before it is written.
    pub fn settle(&self, push: PushId, outcome: Settle) {
        self.note(Note::Settle(push, outcome));
    }

    /// Makes a failed push also those sessions' that have paths which need it: such a path
    /// may be in the cache, and is of no use there. Returns before it is written.
    pub fn failed_for(&self, push: PushId, sessions: Vec<SessionRow>) {
        self.note(Note::FailedFor(push, sessions));
    }

    /// Records that an upload begins. Returns before it is written.
    pub fn uploading(&self, push: PushId, attempt: u32) {
        self.note(Note::Uploading(push, attempt));
    }

    /// Makes failed pushes pending again. Returns before it is written.
    pub fn reopen(&self, pushes: &[PushId]) {
        self.note(Note::Reopen(pushes.to_vec()));
    }

    /// Makes confirmed pushes pending again, because their cache does not have the paths
    /// any more, or nobody knows: live sessions that count them as confirmed wait for
    /// them again. Returns before it is written.
    pub fn unconfirm(&self, pushes: &[PushId]) {
        self.note(Note::Unconfirm(pushes.to_vec()));
    }

    /// Records a new session, a job's as open and a push as draining, and returns its
    /// row. Fails if its id is known.
    pub fn session_open(&self, new: NewSession) -> Result<SessionRow> {
        self.write(move |conn| sessions::open(conn, &new))
    }

    /// Records a job's new session whose caller does not know of it yet: as draining and
    /// abandoned, until [`Ledger::session_answered`]. So a session that nobody has heard of
    /// does not stay open after a restart. Returns its row. Fails if its id is known.
    pub fn session_unanswered(&self, new: NewSession) -> Result<SessionRow> {
        self.write(move |conn| {
            let row = sessions::open(conn, &new)?;
            sessions::set_draining(conn, row, true, new.started_at)?;
            Ok(row)
        })
    }

    /// Records that a session of [`Ledger::session_unanswered`] is open: its caller is
    /// answered next.
    pub fn session_answered(&self, row: SessionRow) -> Result<()> {
        self.write(move |conn| sessions::set_answered(conn, row))
    }

    /// Records a live session's state. A closed or abandoned session does not change
    /// again, except by [`Ledger::session_rejoin`]. Returns before it is written.
    pub fn session_state(&self, row: SessionRow, state: SessionState, at: i64, flush_ms: Option<u64>) {
        self.note(Note::SessionState(row, state, at, flush_ms));
    }

    /// Records that a session drains, and whether its job has not ended it. Changes
    /// nothing when the session is over. Returns before it is written.
    pub fn session_draining(&self, row: SessionRow, abandoned: bool, at: i64) {
        self.note(Note::SessionDraining(row, abandoned, at));
    }

    /// Makes a closed or abandoned session draining again, because its job ends it after
    /// that or names further paths. Returns before it is written.
    pub fn session_rejoin(&self, row: SessionRow) {
        self.note(Note::SessionRejoin(row));
    }

    /// Removes paths from live sessions that have them by window or shared evidence
    /// only, because the session `owner` is known to have made them.
    pub fn claim(&self, owner: SessionRow, paths: &[String]) -> Result<()> {
        let paths = paths.to_vec();
        self.write(move |conn| sessions::claim(conn, owner, &paths))
    }

    /// Returns all open and draining sessions, the oldest first.
    pub fn live_sessions(&self) -> Result<Vec<SessionInfo>> {
        self.read(sessions::live)
    }

    /// Returns the numbers of open and of draining sessions.
    pub fn live_session_counts(&self) -> Result<(u64, u64)> {
        self.read(sessions::live_counts)
    }

    /// Returns the latest sessions, the oldest first: at most [`MAX_SESSIONS`], and fewer when their texts are
    /// long or their pushes are many. `all`: also those that are over. `uid`: only those of this user.
    pub fn list_sessions(&self, all: bool, uid: Option<u32>) -> Result<Vec<ListedSession>> {
        self.read(move |conn| sessions::list(conn, all, uid))
    }

    /// Returns a session's failed pushes, at most [`MAX_FAILURES`].
    pub fn session_failures(&self, row: SessionRow) -> Result<Vec<Failure>> {
        self.read(move |conn| sessions::failures(conn, row))
    }

    /// Keeps paths (base names) whose maker, the user with these numbers, the name service has not named yet.
    pub fn keep_undecided(&self, paths: Vec<(String, (u32, u32))>) -> Result<()> {
        self.write(move |conn| undecided::keep(conn, &paths))
    }

    /// Returns the users of paths that [`Self::keep_undecided`] has kept, and how many
    /// paths each has.
    pub fn undecided_people(&self) -> Result<Vec<((u32, u32), u64)>> {
        self.read(undecided::people)
    }

    /// Returns the user whose path of this hash [`Self::keep_undecided`] has kept.
    pub fn undecided_user(&self, hash: &str) -> Result<Option<(u32, u32)>> {
        let hash = hash.to_owned();
        self.read(move |conn| undecided::whose(conn, &hash))
    }

    /// Returns the kept paths of a user, at most `limit`.
    pub fn undecided_of(&self, person: (u32, u32), limit: usize) -> Result<Vec<String>> {
        self.read(move |conn| undecided::of(conn, person, limit))
    }

    /// Forgets kept paths.
    pub fn forget_undecided(&self, paths: Vec<String>) -> Result<()> {
        self.write(move |conn| undecided::forget(conn, &paths))
    }

    /// Returns the session with an id.
    pub fn session(&self, id: &str) -> Result<Option<SessionInfo>> {
        let id = id.to_owned();
        self.read(move |conn| sessions::by_name(conn, &id))
    }

    /// Records the end of a session's window: no row of the Nix database above
    /// `until` is the session's. The first call counts. Returns before it is written.
    pub fn session_until(&self, row: SessionRow, until: i64) {
        self.note(Note::SessionUntil(row, until));
    }

    /// Records the warnings of a session's summary. Returns before it is written.
    pub fn session_warnings(&self, row: SessionRow, warnings: &Warnings) {
        self.note(Note::SessionWarnings(row, warnings.clone()));
    }

    /// Returns the session in a row.
    pub fn session_by_row(&self, row: SessionRow) -> Result<Option<SessionInfo>> {
        self.read(move |conn| sessions::by_row(conn, row))
    }

    /// Returns a session's pushes that are not settled.
    pub fn session_pending(&self, row: SessionRow) -> Result<Vec<PushId>> {
        self.read(move |conn| sessions::pending(conn, row))
    }

    /// Counts a session's pushes by outcome. Fails if there is no session in that row.
    pub fn summary(&self, row: SessionRow) -> Result<Counts> {
        self.read(move |conn| sessions::summary(conn, row))
    }

    /// Returns a session's pushes with an id above `after`, in the order of their
    /// ids.
    pub fn session_pushes(&self, row: SessionRow, after: PushId, limit: usize) -> Result<Vec<SessionPush>> {
        self.read(move |conn| sessions::pushes(conn, row, after, limit))
    }

    /// Removes sessions that were over before `before_ms` (unix ms), and pushes that
    /// were settled before it and belong to no remaining session. Works in steps,
    /// so that other calls do not wait long.
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
            pruned.pushes += sum.pushes;
        }
        Ok(pruned)
    }

    /// Returns a value that [`Ledger::set_meta`] recorded.
    pub fn meta(&self, key: &str) -> Result<Option<String>> {
        let key = key.to_owned();
        self.read(move |conn| {
            let mut find = conn.prepare_cached("SELECT value FROM meta WHERE key = ?1")?;
            Ok(find.query_row([&key], |row| row.get(0)).optional()?)
        })
    }

    /// Records a value of the daemon under a key. Keys that begin with `ledger.` are
    /// reserved for the ledger.
    pub fn set_meta(&self, key: &str, value: &str) -> Result<()> {
        let (key, value) = (key.to_owned(), value.to_owned());
        self.write(move |conn| {
            conn.prepare_cached("INSERT OR REPLACE INTO meta (key, value) VALUES (?1, ?2)")?
                .execute((&key, &value))?;
            Ok(())
        })
    }

    /// Returns when everything that was sent before is committed. Fails while it can
    /// only be kept in memory.
    pub fn sync(&self) -> Result<()> {
        let (reply, answer) = mpsc::sync_channel(1);
        self.send(Command::Sync(reply))?;
        answer.recv().map_err(|_| LedgerError::Stopped)?
    }

    /// Runs calls from async code on tokio's threads for blocking work.
    pub async fn call<R: Send + 'static>(&self, f: impl FnOnce(&Self) -> R + Send + 'static) -> R {
        let ledger = self.clone();
        match tokio::task::spawn_blocking(move || f(&ledger)).await {
            Ok(result) => result,
            Err(error) => match error.try_into_panic() {
                Ok(panic) => std::panic::resume_unwind(panic),
                // The runtime shuts down and drops this future.
                Err(_) => std::future::pending().await,
            },
        }
    }
}

/// Converts for the file: SQLite's integers have a sign. A larger number becomes
/// the largest.
fn stored(n: u64) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

/// Converts from the file. A negative number, which the program never writes,
/// becomes 0.
fn number(n: i64) -> u64 {
    u64::try_from(n).unwrap_or(0)
}
