//! NARs: Nix's archive format, written from the file system.
//!
//! Must not know: what the archive is for. The bytes are those of
//! `nix-store --dump`. Written here rather than with a crate because the
//! crates at hand refuse trees of 64 levels and more, which Nix stores without
//! a word, and copy file contents once more on the way.

mod encode;
mod stream;

use std::io::Write;
use std::path::{Path, PathBuf};

use encode::Encoder;
pub use stream::{NarStream, stream};

/// How much is read and handed on at once. From 64 KiB up the size makes little
/// difference to the time; a few chunks are in memory for each stream.
pub const CHUNK: usize = 128 * 1024;

/// Why a path could not be archived.
#[derive(Debug, thiserror::Error)]
pub enum NarError {
    /// Reading a file failed.
    #[error("reading {}: {error}", .path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// What the system said.
        error: std::io::Error,
    },
    /// A file became shorter while it was read.
    #[error("{} became shorter while it was read; is something writing to the store?", .0.display())]
    Changed(PathBuf),
    /// Neither file, directory nor symlink.
    #[error("{} is neither a file, a directory nor a symlink", .0.display())]
    FileType(PathBuf),
    /// Writing the archive failed.
    #[error("writing the archive: {0}")]
    Write(std::io::Error),
}

impl NarError {
    /// The kind of the error underneath.
    pub fn kind(&self) -> std::io::ErrorKind {
        match self {
            Self::Read { error, .. } | Self::Write(error) => error.kind(),
            Self::Changed(_) => std::io::ErrorKind::UnexpectedEof,
            Self::FileType(_) => std::io::ErrorKind::InvalidData,
        }
    }
}

/// The NAR of `path` in memory, for a path that is known to be small: one read
/// on a thread that may block, where a stream costs a thread of its own and a
/// hand-over for each chunk. `None` when it is longer than `size`.
pub fn whole(path: &Path, size: usize) -> Result<Option<Vec<u8>>, NarError> {
    let mut all = None;
    let mut emit = |chunk: Vec<u8>| match all.replace(chunk) {
        // Whatever more there is finds a little room, and is refused next time.
        None => Ok(Vec::with_capacity(64)),
        Some(_) => Err(std::io::ErrorKind::FileTooLarge.into()),
    };
    match Encoder::new(Vec::with_capacity(size), &mut emit).encode(path) {
        Ok(()) => Ok(all),
        Err(NarError::Write(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes the NAR of `path`; its length.
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
