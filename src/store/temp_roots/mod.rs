//! Temporary roots: protection that holds against a collection which has read
//! the other roots already, and that ends with the process at the latest.
//!
//! Must not know: why a path is kept. Two ways, by who may do what: the file
//! and the socket that Nix's own processes use ([`file`]), or a connection to
//! the nix-daemon, which does the same for us and for which nobody needs to be
//! root ([`daemon`]). A way that breaks is thrown away and opened again by the
//! caller, who knows what has to be added anew.

mod daemon;
#[cfg(any(fuzzing, test))]
pub(in crate::store) use daemon::fuzz;
mod file;

use std::io;
use std::path::{Path, PathBuf};

use crate::types::{StoreDir, StorePath};
pub(super) use daemon::DaemonConnection;
use file::FileRoots;

/// Neither way can be gone.
#[derive(Debug, thiserror::Error)]
#[error("no temporary roots: {file}; {daemon}")]
pub struct TempRootsError {
    /// Why not by a file of our own.
    pub file: String,
    /// Why not through the nix-daemon.
    pub daemon: String,
}

/// Paths that are kept while this is open.
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
    /// Opens whichever way works: the file below `state_dir` when this user may
    /// write it, else the nix-daemon that listens at `socket`.
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

    /// Protects paths; when it returns, a collection that runs knows of them.
    /// After an error some are protected and some are not: open anew.
    pub fn add<'a>(&mut self, paths: impl IntoIterator<Item = &'a StorePath>) -> io::Result<()> {
        let full = paths.into_iter().map(|p| self.store_dir.full(p));
        match &mut self.way {
            Way::File(roots) => roots.add(full),
            Way::Daemon(roots, _) => roots.add(full),
        }
    }

    /// Ends the protection of all but `keep`; false when that is not possible
    /// now (a collection runs) and is to be tried later. There is no moment at
    /// which one of `keep` is unprotected.
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

    /// Whether what was added is still protected, as far as can be seen without
    /// asking: false when the other end is gone or the file was removed.
    pub fn is_alive(&self) -> bool {
        match &self.way {
            Way::File(roots) => roots.is_alive(),
            Way::Daemon(roots, _) => roots.is_alive(),
        }
    }

    /// Whether it goes through the nix-daemon.
    pub fn is_remote(&self) -> bool {
        matches!(self.way, Way::Daemon(..))
    }
}
