//! Files that keep Nix's garbage collector away from paths.
//!
//! Must not know: why a path is kept.
//!
//! Nix takes two kinds of files below `<state dir>/gcroots` for roots: symlinks
//! into the store, and regular files that have the name of a store path (Nix,
//! `findRoots` in `src/libstore/gc.cc`; Hydra keeps its roots in the second
//! way). It does not matter which user owns them. All roots here are hard links
//! to one empty file. A hard link needs no new inode: on ext4 it takes 11 µs,
//! and a symlink takes 400 µs or more. Neither kind protects a path from a
//! collection that has already read the roots.

use std::io;
use std::path::{Path, PathBuf};

use crate::types::{StoreDir, StorePath};

/// An error while a root was created, removed or listed.
#[derive(Debug, thiserror::Error)]
#[error("GC root {}: {error}; check that the daemon's user may write there", .path.display())]
pub struct RootFilesError {
    /// The root or its directory.
    pub path: PathBuf,
    /// The system's error.
    pub error: io::Error,
}

/// The empty file that all roots are hard links to. Its name is not that of a
/// store path, so it is not a root itself.
const SEED: &str = ".seed";

/// A directory of GC roots. It has one file for each path, named as the path.
#[derive(Debug)]
pub struct RootFiles {
    dir: PathBuf,
    store_dir: StoreDir,
    /// Locks the directory until this value is dropped. Without the lock, another
    /// process could remove the roots as stale.
    _lock: std::fs::File,
}

impl RootFiles {
    /// Opens the directory and creates it if it does not exist. Fails when another
    /// process uses it. No other program may create files in it.
    pub fn new(dir: &Path, store_dir: &StoreDir) -> Result<Self, RootFilesError> {
        let failed = |error| RootFilesError { path: dir.to_owned(), error };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let lock = std::fs::File::open(dir).map_err(failed)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            match error {
                rustix::io::Errno::WOULDBLOCK => {
                    failed(io::Error::other("another process uses this directory"))
                }
                other => failed(other.into()),
            }
        })?;
        // A missing permission is an error now rather than with the first path.
        rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).map_err(|e| failed(e.into()))?;
        Ok(Self { dir: dir.to_owned(), store_dir: store_dir.clone(), _lock: lock })
    }

    /// Adds a root for the path. Does nothing if it exists. A link is created
    /// atomically, so the collector never reads an incomplete root.
    pub fn add(&self, path: &StorePath) -> Result<(), RootFilesError> {
        let root = self.file(path);
        match self.make(&root, path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.put_right(&root, path),
            Err(error) => Err(error),
        }
        .map_err(|error| RootFilesError { path: root, error })
    }

    /// Removes the root of the path. Does nothing if there is none.
    pub fn remove(&self, path: &StorePath) -> Result<(), RootFilesError> {
        unlink(&self.file(path))
    }

    /// Lists the paths that have a root, sorted.
    pub fn list(&self) -> Result<Vec<StorePath>, RootFilesError> {
        let mut paths = Vec::new();
        self.each_name(|name| {
            paths.extend(StorePath::parse(name).ok());
            Ok(())
        })?;
        paths.sort_unstable();
        Ok(paths)
    }

    /// Removes the roots of an earlier run for which `keep` returns false, and the
    /// temporary files of an interrupted [`Self::add`]. Returns how many files it
    /// removed.
    pub fn clear_stale(&self, mut keep: impl FnMut(&StorePath) -> bool) -> Result<usize, RootFilesError> {
        let mut cleared = 0;
        self.each_name(|name| {
            if !StorePath::parse(name).is_ok_and(|path| keep(&path)) {
                unlink(&self.dir.join(name))?;
                cleared += 1;
            }
            Ok(())
        })?;
        Ok(cleared)
    }

    /// Creates a hard link to the seed at `root`. Creates a new seed first when
    /// there is none, or when it has the most links that the file system allows
    /// (ext4: 65,000). Creates a symlink where the file system has no hard links.
    fn make(&self, root: &Path, path: &StorePath) -> io::Result<()> {
        let seed = self.dir.join(SEED);
        let linked = std::fs::hard_link(&seed, root);
        let kind = linked.as_ref().err().map(io::Error::kind);
        let linked = match kind {
            Some(io::ErrorKind::NotFound | io::ErrorKind::TooManyLinks) => {
                let new = self.dir.join(format!("{SEED}~"));
                std::fs::File::create(&new)?;
                std::fs::rename(&new, &seed)?;
                std::fs::hard_link(&seed, root)
            }
            _ => linked,
        };
        match linked {
            Err(e) if matches!(e.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::Unsupported) => {
                std::os::unix::fs::symlink(self.store_dir.full(path), root)
            }
            other => other,
        }
    }

    /// Checks the file that exists at `root`. Keeps it if it is a root of this
    /// path, and replaces it by a rename otherwise.
    fn put_right(&self, root: &Path, path: &StorePath) -> io::Result<()> {
        let right = match std::fs::symlink_metadata(root) {
            Ok(meta) if meta.is_file() => true,
            Ok(meta) if meta.is_symlink() => {
                std::fs::read_link(root)? == Path::new(&self.store_dir.full(path))
            }
            // The file was removed meanwhile, or it is of another type.
            Ok(_) | Err(_) => false,
        };
        if right {
            return Ok(());
        }
        let mut new = root.as_os_str().to_owned();
        new.push("~");
        let new = PathBuf::from(new);
        unlink(&new).map_err(|e| e.error)?;
        self.make(&new, path)?;
        std::fs::rename(&new, root)
    }

    /// Calls `each` with the names of all symlinks and of all empty files except the seed,
    /// one at a time, since there may be a hundred thousand. `each` may remove its file.
    fn each_name(
        &self,
        mut each: impl FnMut(&str) -> Result<(), RootFilesError>,
    ) -> Result<(), RootFilesError> {
        let failed = |error| RootFilesError { path: self.dir.clone(), error };
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let empty = || entry.metadata().is_ok_and(|meta| meta.len() == 0);
            if (kind.is_symlink() || (kind.is_file() && entry.file_name() != SEED && empty()))
                && let Ok(name) = entry.file_name().into_string()
            {
                each(&name)?;
            }
        }
        Ok(())
    }

    fn file(&self, path: &StorePath) -> PathBuf {
        self.dir.join(path.base())
    }
}

fn unlink(path: &Path) -> Result<(), RootFilesError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RootFilesError { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}
