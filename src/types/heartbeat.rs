//! Signs of life for the watchdog.
//!
//! Every part of the daemon that must not stand still has a [`Heartbeat`]. The
//! part counts it on whenever it has got somewhere. The watchdog reads the
//! count, asks the part to move, and reads it again. What a part does to answer
//! is its own business: a thread may be woken by its queue, a task by
//! [`Heartbeat::asked`].

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::Notify;

/// A counter that one part of the daemon moves and the watchdog reads. Clones
/// share the counter.
#[derive(Debug, Clone, Default)]
pub struct Heartbeat(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    count: AtomicU64,
    asked: Notify,
}

impl Heartbeat {
    /// Counts on: the part has got somewhere.
    pub fn beat(&self) {
        self.0.count.fetch_add(1, Ordering::Relaxed);
    }

    /// Reads how often the part has counted on since it started.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.count.load(Ordering::Relaxed)
    }

    /// Asks a part that waits in [`Heartbeat::asked`] to count on. Does not wait.
    pub fn ask(&self) {
        self.0.asked.notify_one();
    }

    /// Waits until [`Heartbeat::ask`] is called, then counts on.
    pub async fn asked(&self) {
        self.0.asked.notified().await;
        self.beat();
    }
}
