//! Opening the file: pragmas, integrity check, migration, and moving a damaged
//! file away.
//!
//! Must not know: what is in the tables.

use std::fs::{self, File, OpenOptions, Permissions};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::{ffi::OsString, io};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use super::error::LedgerError;
use super::{checkpoint, schema};
use crate::types::Wall;

/// The state in which the ledger was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Opened {
    /// There was no ledger.
    Fresh,
    /// There was one, and it continues.
    Continued,
    /// There was a damaged one. It was moved away, and an empty one begins.
    Recovered {
        /// Where the damaged file is now, with its -wal and -shm beside it.
        set_aside: PathBuf,
    },
}

impl std::fmt::Display for Opened {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Fresh => f.write_str("fresh"),
            Self::Continued => f.write_str("continued"),
            Self::Recovered { set_aside } => {
                write!(f, "recovered, the damaged one is at {}", set_aside.display())
            }
        }
    }
}

/// Opens or creates the ledger at `path`.
pub(super) fn open(path: &Path) -> Result<(Connection, Opened), LedgerError> {
    let fresh = prepare_file(path).map_err(|e| cannot(path, &e))?;
    let opened = match connect(path, false) {
        // On a full disk there is no room for the -shm. Without it the file can be
        // opened exclusively, and changes are kept in memory.
        Err(error) if error.is_storage() && !matches!(error, LedgerError::Corrupt(_)) => {
            connect(path, true).map_err(|_| error)
        }
        opened => opened,
    };
    match opened {
        Ok(conn) => Ok((conn, if fresh { Opened::Fresh } else { Opened::Continued })),
        Err(LedgerError::Corrupt(reason)) => {
            let set_aside = set_aside(path).map_err(|e| cannot(path, &e))?;
            crate::observe::event!(
                LEDGER_DAMAGED,
                ledger = %path.display(),
                set_aside = %set_aside.display(),
                error = reason,
                "the ledger {} was damaged ({reason}) and has been moved to {}; an empty one begins, and its content comes from the Nix database and the caches' answers",
                path.display(),
                set_aside.display()
            );
            prepare_file(path).map_err(|e| cannot(path, &e))?;
            Ok((connect(path, false)?, Opened::Recovered { set_aside }))
        }
        Err(error) => Err(error),
    }
}

/// Opens or creates the ledger at `path`, which no other connection can open until this
/// one ends.
#[cfg(test)]
pub(super) fn open_alone(path: &Path) -> Result<(Connection, Opened), LedgerError> {
    let fresh = prepare_file(path).map_err(|e| cannot(path, &e))?;
    Ok((connect(path, true)?, if fresh { Opened::Fresh } else { Opened::Continued }))
}

fn cannot(path: &Path, error: &io::Error) -> LedgerError {
    LedgerError::Open { path: path.to_owned(), reason: error.to_string() }
}

/// Creates the file if needed and makes it readable by its owner only; SQLite gives
/// -wal and -shm the mode of the file. Returns whether the ledger is empty.
fn prepare_file(path: &Path) -> io::Result<bool> {
    let file =
        OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    for part in ["", "-wal", "-shm"] {
        match fs::set_permissions(beside(path, part), Permissions::from_mode(0o600)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    // A first start that was killed leaves an empty file, with its content in the -wal.
    Ok(file.metadata()?.len() == 0 && !beside(path, "-wal").exists())
}

/// Connects to the file, checks and migrates it. With `alone`, no other process can
/// open the file until the connection ends.
fn connect(path: &Path, alone: bool) -> Result<Connection, LedgerError> {
    let mut conn = Connection::open_with_flags(
        path,
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX,
    )?;
    // An administrator may look at the file.
    conn.busy_timeout(super::writer::BUSY)?;
    conn.set_prepared_statement_cache_capacity(64);
    // Otherwise SQLite compiles some statements again whenever they get other values.
    conn.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    if alone {
        // https://sqlite.org/wal.html: WAL without shared memory.
        conn.execute_batch("PRAGMA locking_mode = EXCLUSIVE")?;
    }
    // Before anything is written: a file of a later version or of another program
    // is not touched.
    let found = schema::version(&conn)?;
    let known = i64::try_from(schema::MIGRATIONS.len()).unwrap_or(i64::MAX);
    let application: i64 = conn.query_row("PRAGMA application_id", [], |row| row.get(0))?;
    let tables: i64 = conn.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0))?;
    if application != schema::APPLICATION_ID && (tables > 0 || found != 0 || application != 0) {
        return Err(LedgerError::Foreign { path: path.to_owned() });
    }
    if found > known {
        let written_by = schema::written_by(&conn);
        return Err(LedgerError::Newer { path: path.to_owned(), found, known, written_by });
    }
    // NORMAL: a killed process loses nothing. A power cut may lose the last
    // commits, but never changes their order, and the cursor goes back with them.
    // The page cache is small because memory matters more here than page reads.
    conn.execute_batch(
        "PRAGMA journal_mode = WAL;
         PRAGMA synchronous = NORMAL;
         PRAGMA cache_size = -1024;
         PRAGMA mmap_size = 0;
         PRAGMA journal_size_limit = 8388608;
         PRAGMA foreign_keys = OFF;
         PRAGMA trusted_schema = OFF;",
    )?;
    // The log is copied elsewhere before it becomes so long.
    conn.pragma_update(None, "wal_autocheckpoint", checkpoint::LONG)?;
    let verdict: String = conn.query_row("PRAGMA quick_check(1)", [], |row| row.get(0))?;
    if verdict != "ok" {
        return Err(LedgerError::Corrupt(verdict));
    }
    schema::migrate(&mut conn, schema::MIGRATIONS, Wall::now().0)?;
    Ok(conn)
}

/// Renames the file with its -wal and -shm, and returns the new name. They stay
/// beside each other, so that SQLite can still read the -wal's content.
fn set_aside(path: &Path) -> io::Result<PathBuf> {
    let stamp = stamp();
    let target = (1..)
        .map(|n| if n == 1 { format!(".corrupt-{stamp}") } else { format!(".corrupt-{stamp}-{n}") })
        .map(|suffix| beside(path, &suffix))
        .find(|target| !target.exists())
        .ok_or(io::ErrorKind::AlreadyExists)?;
    for part in ["-wal", "-shm", ""] {
        match fs::rename(beside(path, part), beside(&target, part)) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => {}
        }
    }
    if let Some(dir) = path.parent().filter(|dir| !dir.as_os_str().is_empty()) {
        File::open(dir)?.sync_all()?;
    }
    Ok(target)
}

/// Returns the date for a file's name. SQLite computes it.
fn stamp() -> String {
    Connection::open_in_memory()
        .and_then(|c| c.query_row("SELECT strftime('%Y%m%dT%H%M%SZ', 'now')", [], |row| row.get(0)))
        .unwrap_or_else(|_| Wall::now().0.to_string())
}

/// Returns the path with a suffix appended to its name.
fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}
