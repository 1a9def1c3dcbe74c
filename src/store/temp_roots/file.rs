//! Temporary roots in a file, as Nix's own processes keep them in a single-user
//! installation or as root (Nix, `src/libstore/gc.cc`).
//!
//! `<state>/temproots/<pid>` contains paths, each followed by a zero byte. The
//! process locks its file as long as it lives. The collector takes the paths in
//! locked files for roots, and removes the files that no process locks. It locks
//! `<state>/gc.lock` exclusively before it reads the roots and until it ends.
//! Meanwhile it accepts more roots on `<state>/gc-socket/socket`: it reads a path
//! and a line feed, and answers `1` when the path is protected.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// How long to wait for the socket of a collector that holds the lock. It opens
/// the socket right after it locks; Nix older than 2.5 opens none.
const PATIENCE: Duration = Duration::from_secs(2);
/// The pause between two tries to reach the collector.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the collector may take to answer. It may be deleting the same path.
const ANSWER: Duration = Duration::from_secs(30);
/// How often the file is created, if a collector removes it before it is locked.
const TRIES: u32 = 16;
/// From this size on, in bytes, what was gathered is written to the file.
const PIECE: usize = 64 * 1024;

#[derive(Debug)]
pub(super) struct FileRoots {
    file: File,
    path: PathBuf,
    gc_lock: File,
    collector: PathBuf,
}

impl FileRoots {
    pub(super) fn open(state_dir: &Path) -> io::Result<Self> {
        let gc_lock = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(state_dir.join("gc.lock"))?;
        let dir = state_dir.join("temproots");
        std::fs::create_dir_all(&dir)?;
        let path = dir.join(std::process::id().to_string());
        for _ in 0..TRIES {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .mode(0o600)
                .open(&path)?;
            // A process with the same number, in another process namespace, may
            // have locked the file.
            flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
                rustix::io::Errno::WOULDBLOCK => io::Error::other(format!(
                    "{} is locked by a process with the same number in another process namespace",
                    path.display()
                )),
                other => other.into(),
            })?;
            // A collector may have removed the file before it was locked. A file of
            // an earlier process with this number may contain paths.
            if file.metadata()?.nlink() == 0 {
                continue;
            }
            file.set_len(0)?;
            return Ok(Self { file, path, gc_lock, collector: state_dir.join("gc-socket/socket") });
        }
        Err(io::Error::other(format!(
            "a garbage collector removed {} {TRIES} times before it was locked",
            path.display()
        )))
    }

    pub(super) fn add(&mut self, paths: impl Iterator<Item = String> + Clone) -> io::Result<()> {
        let begun = Instant::now();
        loop {
            if self.no_collection()? {
                let written = self.append(paths);
                flock(&self.gc_lock, FlockOperation::Unlock)?;
                return written;
            }
            match self.tell(paths.clone()) {
                // The next collection reads the file.
                Ok(()) => return self.append(paths),
                // The collection has just ended, or has not opened its socket yet.
                Err(error) if begun.elapsed() >= PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Rewrites the file, which is safe only while no collection can read it.
    /// Returns false when one runs.
    pub(super) fn only(&mut self, keep: impl Iterator<Item = String>) -> io::Result<bool> {
        if !self.no_collection()? {
            return Ok(false);
        }
        let written = self.file.set_len(0).and_then(|()| self.append(keep));
        flock(&self.gc_lock, FlockOperation::Unlock)?;
        written.map(|()| true)
    }

    pub(super) fn is_alive(&self) -> bool {
        let there = |file: &File| file.metadata().is_ok_and(|meta| meta.nlink() > 0);
        there(&self.file) && there(&self.gc_lock)
    }

    /// Locks `gc.lock` if no collection runs, and says whether it did. No collection
    /// begins before the caller unlocks it.
    fn no_collection(&self) -> io::Result<bool> {
        match flock(&self.gc_lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Writes the paths at the end of the file, in pieces: there may be a hundred thousand.
    fn append(&mut self, paths: impl Iterator<Item = String>) -> io::Result<()> {
        self.file.seek(io::SeekFrom::End(0))?;
        let mut text = Vec::new();
        for path in paths {
            text.extend_from_slice(path.as_bytes());
            text.push(0);
            if text.len() >= PIECE {
                self.file.write_all(&text)?;
                text.clear();
            }
        }
        self.file.write_all(&text)
    }

    fn tell(&self, paths: impl Iterator<Item = String>) -> io::Result<()> {
        let mut collector = UnixStream::connect(&self.collector)?;
        collector.set_read_timeout(Some(ANSWER))?;
        collector.set_write_timeout(Some(ANSWER))?;
        for path in paths {
            collector.write_all(format!("{path}\n").as_bytes())?;
            let mut answer = [0];
            collector.read_exact(&mut answer)?;
            if answer != *b"1" {
                return Err(io::Error::other(
                    "the garbage collector did not answer 1 to a path on its socket",
                ));
            }
        }
        Ok(())
    }
}

impl Drop for FileRoots {
    fn drop(&mut self) {
        // The lock is still held, so the file of this name is this one.
        if self.file.metadata().is_ok_and(|meta| meta.nlink() > 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
