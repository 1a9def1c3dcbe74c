//! The lower store of a local-overlay store. Nix copies its rows into the database of the
//! upper store as it meets them, with `ultimate = 1` and the lower store's time of
//! registration (Nix, `src/libstore/local-overlay-store.cc`).
//!
//! Must not know: what follows from a path being in the lower store.

use std::io;
use std::path::{Path, PathBuf};

use super::info::PathInfo;
use super::nix_db::{NixDb, NixDbError};
use super::temp_roots::DaemonConnection;
use crate::types::{StoreDir, StorePath};

/// A lower store. Its content does not change while it is one, so its database is opened
/// once, with the first question.
#[derive(Debug)]
pub struct LowerStore {
    state_dir: PathBuf,
    store_dir: StoreDir,
    /// Where the nix-daemon of the local-overlay store listens.
    daemon_socket: PathBuf,
    open: Option<NixDb>,
}

impl LowerStore {
    /// The store with this state directory. Opens nothing yet. `store_dir` and
    /// `daemon_socket` are those of the local-overlay store.
    #[must_use]
    pub fn new(state_dir: &Path, store_dir: &StoreDir, daemon_socket: &Path) -> Self {
        Self {
            state_dir: state_dir.to_owned(),
            store_dir: store_dir.clone(),
            daemon_socket: daemon_socket.to_owned(),
            open: None,
        }
    }

    /// Whether a row is a copy of the lower store's: a path that was built again has
    /// another time of registration.
    pub fn has(&mut self, info: &PathInfo) -> Result<bool, NixDbError> {
        let lower = self.db()?.info(&info.path)?;
        Ok(lower.is_some_and(|l| l.registered_at == info.registered_at && l.nar_hash == info.nar_hash))
    }

    /// Returns those of these paths that the lower store has.
    pub fn among(&mut self, paths: &[StorePath]) -> Result<Vec<StorePath>, NixDbError> {
        let rows = self.db()?.ids(paths)?;
        Ok(paths.iter().zip(rows).filter(|(_, row)| row.is_some()).map(|(path, _)| path.clone()).collect())
    }

    /// Makes the nix-daemon copy the rows of these paths and of their closures.
    pub fn copy_up(&self, paths: &[StorePath]) -> io::Result<()> {
        let full = paths.iter().map(|path| self.store_dir.full(path));
        DaemonConnection::connect(&self.daemon_socket)?.ask_validity(full)
    }

    fn db(&mut self) -> Result<&NixDb, NixDbError> {
        match &mut self.open {
            Some(db) => Ok(db),
            none => Ok(none.insert(NixDb::open_unchanging(&self.state_dir, &self.store_dir)?)),
        }
    }
}
