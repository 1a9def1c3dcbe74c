//! Symlinks that keep Nix's garbage collector away from paths.
//!
//! Must not know: why a path is kept. A symlink into the store, anywhere below
//! `<state dir>/gcroots`, is a root, whoever owns it. It does not protect from
//! a collection that has read the roots already.

use std::io;
use std::path::{Path, PathBuf};

use super::path::{StoreDir, StorePath};

/// A root could not be made, removed or listed.
#[derive(Debug, thiserror::Error)]
#[error("GC root {}: {error}; may this user write there?", .path.display())]
pub struct RootsError {
    /// The symlink or its directory.
    pub path: PathBuf,
    /// What the system said.
    pub error: io::Error,
}

/// A directory of GC roots, one symlink a path, named as the path.
#[derive(Debug)]
pub struct Roots {
    dir: PathBuf,
    store_dir: StoreDir,
    /// Held while this lives: another one would clear our roots as stale.
    _lock: std::fs::File,
}

impl Roots {
    /// Makes the directory if need be. Nothing else may put files there, and
    /// only one process at a time may use it.
    pub fn new(dir: &Path, store_dir: &StoreDir) -> Result<Self, RootsError> {
        let failed = |error| RootsError { path: dir.to_owned(), error };
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

    /// Protects a path; again does no harm. Making a symlink is atomic: there is
    /// no moment at which a half-made one can be read.
    pub fn add(&self, path: &StorePath) -> Result<(), RootsError> {
        let link = self.link(path);
        let target = self.store_dir.full(path);
        match std::os::unix::fs::symlink(&target, &link) {
            Ok(()) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => match std::fs::read_link(&link) {
                Ok(found) if found == Path::new(&target) => Ok(()),
                Ok(_) | Err(_) => self.replace(&target, &link),
            },
            Err(error) => Err(RootsError { path: link, error }),
        }
    }

    /// Ends the protection; of a path that has none, too.
    pub fn remove(&self, path: &StorePath) -> Result<(), RootsError> {
        unlink(&self.link(path))
    }

    /// The protected paths, sorted.
    pub fn list(&self) -> Result<Vec<StorePath>, RootsError> {
        let mut paths: Vec<_> = self.names()?.iter().filter_map(|name| StorePath::parse(name).ok()).collect();
        paths.sort_unstable();
        Ok(paths)
    }

    /// Removes what an earlier run left: every root that `keep` does not want,
    /// and remains of an interrupted [`Self::add`]. How many roots went.
    pub fn clear_stale(&self, mut keep: impl FnMut(&StorePath) -> bool) -> Result<usize, RootsError> {
        let mut cleared = 0;
        for name in self.names()? {
            if !StorePath::parse(&name).is_ok_and(|path| keep(&path)) {
                unlink(&self.dir.join(&name))?;
                cleared += 1;
            }
        }
        Ok(cleared)
    }

    /// By way of a rename, so that the old link protects until the new one does.
    fn replace(&self, target: &str, link: &Path) -> Result<(), RootsError> {
        let mut new = link.as_os_str().to_owned();
        new.push("~");
        let new = PathBuf::from(new);
        unlink(&new)?;
        std::os::unix::fs::symlink(target, &new)
            .and_then(|()| std::fs::rename(&new, link))
            .map_err(|error| RootsError { path: link.to_owned(), error })
    }

    fn names(&self) -> Result<Vec<String>, RootsError> {
        let entries = std::fs::read_dir(&self.dir).and_then(Iterator::collect::<io::Result<Vec<_>>>);
        let entries = entries.map_err(|error| RootsError { path: self.dir.clone(), error })?;
        let links = entries.iter().filter(|e| e.file_type().is_ok_and(|kind| kind.is_symlink()));
        Ok(links.filter_map(|e| e.file_name().into_string().ok()).collect())
    }

    fn link(&self, path: &StorePath) -> PathBuf {
        self.dir.join(path.base())
    }
}

fn unlink(path: &Path) -> Result<(), RootsError> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(RootsError { path: path.to_owned(), error })
        }
        _ => Ok(()),
    }
}
