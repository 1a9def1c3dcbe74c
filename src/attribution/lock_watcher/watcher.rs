//! The thread that reads events of lock files and the kernel's lock table, and
//! turns them into attempts.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::lineage::Lineage;
use super::super::locks;
use super::super::proc::{Proc, ProcId};
use super::attempts::{HELD_FILES, HeldFile, Holder, LONGEST_PAUSE, State};
use super::events::Events;
use super::table::Table;
use crate::observe::detail;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags};

/// Upper bound of the processes whose ancestors are remembered.
const LINEAGES: usize = 1024;
/// How long after a lock the next one is expected.
const BUSY: Duration = Duration::from_secs(1);

pub(super) struct Shared {
    dir: PathBuf,
    proc: Proc,
    wake: OwnedFd,
    pub(super) held_files: Arc<()>,
    state: Mutex<State>,
    pub(super) worked: Condvar,
    /// How often `catch_up` was called.
    pub(super) asked: AtomicU64,
    /// There are sessions: the table is read all the time, which keeps it fast.
    pub(super) attended: AtomicBool,
    /// Paths of no session are routed by their makers: the table is read while
    /// locks come and go.
    pub(super) unowned: AtomicBool,
    pub(super) rescan: AtomicBool,
    pub(super) ended: AtomicBool,
}

/// Makes callers stop waiting for the thread when it ends, for any reason.
struct EndGuard<'a>(&'a Shared);

impl Drop for EndGuard<'_> {
    fn drop(&mut self) {
        self.0.state().watches = false;
    }
}

impl Shared {
    pub(super) fn new(dir: &Path, proc: Proc) -> std::io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            proc,
            wake: eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?,
            held_files: Arc::new(()),
            state: Mutex::default(),
            worked: Condvar::new(),
            asked: AtomicU64::new(0),
            attended: AtomicBool::new(false),
            unowned: AtomicBool::new(false),
            rescan: AtomicBool::new(true),
            ended: AtomicBool::new(false),
        })
    }

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes the thread run its loop once more.
    pub(super) fn wake(&self) {
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes()); // a full counter wakes it as well
    }

    pub(super) fn run(&self, mut events: Events) {
        let _gone = EndGuard(self);
        let mut table = Table::open(&self.proc);
        let mut busy_until = Instant::now();
        while !self.ended.load(Ordering::Acquire) {
            let mut drained = [0; 8];
            let _ = rustix::io::read(&self.wake, &mut drained);
            // Before the events: those from before the call are among them.
            let asked = self.asked.load(Ordering::Acquire);
            let mut state = self.state();
            if self.rescan.swap(false, Ordering::AcqRel) {
                events.renew();
                self.scan(&mut state);
            }
            let lost = events.drain(|base, what| {
                busy_until = Instant::now() + BUSY;
                state.happened(base, what, || self.held(base));
            });
            if lost {
                self.rescan.store(true, Ordering::Release);
                continue;
            }
            let due = !state.unsettled.is_empty();
            if due {
                drop(state);
                // Without the lock on the state, since it may take long; before the
                // read, which is fast then.
                table.touch();
                let at = Instant::now();
                let holders = table.holders();
                state = self.state();
                self.learn(&mut state, &holders, at);
            }
            state.tidy(Instant::now());
            state.done = asked;
            let mut pause = state.pause(Instant::now());
            drop(state);
            self.worked.notify_all();
            let unowned = self.unowned.load(Ordering::Acquire) && Instant::now() < busy_until;
            if unowned || self.attended.load(Ordering::Acquire) {
                if !due {
                    table.touch();
                }
                pause = Some(pause.unwrap_or(LONGEST_PAUSE));
            }
            self.rest(&events, pause);
        }
    }

    fn rest(&self, events: &Events, pause: Option<Duration>) {
        let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
        let mut fds = [PollFd::new(events.fd(), PollFlags::IN), PollFd::new(&self.wake, PollFlags::IN)];
        let _ = poll(&mut fds, pause.as_ref());
    }

    fn held(&self, base: &str) -> Option<HeldFile> {
        if Arc::strong_count(&self.held_files) > HELD_FILES {
            return None;
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.dir.join(format!("{base}.lock")), flags, Mode::empty()).ok()?;
        let inode = rustix::fs::fstat(&file).ok()?.st_ino;
        Some(HeldFile { file, inode, _counted: Arc::clone(&self.held_files) })
    }

    /// Finds the lock files that exist and those that were removed. Known holders
    /// become unknown, since events may be missing.
    fn scan(&self, state: &mut State) {
        state.device = locks::device(&self.proc, &self.dir);
        for (base, entry) in &mut state.paths {
            for open in entry.attempts.iter_mut().filter(|t| t.removed.is_none()) {
                let there = std::fs::symlink_metadata(self.dir.join(format!("{base}.lock")));
                let same = there.is_ok_and(|m| open.held.as_ref().is_none_or(|held| held.inode == m.ino()));
                open.holder = Holder::Unknown;
                open.removed = (!same).then(Instant::now);
            }
        }
        let Ok(files) = std::fs::read_dir(&self.dir) else { return };
        for file in files.filter_map(Result::ok) {
            if let Some(base) = file.file_name().to_str().and_then(|name| name.strip_suffix(".lock")) {
                state.created(base, true, || self.held(base));
            }
        }
    }

    /// Takes in a read of the lock table that began at `at`.
    fn learn(&self, state: &mut State, holders: &HashMap<locks::FileId, i32>, at: Instant) {
        let Some((major, minor)) = state.device else { return };
        let State { paths, lineages, unsettled, .. } = state;
        for base in unsettled.iter() {
            let Some(entry) = paths.get_mut(base) else { continue };
            for open in entry.attempts.iter_mut().filter(|t| t.is_unsettled()) {
                let Some(inode) = open.held.as_ref().map(|held| held.inode) else { continue };
                if let Some(pid) = holders.get(&(major, minor, inode)).copied()
                    && open.held_by(pid, at)
                {
                    open.holder = Holder::Seen(pid, self.lineage(lineages, pid));
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
