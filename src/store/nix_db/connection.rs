//! One read-only SQLite connection to the Nix database, whichever way Nix
//! writes it.
//!
//! Must not know: tables and rows.
//!
//! With a write-ahead log (Nix's default) a read transaction is a consistent
//! snapshot. With `use-sqlite-wal = false` Nix locks the database by a file
//! `db.sqlite.lock` (SQLite's `unix-dotfile` VFS, since Nix 2.5), which other
//! readers neither see nor may create: they can meet a half-written page. There
//! each read is checked: a writer fills `db.sqlite-journal` before it changes
//! the database and truncates it when it commits (`journal_mode = truncate`),
//! and each commit changes SQLite's change counter. A read counts when the
//! journal was empty before and after it and neither the counter nor the file's
//! metadata changed; otherwise it is discarded and repeated.
//!
//! The database file itself is opened by SQLite alone: closing any other
//! descriptor of it in this process would drop SQLite's locks (POSIX).

use std::cell::Cell;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, ffi};

use super::error::NixDbError;
use crate::observe::event;
use crate::store::temp_roots::DaemonConnection;

/// Upper bound of the time that one read waits for writers. With a write-ahead
/// log a reader waits only while the log is reset or recovered.
pub(super) const MAX_WAIT: Duration = Duration::from_secs(3);
/// Pause between two attempts to read; the first repetition is immediate.
const PAUSE: Duration = Duration::from_millis(2);
/// Upper bound of each of the nix-daemon's answers when it is asked to open the
/// database.
const HANDSHAKE: Duration = Duration::from_secs(5);

/// How Nix writes the database.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Journal {
    /// With a write-ahead log.
    Wal,
    /// With a rollback journal: every read is checked.
    Rollback,
}

pub(super) struct Reading {
    db: Connection,
    path: PathBuf,
    journal: Cell<Journal>,
    /// The files of the write-ahead log that SQLite has opened.
    log: LogFiles,
}

/// Device and inode of the write-ahead log and of its index; `None`: there is none.
type LogFiles = [Option<(u64, u64)>; 2];

/// Upper bound of the pages that a connection keeps, as SQLite writes it: in KiB, negative. A
/// closure of 50,000 paths is read as fast as with four times as much, since the kernel has the
/// pages as well.
const PAGE_CACHE: i64 = -256;

/// Ends a transaction that has not ended, when it is dropped.
struct RollBack<'a>(&'a Connection);

impl Drop for RollBack<'_> {
    fn drop(&mut self) {
        if !self.0.is_autocommit() {
            // Fails only if there is no transaction.
            let _ = self.0.execute_batch("rollback");
        }
    }
}

/// What shows that nobody wrote during a read in [`Journal::Rollback`].
#[derive(Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64, i64, i64, i64, i64),
    journal_is_empty: bool,
}

impl Reading {
    /// Opens the file at `path`. When it has a write-ahead log that nobody has
    /// open and this user may not create its files, the nix-daemon at `socket`
    /// is asked to open the database too, which makes them appear.
    pub(super) fn open(path: &Path, socket: &Path) -> Result<Self, NixDbError> {
        let error = match Self::open_once(path) {
            Err(NixDbError::Sqlite(error)) if is_unopenable(&error) => error,
            other => return other,
        };
        // The worker keeps the database open for as long as this connection lasts.
        let _worker = DaemonConnection::open(socket, HANDSHAKE).map_err(|refused| {
            permission(path, &format!("{error}; the nix-daemon at {}: {refused}", socket.display()))
        })?;
        let until = Instant::now() + MAX_WAIT;
        loop {
            match Self::open_once(path) {
                Err(NixDbError::Sqlite(error)) if is_unopenable(&error) => {
                    // The worker may answer before it has opened the database.
                    if Instant::now() >= until {
                        return Err(permission(path, &error.to_string()));
                    }
                    std::thread::sleep(PAUSE);
                }
                other => return other,
            }
        }
    }

    /// Opens the file at `path`, whose content does not change. It may be where nothing
    /// can be written, which SQLite needs for a write-ahead log, also for an empty one.
    pub(super) fn open_unchanging(path: &Path) -> Result<Self, NixDbError> {
        match Self::open_once(path) {
            Err(NixDbError::Sqlite(error)) if is_unopenable(&error) => {}
            other => return other,
        }
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        if std::fs::metadata(&log).is_ok_and(|meta| meta.len() > 0) {
            let reason = "it has rows in its write-ahead log, which can be read only where its directory can be \
                          written; any Nix command on that store that may write there puts them into the file";
            return Err(permission(path, reason));
        }
        let mut uri = "file:".to_owned();
        for byte in path.as_os_str().as_encoded_bytes() {
            match byte {
                b'/' | b'.' | b'-' | b'_' | b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' => {
                    uri.push(char::from(*byte));
                }
                _ => uri.push_str(&format!("%{byte:02x}")),
            }
        }
        uri.push_str("?immutable=1");
        let flags =
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
        let db = Connection::open_with_flags(uri, flags)?;
        Ok(Self { db, path: path.to_owned(), journal: Cell::new(Journal::Rollback), log: [None; 2] })
    }

    fn open_once(path: &Path) -> Result<Self, NixDbError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let db = Connection::open_with_flags(path, flags)?;
        // `read` repeats and waits; SQLite must not wait within an attempt.
        db.busy_timeout(Duration::ZERO)?;
        // There are several connections, and the kernel has the pages as well.
        db.pragma_update(None, "cache_size", PAGE_CACHE)?;
        // Otherwise SQLite compiles a statement again whenever it gets other values.
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
        let journal = Cell::new(Journal::Rollback);
        let mut reading = Self { db, path: path.to_owned(), journal, log: [None; 2] };
        // SQLite opens lazily: without a query a missing right would show later.
        reading.read(|db| Ok(db.query_row("select count(*) from sqlite_master", [], |_| Ok(()))?))?;
        match reading.journal.get() {
            Journal::Rollback => say_once(path),
            Journal::Wal => reading.log = reading.log_files(),
        }
        Ok(reading)
    }

    /// Runs `query` in one read transaction, which ends before this returns.
    /// `query` may run several times: what it read at first is discarded when a
    /// writer interfered, so it must have no effect that adds up.
    pub(super) fn read<R>(
        &self,
        mut query: impl FnMut(&Connection) -> Result<R, NixDbError>,
    ) -> Result<R, NixDbError> {
        let until = Instant::now() + MAX_WAIT;
        let mut attempts = 0_u32;
        loop {
            match self.read_once(&mut query)? {
                Some(result) => return Ok(result),
                None if Instant::now() >= until => return Err(NixDbError::Busy),
                None => {
                    // Pages of a discarded read may be half-written.
                    let _ = self.db.release_memory();
                    attempts += 1;
                    if attempts > 1 {
                        std::thread::sleep(PAUSE);
                    }
                }
            }
        }
    }

    /// `None`: discarded, and to be repeated.
    fn read_once<R>(
        &self,
        query: &mut impl FnMut(&Connection) -> Result<R, NixDbError>,
    ) -> Result<Option<R>, NixDbError> {
        let expected = self.journal.get();
        let before = match expected {
            Journal::Wal => None,
            Journal::Rollback => {
                let stamp = self.stamp()?;
                if !stamp.journal_is_empty {
                    return Ok(None);
                }
                Some(stamp)
            }
        };
        let result = self.transaction(query);
        let (result, version) = match result {
            Err(NixDbError::Busy) => return Ok(None),
            Err(NixDbError::Sqlite(error)) if is_passing(&error) => return Ok(None),
            Err(error) => (Err(error), None),
            Ok((result, journal, version)) => {
                self.journal.set(journal);
                match (expected, journal) {
                    (_, Journal::Wal) => return Ok(Some(result)),
                    // The mode changed: this read was not checked.
                    (Journal::Wal, Journal::Rollback) => {
                        say_once(&self.path);
                        return Ok(None);
                    }
                    (Journal::Rollback, Journal::Rollback) => (Ok(result), Some(version)),
                }
            }
        };
        let Some(before) = before else { return result.map(Some) };
        let same_version = match version {
            Some(version) => self.data_version()? == Some(version),
            None => true,
        };
        if same_version && self.stamp()? == before { result.map(Some) } else { Ok(None) }
    }

    fn transaction<R>(
        &self,
        query: &mut impl FnMut(&Connection) -> Result<R, NixDbError>,
    ) -> Result<(R, Journal, i64), NixDbError> {
        // Compiled once: there are many reads, and most are short.
        self.db.prepare_cached("begin")?.execute([])?;
        let _end = RollBack(&self.db);
        let result = query(&self.db)?;
        // After the first read of the transaction, when SQLite has seen the header.
        let mode: String = self.db.prepare_cached("pragma journal_mode")?.query_row([], |row| row.get(0))?;
        let journal = if mode.eq_ignore_ascii_case("wal") { Journal::Wal } else { Journal::Rollback };
        let version = match journal {
            Journal::Wal => 0,
            Journal::Rollback => self.version()?,
        };
        self.db.prepare_cached("commit")?.execute([])?;
        Ok((result, journal, version))
    }

    /// Changes whenever this connection meets another change counter of the file.
    fn version(&self) -> Result<i64, rusqlite::Error> {
        self.db.prepare_cached("pragma data_version")?.query_row([], |row| row.get(0))
    }

    /// The same as a read transaction of its own; `None` when a writer interferes.
    fn data_version(&self) -> Result<Option<i64>, NixDbError> {
        match self.version() {
            Ok(version) => Ok(Some(version)),
            Err(error) if is_passing(&error) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    fn stamp(&self) -> Result<Stamp, NixDbError> {
        let failed = |path: &Path, error: std::io::Error| match error.kind() {
            std::io::ErrorKind::NotFound => NixDbError::Missing(path.to_owned()),
            _ => NixDbError::Io { path: path.to_owned(), error },
        };
        let meta = std::fs::metadata(&self.path).map_err(|error| failed(&self.path, error))?;
        let journal = self.beside("-journal");
        let journal_is_empty = match std::fs::metadata(&journal) {
            Ok(meta) => meta.len() == 0,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
            Err(error) => return Err(failed(&journal, error)),
        };
        let file = (meta.ino(), meta.len(), meta.mtime(), meta.mtime_nsec(), meta.ctime(), meta.ctime_nsec());
        Ok(Stamp { file, journal_is_empty })
    }

    /// Whether writers have left the write-ahead log that this connection reads, so that
    /// it would never see what they write. A writer with dot-file locks does not see this
    /// reader and may switch the mode; a backup that is put back in place brings or needs
    /// another log.
    pub(super) fn lost_its_log(&self) -> bool {
        self.journal.get() == Journal::Wal && self.log_files() != self.log
    }

    fn log_files(&self) -> LogFiles {
        ["-wal", "-shm"].map(|suffix| {
            let meta = std::fs::metadata(self.beside(suffix)).ok()?;
            Some((meta.dev(), meta.ino()))
        })
    }

    fn beside(&self, suffix: &str) -> PathBuf {
        let mut path = self.path.clone().into_os_string();
        path.push(suffix);
        PathBuf::from(path)
    }
}

/// Errors that the next attempt does not meet: the log is being recovered or the
/// journal rolled back by somebody who may write, the schema changed under a
/// compiled statement, a writer holds the database for a moment.
fn is_passing(error: &rusqlite::Error) -> bool {
    let Some(error) = error.sqlite_error() else { return false };
    match error.extended_code {
        ffi::SQLITE_READONLY_RECOVERY | ffi::SQLITE_READONLY_CANTLOCK | ffi::SQLITE_READONLY_ROLLBACK => true,
        _ => matches!(
            error.code,
            ErrorCode::SchemaChanged
                | ErrorCode::DatabaseBusy
                | ErrorCode::DatabaseLocked
                | ErrorCode::FileLockingProtocolFailed
        ),
    }
}

/// The file, or a file that its write-ahead log needs, cannot be opened.
fn is_unopenable(error: &rusqlite::Error) -> bool {
    let Some(error) = error.sqlite_error() else { return false };
    matches!(error.code, ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly)
}

pub(super) fn permission(path: &Path, reason: &str) -> NixDbError {
    let hint = format!(
        "{reason}. The user of flywheeld must be able to read the file; where this Nix removes db.sqlite-wal and \
         db.sqlite-shm when it is idle (Nix 2.8 does), it must also reach the nix-daemon or write in the directory"
    );
    NixDbError::Permission { path: path.to_owned(), hint }
}

/// Logs once in the life of the process that reads are checked.
fn say_once(path: &Path) {
    static SAID: Once = Once::new();
    SAID.call_once(|| {
        event!(
            DATABASE_WITHOUT_WAL,
            path = %path.display(),
            "Nix writes {} without a write-ahead log (use-sqlite-wal = false): each read is checked, and repeated when Nix wrote meanwhile",
            path.display()
        );
    });
}
