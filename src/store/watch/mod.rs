//! Rings when it is worth looking into the Nix database.
//!
//! Must not know: the Nix database. A ring is a hint and never a truth: a lock that
//! goes does not mean that its path is valid, and the slow timer makes up for
//! every ring that is missed.
//!
//! Two threads: the watcher's own, which turns events into rings, and one that
//! owns the watch, waits for the slow timer, and hangs the watch again when it
//! was lost or the directory is another one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::types::StoreDir;
mod inotify;

pub use inotify::WatchError;
use inotify::{Seen, Watch};

/// How soon a lost watch is tried again, when the slow timer is slower.
const RETRY: Duration = Duration::from_secs(1);

/// Why the bell rang.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// The watch was hung.
    Start,
    /// A lock went; the name without `.lock`, which may not even be a path's.
    LockRemoved(String),
    /// The kernel dropped events.
    Overflow,
    /// The watch was hung again, on what is the store directory now.
    Remounted,
    /// The slow timer.
    Timer,
    /// The watch is lost and is being hung again; until then only the timer rings.
    WatchLost(String),
}

/// How the doorbell is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether a watch hangs; without one only the timer rings.
    pub watching: bool,
    /// Why the watch was last lost, or could not be hung again.
    pub last_loss: Option<String>,
    /// How often the kernel dropped events.
    pub overflows: u64,
    /// How often the watch was hung again.
    pub rehung: u64,
}

/// A watch on the store directory. Dropping it stops its threads; after that it
/// does not ring.
pub struct StoreWatch {
    bell: Arc<Bell>,
    orders: SyncSender<Order>,
    keeper: Option<JoinHandle<()>>,
}

enum Order {
    /// The watch of this generation reports nothing any more.
    Lost(u64, String),
    Stop,
}

struct Bell {
    call: Box<dyn Fn(WatchEvent) + Send + Sync>,
    health: Mutex<Health>,
}

impl Bell {
    /// A panic of the callback costs that ring: unwinding further it would end
    /// the thread, and the bell would never ring again.
    fn ring(&self, ring: WatchEvent) {
        if catch_unwind(AssertUnwindSafe(|| (self.call)(ring))).is_err() {
            crate::observe::event!(WAKE_UP_FAULT, "what the store_watch calls panicked");
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreWatch {
    /// Hangs the bell. `ring` is called on the doorbell's threads, and once with
    /// [`WatchEvent::Start`] before this returns; it must not block, or the kernel's
    /// queue of 16,384 events runs over.
    pub fn start(
        store_dir: &StoreDir,
        slow: Duration,
        ring: impl Fn(WatchEvent) + Send + Sync + 'static,
    ) -> Result<Self, WatchError> {
        let health = Mutex::new(Health { watching: true, ..Health::default() });
        let bell = Arc::new(Bell { call: Box::new(ring), health });
        // Room for some losses; another one tells nothing new.
        let (orders, incoming) = sync_channel(8);
        let mut keeper = Keeper {
            dir: store_dir.as_path().to_owned(),
            bell: Arc::clone(&bell),
            orders: orders.clone(),
            generation: 0,
            watch: None,
        };
        keeper.watch = Some(keeper.hang()?);
        bell.ring(WatchEvent::Start);
        let thread = std::thread::Builder::new().name("store_watch".to_owned());
        let keeper = thread.spawn(move || keeper.run(&incoming, slow)).map_err(WatchError::Thread)?;
        Ok(Self { bell, orders, keeper: Some(keeper) })
    }

    /// How it is.
    pub fn health(&self) -> Health {
        self.bell.health().clone()
    }
}

impl Drop for StoreWatch {
    fn drop(&mut self) {
        // Blocks at most until the keeper has read what is queued.
        let _ = self.orders.send(Order::Stop);
        if let Some(keeper) = self.keeper.take() {
            // Dropped by its own callback, it cannot wait for itself.
            if keeper.thread().id() != std::thread::current().id() {
                let _ = keeper.join();
            }
        }
    }
}

struct Keeper {
    dir: PathBuf,
    bell: Arc<Bell>,
    orders: SyncSender<Order>,
    /// Counts the watches, so that what an old one says last is not believed.
    generation: u64,
    watch: Option<Watch>,
}

impl Keeper {
    fn run(mut self, incoming: &Receiver<Order>, slow: Duration) {
        let mut next = Instant::now() + slow;
        loop {
            let rest = next.saturating_duration_since(Instant::now());
            let rest = if self.watch.is_some() { rest } else { rest.min(RETRY) };
            match incoming.recv_timeout(rest) {
                Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Order::Lost(generation, _)) if generation != self.generation => {}
                Ok(Order::Lost(_, why)) => {
                    self.lose(why);
                    self.rehang();
                }
                Err(RecvTimeoutError::Timeout) => {
                    if self.watch.as_ref().is_some_and(|watch| !watch.still_on(&self.dir)) {
                        self.lose(format!("{} is another directory now", self.dir.display()));
                    }
                    if self.watch.is_none() {
                        self.rehang();
                    }
                    if Instant::now() >= next {
                        next = Instant::now() + slow;
                        self.bell.ring(WatchEvent::Timer);
                    }
                }
            }
        }
    }

    fn lose(&mut self, why: String) {
        let watch = self.watch.take();
        // A watcher whose thread has died panics when it is dropped (notify 9:
        // it cannot tell the thread to end). That must not end this one too.
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || drop(watch)));
        {
            let mut health = self.bell.health();
            health.watching = false;
            health.last_loss = Some(why.clone());
        }
        self.bell.ring(WatchEvent::WatchLost(why));
    }

    fn rehang(&mut self) {
        match self.hang() {
            Ok(watch) => {
                self.watch = Some(watch);
                {
                    let mut health = self.bell.health();
                    health.watching = true;
                    health.rehung += 1;
                }
                self.bell.ring(WatchEvent::Remounted);
            }
            Err(error) => self.bell.health().last_loss = Some(error.to_string()),
        }
    }

    fn hang(&mut self) -> Result<Watch, WatchError> {
        self.generation += 1;
        let (generation, bell, orders) = (self.generation, Arc::clone(&self.bell), self.orders.clone());
        Watch::hang(Path::new(&self.dir), move |seen| match seen {
            Seen::LockRemoved(base) => bell.ring(WatchEvent::LockRemoved(base)),
            Seen::Overflow => {
                bell.health().overflows += 1;
                bell.ring(WatchEvent::Overflow);
            }
            Seen::Lost(why) => {
                let _ = orders.try_send(Order::Lost(generation, why));
            }
        })
    }
}
