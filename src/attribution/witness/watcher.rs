//! The thread that looks: what is told and what `/proc/locks` says become tries.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::sync::atomic::AtomicU64;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::super::lineage::Lineage;
use super::super::locks;
use super::super::proc::{Proc, ProcId};
use super::tries::{Inode, State, Try};
use crate::observe::detail;

/// Events that are looked at together.
const BATCH: usize = 64;
/// Processes whose ancestors are remembered.
const LINEAGES: usize = 1024;
/// Looks without a pause in between: an addition is over in no time.
const EAGER: usize = 6;

pub(super) enum Order {
    Created(String),
    Removed(String),
    Rescan,
}

pub(super) struct Shared {
    pub(super) dir: PathBuf,
    pub(super) proc: Proc,
    pub(super) told: AtomicU64,
    pub(super) state: Mutex<State>,
    pub(super) worked: Condvar,
}

impl Shared {
    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn run(&self, incoming: &Receiver<Order>) {
        self.scan(&mut self.state());
        loop {
            let pause = self.state().pause();
            let mut orders = Vec::new();
            match incoming.recv_timeout(pause) {
                Ok(order) => orders.push(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            orders.extend(incoming.try_iter().take(BATCH));
            let mut state = self.state();
            let count = orders.len() as u64;
            for order in orders {
                match order {
                    Order::Created(base) => state.created(&base, false),
                    Order::Removed(base) => self.removed(&mut state, &base),
                    Order::Rescan => self.scan(&mut state),
                }
            }
            for _ in 0..EAGER {
                self.look(&mut state);
                if count == 0 || !state.open().any(Try::is_awaited) {
                    break;
                }
            }
            state.done += count;
            drop(state);
            self.worked.notify_all();
        }
    }

    fn inode(&self, base: &str) -> Inode {
        let file = self.dir.join(format!("{base}.lock"));
        std::fs::symlink_metadata(file).map_or(Inode::Missed, |m| Inode::Is(m.ino()))
    }

    fn removed(&self, state: &mut State, base: &str) {
        let Some(entry) = state.paths.get_mut(base) else { return };
        let Some(ended) = entry.tries.iter_mut().find(|t| t.removed.is_none()) else { return };
        ended.removed = Some(Instant::now());
        if self.inode(base) == ended.inode {
            // Its file is there still: what was seen was the next try already.
            ended.holder = None;
        }
    }

    /// Finds the lock files that are there, and those that are not any more.
    fn scan(&self, state: &mut State) {
        state.device = locks::device(&self.proc, &self.dir);
        let now = Instant::now();
        for (base, entry) in &mut state.paths {
            for gone in entry.tries.iter_mut().filter(|t| t.removed.is_none()) {
                if self.inode(base) != gone.inode {
                    gone.removed = Some(now);
                }
            }
        }
        let Ok(files) = std::fs::read_dir(&self.dir) else { return };
        for file in files.filter_map(Result::ok) {
            if let Some(base) = file.file_name().to_str().and_then(|name| name.strip_suffix(".lock"))
                && state.paths.get(base).is_none_or(|e| e.tries.iter().all(|t| t.removed.is_some()))
            {
                state.created(base, true);
            }
        }
    }

    /// Looks who holds the open locks now.
    pub(super) fn look(&self, state: &mut State) {
        if state.open().next().is_none() {
            return;
        }
        let Some((major, minor)) = state.device else { return };
        // First who holds what, then which file is there: inodes are used
        // again, and only what was there before and after is what was held.
        let holders = locks::holders(&self.proc);
        let State { paths, lineages, .. } = state;
        for (base, entry) in paths {
            for open in entry.tries.iter_mut().filter(|t| t.is_open()) {
                let there = match open.inode {
                    Inode::Unread => self.inode(base),
                    known => known,
                };
                open.inode = there;
                let Inode::Is(inode) = there else { continue };
                let now = holders.get(&(major, minor, inode)).copied();
                // Who succeeds removes the file before letting go; while it is
                // there, the former holder has given up.
                if now != open.holder.as_ref().map(|(pid, _)| *pid) && self.inode(base) == there {
                    open.holder = now.map(|pid| (pid, self.lineage(lineages, pid)));
                }
            }
        }
    }

    fn lineage(&self, known: &mut HashMap<ProcId, Arc<Lineage>>, pid: i32) -> Option<Arc<Lineage>> {
        let id = self.proc.stat(pid)?.id;
        if let Some(lineage) = known.get(&id) {
            return Some(Arc::clone(lineage));
        }
        let Some(lineage) = Lineage::of(&self.proc, pid) else {
            detail!(pid = pid, "what holds a lock of the store does not show whom it works for");
            return None;
        };
        if known.len() >= LINEAGES {
            known.clear();
        }
        let lineage = Arc::new(lineage);
        known.insert(id, Arc::clone(&lineage));
        Some(lineage)
    }
}
