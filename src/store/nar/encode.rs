//! Encodes a file tree as a NAR (Nix manual, "Nix Archive (NAR) format"). A NAR
//! is a sequence of strings. Each one is its length, its bytes, and zeros up to a
//! multiple of eight bytes. The entries of a directory are sorted by the bytes of
//! their names.
//!
//! Must not know: where the chunks go. File contents are read directly into the
//! chunk, without another copy.

use std::ffi::OsString;
use std::fs::FileType;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, Mode, OFlags};

use super::NarError;

/// From this size on, in bytes, the kernel gets the hint that the file is read
/// from beginning to end.
const LARGE: u64 = 1024 * 1024;

/// Takes a full chunk and returns an empty one, which must have some capacity.
pub(super) type Emit<'a> = &'a mut dyn FnMut(Vec<u8>) -> io::Result<Vec<u8>>;

pub(super) struct Encoder<'a> {
    chunk: Vec<u8>,
    emit: Emit<'a>,
}

/// A directory that is being encoded, with the entries that are left.
struct Open {
    names: std::vec::IntoIter<(OsString, FileType)>,
}

impl<'a> Encoder<'a> {
    pub(super) fn new(chunk: Vec<u8>, emit: Emit<'a>) -> Self {
        Self { chunk, emit }
    }

    /// Encodes the tree at `root`. It does not recurse and keeps no directory open,
    /// so the depth of a tree is limited only by the longest path that the system
    /// accepts.
    pub(super) fn encode(mut self, root: &Path) -> Result<(), NarError> {
        let mut path = root.to_owned();
        let kind = std::fs::symlink_metadata(&path).map_err(|e| read(&path, e))?.file_type();
        let mut open = Vec::new();
        self.text(b"nix-archive-1")?;
        open.extend(self.node(&path, kind)?);
        while let Some(directory) = open.last_mut() {
            if let Some((name, kind)) = directory.names.next() {
                self.texts(&[b"entry", b"(", b"name", name.as_bytes(), b"node"])?;
                path.push(&name);
                match self.node(&path, kind)? {
                    Some(child) => open.push(child),
                    None => {
                        path.pop();
                        self.text(b")")?;
                    }
                }
            } else {
                open.pop();
                self.text(b")")?;
                if !open.is_empty() {
                    path.pop();
                    self.text(b")")?;
                }
            }
        }
        if !self.chunk.is_empty() {
            self.hand_on()?;
        }
        Ok(())
    }

    /// Encodes one node. For a directory it writes only the beginning and returns
    /// the entries, which the caller encodes.
    fn node(&mut self, path: &PathBuf, kind: FileType) -> Result<Option<Open>, NarError> {
        self.texts(&[b"(", b"type"])?;
        if kind.is_dir() {
            self.text(b"directory")?;
            return list(path).map(Some).map_err(|e| read(path, e));
        }
        if kind.is_symlink() {
            let target = std::fs::read_link(path).map_err(|e| read(path, e))?;
            self.texts(&[b"symlink", b"target", target.as_os_str().as_bytes(), b")"])?;
        } else if kind.is_file() {
            self.regular(path)?;
        } else {
            return Err(NarError::FileType(path.clone()));
        }
        Ok(None)
    }

    fn regular(&mut self, path: &Path) -> Result<(), NarError> {
        // The file may have been replaced meanwhile: a symlink is not followed, and
        // opening a FIFO does not block.
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::NOCTTY;
        let failed = |e: rustix::io::Errno| read(path, e.into());
        let file = rustix::fs::open(path, flags, Mode::empty()).map_err(failed)?;
        let stat = rustix::fs::fstat(&file).map_err(failed)?;
        let mode = Mode::from_raw_mode(stat.st_mode);
        if !rustix::fs::FileType::from_raw_mode(stat.st_mode).is_file() {
            return Err(NarError::FileType(path.to_owned()));
        }
        let size = u64::try_from(stat.st_size).map_err(|_| NarError::Changed(path.to_owned()))?;
        if size >= LARGE {
            // Only a hint: if it fails, the file is read without it.
            let _ = rustix::fs::fadvise(&file, 0, None, Advice::Sequential);
        }
        self.text(b"regular")?;
        if mode.contains(Mode::XUSR) {
            self.texts(&[b"executable", b""])?;
        }
        self.text(b"contents")?;
        self.put(&size.to_le_bytes())?;
        self.contents(path, &file, size)?;
        self.pad(size)?;
        self.text(b")")
    }

    fn contents(&mut self, path: &Path, file: &OwnedFd, size: u64) -> Result<(), NarError> {
        let mut left = size;
        while left > 0 {
            if self.chunk.len() == self.chunk.capacity() {
                self.hand_on()?;
            }
            let room = self.chunk.capacity() - self.chunk.len();
            let got = if left >= room as u64 {
                rustix::io::read(file, rustix::buffer::spare_capacity(&mut self.chunk))
            } else {
                // Reads no more than the declared size, even if the file grows.
                let from = self.chunk.len();
                let want = usize::try_from(left).unwrap_or(room);
                self.chunk.resize(from + want, 0);
                let got = rustix::io::read(file, &mut self.chunk[from..]);
                self.chunk.truncate(from + *got.as_ref().unwrap_or(&0));
                got
            };
            match got {
                Ok(0) => return Err(NarError::Changed(path.to_owned())),
                Ok(got) => left -= got as u64,
                Err(rustix::io::Errno::INTR) => {}
                Err(e) => return Err(read(path, e.into())),
            }
        }
        Ok(())
    }

    fn texts(&mut self, texts: &[&[u8]]) -> Result<(), NarError> {
        texts.iter().try_for_each(|text| self.text(text))
    }

    fn text(&mut self, text: &[u8]) -> Result<(), NarError> {
        let length = text.len() as u64;
        self.put(&length.to_le_bytes())?;
        self.put(text)?;
        self.pad(length)
    }

    fn pad(&mut self, length: u64) -> Result<(), NarError> {
        let zeros = [0; 8];
        self.put(&zeros[..(length.wrapping_neg() % 8) as usize])
    }

    fn put(&mut self, mut bytes: &[u8]) -> Result<(), NarError> {
        while !bytes.is_empty() {
            if self.chunk.len() == self.chunk.capacity() {
                self.hand_on()?;
            }
            let (now, later) = bytes.split_at(bytes.len().min(self.chunk.capacity() - self.chunk.len()));
            self.chunk.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn hand_on(&mut self) -> Result<(), NarError> {
        let full = std::mem::take(&mut self.chunk);
        self.chunk = (self.emit)(full).map_err(NarError::Write)?;
        Ok(())
    }
}

/// Lists a directory, sorted by the bytes of the names. These lists are the only
/// memory whose size depends on the tree.
fn list(path: &Path) -> io::Result<Open> {
    let mut names = Vec::new();
    for entry in std::fs::read_dir(path)? {
        let entry = entry?;
        names.push((entry.file_name(), entry.file_type()?));
    }
    names.sort_unstable_by(|(a, _), (b, _)| a.as_bytes().cmp(b.as_bytes()));
    Ok(Open { names: names.into_iter() })
}

fn read(path: &Path, error: io::Error) -> NarError {
    NarError::Read { path: path.to_owned(), error }
}
