//! Temporary roots. They protect paths even from a collection that has already
//! read the other roots, and end with the process at the latest.
//!
//! Must not know: why a path is kept.
//!
//! There are two kinds. Root and the user of a single-user installation use the
//! file and the socket that Nix's own processes use ([`file`]). Every other user
//! needs a connection to the nix-daemon, which adds the roots for its client
//! ([`daemon`]). After an error the caller drops the [`TempRoots`], opens them
//! again and adds its paths again.

mod daemon;
#[cfg(any(fuzzing, test))]
pub(in crate::store) use daemon::fuzz;
mod file;

use std::io;
use std::path::{Path, PathBuf};

use crate::types::{StoreDir, StorePath};
pub(super) use daemon::DaemonConnection;
use file::FileRoots;

/// Neither kind of temporary root is available.
#[derive(Debug, thiserror::Error)]
#[error("temporary roots are not available: {file}; {daemon}")]
pub struct TempRootsError {
    /// Why the file could not be used.
    pub file: String,
    /// Why the nix-daemon could not be used.
    pub daemon: String,
}

/// A set of temporary roots. Its paths are protected until it is dropped.
#[derive(Debug)]
pub struct TempRoots {
    way: Way,
    store_dir: StoreDir,
}

#[derive(Debug)]
enum Way {
    File(FileRoots),
    Daemon(DaemonConnection, PathBuf),
}

impl TempRoots {
    /// Opens the file below `state_dir` if this user may write it, and otherwise a
    /// connection to the nix-daemon that listens at `socket`.
    pub fn open(state_dir: &Path, store_dir: &StoreDir, socket: &Path) -> Result<Self, TempRootsError> {
        let open = |way| Self { way, store_dir: store_dir.clone() };
        let file = match FileRoots::open(state_dir) {
            Ok(roots) => return Ok(open(Way::File(roots))),
            Err(error) => format!("{}: {error}", state_dir.join("temproots").display()),
        };
        match DaemonConnection::connect(socket) {
            Ok(roots) => Ok(open(Way::Daemon(roots, socket.to_owned()))),
            Err(error) => {
                let daemon = format!("the nix-daemon at {}: {error}", socket.display());
                Err(TempRootsError { file, daemon })
            }
        }
    }

    /// Adds paths. When it returns, a running collection knows of them too. After
    /// an error some of the paths are protected and others are not: open new
    /// temporary roots.
    pub fn add<'a>(
        &mut self,
        paths: impl IntoIterator<Item = &'a StorePath, IntoIter: Clone>,
    ) -> io::Result<()> {
        let full = paths.into_iter().map(|p| self.store_dir.full(p));
        match &mut self.way {
            Way::File(roots) => roots.add(full),
            Way::Daemon(roots, _) => roots.add(full),
        }
    }

    /// Ends the protection of all paths except `keep`, which stay protected without
    /// interruption. Returns false when a collection runs: the caller tries again
    /// later.
    pub fn only<'a>(&mut self, keep: impl IntoIterator<Item = &'a StorePath>) -> io::Result<bool> {
        let full = keep.into_iter().map(|p| self.store_dir.full(p));
        match &mut self.way {
            Way::File(roots) => roots.only(full),
            Way::Daemon(roots, socket) => {
                let mut fresh = DaemonConnection::connect(socket)?;
                fresh.add(full)?;
                *roots = fresh;
                Ok(true)
            }
        }
    }

    /// Whether the added paths are still protected. Returns false when the nix-daemon
    /// closed the connection or the file was removed. Sends no request, so a
    /// connection that broke without a notice counts as alive.
    pub fn is_alive(&self) -> bool {
        match &self.way {
            Way::File(roots) => roots.is_alive(),
            Way::Daemon(roots, _) => roots.is_alive(),
        }
    }

    /// Whether the nix-daemon holds the roots.
    pub fn is_remote(&self) -> bool {
        matches!(self.way, Way::Daemon(..))
    }
}
