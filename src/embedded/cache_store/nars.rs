//! Receives a NAR: verifies its hash and size while it compresses it, and gives the
//! file its final name only when it is complete and on the disk. Every call blocks.
//! Must not know the database.

use std::cell::RefCell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::super::error::ApiError;
use super::{Content, Pin, nar_file};
use crate::types::{NarHash, sync_dir};

/// zstd level. The cache is on the same host, so time matters more than the last tenth of size.
const LEVEL: i32 = 1;

thread_local! {
    /// One compressor for each thread: setting up its tables takes longer than compressing a small NAR.
    static COMPRESSOR: RefCell<Option<zstd::bulk::Compressor<'static>>> = const { RefCell::new(None) };
}

/// Verifies and compresses a NAR that is in memory.
pub(in super::super) fn compress_small(nar: &[u8], hash: &NarHash, size: u64) -> Result<Vec<u8>, ApiError> {
    if u64::try_from(nar.len()) != Ok(size) || Sha256::digest(nar)[..] != hash.0 {
        return Err(ApiError::bad_nar());
    }
    COMPRESSOR
        .with_borrow_mut(|slot| {
            let compressor = match slot {
                Some(c) => c,
                None => slot.insert(zstd::bulk::Compressor::new(LEVEL)?),
            };
            compressor.include_checksum(true)?;
            compressor.compress(nar)
        })
        .map_err(|e| ApiError::from_io("compressing", &e))
}

/// A NAR that the cache is receiving.
pub(in super::super) struct Incoming {
    hash: NarHash,
    size: u64,
    received: u64,
    hasher: Sha256,
    /// `None` if the cache has the content already and only verifies that the client has it too.
    file: Option<Output>,
    nar_dir: PathBuf,
    max_file: u64,
    pin: Pin,
}

struct Output {
    encoder: zstd::stream::write::Encoder<'static, Temporary>,
}

impl Incoming {
    pub(super) fn begin(
        nar_dir: PathBuf,
        hash: NarHash,
        size: u64,
        known: bool,
        max_file: Option<u64>,
        pin: Pin,
    ) -> Result<Self, ApiError> {
        let file = if known {
            None
        } else {
            let begun = Temporary::create(&nar_dir).and_then(|t| Output::new(t, size));
            Some(begun.map_err(|e| ApiError::from_io("beginning a NAR", &e))?)
        };
        let max_file = max_file.unwrap_or(u64::MAX);
        Ok(Self { hash, size, received: 0, hasher: Sha256::new(), file, nar_dir, max_file, pin })
    }

    pub(in super::super) fn write(&mut self, chunk: &[u8]) -> Result<(), ApiError> {
        self.received += chunk.len() as u64;
        if self.received > self.size {
            return Err(ApiError::bad_nar());
        }
        self.hasher.update(chunk);
        if let Some(out) = &mut self.file {
            out.encoder.write_all(chunk).map_err(|e| ApiError::from_io("writing a NAR", &e))?;
            let written = out.encoder.get_ref().written;
            if written > self.max_file {
                return Err(ApiError::TooLarge { size: written, limit: self.max_file });
            }
        }
        Ok(())
    }

    /// Verifies the NAR and gives the file its final name. The caller holds the returned pin until the row is
    /// committed.
    pub(in super::super) fn finish(self) -> Result<(Content, Pin), ApiError> {
        if self.received != self.size || self.hasher.finalize()[..] != self.hash.0 {
            return Err(ApiError::bad_nar()); // dropping `self.file` removes the temporary file
        }
        let Some(out) = self.file else { return Ok((Content::Known, self.pin)) };
        let file_size = out
            .encoder
            .finish()
            .and_then(|mut temporary| {
                temporary.file.flush()?;
                temporary.file.sync_all()?;
                temporary.keep_as(&nar_file(&self.nar_dir, &self.hash))?;
                sync_dir(&self.nar_dir)?;
                Ok(temporary.written)
            })
            .map_err(|e| ApiError::from_io("finishing a NAR", &e))?;
        Ok((Content::File { size: file_size }, self.pin))
    }
}

impl Output {
    fn new(temporary: Temporary, size: u64) -> io::Result<Self> {
        let mut encoder = zstd::stream::write::Encoder::new(temporary, LEVEL)?;
        encoder.include_checksum(true)?;
        encoder.set_pledged_src_size(Some(size))?;
        Ok(Self { encoder })
    }
}

/// A file that removes itself unless it is kept.
struct Temporary {
    file: File,
    path: Option<PathBuf>,
    written: u64,
}

impl Temporary {
    fn create(nar_dir: &std::path::Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let path = nar_dir.join(format!(".new-{}", NEXT.fetch_add(1, Ordering::Relaxed)));
        let file = OpenOptions::new().write(true).create_new(true).open(&path)?;
        Ok(Self { file, path: Some(path), written: 0 })
    }

    fn keep_as(&mut self, path: &std::path::Path) -> io::Result<()> {
        if let Some(temporary) = &self.path {
            fs::rename(temporary, path)?;
        }
        self.path = None;
        Ok(())
    }
}

impl Write for Temporary {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let n = self.file.write(buf)?;
        self.written += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if let Some(path) = &self.path {
            let _ = fs::remove_file(path); // if this fails, the next start removes the file
        }
    }
}
