//! A ledger without a thread, for the simulation: the writer's own code runs when the
//! simulation says so. Calls are carried out at once, with the changes that were sent
//! before them; changes that nobody waits for stay in a queue until [`Disk::write`]. A
//! process that is killed loses that queue.

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use rusqlite::Connection;

use super::command::Command;
use super::queue::{self, queue};
use super::writer::Writer;
use super::{Health, Inner, Ledger, LedgerError, Opened, open};

/// The simulated side of the ledger's thread. Clones are the same one.
#[derive(Clone)]
pub(crate) struct Disk(Arc<Mutex<State>>);

/// Bytes in the log from which on SQLite may move them into the file: 1,000 pages.
const CHECKPOINT: usize = 1_000 * 4_096;

struct State {
    path: PathBuf,
    writer: Option<Writer>,
    waiting: Vec<Command>,
    /// The connection of a process that was killed.
    left: Option<Connection>,
    /// The process is killed after this many further commits.
    commits_left: Option<u32>,
    /// Called before each call that is waited for.
    before_call: Option<Box<dyn FnMut() + Send>>,
    /// Keeps the writer's own queue open, which nothing is sent to.
    _queue: queue::Sender,
}

impl Ledger {
    /// Opens the ledger at `path` without its thread, for this process alone: others read
    /// it with [`Disk::read`]. A new one is a copy of an empty ledger, because each migration
    /// takes time.
    pub(crate) fn open_simulated(path: &Path) -> Result<(Self, Disk, Opened), LedgerError> {
        if !path.exists() {
            std::fs::write(path, empty()).unwrap();
        }
        let (conn, opened) = open::open_alone(path)?;
        Ok(Self::on(path, conn, opened))
    }

    /// Continues with the connection of a process that was killed, whose statements are
    /// compiled already.
    pub(crate) fn continue_simulated(path: &Path, conn: Connection) -> (Self, Disk) {
        let (ledger, disk, _) = Self::on(path, conn, Opened::Continued);
        disk.set_full(false);
        (ledger, disk)
    }

    fn on(path: &Path, conn: Connection, opened: Opened) -> (Self, Disk, Opened) {
        let (sender, receiver) = queue();
        let health = Arc::new(Mutex::new(Health::Ok));
        let writer = Writer::new(conn, receiver, Arc::clone(&health));
        let disk = Disk(Arc::new(Mutex::new(State {
            path: path.to_owned(),
            writer: Some(writer),
            waiting: Vec::new(),
            left: None,
            commits_left: None,
            before_call: None,
            _queue: sender,
        })));
        let inner = Inner { queue: None, disk: Some(disk.clone()), writer: None, health };
        (Self { inner: Arc::new(inner) }, disk, opened)
    }
}

/// The file of a ledger with nothing in it.
fn empty() -> &'static [u8] {
    static EMPTY: OnceLock<Vec<u8>> = OnceLock::new();
    EMPTY.get_or_init(|| {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ledger.sqlite");
        drop(open::open(&path).unwrap());
        std::fs::read(path).unwrap()
    })
}

impl Disk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes a command as the ledger's queue does.
    pub(super) fn take(&self, command: Command) -> Result<(), LedgerError> {
        let waits = !matches!(command, Command::Note(_));
        if waits {
            let hook = self.state().before_call.take();
            if let Some(mut hook) = hook {
                hook();
                self.state().before_call.get_or_insert(hook);
            }
        }
        let mut state = self.state();
        if state.writer.is_none() {
            return Err(LedgerError::Stopped);
        }
        state.waiting.push(command);
        if waits { state.write() } else { Ok(()) }
    }

    /// Reads the file through the daemon's own connection. None: there is none any more.
    pub(crate) fn read<R>(&self, read: impl FnOnce(&Connection) -> R) -> Option<R> {
        let state = self.state();
        state.writer.as_ref().map(Writer::conn).or(state.left.as_ref()).map(read)
    }

    /// Whether the last write failed, so that changes are kept in memory.
    pub(crate) fn is_failing(&self) -> bool {
        self.state().writer.as_ref().is_some_and(Writer::is_failing)
    }

    /// How many changes are not written.
    pub(crate) fn waiting(&self) -> usize {
        self.state().waiting.len()
    }

    /// Writes all changes that wait.
    pub(crate) fn write(&self) {
        let mut state = self.state();
        if !state.waiting.is_empty() {
            // The error says that the process has been killed, which the caller sees.
            let _ = state.write();
        }
    }

    /// Calls `hook` before each call that is waited for.
    pub(crate) fn before_calls(&self, hook: impl FnMut() + Send + 'static) {
        self.state().before_call = Some(Box::new(hook));
    }

    /// Has the process killed after this many further commits: then nothing reaches the
    /// file any more.
    pub(crate) fn kill_after(&self, commits: u32) {
        self.state().commits_left = Some(commits);
    }

    /// Kills the process now. Returns its connection, unless that had begun a transaction.
    pub(crate) fn kill(&self) -> Option<Connection> {
        let mut state = self.state();
        state.end();
        state.left.take()
    }

    /// Has the disk be full, or not any more: while it is, the file takes no further page.
    pub(crate) fn set_full(&self, full: bool) {
        self.read(|conn| {
            let pages: i64 = conn.query_row("PRAGMA page_count", [], |row| row.get(0)).unwrap();
            let most = if full { pages } else { 1 << 30 };
            conn.query_row(&format!("PRAGMA max_page_count = {most}"), [], |_| Ok(())).unwrap();
        });
    }

    /// Cuts the power: of the log, which is not synchronized with the disk after each commit,
    /// the first bytes are left, as many as `left` says when it is given their number.
    pub(crate) fn cut_power(&self, left: impl FnOnce(usize) -> usize) {
        let path = self.state().path.clone();
        let log = PathBuf::from(format!("{}-wal", path.display()));
        let (file, mut bytes) = (std::fs::read(&path).unwrap(), std::fs::read(&log).unwrap_or_default());
        // When it is so long, parts of it are in the file, and then all of it is on the disk.
        if bytes.len() < CHECKPOINT {
            bytes.truncate(left(bytes.len()));
        }
        // Closing the connection moves the log into the file.
        drop(self.kill());
        std::fs::write(&path, file).unwrap();
        std::fs::write(log, bytes).unwrap();
    }

    /// Whether the process has been killed.
    pub(crate) fn is_dead(&self) -> bool {
        self.state().writer.is_none()
    }
}

impl State {
    /// The process has ended: what waits never reaches the file.
    fn end(&mut self) {
        self.waiting.clear();
        if let Some(writer) = self.writer.take() {
            self.left = Some(writer.into_conn()).filter(Connection::is_autocommit);
        }
    }

    fn write(&mut self) -> Result<(), LedgerError> {
        if self.commits_left == Some(0) {
            self.end();
            return Err(LedgerError::Stopped);
        }
        self.commits_left = self.commits_left.map(|left| left - 1);
        let waiting = std::mem::take(&mut self.waiting);
        if let Some(writer) = &mut self.writer {
            writer.batch(waiting);
        }
        Ok(())
    }
}
