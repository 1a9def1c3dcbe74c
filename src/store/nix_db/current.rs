//! The Nix database at a place: opened when it appears, opened again when it is
//! another file.

use std::path::{Path, PathBuf};

use super::NixDb;
use super::error::NixDbError;
use super::identity::{DbIdentity, Mark};
use crate::types::StoreDir;

/// What is at the place now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Look {
    /// There is no database, as on a host on which Nix has not written yet.
    Absent,
    /// A writer holds it or replaces it at this moment; look again soon.
    Busy,
    /// There is a database, and [`CurrentNixDb::db`] is it.
    Open {
        /// The file's identity.
        identity: DbIdentity,
        /// The highest id that was ever given, 0 before the first.
        head: i64,
        /// For each mark the row that has its id now; `None`: there is none
        /// (collected).
        there: Vec<Option<Mark>>,
    },
}

/// The database at a place, whichever file is there.
#[derive(Debug)]
pub struct CurrentNixDb {
    state_dir: PathBuf,
    store_dir: StoreDir,
    daemon_socket: PathBuf,
    open: Option<NixDb>,
}

impl CurrentNixDb {
    /// Opens nothing yet. `daemon_socket` is the nix-daemon's, for databases
    /// that it has to open first.
    #[must_use]
    pub fn new(state_dir: &Path, store_dir: &StoreDir, daemon_socket: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            store_dir: store_dir.clone(),
            daemon_socket: daemon_socket.to_owned(),
            open: None,
        }
    }

    /// Looks which database is there, and opens it when it is not the open one.
    /// Absent and busy are values; an error is a database that cannot be used
    /// as it is (rights, schema).
    pub fn look(&mut self, marks: &[Mark]) -> Result<Look, NixDbError> {
        match self.current().and_then(|db| db.look(marks)) {
            Ok((identity, head, there)) => Ok(Look::Open { identity, head, there }),
            Err(NixDbError::Missing(_)) => {
                self.open = None;
                Ok(Look::Absent)
            }
            Err(NixDbError::Busy | NixDbError::Replaced) => Ok(Look::Busy),
            Err(error) => Err(error),
        }
    }

    /// The database that is at the place now, opened when it is not the open one.
    pub fn current(&mut self) -> Result<&NixDb, NixDbError> {
        let same = self.open.as_ref().is_some_and(|db| !matches!(db.identity(), Err(NixDbError::Replaced)));
        if !same {
            self.open = None;
            let opened = NixDb::open_with_daemon(&self.state_dir, &self.store_dir, &self.daemon_socket)?;
            self.open = Some(opened);
        }
        self.db()
    }

    /// Whether writers have left the write-ahead log that the open connection reads. SQLite
    /// keeps one index of the log for all connections of a process to a file, so a new
    /// connection sees the present log only after [`Self::close`] of all of them.
    pub(crate) fn has_lost_its_log(&self) -> bool {
        self.open.as_ref().is_some_and(NixDb::has_lost_its_log)
    }

    /// Closes the connection. The next look opens one again.
    pub(crate) fn close(&mut self) {
        self.open = None;
    }

    /// The database that the last [`Self::look`] found. Opens nothing, so that
    /// rows that are read after a look are never those of another file.
    pub fn db(&self) -> Result<&NixDb, NixDbError> {
        self.open.as_ref().ok_or_else(|| NixDbError::Missing(self.state_dir.join("db/db.sqlite")))
    }
}
