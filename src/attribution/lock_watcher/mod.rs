//! Sees who holds the locks of the store while they are held, and remembers it
//! until the path is taken in. One thread; who asks it never waits long for it.
//! Must not know sessions.
//!
//! A path may be tried several times: a build fails or is killed and leaves its
//! lock file, and somebody else goes on with it; or somebody who waited finds
//! it made and lets go. Invariant: what is said about a path is about the first
//! try that was not given up, and about who was seen to hold its lock when
//! nobody has let go of it since. Where that was not seen, nothing is said.

mod attempts;
mod events;
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

/// Longest wait of who asks for what happened before.
const PATIENCE: Duration = Duration::from_millis(100);
/// How long what a hook said is kept for a path that does not turn up.
const HOOKED: Duration = Duration::from_secs(60);

/// Watches locks. Clones are the same one; it ends with the last.
#[derive(Clone)]
pub struct LockWatcher {
    ours: Arc<Ours>,
}

struct Ours(Arc<Shared>);

impl Drop for Ours {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        self.0.wake();
    }
}

impl LockWatcher {
    /// Begins to watch the locks in a store directory. Where the kernel grants
    /// no watch there is no evidence, which is said once, and no error.
    pub fn start(store_dir: &Path) -> std::io::Result<Self> {
        let events = Events::watch(store_dir)
            .inspect_err(|error| event!(LOCK_WATCHER_BLIND, error = %error, "who makes a path cannot be seen: no watch for locks"))
            .ok();
        let shared = Arc::new(Shared::new(store_dir, Proc::default())?);
        if let Some(events) = events {
            shared.state().watches = true;
            let watcher = Arc::clone(&shared);
            std::thread::Builder::new().name("lock_watcher".to_owned()).spawn(move || watcher.run(events))?;
        }
        Ok(Self { ours: Arc::new(Ours(shared)) })
    }

    fn shared(&self) -> &Shared {
        &self.ours.0
    }

    /// Who wants to know: while there are sessions, the first lock after a
    /// pause is seen as fast as the next one; while paths of no session are
    /// sent where their makers' go, those that follow on one are. Otherwise the
    /// first look waits for the kernel, and who holds a lock for less than some
    /// 12 ms may not be seen.
    pub fn attend(&self, sessions: bool, strangers: bool) {
        self.shared().strangers.store(strangers, Ordering::Release);
        if self.shared().attended.swap(sessions, Ordering::AcqRel) != sessions {
            self.shared().wake();
        }
    }

    /// The directory is another one, or some of its events were lost.
    pub fn rescan(&self) {
        self.shared().rescan.store(true, Ordering::Release);
        self.shared().wake();
    }

    /// Waits, for a moment at most, until what happened before is seen to.
    pub fn catch_up(&self) {
        let shared = self.shared();
        let asked = shared.asked.fetch_add(1, Ordering::AcqRel) + 1;
        shared.wake();
        let behind = |s: &mut attempts::State| s.watches && s.done < asked;
        let _ = shared.worked.wait_timeout_while(shared.state(), PATIENCE, behind);
    }

    /// A hook, run by the builder, named these paths.
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

    /// Whether a hook spoke of this path, and nobody has asked who made it.
    pub fn is_hooked(&self, base: &str) -> bool {
        self.shared().state().paths.get(base).is_some_and(|e| e.hook.is_some())
    }

    /// Who made a path that is valid now; forgets it. After [`Self::catch_up`]:
    /// who holds the lock of a valid path, and has since before it was valid,
    /// made it.
    pub fn maker(&self, base: &str) -> Option<Maker> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.shared().state();
        loop {
            let entry = state.paths.get(base)?;
            let is_open = entry.tries.first().is_some_and(attempts::Attempt::is_unsettled);
            // Its look is due: the next one tells, or its removal.
            if entry.hook.is_some() || !is_open || !state.watches || Instant::now() >= until {
                break;
            }
            let wait = Duration::from_millis(1);
            let turn = self.shared().worked.wait_timeout(state, wait);
            state = turn.unwrap_or_else(PoisonError::into_inner).0;
        }
        let entry = state.paths.remove(base)?;
        if let Some((maker, _)) = entry.hook {
            return Some(maker);
        }
        let lineage = entry.tries.into_iter().next()?.seen()?;
        Some(Maker { lineage, evidence: Evidence::Process })
    }

    /// Everything that became valid before `since` was taken in: tries that
    /// had ended by then came to nothing.
    pub fn sweep(&self, since: Instant) {
        let mut state = self.shared().state();
        state.paths.retain(|_, entry| {
            entry.tries.retain(|t| t.removed.is_none_or(|at| at >= since));
            if entry.hook.as_ref().is_some_and(|(_, at)| at.elapsed() > HOOKED) {
                entry.hook = None;
            }
            entry.hook.is_some() || !entry.tries.is_empty()
        });
    }
}
