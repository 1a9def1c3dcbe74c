//! Why the Nix database cannot be read.

use std::path::PathBuf;

use rusqlite::ErrorCode;

use super::connection::MAX_WAIT;

/// Why the Nix database cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NixDbError {
    /// The file does not exist.
    #[error("there is no Nix database at {}; is [nix] state_dir right?", .0.display())]
    Missing(PathBuf),
    /// This user may not read the file.
    #[error("the Nix database {} cannot be opened: {hint}", .path.display())]
    Permission {
        /// The database.
        path: PathBuf,
        /// The reason and what to do about it.
        hint: String,
    },
    /// The schema differs from the known one.
    #[error("the Nix database is not as expected: expected {expected}, found {found}")]
    Schema {
        /// The part of the schema that flywheel relies on.
        expected: String,
        /// What the file contains instead.
        found: String,
    },
    /// A writer kept the database locked, or changed it during every attempt to
    /// read it.
    #[error("the Nix database was locked or changing for more than {} s; try again", MAX_WAIT.as_secs())]
    Busy,
    /// The path leads to another file than the open one; open it again.
    #[error("the Nix database was replaced; it has to be opened again")]
    Replaced,
    /// One row cannot be understood.
    #[error("row {id} of the Nix database: {reason}")]
    Row {
        /// `ValidPaths.id`.
        id: i64,
        /// What is wrong with the row.
        reason: String,
    },
    /// Any other error of SQLite.
    #[error("reading the Nix database: {0}")]
    Sqlite(rusqlite::Error),
    /// The metadata of the file cannot be read.
    #[error("looking at {}: {error}", .path.display())]
    Io {
        /// The database.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
}

impl From<rusqlite::Error> for NixDbError {
    fn from(error: rusqlite::Error) -> Self {
        match error.sqlite_error_code() {
            Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => Self::Busy,
            Some(ErrorCode::NotADatabase) => {
                Self::Schema { expected: "an SQLite database".to_owned(), found: "something else".to_owned() }
            }
            _ => Self::Sqlite(error),
        }
    }
}
