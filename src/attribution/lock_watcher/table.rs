//! The kernel's table of locks, kept open and warm.
//!
//! Whoever reads `/proc/locks` first waits for all processors to pass a point
//! of rest (Linux takes `file_rwsem` for writing: `percpu_down_write`,
//! `rcu_sync_enter`): 12 ms on an idle machine with 250 Hz, and ten times that
//! on a busy one, in which a small build is over. For some 10 ms after a read
//! the next one costs 20 to 50 µs. So it is read again and again while somebody
//! wants to know.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::super::locks::{self, FileId};
use super::super::proc::Proc;

/// The kernel hands out a page at a time.
const PAGE: usize = 4096;
/// Bytes of the table that are read; lines are about 60.
const MOST: usize = 1 << 20;

pub(super) struct Table {
    file: Option<File>,
    text: Vec<u8>,
}

impl Table {
    pub(super) fn open(proc: &Proc) -> Self {
        Self { file: proc.open("locks"), text: Vec::new() }
    }

    /// Keeps the next look cheap.
    pub(super) fn touch(&self) {
        let _ = self.file.as_ref().map(|file| file.read_at(&mut [0], 0));
    }

    /// Who holds which lock. Between two pages the table may change: what is
    /// listed was so, and what is not listed may have been.
    pub(super) fn holders(&mut self) -> std::collections::HashMap<FileId, i32> {
        self.text.clear();
        if let Some(file) = &self.file {
            let mut page = [0; PAGE];
            while self.text.len() < MOST {
                match file.read_at(&mut page, self.text.len() as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => self.text.extend_from_slice(&page[..n]),
                }
            }
        }
        locks::parse(&String::from_utf8_lossy(&self.text))
    }
}
