//! The Nix database: row ids only ever grow, so what became
//! valid since is `id > cursor`, across restarts, overflows and reboots.
//!
//! Must not know: what is done with the paths; anything of the doorbell.
//!
//! Strictly a reader: opened read-only and *never* immutable, which would miss
//! what is still in the write-ahead log. Every call ends its read transaction
//! before it returns, so that Nix can truncate that log.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use rusqlite::{CachedStatement, Connection, ErrorCode, OpenFlags, OptionalExtension as _, Row, Statement};

use super::info::PathInfo;
use super::schema;
use crate::types::NarHash;
use crate::types::{StoreDir, StorePath};

/// How long a reader waits for a writer that holds the whole database, which
/// with a write-ahead log only happens while the log is reset or recovered.
const BUSY: Duration = Duration::from_secs(3);

/// Why the database cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NixDbError {
    /// No such file.
    #[error("there is no Nix database at {}; is [nix] state_dir right?", .0.display())]
    Missing(PathBuf),
    /// Not readable for this user.
    #[error("the Nix database {} cannot be opened: {hint}", .path.display())]
    Permission {
        /// The database.
        path: PathBuf,
        /// What to do about it.
        hint: String,
    },
    /// Another schema than the one known.
    #[error("the Nix database is not as expected: expected {expected}, found {found}")]
    Schema {
        /// What is relied upon.
        expected: String,
        /// What was there instead.
        found: String,
    },
    /// A writer kept the database locked.
    #[error("the Nix database was locked for more than {} s; try again", BUSY.as_secs())]
    Busy,
    /// The file at the path is not the file that is open: open it again.
    #[error("the Nix database was replaced; it has to be opened again")]
    Replaced,
    /// A row that makes no sense.
    #[error("row {id} of the Nix database: {reason}")]
    Row {
        /// `ValidPaths.id`.
        id: i64,
        /// What is wrong with it.
        reason: String,
    },
    /// Anything else.
    #[error("reading the Nix database: {0}")]
    Sqlite(rusqlite::Error),
    /// Looking at the file failed.
    #[error("looking at {}: {error}", .path.display())]
    Io {
        /// The database.
        path: PathBuf,
        /// What the system said.
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

/// Which database file: changes when it is made anew. Kept across reboots, so
/// it leaves out the device number, which may change with each of them; the
/// time of birth tells apart two files that were given the same inode.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbIdentity {
    inode: u64,
    /// Nanoseconds since 1970; 0 where the file system does not keep it.
    born: u128,
}

impl fmt::Display for DbIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.inode, self.born)
    }
}

impl std::str::FromStr for DbIdentity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(inode, born)| inode.parse().ok().zip(born.parse().ok()));
        let (inode, born) = parsed.ok_or_else(|| format!("`{text}` is not the identity of a database"))?;
        Ok(Self { inode, born })
    }
}

/// A read-only connection to the Nix database. `Send`, not `Sync`: one for each
/// thread, as many as wanted.
pub struct NixDb {
    pub(super) db: Connection,
    path: PathBuf,
    opened: (u64, DbIdentity),
    pub(super) store_dir: StoreDir,
}

impl fmt::Debug for NixDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NixDb").field("path", &self.path).finish_non_exhaustive()
    }
}

/// One row with what [`NixDb::row`] wants, and how it is chosen.
macro_rules! rows {
    ($which:literal) => {
        concat!(
            "select id, path, hash, narSize, deriver, ultimate, sigs, ca, registrationTime from ValidPaths ",
            $which
        )
    };
}

const REFERENCES: &str =
    "select v.path from Refs r join ValidPaths v on v.id = r.reference where r.referrer = ?1";

/// Rows by their ids, many: the statements are kept meanwhile, since looking
/// each up anew costs as much as running it.
pub(super) struct Reader<'a> {
    nix_db: &'a NixDb,
    row: CachedStatement<'a>,
    references: CachedStatement<'a>,
}

impl Reader<'_> {
    /// A row with its references.
    pub(super) fn row(&mut self, id: i64) -> Result<PathInfo, NixDbError> {
        let mut info = {
            let mut rows = self.row.query([id])?;
            let gone = || NixDbError::Row { id, reason: "referred to, but not there".to_owned() };
            self.nix_db.row(rows.next()?.ok_or_else(gone)?)?
        };
        info.references = self.nix_db.references_by(&mut self.references, id)?;
        Ok(info)
    }
}

impl NixDb {
    /// Opens `<state_dir>/db/db.sqlite` and checks its schema.
    pub fn open(state_dir: &Path, store_dir: &StoreDir) -> Result<Self, NixDbError> {
        let path = state_dir.join("db/db.sqlite");
        let before = look(&path)?;
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let opened = Connection::open_with_flags(&path, flags).and_then(|db| {
            db.busy_timeout(BUSY)?;
            db.query_row("select count(*) from sqlite_master", [], |_| Ok(()))?;
            Ok(db)
        });
        let db = opened.map_err(|error| match error.sqlite_error_code() {
            Some(ErrorCode::CannotOpen | ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
                permission(&path)
            }
            _ => error.into(),
        })?;
        schema::check(&db)?;
        // The path may have been given a new file between the two looks; then it
        // is not known which of them is open.
        if look(&path)? != before {
            return Err(NixDbError::Replaced);
        }
        Ok(Self { db, path, opened: before, store_dir: store_dir.clone() })
    }

    /// Which database this is. [`NixDbError::Replaced`] when the file at the
    /// path is no longer the one that is open.
    pub fn identity(&self) -> Result<DbIdentity, NixDbError> {
        let now = look(&self.path)?;
        if now == self.opened { Ok(now.1) } else { Err(NixDbError::Replaced) }
    }

    /// The highest id ever given, 0 before the first. A cursor above it belongs
    /// to another database.
    pub fn head(&self) -> Result<i64, NixDbError> {
        self.identity()?;
        let mut query =
            self.db.prepare_cached("select seq from sqlite_sequence where name = 'ValidPaths'")?;
        Ok(query.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
    }

    /// What became valid after `cursor` and still is, in order, at most `limit`.
    /// Empty means there is nothing more. A row that makes no sense is left out
    /// with a warning: it must not keep the rest waiting.
    pub fn since(&self, cursor: i64, limit: usize) -> Result<Vec<PathInfo>, NixDbError> {
        self.identity()?;
        // One snapshot, or a collection in between could take a reference away.
        let snapshot = self.db.unchecked_transaction()?;
        let mut found = Vec::new();
        {
            let mut query = self.db.prepare_cached(rows!("where id > ?1 order by id"))?;
            let mut rows = query.query([cursor])?;
            while found.len() < limit {
                let Some(row) = rows.next()? else { break };
                match self.row(row) {
                    Ok(mut info) => {
                        info.references = self.references(info.id)?;
                        found.push(info);
                    }
                    Err(NixDbError::Row { id, reason }) => {
                        crate::observe::event!(
                            DATABASE_ROW,
                            row = id,
                            error = reason,
                            "a row of the Nix database is left out"
                        );
                    }
                    Err(other) => return Err(other),
                }
            }
        }
        snapshot.finish()?;
        Ok(found)
    }

    /// One path, if it is valid.
    pub fn info(&self, path: &StorePath) -> Result<Option<PathInfo>, NixDbError> {
        let mut query = self.db.prepare_cached(rows!("where path = ?1"))?;
        let mut rows = query.query([self.store_dir.full(path)])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let mut info = self.row(row)?;
        // Of the same snapshot: it lasts as long as the query that is still open.
        info.references = self.references(info.id)?;
        Ok(Some(info))
    }

    /// Whether a path is valid now.
    pub fn is_valid(&self, path: &StorePath) -> Result<bool, NixDbError> {
        Ok(self.id_of(path)?.is_some())
    }

    pub(super) fn id_of(&self, path: &StorePath) -> Result<Option<i64>, NixDbError> {
        let mut query = self.db.prepare_cached("select id from ValidPaths where path = ?1")?;
        Ok(query.query_row([self.store_dir.full(path)], |row| row.get(0)).optional()?)
    }

    /// What these row numbers stand for, in their order. One that is gone, or
    /// makes no sense, is left out: the rest must not wait for it.
    pub fn infos(&self, ids: &[i64]) -> Result<Vec<PathInfo>, NixDbError> {
        let snapshot = self.db.unchecked_transaction()?;
        let mut found = Vec::with_capacity(ids.len());
        {
            let mut read = self.reader()?;
            for id in ids {
                match read.row(*id) {
                    Ok(info) => found.push(info),
                    Err(NixDbError::Row { id, reason }) => {
                        crate::observe::event!(
                            DATABASE_ROW,
                            row = id,
                            error = reason,
                            "a row of the Nix database is left out"
                        );
                    }
                    Err(other) => return Err(other),
                }
            }
        }
        snapshot.finish()?;
        Ok(found)
    }

    pub(super) fn reader(&self) -> Result<Reader<'_>, NixDbError> {
        Ok(Reader {
            nix_db: self,
            row: self.db.prepare_cached(rows!("where id = ?1"))?,
            references: self.db.prepare_cached(REFERENCES)?,
        })
    }

    fn references(&self, id: i64) -> Result<Vec<StorePath>, NixDbError> {
        self.references_by(&mut *self.db.prepare_cached(REFERENCES)?, id)
    }

    fn references_by(&self, query: &mut Statement<'_>, id: i64) -> Result<Vec<StorePath>, NixDbError> {
        let mut rows = query.query([id])?;
        let mut references = Vec::new();
        while let Some(row) = rows.next()? {
            references.push(self.path_in(id, row.get_ref(0)?.as_str().unwrap_or_default())?);
        }
        references.sort_unstable();
        Ok(references)
    }

    pub(super) fn path_in(&self, id: i64, full: &str) -> Result<StorePath, NixDbError> {
        self.store_dir.parse(full).map_err(|e| NixDbError::Row { id, reason: e.to_string() })
    }

    fn row(&self, row: &Row<'_>) -> Result<PathInfo, NixDbError> {
        let id: i64 = row.get(0)?;
        let bad = |reason: String| NixDbError::Row { id, reason };
        let text = |at: usize| -> Result<Option<&str>, NixDbError> {
            row.get_ref(at)?.as_str_or_null().map_err(|e| bad(e.to_string()))
        };
        let deriver = text(4)?.filter(|d| !d.is_empty());
        Ok(PathInfo {
            id,
            path: self.path_in(id, text(1)?.unwrap_or_default())?,
            nar_hash: NarHash::parse(text(2)?.unwrap_or_default()).map_err(|e| bad(e.to_string()))?,
            nar_size: row
                .get::<_, Option<i64>>(3)
                .ok()
                .and_then(|size| u64::try_from(size.unwrap_or(0)).ok())
                .ok_or_else(|| bad("narSize is not a size".to_owned()))?,
            // Only a note of Nix's; old versions wrote `unknown-deriver`.
            deriver: deriver.and_then(|d| self.store_dir.parse(d).ok()),
            ultimate: row.get::<_, Option<i64>>(5).map_err(|e| bad(e.to_string()))? == Some(1),
            sigs: text(6)?.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect(),
            ca: text(7)?.filter(|ca| !ca.is_empty()).map(str::to_owned),
            references: Vec::new(),
            registered_at: row.get(8).map_err(|e| bad(e.to_string()))?,
        })
    }
}

/// Device and identity of the file that is at the path now.
fn look(path: &Path) -> Result<(u64, DbIdentity), NixDbError> {
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => NixDbError::Missing(path.to_owned()),
        std::io::ErrorKind::PermissionDenied => permission(path),
        _ => NixDbError::Io { path: path.to_owned(), error },
    })?;
    let born =
        meta.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    Ok((meta.dev(), DbIdentity { inode: meta.ino(), born }))
}

fn permission(path: &Path) -> NixDbError {
    let hint = "its user must be able to read the file, and also to write in its directory where this Nix \
                removes db.sqlite-wal and db.sqlite-shm when idle (older versions do; NixOS/nix issue 10300)";
    NixDbError::Permission { path: path.to_owned(), hint: hint.to_owned() }
}
