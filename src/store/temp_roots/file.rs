//! Temporary roots as Nix's own processes keep them, in a single-user
//! installation or as root (Nix, `src/libstore/gc.cc`).
//!
//! `<state>/temp_roots/<pid>` holds paths, each ended by a zero byte, and is
//! locked by its process for as long as that lives; the collector takes what is
//! in locked files for roots and removes those that nobody locks. A collector
//! holds `<state>/gc.lock` exclusively from before it reads the roots to its
//! end, and takes late roots on `<state>/gc-socket/socket`: a path and a line
//! feed, answered by `1` when the path is safe.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};

/// How long a collector that holds the lock may stay unreachable: it opens its
/// socket right after, and Nix older than 2.5 opens none.
const PATIENCE: Duration = Duration::from_secs(2);
/// Between looks at it.
const PAUSE: Duration = Duration::from_millis(10);
/// How long the collector may take to answer; it may be deleting the very path.
const ANSWER: Duration = Duration::from_secs(30);
/// Times that a collector may remove the file before it is locked.
const TRIES: u32 = 16;

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
            // Locked means that another process has this number, in another
            // name space of process numbers.
            flock(&file, FlockOperation::NonBlockingLockExclusive).map_err(|error| match error {
                rustix::io::Errno::WOULDBLOCK => {
                    io::Error::other(format!("{} belongs to another process of this number", path.display()))
                }
                other => other.into(),
            })?;
            // A collector may have removed it in between, or an earlier process
            // of this number may have left something in it.
            if file.metadata()?.nlink() == 0 {
                continue;
            }
            file.set_len(0)?;
            return Ok(Self { file, path, gc_lock, collector: state_dir.join("gc-socket/socket") });
        }
        Err(io::Error::other(format!("{} is removed again and again", path.display())))
    }

    pub(super) fn add(&mut self, paths: impl Iterator<Item = String>) -> io::Result<()> {
        let paths: Vec<String> = paths.collect();
        let begun = Instant::now();
        loop {
            if self.no_collection()? {
                let written = self.append(&paths);
                flock(&self.gc_lock, FlockOperation::Unlock)?;
                return written;
            }
            match self.tell(&paths) {
                // Also written down, for the next collection.
                Ok(()) => return self.append(&paths),
                // It has just ended, or is just beginning.
                Err(error) if begun.elapsed() >= PATIENCE => return Err(error),
                Err(_) => std::thread::sleep(PAUSE),
            }
        }
    }

    /// Rewrites the file, which is safe only while no collection can read it.
    pub(super) fn only(&mut self, keep: impl Iterator<Item = String>) -> io::Result<bool> {
        if !self.no_collection()? {
            return Ok(false);
        }
        let keep: Vec<String> = keep.collect();
        let written = self.file.set_len(0).and_then(|()| self.append(&keep));
        flock(&self.gc_lock, FlockOperation::Unlock)?;
        written.map(|()| true)
    }

    pub(super) fn is_alive(&self) -> bool {
        let there = |file: &File| file.metadata().is_ok_and(|meta| meta.nlink() > 0);
        there(&self.file) && there(&self.gc_lock)
    }

    /// True when none runs; then none begins until the lock is let go.
    fn no_collection(&self) -> io::Result<bool> {
        match flock(&self.gc_lock, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(true),
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    fn append(&mut self, paths: &[String]) -> io::Result<()> {
        self.file.seek(io::SeekFrom::End(0))?;
        let mut text = Vec::new();
        for path in paths {
            text.extend_from_slice(path.as_bytes());
            text.push(0);
        }
        self.file.write_all(&text)
    }

    fn tell(&self, paths: &[String]) -> io::Result<()> {
        let mut collector = UnixStream::connect(&self.collector)?;
        collector.set_read_timeout(Some(ANSWER))?;
        collector.set_write_timeout(Some(ANSWER))?;
        for path in paths {
            collector.write_all(format!("{path}\n").as_bytes())?;
            let mut answer = [0];
            collector.read_exact(&mut answer)?;
            if answer != *b"1" {
                return Err(io::Error::other("the collector's answer is not understood"));
            }
        }
        Ok(())
    }
}

impl Drop for FileRoots {
    fn drop(&mut self) {
        // Before the lock goes: nobody else can have made a file of this name.
        if self.file.metadata().is_ok_and(|meta| meta.nlink() > 0) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}
