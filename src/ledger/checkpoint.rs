//! Copies the write-ahead log into the ledger's file, on a thread and a connection of
//! its own. SQLite would do that in a commit, and whoever waits for that commit would
//! wait for the disk three times.
//!
//! Must not know: what is in the file. Not guaranteed: that a copy succeeds, or that
//! it is in time. SQLite itself copies in a commit when the log becomes long
//! ([`LONG`]), and when the ledger is closed.

use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

/// Transactions after which the log is copied. Most write fewer than ten pages.
pub(super) const EVERY: u32 = 100;
/// Pages in the log from which on SQLite copies it in each commit until it is empty.
pub(super) const LONG: u32 = 2000;

/// Counts the transactions and has the log copied now and then. Dropping it waits
/// for a copy that runs.
pub(super) struct Checkpoints {
    /// `None`: the ledger is not in a file.
    file: Option<PathBuf>,
    transactions: u32,
    running: Option<JoinHandle<()>>,
}

impl Checkpoints {
    /// For the file of this connection.
    pub(super) fn of(conn: &Connection) -> Self {
        let file = conn.path().filter(|path| !path.is_empty()).map(PathBuf::from);
        Self { file, transactions: 0, running: None }
    }

    /// Takes note of a transaction that wrote something.
    pub(super) fn wrote(&mut self) {
        self.transactions += 1;
        let ended = self.running.as_ref().is_none_or(JoinHandle::is_finished);
        if self.transactions < EVERY || !ended {
            return;
        }
        self.transactions = 0;
        let Some(file) = self.file.clone() else { return };
        let copy = std::thread::Builder::new().name("ledger-copy".to_owned());
        // What fails here is left to SQLite, see `LONG`.
        self.running = copy.spawn(move || drop(copy_log(&file))).ok();
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        if let Some(running) = self.running.take() {
            let _ = running.join();
        }
    }
}

/// Copies what no reader needs in the log any more. Commits go on meanwhile.
fn copy_log(file: &Path) -> rusqlite::Result<()> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let conn = Connection::open_with_flags(file, flags)?;
    conn.busy_timeout(Duration::ZERO)?;
    conn.execute_batch("PRAGMA synchronous = NORMAL")?;
    conn.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}
