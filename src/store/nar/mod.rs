//! Writes NARs, archives in Nix's format, from the file system. The bytes are the
//! same as those of `nix-store --dump`.
//!
//! Must not know: what the archive is for.
//!
//! This is own code because the crates that exist refuse trees of 64 levels or
//! more, which Nix accepts up to version 2.33, and copy file contents once more.

mod encode;
mod stream;

use std::io::Write;
use std::path::{Path, PathBuf};

use encode::Encoder;
pub use stream::{NarStream, stream};

/// The size of a chunk in bytes. From 64 KiB up, the size makes little difference
/// to the time. Each stream has a few chunks in memory.
pub const CHUNK: usize = 128 * 1024;

/// Why a path could not be archived.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// Reading a file failed.
    #[error("reading {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The system's error.
        error: std::io::Error,
    },
    /// A file became shorter while it was read.
    #[error("{} became shorter while it was read; check whether a program writes to the store", .0.display())]
    Changed(PathBuf),
    /// The file is neither a regular file, a directory nor a symlink.
    #[error("{} is neither a regular file, a directory nor a symlink", .0.display())]
    FileType(PathBuf),
    /// Writing the archive failed.
    #[error("writing the archive: {0}")]
    Write(std::io::Error),
}

impl NarError {
    /// Returns the kind of the system's error, or the kind that fits best.
    pub fn kind(&self) -> std::io::ErrorKind {
        match self {
            Self::Read { error, .. } | Self::Write(error) => error.kind(),
            Self::Changed(_) => std::io::ErrorKind::UnexpectedEof,
            Self::FileType(_) => std::io::ErrorKind::InvalidData,
        }
    }
}

/// Returns the NAR of `path` as a whole, or `None` if it is longer than `size`
/// bytes. Blocks the calling thread. For a small path this is cheaper than a
/// stream, which starts a thread and sends each chunk through a channel.
pub fn whole(path: &Path, size: usize) -> Result<Option<Vec<u8>>, NarError> {
    let mut all = None;
    let mut emit = |chunk: Vec<u8>| match all.replace(chunk) {
        // A second chunk is the sign that the archive is too long: it gets a few
        // bytes of room and is refused once it is full.
        None => Ok(Vec::with_capacity(64)),
        Some(_) => Err(std::io::ErrorKind::FileTooLarge.into()),
    };
    match Encoder::new(Vec::with_capacity(size), &mut emit).encode(path) {
        Ok(()) => Ok(all),
        Err(NarError::Write(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the NAR of `path` and returns its length in bytes.
pub fn dump(path: &Path, out: &mut dyn Write) -> Result<u64, NarError> {
    let mut written = 0;
    let mut emit = |mut chunk: Vec<u8>| {
        written += chunk.len() as u64;
        out.write_all(&chunk)?;
        chunk.clear();
        Ok(chunk)
    };
    Encoder::new(Vec::with_capacity(CHUNK), &mut emit).encode(path)?;
    out.flush().map_err(NarError::Write)?;
    Ok(written)
}
