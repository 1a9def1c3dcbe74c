//! Files that keep Nix's garbage collector away from paths.
//!
//! Must not know: why a path is kept. Anywhere below `<state dir>/gcroots`, a
//! symlink into the store is a root, and so is a regular file that is named as
//! a store path (Nix, `findRoots` in `src/libstore/gc.cc`; Hydra keeps its
//! roots that way), whoever owns it. All roots here are hard links to one empty
//! file: that makes no new inode, which costs 11 µs where a symlink costs
//! 400 µs and more (ext4). Neither protects from a collection that has read the
//! roots already.

use std::io;
use std::path::{Path, PathBuf};

use crate::types::{StoreDir, StorePath};

/// A root could not be made, removed or listed.
#[derive(Debug, thiserror::Error)]
#[error("GC root {}: {error}; may this user write there?", .path.display())]
pub struct RootFilesError {
    /// The root or its directory.
    pub path: PathBuf,
    /// What the system said.
    pub error: io::Error,
}

/// What all roots are links to. Not a store path's name, so no root itself.
const SEED: &str = ".seed";

/// A directory of GC roots, one file a path, named as the path.
#[derive(Debug)]
pub struct RootFiles {
    dir: PathBuf,
    store_dir: StoreDir,
    /// Held while this lives: another one would clear our roots as stale.
    _lock: std::fs::File,
}

impl RootFiles {
    /// Makes the directory if need be. Nothing else may put files there, and
    /// only one process at a time may use it.
    pub fn new(dir: &Path, store_dir: &StoreDir) -> Result<Self, RootFilesError> {
        let failed = |error| RootFilesError { path: dir.to_owned(), error };
        std::fs::create_dir_all(dir).map_err(failed)?;
        let lock = std::fs::File::open(dir).map_err(failed)?;
        rustix::fs::flock(&lock, rustix::fs::FlockOperation::NonBlockingLockExclusive).map_err(|error| {
            match error {
                rustix::io::Errno::WOULDBLOCK => failed(io::Error::other("another process uses it")),
                other => failed(other.into()),
            }
        })?;
        // Whether links can be made is better known now than with the first path.
        rustix::fs::access(dir, rustix::fs::Access::WRITE_OK).map_err(|e| failed(e.into()))?;
        Ok(Self { dir: dir.to_owned(), store_dir: store_dir.clone(), _lock: lock })
    }

    /// Protects a path; again does no harm. Making a link is atomic: there is
    /// no moment at which a half-made one can be read.
    pub fn add(&self, path: &StorePath) -> Result<(), RootFilesError> {
        let root = self.file(path);
        match self.make(&root, path) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => self.put_right(&root, path),
            Err(error) => Err(error),
        }
        .map_err(|error| RootFilesError { path: root, error })
    }

    /// Ends the protection; of a path that has none, too.
    pub fn remove(&self, path: &StorePath) -> Result<(), RootFilesError> {
        unlink(&self.file(path))
    }

    /// The protected paths, sorted.
    pub fn list(&self) -> Result<Vec<StorePath>, RootFilesError> {
        let mut paths: Vec<_> = self.names()?.iter().filter_map(|name| StorePath::parse(name).ok()).collect();
        paths.sort_unstable();
        Ok(paths)
    }

    /// Removes what an earlier run left: every root that `keep` does not want,
    /// and remains of an interrupted [`Self::add`]. How many roots went.
    pub fn clear_stale(&self, mut keep: impl FnMut(&StorePath) -> bool) -> Result<usize, RootFilesError> {
        let mut cleared = 0;
        for name in self.names()? {
            if !StorePath::parse(&name).is_ok_and(|path| keep(&path)) {
                unlink(&self.dir.join(&name))?;
                cleared += 1;
            }
        }
        Ok(cleared)
    }

    /// A new root at `root`: a link to the seed, which is made when it is not
    /// there or has as many links as a file may have (ext4: 65,000). A symlink
    /// where the file system knows no hard links.
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

    /// Something is there already: a root, or a symlink that leads elsewhere.
    /// That is replaced by way of a rename.
    fn put_right(&self, root: &Path, path: &StorePath) -> io::Result<()> {
        let right = match std::fs::symlink_metadata(root) {
            Ok(meta) if meta.is_file() => true,
            Ok(meta) if meta.is_symlink() => {
                std::fs::read_link(root)? == Path::new(&self.store_dir.full(path))
            }
            // Gone in this moment, or not a thing of ours.
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

    /// Names of what could be a root: symlinks, and empty files but the seed.
    fn names(&self) -> Result<Vec<String>, RootFilesError> {
        let failed = |error| RootFilesError { path: self.dir.clone(), error };
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.dir).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            let kind = entry.file_type().map_err(failed)?;
            let empty = || entry.metadata().is_ok_and(|meta| meta.len() == 0);
            if kind.is_symlink() || (kind.is_file() && entry.file_name() != SEED && empty()) {
                names.extend(entry.file_name().into_string().ok());
            }
        }
        Ok(names)
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
