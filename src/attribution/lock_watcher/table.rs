//! The kernel's table of locks, kept open and warm.
//!
//! The first reader of `/proc/locks` waits until all processors have passed a
//! quiescent state (Linux takes `file_rwsem` for writing: `percpu_down_write`,
//! `rcu_sync_enter`): 12 ms on an idle machine with 250 Hz, and ten times that
//! on a busy one; a small build takes less. For about 10 ms after a read the next
//! one costs 5 to 50 µs. So the table is read repeatedly while makers are needed.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use super::super::locks;
use super::super::proc::Proc;

/// The kernel hands out a page at a time.
const PAGE: usize = 4096;
/// A line is shorter. A page with this much room left is the last one.
const LINE: usize = 256;
/// Upper bound of the bytes of the table that are read; a line has about 60.
const MOST: usize = 1 << 20;

/// How long after a read the next one is certainly fast.
const WARM: Duration = Duration::from_millis(4);

pub(super) struct Table {
    file: Option<File>,
    text: Vec<u8>,
    holders: Vec<(u64, i32)>,
    /// When the table was last read.
    read: Option<Instant>,
}

impl Table {
    pub(super) fn open(proc: &Proc) -> Self {
        Self { file: proc.open("locks"), text: Vec::new(), holders: Vec::new(), read: None }
    }

    /// Reads a little of the table when it was not read for some time, so that the next
    /// read is fast.
    pub(super) fn warm(&mut self, now: Instant) {
        if self.read.is_none_or(|at| now.duration_since(at) >= WARM) {
            let _ = self.file.as_ref().map(|file| file.read_at(&mut [0], 0));
            self.read = Some(now);
        }
    }

    /// The inode and the holder of each lock on a device. The table may change
    /// between two pages: a listed holder held the lock; one that is not listed may
    /// have held it as well.
    pub(super) fn holders(&mut self, device: Option<(u32, u32)>, now: Instant) -> &[(u64, i32)] {
        self.read = Some(now);
        self.text.clear();
        self.holders.clear();
        if let Some(file) = &self.file {
            let mut page = [0; PAGE];
            while self.text.len() < MOST {
                match file.read_at(&mut page, self.text.len() as u64) {
                    Ok(0) | Err(_) => break,
                    Ok(n) => {
                        self.text.extend_from_slice(&page[..n]);
                        if n + LINE < PAGE {
                            break;
                        }
                    }
                }
            }
        }
        if let Some(device) = device {
            let text = String::from_utf8_lossy(&self.text);
            self.holders.extend(locks::parse_device(&text, device));
        }
        &self.holders
    }
}
