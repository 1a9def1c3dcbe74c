//! The thread that reads events of lock files and the kernel's lock table, and
//! turns them into attempts.

use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::super::locks::{self, Device};
use super::super::proc::Proc;
use super::attempts::{HELD_FILES, HeldFile, LockFile, Next, State};
use super::events::Events;
use super::lineages::Lineages;
use super::pace::{Bucket, Pace};
use super::table::Table;
use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{Mode, OFlags};

/// Pause between two reads that keep the lock table fast to read.
const WARM: Duration = Duration::from_millis(5);
/// Upper bound of the times that events wake the thread up: that many at once and in
/// each second. More events than these are read together, after [`DEAF`].
const WAKES: (u32, u32) = (2000, 1000);
/// How long events wait when too many have woken the thread up.
const DEAF: Duration = Duration::from_millis(2);

pub(super) struct Shared {
    dir: PathBuf,
    proc: Proc,
    wake: OwnedFd,
    pub(super) held_files: Arc<()>,
    state: Mutex<State>,
    pub(super) worked: Condvar,
    /// How often `catch_up` was called.
    pub(super) asked: AtomicU64,
    /// A caller waits for a read of the lock table.
    pub(super) wanted: AtomicBool,
    /// There are sessions: the table is read all the time, which keeps it fast.
    pub(super) attended: AtomicBool,
    /// Paths of no session are routed by their makers: the table is read while
    /// locks come and go.
    pub(super) unowned: AtomicBool,
    pub(super) rescan: AtomicBool,
    pub(super) ended: AtomicBool,
    /// The device of the locks is the one that stat(2) reports, and may be another one.
    pub(super) by_stat: AtomicBool,
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
            wanted: AtomicBool::new(false),
            attended: AtomicBool::new(false),
            unowned: AtomicBool::new(false),
            rescan: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            by_stat: AtomicBool::new(false),
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
        let mut lineages = Lineages::default();
        let mut pace = Pace::new(Instant::now());
        let mut wakes = Bucket::new(WAKES, Instant::now());
        while !self.ended.load(Ordering::Acquire) {
            let mut drained = [0; 8];
            let _ = rustix::io::read(&self.wake, &mut drained);
            // Before the events: those from before the call are among them.
            let asked = self.asked.load(Ordering::Acquire);
            let wanted = self.wanted.swap(false, Ordering::AcqRel);
            let mut state = self.state();
            if self.rescan.swap(false, Ordering::AcqRel) {
                events.renew();
                self.scan(&mut state);
                pace.event(Instant::now());
            }
            if self.drain(&mut events, &mut state, &mut pace) {
                continue;
            }
            // A lock that is already removed says no more, and costs no read.
            if !state.is_urgent() {
                pace.calm();
            } else if !pace.is_urgent() {
                state.calm();
            }
            let attended = self.attended.load(Ordering::Acquire);
            let now = Instant::now();
            let due = pace.next(now, attended) == Some(Duration::ZERO);
            let reads = state.has_open() && (wanted || due);
            if wanted && !reads {
                state.reads += 1; // it would show nothing
            }
            if reads {
                // Without the lock on the state, since it may take long; before the
                // read, which is fast then.
                let device = state.device;
                drop(state);
                table.warm(now);
                let at = Instant::now();
                let holders = table.holders(device, at);
                pace.read(at, holders.len());
                state = self.state();
                let mut ancestors = |pid| lineages.of(&self.proc, pid, at);
                let tentative = state.learn(holders, at, &mut ancestors);
                let lost = self.drain(&mut events, &mut state, &mut pace);
                if !lost {
                    state.settle(&tentative, at, &mut ancestors);
                }
                if !state.is_urgent() {
                    pace.calm();
                }
                if lost {
                    continue;
                }
            }
            let now = Instant::now();
            state.tidy(now);
            let answers = state.done < asked || wanted;
            state.done = asked;
            let open = state.has_open();
            drop(state);
            if answers {
                self.worked.notify_all();
            }
            let mut pause = open.then(|| pace.next(now, attended)).flatten();
            let unowned = self.unowned.load(Ordering::Acquire) && pace.is_busy(now);
            if attended || unowned {
                table.warm(now);
                pause = Some(pause.map_or(WARM, |pause| pause.min(WARM)));
            }
            self.rest(&events, pause, wakes.take(now));
        }
    }

    /// Takes in all events so far; true when some were lost and all locks are to be
    /// read again.
    fn drain(&self, events: &mut Events, state: &mut State, pace: &mut Pace) -> bool {
        let lost = events.drain(|base, what| match state.happened(base, what, || self.file_to_hold(base)) {
            Next::Urgent => pace.urgent(Instant::now()),
            Next::Soon => pace.event(Instant::now()),
            Next::Nothing => {}
        });
        if lost.closes {
            state.doubt();
        }
        if lost.changes {
            self.rescan.store(true, Ordering::Release);
        }
        lost.changes
    }

    /// Waits for the pause, and for an event as well when `listens`.
    fn rest(&self, events: &Events, pause: Option<Duration>, listens: bool) {
        let pause = if listens { pause } else { Some(pause.map_or(DEAF, |pause| pause.min(DEAF))) };
        let pause = pause.and_then(|pause| Timespec::try_from(pause).ok());
        let wake = PollFd::new(&self.wake, PollFlags::IN);
        let mut both = [wake.clone(), PollFd::new(events.fd(), PollFlags::IN)];
        let fds = if listens { &mut both[..] } else { &mut both[..1] };
        let _ = poll(fds, pause.as_ref());
    }

    fn file(&self, base: &str) -> Option<LockFile> {
        let file = rustix::fs::lstat(self.dir.join(format!("{base}.lock"))).ok()?;
        Some(LockFile { inode: file.st_ino, held: None })
    }

    fn file_to_hold(&self, base: &str) -> Option<LockFile> {
        if Arc::strong_count(&self.held_files) > HELD_FILES {
            return self.file(base);
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::open(self.dir.join(format!("{base}.lock")), flags, Mode::empty()).ok()?;
        let inode = rustix::fs::fstat(&file).ok()?.st_ino;
        Some(LockFile { inode, held: Some(HeldFile { file, _counted: Arc::clone(&self.held_files) }) })
    }

    /// Finds the lock files that exist and those that were removed. Known holders
    /// become unknown, since events may be missing.
    fn scan(&self, state: &mut State) {
        let device = locks::device(&self.proc, &self.dir);
        self.by_stat.store(matches!(device, Some(Device::ByStat(_))), Ordering::Release);
        state.device = device.map(|device| match device {
            Device::Certain(device) | Device::ByStat(device) => device,
        });
        state.recount(|base| self.file(base).map(|file| file.inode));
        let Ok(files) = std::fs::read_dir(&self.dir) else { return };
        for file in files.filter_map(Result::ok) {
            if let Some(base) = file.file_name().to_str().and_then(|name| name.strip_suffix(".lock")) {
                state.created(base, true, || self.file_to_hold(base));
            }
        }
    }
}
