//! Sees who holds the locks of the store while they are held, and remembers it
//! until the path is taken in. One thread; who tells it about a lock never
//! waits for it. Must not know sessions.
//!
//! A path may be tried several times: a build fails or is killed and leaves its
//! lock file, and somebody else goes on with it; or somebody who waited finds
//! it made and lets go. Invariant: what is said about a path is about the first
//! try that was not given up. Where that one was not seen, nothing is said.

mod tries;
mod watcher;

#[cfg(test)]
mod tests;

use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::lineage::Lineage;
use super::proc::Proc;
use super::windows::{Evidence, Maker};
use watcher::{Order, Shared};

/// Events that wait for the thread; more are dropped, and their paths unseen.
const QUEUE: usize = 4096;
/// Longest wait of who asks for what was told before.
const PATIENCE: Duration = Duration::from_millis(30);
/// How long what a hook said is kept for a path that does not turn up.
const HOOKED: Duration = Duration::from_secs(60);

/// Watches locks. Clones are the same one; it ends with the last.
#[derive(Clone)]
pub struct Witness {
    orders: SyncSender<Order>,
    shared: Arc<Shared>,
}

impl Witness {
    /// Begins to watch the locks in a store directory.
    pub fn start(store_dir: &Path) -> std::io::Result<Self> {
        let (orders, incoming) = sync_channel(QUEUE);
        let shared = Arc::new(Shared {
            dir: store_dir.to_owned(),
            proc: Proc::default(),
            told: AtomicU64::new(0),
            state: Mutex::default(),
            worked: Condvar::new(),
        });
        let watcher = Arc::clone(&shared);
        std::thread::Builder::new().name("witness".to_owned()).spawn(move || watcher.run(&incoming))?;
        Ok(Self { orders, shared })
    }

    fn tell(&self, order: Order) {
        if self.orders.try_send(order).is_ok() {
            self.shared.told.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// `<base>.lock` appeared.
    pub fn created(&self, base: &str) {
        self.tell(Order::Created(base.to_owned()));
    }

    /// `<base>.lock` went.
    pub fn removed(&self, base: &str) {
        self.tell(Order::Removed(base.to_owned()));
    }

    /// Some of that may not have been told.
    pub fn rescan(&self) {
        self.tell(Order::Rescan);
    }

    /// Waits, for a moment at most, until what was told is seen to.
    pub fn catch_up(&self) {
        let told = self.shared.told.load(Ordering::Acquire);
        let state = self.shared.state();
        let _ = self.shared.worked.wait_timeout_while(state, PATIENCE, |s| s.done < told);
    }

    /// A hook, run by the builder, named these paths.
    pub fn hooked(&self, bases: &[String], lineage: &Arc<Lineage>) {
        let now = Instant::now();
        let mut state = self.shared.state();
        for base in bases {
            let maker = Maker { lineage: Arc::clone(lineage), evidence: Evidence::Hook };
            if let Some(entry) = state.entry(base) {
                entry.hook = Some((maker, now));
            }
        }
    }

    /// Whether a hook spoke of this path, and nobody has asked who made it.
    pub fn is_hooked(&self, base: &str) -> bool {
        self.shared.state().paths.get(base).is_some_and(|e| e.hook.is_some())
    }

    /// Who made a path that is valid now; forgets it.
    pub fn maker(&self, base: &str) -> Option<Maker> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.shared.state();
        loop {
            let entry = state.paths.get(base)?;
            if let Some((maker, _)) = &entry.hook {
                let maker = maker.clone();
                state.paths.remove(base);
                return Some(maker);
            }
            let first = entry.tries.first()?;
            // A lock that is just being removed: only then it is certain that
            // what was seen is this try and not the next one's beginning.
            let sure = first.removed.is_some() || first.seen.elapsed() >= PATIENCE;
            if sure || Instant::now() >= until {
                break;
            }
            let (back, _) = self
                .shared
                .worked
                .wait_timeout(state, Duration::from_millis(1))
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
        }
        let held = state.paths.get(base).is_some_and(|e| e.tries.iter().any(|t| t.removed.is_none()));
        if held {
            self.shared.look(&mut state);
        }
        let first = state.paths.remove(base)?.tries.into_iter().next()?;
        let lineage = first.holder?.1?;
        Some(Maker { lineage, evidence: Evidence::Process })
    }

    /// Everything that became valid before `since` was taken in: tries that
    /// had ended by then came to nothing.
    pub fn sweep(&self, since: Instant) {
        let mut state = self.shared.state();
        state.paths.retain(|_, entry| {
            entry.tries.retain(|t| t.removed.is_none_or(|at| at >= since));
            if entry.hook.as_ref().is_some_and(|(_, at)| at.elapsed() > HOOKED) {
                entry.hook = None;
            }
            entry.hook.is_some() || !entry.tries.is_empty()
        });
    }
}
