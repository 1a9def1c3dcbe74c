//! The kernel's table of locks, kept open and warm.
//!
//! The first reader of `/proc/locks` waits until all processors have passed a
//! quiescent state (Linux takes `file_rwsem` for writing: `percpu_down_write`,
//! `rcu_sync_enter`): 12 ms on an idle machine with 250 Hz, and ten times that
//! on a busy one; a small build takes less. For about 10 ms after a read the next
//! one costs 20 to 50 µs. So the table is read repeatedly while makers are needed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use super::super::locks::{self, FileId};
use super::super::proc::Proc;

/// The kernel hands out a page at a time.
const PAGE: usize = 4096;
/// Upper bound of the bytes of the table that are read; a line has about 60.
const MOST: usize = 1 << 20;

pub(super) struct Table {
    file: Option<File>,
    text: Vec<u8>,
}

impl Table {
    pub(super) fn open(proc: &Proc) -> Self {
        Self { file: proc.open("locks"), text: Vec::new() }
    }

    /// Keeps the next read cheap.
    pub(super) fn touch(&self) {
        let _ = self.file.as_ref().map(|file| file.read_at(&mut [0], 0));
    }

    /// The holder of each lock. The table may change between two pages: a listed
    /// holder held the lock; one that is not listed may have held it as well.
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
