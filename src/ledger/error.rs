//! What can go wrong with the ledger. Errors are plain strings inside, so that
//! one failed commit can be told to everyone who waited for it.

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
        /// What the system said.
        reason: String,
    },
    /// A later version of the program wrote it.
    #[error("ledger {}: written by flywheel {written_by} (format {found}), this is flywheel {} which knows formats up to {known}; install that version again or move the file (with its -wal and -shm) away to start with an empty ledger", path.display(), env!("CARGO_PKG_VERSION"))]
    Newer {
        /// The ledger.
        path: PathBuf,
        /// Its format.
        found: i64,
        /// The latest this program knows.
        known: i64,
        /// Version of the program that made it.
        written_by: String,
    },
    /// It is a database of something else.
    #[error("{}: is an SQLite database, but not a ledger of flywheel; point state_dir elsewhere or move the file away", path.display())]
    Foreign {
        /// The file.
        path: PathBuf,
    },
    /// No space.
    #[error("ledger: the file system is full ({0}); free some space, the write is tried again")]
    Full(String),
    /// The file cannot be read or written right now.
    #[error("ledger: reading or writing failed ({0}); check the file system of state_dir")]
    Io(String),
    /// The file is damaged.
    #[error(
        "ledger: the database is damaged ({0}); restart the daemon, it sets the file aside and starts afresh"
    )]
    Corrupt(String),
    /// A statement failed: a mistake in the program or a file changed by hand.
    #[error("ledger: {0}")]
    Sqlite(String),
    /// A second session of the same name.
    #[error("ledger: there is a session {0} already")]
    SessionExists(String),
    /// No such session.
    #[error("ledger: no session in row {0}; it was pruned or never opened")]
    NoSession(SessionRow),
    /// The writer thread has ended.
    #[error("ledger: its thread has ended, see the log; restart the daemon")]
    Stopped,
}

impl LedgerError {
    /// The storage is at fault, not the command: the same may work later.
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
