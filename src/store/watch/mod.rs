//! Wakes the reader of the Nix database when a look into it is worthwhile.
//!
//! Must not know: the Nix database. A wake-up is a hint: the removal of a lock
//! does not mean that its path is valid, and a slow timer makes up for every
//! wake-up that is missed.
//!
//! Two threads: the watcher's own, which turns inotify events into wake-ups, and
//! one that owns the watch, waits for the slow timer, and starts the watch again
//! when it was lost or the directory is another one.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::types::StoreDir;
mod inotify;

pub use inotify::WatchError;
use inotify::{Notification, Watch};

/// Pause before a lost watch is started again, unless the slow timer is faster.
const RETRY: Duration = Duration::from_secs(1);

/// The reason of a wake-up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchEvent {
    /// The watch was started.
    Start,
    /// A lock was removed; its name without `.lock`, which need not be a path's.
    LockRemoved(String),
    /// The kernel dropped events.
    Overflow,
    /// The watch was started again, on the directory that is the store now.
    Remounted,
    /// The slow timer.
    Timer,
    /// The watch is lost and will be started again; until then only the timer
    /// wakes the reader.
    WatchLost(String),
}

/// The state of the watch.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Health {
    /// Whether the directory is watched; otherwise only the timer wakes the reader.
    pub watching: bool,
    /// Why the watch was last lost or could not be started again.
    pub last_loss: Option<String>,
    /// How often the kernel dropped events.
    pub overflows: u64,
    /// How often the watch was started again.
    pub restarts: u64,
}

/// A watch on the store directory. Dropping it stops its threads; after that the
/// callback is not called any more.
pub struct StoreWatch {
    waker: Arc<Waker>,
    commands: SyncSender<Command>,
    supervisor: Option<JoinHandle<()>>,
}

enum Command {
    /// The watch of this generation reports nothing any more.
    Lost(u64, String),
    Stop,
}

struct Waker {
    callback: Box<dyn Fn(WatchEvent) + Send + Sync>,
    health: Mutex<Health>,
}

impl Waker {
    /// Calls the callback. A panic in it costs one wake-up: it must not end the
    /// thread, after which the reader would never be woken again.
    fn wake(&self, event: WatchEvent) {
        if catch_unwind(AssertUnwindSafe(|| (self.callback)(event))).is_err() {
            crate::observe::event!(WAKE_UP_FAULT, "the callback of the store watch panicked");
        }
    }

    fn health(&self) -> MutexGuard<'_, Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl StoreWatch {
    /// Starts the watch. `callback` is called on the watch's threads, and once
    /// with [`WatchEvent::Start`] before this returns. It must not block, or the
    /// kernel's queue of 16,384 events overflows.
    pub fn start(
        store_dir: &StoreDir,
        slow: Duration,
        callback: impl Fn(WatchEvent) + Send + Sync + 'static,
    ) -> Result<Self, WatchError> {
        let health = Mutex::new(Health { watching: true, ..Health::default() });
        let waker = Arc::new(Waker { callback: Box::new(callback), health });
        // Room for some losses; a further one says nothing new.
        let (commands, incoming) = sync_channel(8);
        let mut supervisor = Supervisor {
            dir: store_dir.as_path().to_owned(),
            waker: Arc::clone(&waker),
            commands: commands.clone(),
            generation: 0,
            watch: None,
        };
        match supervisor.start_watch() {
            Ok(watch) => supervisor.watch = Some(watch),
            // On a fresh host Nix makes the store later, or it is mounted later.
            Err(error @ WatchError::Directory { .. }) => {
                let mut health = waker.health();
                health.watching = false;
                health.last_loss = Some(error.to_string());
            }
            Err(error) => return Err(error),
        }
        waker.wake(WatchEvent::Start);
        let thread = std::thread::Builder::new().name("store_watch".to_owned());
        let supervisor = thread.spawn(move || supervisor.run(&incoming, slow)).map_err(WatchError::Thread)?;
        Ok(Self { waker, commands, supervisor: Some(supervisor) })
    }

    /// A watch that sees nothing, for the simulation.
    #[cfg(test)]
    pub(crate) fn simulated() -> Self {
        let health = Mutex::new(Health { watching: true, ..Health::default() });
        let (commands, _) = sync_channel(1);
        Self { waker: Arc::new(Waker { callback: Box::new(|_| ()), health }), commands, supervisor: None }
    }

    /// The state of the watch now.
    pub fn health(&self) -> Health {
        self.waker.health().clone()
    }
}

impl Drop for StoreWatch {
    fn drop(&mut self) {
        // Blocks at most until the supervisor has read the queued commands.
        let _ = self.commands.send(Command::Stop);
        if let Some(supervisor) = self.supervisor.take() {
            // A callback that drops the watch runs on the thread to wait for.
            if supervisor.thread().id() != std::thread::current().id() {
                let _ = supervisor.join();
            }
        }
    }
}

/// Owns the watch.
struct Supervisor {
    dir: PathBuf,
    waker: Arc<Waker>,
    commands: SyncSender<Command>,
    /// Counts the watches; the last report of an earlier one is ignored.
    generation: u64,
    watch: Option<Watch>,
}

impl Supervisor {
    fn run(mut self, incoming: &Receiver<Command>, slow: Duration) {
        let mut next = Instant::now() + slow;
        loop {
            let rest = next.saturating_duration_since(Instant::now());
            let rest = if self.watch.is_some() { rest } else { rest.min(RETRY) };
            match incoming.recv_timeout(rest) {
                Ok(Command::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Command::Lost(generation, _)) if generation != self.generation => {}
                Ok(Command::Lost(_, reason)) => {
                    self.lose(reason);
                    self.restart();
                }
                Err(RecvTimeoutError::Timeout) => {
                    if self.watch.as_ref().is_some_and(|watch| !watch.is_on(&self.dir)) {
                        self.lose(format!("{} is another directory now", self.dir.display()));
                    }
                    if self.watch.is_none() {
                        self.restart();
                    }
                    if Instant::now() >= next {
                        next = Instant::now() + slow;
                        self.waker.wake(WatchEvent::Timer);
                    }
                }
            }
        }
    }

    fn lose(&mut self, reason: String) {
        let watch = self.watch.take();
        // A watcher whose thread has ended panics when it is dropped (notify 9:
        // it cannot tell the thread to end). This thread must go on.
        let _ = catch_unwind(AssertUnwindSafe(move || drop(watch)));
        {
            let mut health = self.waker.health();
            health.watching = false;
            health.last_loss = Some(reason.clone());
        }
        self.waker.wake(WatchEvent::WatchLost(reason));
    }

    fn restart(&mut self) {
        match self.start_watch() {
            Ok(watch) => {
                self.watch = Some(watch);
                {
                    let mut health = self.waker.health();
                    health.watching = true;
                    health.restarts += 1;
                }
                self.waker.wake(WatchEvent::Remounted);
            }
            Err(error) => self.waker.health().last_loss = Some(error.to_string()),
        }
    }

    fn start_watch(&mut self) -> Result<Watch, WatchError> {
        self.generation += 1;
        let (generation, waker, commands) = (self.generation, Arc::clone(&self.waker), self.commands.clone());
        Watch::start(&self.dir, move |notification| match notification {
            Notification::LockRemoved(base) => waker.wake(WatchEvent::LockRemoved(base)),
            Notification::Overflow => {
                waker.health().overflows += 1;
                waker.wake(WatchEvent::Overflow);
            }
            Notification::Lost(reason) => {
                let _ = commands.try_send(Command::Lost(generation, reason));
            }
        })
    }
}
