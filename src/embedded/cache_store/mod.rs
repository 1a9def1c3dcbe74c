//! The cache's files and database, and how they stay consistent. Must not know
//! HTTP, tokens or keys.
//!
//! ```text
//! DIR/lock             held while a process serves DIR
//! DIR/cache.sqlite     paths, NARs, and the content of small NARs
//! DIR/nar/HASH.zst     a larger NAR, named by the SHA-256 of its content
//! DIR/nar/.new-*       a NAR that is not complete yet; removed at start
//! ```
//!
//! The database decides what the cache has. It has one writer, a thread that
//! commits all waiting jobs in one transaction. Small NARs are in the database,
//! because then a group of uploads costs one disk sync instead of two each. The
//! cache syncs and renames a larger NAR's file and syncs its directory before it
//! writes the row, and it removes the row before the file: at any moment every row
//! has its file. A crash can leave a file without a row, which the next start
//! removes.

mod evict;
mod nars;
mod reader;
mod writer;

use std::collections::HashMap;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension};

use super::error::{ApiError, EmbeddedError};
use crate::types::NarHash;

pub(super) use nars::{Incoming, compress_small};
pub(super) use reader::{Nar, Reader};
pub(super) use writer::{Content, Done, NewPath, Publisher, Stored, Writer};

/// Largest size in bytes of a NAR that is received in memory and stored in the database.
pub(super) const SMALL: u64 = 128 * 1024;

/// Version of the database's layout; a change of the layout adds a migration.
const VERSION: i64 = 1;

/// The directory, open and locked.
pub(super) struct CacheStore {
    dir: PathBuf,
    pub(super) reader: Reader,
    pub(super) writer: Writer,
    pins: Arc<Pins>,
    max_size: Option<u64>,
}

impl CacheStore {
    /// Opens or makes `dir`, removes the remains of a crash, and starts the writing
    /// thread. The second value resolves when that thread has ended for any reason.
    pub(super) fn open(
        dir: &Path,
        store_dir: &str,
        max_size: Option<u64>,
    ) -> Result<(Self, Done), EmbeddedError> {
        let nar_dir = dir.join("nar");
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&nar_dir)
            .map_err(EmbeddedError::file("create", &nar_dir))?;
        let lock = lock(dir)?;
        let path = dir.join("cache.sqlite");
        let database = |source| EmbeddedError::Database { path: path.clone(), source };
        let mut connection = connect(&path).map_err(database)?;
        prepare(&mut connection, dir, &path, store_dir)?;
        sweep(&mut connection, dir, &path)?;
        let reader = Reader::new(connect(&path).map_err(database)?);
        let pins = Arc::new(Pins::default());
        let (writer, done) =
            Writer::start(connection, lock, nar_dir, max_size, Arc::clone(&pins)).map_err(database)?;
        Ok((Self { dir: dir.to_owned(), reader, writer, pins, max_size }, done))
    }

    pub(super) fn nar_file(&self, hash: &NarHash) -> PathBuf {
        nar_file(&self.dir.join("nar"), hash)
    }

    /// Begins to receive a NAR that is too large for the database. Blocks.
    /// Eviction spares the NAR until the result is dropped.
    pub(super) fn receive(&self, hash: NarHash, size: u64, verify_only: bool) -> Result<Incoming, ApiError> {
        let pin = Pins::pin(&self.pins, hash);
        let known = verify_only
            || self.reader.has_nar(&hash).map_err(|e| ApiError::from_sql("looking a NAR up", &e))?;
        Incoming::begin(self.dir.join("nar"), hash, size, known, self.max_size, pin)
    }
}

fn nar_file(nar_dir: &Path, hash: &NarHash) -> PathBuf {
    nar_dir.join(format!("{}.zst", hash.hex()))
}

fn lock(dir: &Path) -> Result<File, EmbeddedError> {
    let path = dir.join("lock");
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(&path)
        .map_err(EmbeddedError::file("open", &path))?;
    match rustix::fs::flock(&file, rustix::fs::FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(file),
        Err(rustix::io::Errno::WOULDBLOCK) => Err(EmbeddedError::InUse(dir.to_owned())),
        Err(e) => Err(EmbeddedError::file("lock", &path)(e.into())),
    }
}

fn connect(path: &Path) -> rusqlite::Result<Connection> {
    let connection = Connection::open(path)?;
    connection.busy_timeout(std::time::Duration::from_secs(2))?;
    // This takes effect only in a new database, and only before the journal mode is set.
    connection.pragma_update(None, "auto_vacuum", "INCREMENTAL")?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    // With FULL, a path that was answered with "Uploaded" survives a power cut, not only a crash of this process.
    connection.pragma_update(None, "synchronous", "FULL")?;
    connection.pragma_update(None, "cache_size", -1024)?;
    connection.pragma_update(None, "journal_size_limit", 8 << 20)?;
    connection.set_prepared_statement_cache_capacity(32);
    Ok(connection)
}

fn prepare(
    connection: &mut Connection,
    dir: &Path,
    path: &Path,
    store_dir: &str,
) -> Result<(), EmbeddedError> {
    let database = |source| EmbeddedError::Database { path: path.to_owned(), source };
    let found: i64 = connection.pragma_query_value(None, "user_version", |r| r.get(0)).map_err(database)?;
    if found > VERSION {
        return Err(EmbeddedError::Newer { dir: dir.to_owned(), found, known: VERSION });
    }
    if found == 0 {
        create(connection, store_dir).map_err(database)?;
    }
    // Versions of this program without it ignore the table. What no cache serves is not kept: the daemon publishes
    // at its start what the Nix database has.
    connection
        .execute_batch(
            "CREATE TABLE IF NOT EXISTS realisation (
                 key TEXT PRIMARY KEY, hash TEXT NOT NULL, base TEXT NOT NULL,
                 dependencies TEXT NOT NULL, sigs TEXT NOT NULL) WITHOUT ROWID;
             DELETE FROM realisation WHERE hash NOT IN (SELECT hash FROM path);",
        )
        .map_err(database)?;
    let kept: Option<String> = connection
        .query_row("SELECT value FROM meta WHERE key = 'store_dir'", [], |r| r.get(0))
        .optional()
        .map_err(database)?;
    match kept {
        Some(kept) if kept == store_dir => Ok(()),
        kept => Err(EmbeddedError::StoreDir {
            dir: dir.to_owned(),
            found: kept.unwrap_or_default(),
            wanted: store_dir.to_owned(),
        }),
    }
}

fn create(connection: &mut Connection, store_dir: &str) -> rusqlite::Result<()> {
    let tx = connection.transaction()?;
    // nar.data is NULL when the content is in a file. It is the last column, so that SQLite reads the others
    // without it.
    tx.execute_batch(
        "CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
         CREATE TABLE nar (
             id INTEGER PRIMARY KEY, hash BLOB NOT NULL UNIQUE,
             nar_size INTEGER NOT NULL, file_size INTEGER NOT NULL, data BLOB);
         CREATE TABLE path (
             id INTEGER PRIMARY KEY, cache TEXT NOT NULL, hash TEXT NOT NULL,
             nar INTEGER NOT NULL REFERENCES nar (id), used_at INTEGER NOT NULL,
             base TEXT NOT NULL, refs TEXT NOT NULL, system TEXT, deriver TEXT, ca TEXT, sigs TEXT NOT NULL,
             UNIQUE (cache, hash));
         CREATE INDEX path_nar ON path (nar);",
    )?;
    tx.execute("INSERT INTO meta VALUES ('store_dir', ?1)", [store_dir])?;
    tx.pragma_update(None, "user_version", VERSION)?;
    tx.commit()
}

/// Removes the remains of a crash: temporary files, files without a row, and rows
/// whose file somebody removed, with the paths that need them.
fn sweep(connection: &mut Connection, dir: &Path, path: &Path) -> Result<(), EmbeddedError> {
    let database = |source| EmbeddedError::Database { path: path.to_owned(), source };
    let nar_dir = dir.join("nar");
    let mut rows: HashMap<String, (i64, u64)> = HashMap::new();
    {
        let mut query =
            connection.prepare("SELECT id, hash, file_size FROM nar WHERE data IS NULL").map_err(database)?;
        let found = query
            .query_map([], |r| {
                Ok((NarHash(r.get(1)?).hex(), (r.get(0)?, u64::try_from(r.get::<_, i64>(2)?).unwrap_or(0))))
            })
            .map_err(database)?;
        for row in found {
            let (hash, row) = row.map_err(database)?;
            rows.insert(format!("{hash}.zst"), row);
        }
    }
    for entry in fs::read_dir(&nar_dir).map_err(EmbeddedError::file("list", &nar_dir))? {
        let entry = entry.map_err(EmbeddedError::file("list", &nar_dir))?;
        let size = entry.metadata().map(|m| m.len()).ok();
        let name = entry.file_name();
        let belongs = name.to_str().and_then(|n| rows.get(n)).is_some_and(|(_, s)| Some(*s) == size);
        if belongs {
            rows.remove(name.to_str().unwrap_or_default());
        } else {
            let file = entry.path();
            fs::remove_file(&file).map_err(EmbeddedError::file("remove", &file))?;
        }
    }
    if !rows.is_empty() {
        crate::observe::event!(
            BUILT_IN_LOST,
            paths = rows.len(),
            "built-in cache: the files of {} NARs are missing; their paths are removed from the cache",
            rows.len()
        );
        let lost: Vec<i64> = rows.into_values().map(|(id, _)| id).collect();
        let tx = connection.transaction().map_err(database)?;
        evict::drop_nars(&tx, &lost).and_then(|_| tx.commit()).map_err(database)?;
    }
    Ok(())
}

/// NARs that uploads rely on. Eviction spares them, so an upload holds no lock while it receives its body.
#[derive(Default)]
pub(super) struct Pins(Mutex<HashMap<NarHash, usize>>);

impl Pins {
    fn pin(pins: &Arc<Self>, hash: NarHash) -> Pin {
        *pins.lock().entry(hash).or_default() += 1;
        Pin { pins: Arc::clone(pins), hash }
    }

    /// Eviction holds this lock from its choice until the choice is committed.
    fn lock(&self) -> MutexGuard<'_, HashMap<NarHash, usize>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // the counts stay right after a panic
    }
}

/// Protects one NAR from eviction until it is dropped.
pub(super) struct Pin {
    pins: Arc<Pins>,
    hash: NarHash,
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = self.pins.lock();
        if let Some(count) = pins.get_mut(&self.hash) {
            *count -= 1;
            if *count == 0 {
                pins.remove(&self.hash);
            }
        }
    }
}

#[cfg(test)]
mod tests;
