//! Finds the holders of the store's locks while they are held, and remembers
//! them until the path is taken in. One thread; callers wait for it for
//! [`MAX_WAIT`] at most. Must not know: sessions.
//!
//! There may be several attempts at a path: a build fails or is killed and leaves
//! its lock file, and another process continues with it; or a process that waited
//! finds the path valid and releases the lock. Invariant: the answer about a path
//! is about the first attempt that was not abandoned, and names the process that
//! was seen to hold its lock, provided that no process has closed the file since.
//! Without such a process there is no answer.

mod attempts;
mod events;
mod lineages;
mod pace;
mod table;
mod watcher;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use super::lineage::Lineage;
use super::proc::Proc;
use super::windows::{Evidence, Maker};
use crate::observe::event;
use events::Events;
use watcher::Shared;

/// Upper bound of the time that a caller waits for the thread.
const MAX_WAIT: Duration = Duration::from_millis(100);
/// How long after a lock was closed its holder is certainly not listed any more.
const SETTLED: Duration = Duration::from_micros(200);
/// How long a hook's report is kept for a path that does not become valid.
const HOOKED: Duration = Duration::from_secs(60);

/// Watches locks. Clones share one thread, which ends with the last of them.
#[derive(Clone)]
pub struct LockWatcher {
    owner: Arc<Owner>,
}

struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.wake();
    }
}

impl LockWatcher {
    /// Starts to watch the locks in a store directory. Where the kernel refuses a
    /// watch, makers stay unknown; that is logged once and is no error.
    pub fn start(store_dir: &Path) -> std::io::Result<Self> {
        let events = Events::watch(store_dir)
            .inspect_err(|error| event!(LOCK_WATCHER_BLIND, error = %error, "the makers of paths stay unknown, because locks in the store directory cannot be watched: {error}; sessions still get their paths by hook, closure and window"))
            .ok();
        let shared = Arc::new(Shared::new(store_dir, Proc::default())?);
        if let Some(events) = events {
            shared.state().watches = true;
            let watcher = Arc::clone(&shared);
            std::thread::Builder::new().name("lock_watcher".to_owned()).spawn(move || watcher.run(events))?;
        }
        Ok(Self { owner: Arc::new(Owner(shared)) })
    }

    fn shared(&self) -> &Shared {
        &self.owner.0
    }

    /// Says who needs makers. While there are sessions, the first lock after a
    /// pause is seen as fast as the next one; while paths of no session are
    /// routed by their makers, the locks that follow closely on another one are.
    /// Otherwise the first read of the lock table waits for the kernel, and a
    /// process that holds a lock for less than about 12 ms may not be seen.
    pub fn attend(&self, sessions: bool, unowned: bool) {
        self.shared().unowned.store(unowned, Ordering::Release);
        if self.shared().attended.swap(sessions, Ordering::AcqRel) != sessions {
            self.shared().wake();
        }
    }

    /// Why makers stay unknown, or may; none if they are found.
    pub fn trouble(&self) -> Option<String> {
        let shared = self.shared();
        if !shared.state().watches {
            return Some(
                "makers of paths stay unknown, because locks in the store directory cannot be watched"
                    .to_owned(),
            );
        }
        shared.by_stat.load(Ordering::Acquire).then(|| {
            "makers of paths may stay unknown: neither /proc/locks nor /proc/self/mountinfo names the device of the \
             store directory, and that of stat may be another one"
                .to_owned()
        })
    }

    /// Looks for all lock files again: the directory is another one, or some of
    /// its events were lost.
    pub fn rescan(&self) {
        self.shared().rescan.store(true, Ordering::Release);
        self.shared().wake();
    }

    /// Waits until all earlier events are taken in, [`MAX_WAIT`] at most.
    pub fn catch_up(&self) {
        let shared = self.shared();
        let asked = shared.asked.fetch_add(1, Ordering::AcqRel) + 1;
        shared.wake();
        let behind = |s: &mut attempts::State| s.watches && s.done < asked;
        let _ = shared.worked.wait_timeout_while(shared.state(), MAX_WAIT, behind);
    }

    /// Records that a post-build hook, run by the builder, named these paths.
    pub fn hooked(&self, bases: &[String], lineage: &Arc<Lineage>) {
        let now = Instant::now();
        let mut state = self.shared().state();
        for base in bases {
            let maker = Maker { lineage: Arc::clone(lineage), evidence: Evidence::Hook };
            if let Some(entry) = state.entry(base) {
                entry.hook = Some((maker, now));
            }
        }
    }

    /// Whether a hook named this path and [`Self::maker`] was not called since.
    pub fn is_hooked(&self, base: &str) -> bool {
        self.shared().state().paths.get(base).is_some_and(|e| e.hook.is_some())
    }

    /// Who made each of these paths, which are valid now; see [`Self::maker`].
    pub fn makers(&self, bases: &[String]) -> Vec<Option<Maker>> {
        let mut waits = true;
        bases.iter().map(|base| self.maker_now(base, &mut waits)).collect()
    }

    /// Forgets who made these paths, when that is in the ledger; `makers`: what was
    /// said of them. What a hook has said since is kept.
    pub fn forget(&self, bases: &[String], makers: &[Option<Maker>]) {
        let mut state = self.shared().state();
        for (base, maker) in bases.iter().zip(makers) {
            let Some(entry) = state.paths.get_mut(base) else { continue };
            let hooked = maker.as_ref().is_some_and(|maker| maker.evidence == Evidence::Hook);
            if hooked || entry.hook.is_none() {
                state.paths.remove(base);
            } else {
                entry.attempts.clear();
            }
        }
    }

    /// Returns the maker of a path that is valid now. To be called after
    /// [`Self::catch_up`]: the process that holds the lock of a valid path, and held it
    /// before the path was valid, made it.
    pub fn maker(&self, base: &str) -> Option<Maker> {
        self.maker_now(base, &mut true)
    }

    /// As [`Self::maker`]. `waits`: whether the lock table is read for a lock that is
    /// still held and whose holder is unknown. False afterwards: all locks were looked at.
    fn maker_now(&self, base: &str, waits: &mut bool) -> Option<Maker> {
        let shared = self.shared();
        let mut state = shared.state();
        let known = |state: &attempts::State| {
            state.paths.get(base).is_none_or(|entry| {
                entry.hook.is_some() || !entry.attempts.first().is_some_and(attempts::Attempt::is_unsettled)
            })
        };
        if *waits && state.watches && !known(&state) {
            *waits = false;
            // A process that closed the lock just now may still be listed: the second
            // time the table is read some time after that.
            for pause in [Duration::ZERO, SETTLED] {
                if !pause.is_zero() {
                    drop(state);
                    std::thread::sleep(pause);
                    state = shared.state();
                }
                // A read may have begun before: the next one counts.
                let (until, reads) = (Instant::now() + MAX_WAIT, state.reads + 2);
                while state.watches && !known(&state) && state.reads < reads && Instant::now() < until {
                    shared.wanted.store(true, Ordering::Release);
                    shared.wake();
                    let turn = shared.worked.wait_timeout(state, MAX_WAIT);
                    state = turn.unwrap_or_else(PoisonError::into_inner).0;
                }
                if known(&state) {
                    break;
                }
            }
        }
        let entry = state.paths.get(base)?;
        if let Some((maker, _)) = &entry.hook {
            return Some(maker.clone());
        }
        let lineage = entry.attempts.first()?.seen()?;
        Some(Maker { lineage, evidence: Evidence::Process })
    }

    /// Forgets the attempts that ended before `since`, when everything that
    /// became valid until then has been taken in: they made no path.
    pub fn sweep(&self, since: Instant) {
        let mut state = self.shared().state();
        state.paths.retain(|_, entry| {
            entry.attempts.retain(|t| t.removed.is_none_or(|at| at >= since));
            if entry.hook.as_ref().is_some_and(|(_, at)| at.elapsed() > HOOKED) {
                entry.hook = None;
            }
            entry.hook.is_some() || !entry.attempts.is_empty()
        });
    }
}

/// A watcher that sees what the simulation tells it.
#[cfg(test)]
impl LockWatcher {
    pub(crate) fn simulated(store_dir: &Path) -> std::io::Result<Self> {
        Ok(Self { owner: Arc::new(Owner(Arc::new(Shared::new(store_dir, Proc::default())?))) })
    }

    /// A process was seen to hold the path's lock.
    pub(crate) fn saw(&self, base: &str, lineage: &Arc<Lineage>) {
        if let Some(entry) = self.shared().state().entry(base) {
            entry.attempts.clear();
            entry.attempts.push(attempts::Attempt::of(Arc::clone(lineage)));
        }
    }
}
