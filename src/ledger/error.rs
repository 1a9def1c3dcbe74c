//! The ledger's errors. They contain strings, so that one failed commit can be
//! reported to every caller that waited for it.

use std::path::PathBuf;

use super::model::SessionRow;

/// An error of the ledger.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LedgerError {
    /// The file could not be opened or created.
    #[error("ledger {}: cannot be opened: {reason}; check that the directory exists and belongs to the service's user", path.display())]
    Open {
        /// The ledger.
        path: PathBuf,
        /// The system's message.
        reason: String,
    },
    /// A later version of the program wrote it.
    #[error("ledger {}: written by flywheel {written_by} (format {found}), this is flywheel {} which knows formats up to {known}; install that version again or move the file (with its -wal and -shm) away to start with an empty ledger", path.display(), env!("CARGO_PKG_VERSION"))]
    Newer {
        /// The ledger.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The latest format that this program knows.
        known: i64,
        /// The version of the program that wrote it.
        written_by: String,
    },
    /// The file is another program's database.
    #[error("{}: is an SQLite database, but not a ledger of flywheel; point state_dir elsewhere or move the file away", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// The file system is full.
    #[error("ledger: the file system is full ({0}); free some space; the daemon retries the write")]
    Full(String),
    /// The file cannot be read or written right now.
    #[error("ledger: reading or writing failed ({0}); check the file system of state_dir")]
    Io(String),
    /// The file is damaged.
    #[error(
        "ledger: the database is damaged ({0}); restart the daemon: it moves the file away and starts with an empty ledger"
    )]
    Corrupt(String),
    /// A statement failed: a fault of the program, or a file that was changed by hand.
    #[error("ledger: {0}")]
    Sqlite(String),
    /// The session's id is known already.
    #[error("ledger: there already is a session {0}")]
    SessionExists(String),
    /// There is no session in that row.
    #[error("ledger: no session in row {0}; it was pruned or never opened")]
    NoSession(SessionRow),
    /// The writer thread has ended.
    #[error("ledger: its thread has ended, see the log; restart the daemon")]
    Stopped,
}

impl LedgerError {
    /// Returns whether the storage failed, so that the same command may succeed later.
    pub fn is_storage(&self) -> bool {
        matches!(self, Self::Full(_) | Self::Io(_) | Self::Corrupt(_))
    }
}

impl From<rusqlite::Error> for LedgerError {
    fn from(error: rusqlite::Error) -> Self {
        use rusqlite::ErrorCode as Code;
        let text = error.to_string();
        match error.sqlite_error_code() {
            Some(Code::DiskFull) => Self::Full(text),
            Some(
                Code::SystemIoFailure
                | Code::ReadOnly
                | Code::CannotOpen
                | Code::DatabaseBusy
                | Code::DatabaseLocked
                | Code::FileLockingProtocolFailed
                | Code::PermissionDenied
                | Code::OutOfMemory,
            ) => Self::Io(text),
            Some(Code::DatabaseCorrupt | Code::NotADatabase) => Self::Corrupt(text),
            _ => Self::Sqlite(text),
        }
    }
}
