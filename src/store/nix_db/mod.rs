//! The Nix database. Row ids only grow, so the paths that became valid since a
//! look are those with `id > cursor`, across restarts, overflows and reboots.
//!
//! Must not know: what the paths are used for; the watch on the store directory.
//!
//! Strictly a reader: opened read-only and never with `immutable`, which would
//! miss rows that are still in the write-ahead log. Every call ends its read
//! transaction before it returns, so that Nix can truncate that log.
//!
//! [`NixDb`] is one open file, [`CurrentNixDb`] the database at a place, whichever
//! file is there.

mod closure;
mod connection;
mod current;
mod error;
mod identity;
mod realisations;
mod rows;
mod schema;

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::fmt;
use std::path::{Path, PathBuf};

use rusqlite::{Connection, OptionalExtension as _};

use super::derivation;
use super::info::PathInfo;
use crate::types::{NarHash, Realisation, StoreDir, StorePath};
use connection::Reading;
pub use current::{CurrentNixDb, Look};
pub use error::NixDbError;
pub use identity::{DbIdentity, Mark};
pub use realisations::RealisationTable;
use rows::Rows;

/// Rows that were reported as unreadable are remembered, so that each is
/// reported once; up to this many.
const REPORTED: usize = 1024;

/// The id of a row, and its path and NAR hash unless it cannot be understood.
pub(crate) type RowContent = (i64, Option<(StorePath, NarHash)>);

/// One open database file. `Send`, not `Sync`: each thread opens its own.
///
/// After the path has received another file, every method of this type that
/// reads rows returns [`NixDbError::Replaced`] or rows of the old file; only
/// [`Self::identity`], [`Self::head`] and [`Self::rows`] are sure to notice.
pub struct NixDb {
    reading: Reading,
    path: PathBuf,
    opened: (u64, DbIdentity),
    store_dir: StoreDir,
    reported: RefCell<BTreeSet<i64>>,
}

impl fmt::Debug for NixDb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NixDb").field("path", &self.path).finish_non_exhaustive()
    }
}

impl NixDb {
    /// Opens `<state_dir>/db/db.sqlite` and checks its schema. Uses the
    /// nix-daemon's usual socket when the nix-daemon has to open the file first.
    pub fn open(state_dir: &Path, store_dir: &StoreDir) -> Result<Self, NixDbError> {
        Self::open_with_daemon(state_dir, store_dir, &state_dir.join("daemon-socket/socket"))
    }

    /// The same with the nix-daemon's socket at `daemon_socket`.
    pub fn open_with_daemon(
        state_dir: &Path,
        store_dir: &StoreDir,
        daemon_socket: &Path,
    ) -> Result<Self, NixDbError> {
        Self::open_by(state_dir, store_dir, |path| Reading::open(path, daemon_socket))
    }

    /// Opens a database whose content does not change as long as it is open, as that of
    /// the lower store of a local-overlay store. This user need not be able to write in
    /// its directory.
    pub fn open_unchanging(state_dir: &Path, store_dir: &StoreDir) -> Result<Self, NixDbError> {
        Self::open_by(state_dir, store_dir, Reading::open_unchanging)
    }

    fn open_by(
        state_dir: &Path,
        store_dir: &StoreDir,
        open: impl FnOnce(&Path) -> Result<Reading, NixDbError>,
    ) -> Result<Self, NixDbError> {
        let path = state_dir.join("db/db.sqlite");
        let before = identity::file_at(&path)?;
        let reading = open(&path)?;
        reading.read(schema::check)?;
        // Another file at the path now: it is not known which of them is open.
        if identity::file_at(&path)? != before {
            return Err(NixDbError::Replaced);
        }
        Ok(Self { reading, path, opened: before, store_dir: store_dir.clone(), reported: RefCell::default() })
    }

    /// The identity of the open file; [`NixDbError::Replaced`] when the path
    /// leads to another file now.
    pub fn identity(&self) -> Result<DbIdentity, NixDbError> {
        let now = identity::file_at(&self.path)?;
        if now == self.opened && !self.reading.lost_its_log() { Ok(now.1) } else { Err(NixDbError::Replaced) }
    }

    fn has_lost_its_log(&self) -> bool {
        self.reading.lost_its_log()
    }

    /// The highest id that was ever given, 0 before the first.
    pub fn head(&self) -> Result<i64, NixDbError> {
        self.identity()?;
        self.reading.read(head)
    }

    /// Identity, head, and for each mark the row that has its id now (`None`
    /// when there is no such row).
    fn look(&self, marks: &[Mark]) -> Result<(DbIdentity, i64, Vec<Option<Mark>>), NixDbError> {
        let identity = self.identity()?;
        let (head, there) = self.reading.read(|db| {
            let rows = Rows { db, store_dir: &self.store_dir };
            let there = marks.iter().map(|mark| rows.mark(mark.id)).collect::<Result<_, _>>()?;
            Ok((head(db)?, there))
        })?;
        Ok((identity, head, there))
    }

    /// The rows with ids above `after`, ascending, at most `limit`, each with
    /// its references. An empty answer means that there are no more. A row that
    /// cannot be understood is left out and reported once: other rows must not
    /// wait for it.
    pub fn rows(&self, after: i64, limit: usize) -> Result<Vec<PathInfo>, NixDbError> {
        self.identity()?;
        self.read_rows(|rows, bad| rows.after(after, limit, bad))
    }

    /// The contents of the rows with ids above `after`, ascending, at most `limit`.
    /// Cheaper than [`Self::rows`].
    pub(crate) fn contents(&self, after: i64, limit: usize) -> Result<Vec<RowContent>, NixDbError> {
        self.identity()?;
        self.reading.read(|db| Rows { db, store_dir: &self.store_dir }.contents(after, limit))
    }

    /// The rows with these ids, in this order, each with its references. A row
    /// that was collected is left out; one that cannot be understood is left out
    /// and reported once.
    pub fn infos(&self, ids: &[i64]) -> Result<Vec<PathInfo>, NixDbError> {
        self.read_rows(|rows, bad| rows.of(ids, bad))
    }

    /// One path with its references; `None` when it is not valid.
    pub fn info(&self, path: &StorePath) -> Result<Option<PathInfo>, NixDbError> {
        self.reading.read(|db| Rows { db, store_dir: &self.store_dir }.of_path(path))
    }

    /// For each path its row id; `None` when it is not valid.
    pub fn ids(&self, paths: &[StorePath]) -> Result<Vec<Option<i64>>, NixDbError> {
        self.reading.read(|db| {
            let rows = Rows { db, store_dir: &self.store_dir };
            paths.iter().map(|path| rows.id(path)).collect()
        })
    }

    /// Whether Nix takes a path from a substituter: false if its derivation says no. That
    /// cannot be known of a path whose derivation is not valid or not readable, and true
    /// is the answer then.
    pub fn is_substitutable(&self, info: &PathInfo) -> Result<bool, NixDbError> {
        let Some(deriver) = &info.deriver else { return Ok(true) };
        if self.ids(std::slice::from_ref(deriver))?.iter().all(Option::is_none) {
            return Ok(true);
        }
        let text = derivation::read(&self.store_dir, deriver);
        Ok(text.map_or(true, |text| derivation::allows_substitutes(&text)))
    }

    /// The highest number that was given in a table of realisations, 0 before the first.
    pub fn realisations_head(&self, table: RealisationTable) -> Result<i64, NixDbError> {
        self.reading.read(|db| realisations::head(db, table))
    }

    /// The realisations with numbers above `after`, ascending, at most `limit`. A row that
    /// cannot be understood has none.
    pub fn realisations(
        &self,
        table: RealisationTable,
        after: i64,
        limit: usize,
    ) -> Result<Vec<(i64, Option<Realisation>)>, NixDbError> {
        self.reading.read(|db| realisations::rows(db, &self.store_dir, table, after, limit))
    }

    /// How many of these paths Nix finds in a cache only by their realisations: outputs of
    /// content-addressed derivations whose paths are not known before the build.
    pub fn count_realised(&self, paths: &[StorePath]) -> Result<usize, NixDbError> {
        let mut count = 0;
        for path in self.reading.read(|db| realisations::among(db, &self.store_dir, paths))? {
            let Some(info) = self.info(&path)?.filter(|info| info.ca.is_some()) else { continue };
            // The derivation of a fixed output names its path.
            let text = info.deriver.and_then(|deriver| derivation::read(&self.store_dir, &deriver).ok());
            let full = self.store_dir.full(&path);
            count += usize::from(text.is_none_or(|text| !derivation::outputs(&text).contains(&full)));
        }
        Ok(count)
    }

    /// The highest id of a row that was registered before this time (Unix
    /// seconds), 0 when there is none. Reads the whole table.
    pub fn last_before(&self, registered: i64) -> Result<i64, NixDbError> {
        self.reading.read(|db| {
            let query = "select coalesce(max(id), 0) from ValidPaths where registrationTime < ?1";
            Ok(db.query_row(query, [registered], |row| row.get(0))?)
        })
    }

    fn read_rows(
        &self,
        mut read: impl FnMut(&Rows<'_>, &mut Vec<(i64, String)>) -> Result<Vec<PathInfo>, NixDbError>,
    ) -> Result<Vec<PathInfo>, NixDbError> {
        let mut bad = Vec::new();
        let found = self.reading.read(|db| {
            bad.clear();
            read(&Rows { db, store_dir: &self.store_dir }, &mut bad)
        })?;
        let mut reported = self.reported.borrow_mut();
        for (row, error) in bad {
            if reported.len() < REPORTED && reported.insert(row) {
                crate::observe::event!(
                    DATABASE_ROW,
                    row = row,
                    error = error,
                    "row {row} of the Nix database is skipped, because it cannot be read: {error}"
                );
            }
        }
        Ok(found)
    }
}

fn head(db: &Connection) -> Result<i64, NixDbError> {
    let mut query = db.prepare_cached("select seq from sqlite_sequence where name = 'ValidPaths'")?;
    Ok(query.query_row([], |row| row.get(0)).optional()?.unwrap_or(0))
}
