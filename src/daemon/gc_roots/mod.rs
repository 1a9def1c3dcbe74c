//! Keeps pending paths out of Nix's garbage collection: from the moment the
//! intake has seen one until the cache has confirmed it.
//!
//! ```text
//!   intake ──protect (waits until it holds)──► held ──► temporary root: also against a collection
//!   driver ──keep, release, park──► thread ──►  │       that runs already; ends with the process
//!                                               └─────► file in [nix] gc_roots: outlives the process
//! ```
//!
//! Either way does without the other; without both, paths are pushed all the
//! same, and one that is collected first is counted so. A given-up path stays
//! protected while it is among the latest [`PARKED`], so that it can still be
//! pushed when the obstacle is gone; more of them would fill the disk.
//!
//! Must not know what is decided about a path, nor caches but by number.

mod announce;
mod held;
mod orders;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::observe::event;
use held::Held;
use orders::{Order, Orders};

use crate::store::{RootFiles, RootFilesError, TempRoots};
use crate::types::{StoreDir, StorePath};

/// Given-up paths that stay protected, over all caches.
const PARKED: usize = 1000;
/// How often the way to the nix-daemon is looked at while something is held,
/// and how soon a broken one is tried again.
const LOOK: Duration = Duration::from_secs(1);
/// How long a connection without anything held is kept for the next path.
const LINGER: Duration = Duration::from_secs(2);
/// Temporary roots that nobody needs any more, before they are dropped while
/// others are held: a new connection takes its time.
const PILED: usize = 1000;

/// Where protection is to be had.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Places {
    /// Nix's state directory.
    pub(in crate::daemon) state_dir: PathBuf,
    pub(in crate::daemon) store_dir: StoreDir,
    /// Where the nix-daemon listens.
    pub(in crate::daemon) socket: PathBuf,
    /// Where roots that outlive the process go.
    pub(in crate::daemon) links: PathBuf,
}

/// A handle; clones are the same gc_roots. Its thread ends when `stop` is called.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct GcRoots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// What the driver has said and the thread has not done yet; never waits
    /// for a file or a socket, as the driver must not.
    orders: Mutex<Orders>,
    ordered: Condvar,
    trouble: Mutex<Option<String>>,
}

#[derive(Debug)]
struct State {
    places: Places,
    /// What is held, and for which caches.
    held: Held,
    parked: VecDeque<(u16, StorePath)>,
    links: Option<RootFiles>,
    link_failed: bool,
    temp: Option<TempRoots>,
    /// When a lost way was lost, and when it is tried again.
    lost: Option<Instant>,
    next_try: Instant,
    /// Temporary roots of paths that are not held any more.
    piled: usize,
    idle_since: Instant,
}

impl GcRoots {
    /// Finds out what can be had, says so once, and starts the thread.
    pub(in crate::daemon) fn start(places: Places) -> std::io::Result<Self> {
        let links = RootFiles::new(&places.links, &places.store_dir);
        let temp = TempRoots::open(&places.state_dir, &places.store_dir, &places.socket);
        let trouble = announce::say(&places.links, links.as_ref().err(), temp.as_ref().err());
        let now = Instant::now();
        let state = State {
            lost: temp.is_err().then_some(now),
            held: Held::default(),
            parked: VecDeque::new(),
            links: links.ok(),
            link_failed: false,
            temp: temp.ok(),
            next_try: now + LOOK,
            piled: 0,
            idle_since: now,
            places,
        };
        let shared = Shared {
            state: Mutex::new(state),
            orders: Mutex::default(),
            ordered: Condvar::new(),
            trouble: Mutex::new(trouble),
        };
        let gc_roots = Self(Arc::new(shared));
        let thread = gc_roots.clone();
        std::thread::Builder::new().name("gc-roots".to_owned()).spawn(move || thread.run())?;
        Ok(gc_roots)
    }

    /// Protects paths that are wanted in a cache, as well as can be had now.
    /// Again does no harm. Waits for files and sockets.
    pub(in crate::daemon) fn protect<'a>(&self, cache: u16, paths: impl IntoIterator<Item = &'a StorePath>) {
        let mut state = self.state();
        let new = state.take(cache, paths);
        state.guard(&new);
    }

    /// Said by the driver when it has taken pushes up: what [`Self::protect`] did
    /// may have been undone by the end of an earlier try.
    pub(in crate::daemon) fn keep(&self, cache: u16, paths: Vec<StorePath>) {
        self.order(Order::Keep(cache, paths));
    }

    /// A path is not wanted in this cache any more.
    pub(in crate::daemon) fn release(&self, cache: u16, path: StorePath) {
        self.order(Order::Release(cache, path));
    }

    /// A path is given up for now.
    pub(in crate::daemon) fn park(&self, cache: u16, path: StorePath) {
        self.order(Order::Park(cache, path));
    }

    /// What an earlier life left is known: other roots of its are stale.
    pub(in crate::daemon) fn restored(&self) {
        self.order(Order::Restored);
    }

    /// What is missing, in words for `status`.
    pub(in crate::daemon) fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the thread and with it the temporary roots; the others stay.
    pub(in crate::daemon) fn stop(&self) {
        self.orders().stop = true;
        self.0.ordered.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn orders(&self) -> MutexGuard<'_, Orders> {
        self.0.orders.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn order(&self, order: Order) {
        self.orders().queue.push(order);
        self.0.ordered.notify_one();
    }

    fn run(&self) {
        let mut watched = true;
        loop {
            let mut orders = self.orders();
            while orders.queue.is_empty() && !orders.stop {
                let waited = if watched {
                    let (guard, late) =
                        self.0.ordered.wait_timeout(orders, LOOK).unwrap_or_else(PoisonError::into_inner);
                    (guard, late.timed_out())
                } else {
                    (self.0.ordered.wait(orders).unwrap_or_else(PoisonError::into_inner), false)
                };
                orders = waited.0;
                if waited.1 {
                    break;
                }
            }
            let (queue, stop) = (std::mem::take(&mut orders.queue), orders.stop);
            drop(orders);
            let mut state = self.state();
            for order in queue {
                state.obey(order);
            }
            if stop {
                state.temp = None;
                return;
            }
            state.look_after();
            watched = !state.held.is_empty() || state.temp.is_some();
        }
    }
}

impl State {
    /// Notes who wants what; the paths that nobody wanted before.
    fn take<'a>(&mut self, cache: u16, paths: impl IntoIterator<Item = &'a StorePath>) -> Vec<StorePath> {
        paths.into_iter().filter(|path| self.held.add(path, cache)).cloned().collect()
    }

    /// Protects what has just been taken.
    fn guard(&mut self, new: &[StorePath]) {
        if new.is_empty() {
            return;
        }
        if let Some(links) = &self.links
            && new.iter().try_for_each(|path| links.add(path)).is_err()
        {
            self.link_again();
        }
        match &mut self.temp {
            Some(temp) => {
                let added = if temp.is_alive() {
                    temp.add(new)
                } else {
                    Err(std::io::Error::other("the other end is gone"))
                };
                if let Err(error) = added {
                    // A restarted nix-daemon: there is a new one to go to.
                    self.lose(&error.to_string());
                    self.connect();
                }
            }
            None if self.next_try <= Instant::now() || self.lost.is_none() => self.connect(),
            None => {}
        }
    }

    /// The directory may have been removed and be possible to make again.
    fn link_again(&mut self) {
        let made = RootFiles::new(&self.places.links, &self.places.store_dir).or_else(|_| {
            // It was there all the time: our own lock is in the way.
            self.links.take().ok_or_else(|| RootFilesError {
                path: self.places.links.clone(),
                error: std::io::ErrorKind::NotFound.into(),
            })
        });
        match made.and_then(|links| {
            self.held.paths().try_for_each(|path| links.add(path))?;
            Ok(links)
        }) {
            Ok(links) => {
                self.links = Some(links);
                self.link_failed = false;
            }
            Err(error) => {
                if !std::mem::replace(&mut self.link_failed, true) {
                    event!(ROOTS_FAILED, error = %error, "pending paths may not be protected over a restart");
                }
                // The next path tries again.
                self.links =
                    RootFiles::new(&self.places.links, &self.places.store_dir).ok().or(self.links.take());
            }
        }
    }

    fn lose(&mut self, why: &str) {
        self.temp = None;
        if self.lost.is_none() {
            self.lost = Some(Instant::now());
            self.next_try = Instant::now();
            event!(
                ROOTS_LOST,
                error = why,
                "the temporary roots of pending paths are lost; they are made again"
            );
        }
    }

    /// Opens a way and adds everything that is held.
    fn connect(&mut self) {
        let places = &self.places;
        let opened = TempRoots::open(&places.state_dir, &places.store_dir, &places.socket);
        let added = opened.map_err(|e| e.to_string()).and_then(|mut temp| {
            temp.add(self.held.paths()).map_err(|e| e.to_string())?;
            Ok(temp)
        });
        match added {
            Ok(temp) => {
                self.temp = Some(temp);
                self.piled = 0;
                if let Some(since) = self.lost.take() {
                    let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    event!(
                        ROOTS_RESUMED,
                        paths = self.held.len(),
                        duration_ms = duration_ms,
                        "pending paths have temporary roots again"
                    );
                }
            }
            Err(why) => {
                self.lose(&why);
                self.next_try = Instant::now() + LOOK;
            }
        }
    }

    fn obey(&mut self, order: Order) {
        match order {
            Order::Keep(cache, paths) => {
                self.parked.retain(|(c, path)| *c != cache || !paths.contains(path));
                let new = self.take(cache, &paths);
                self.guard(&new);
            }
            Order::Release(cache, path) => {
                self.parked.retain(|(c, p)| *c != cache || *p != path);
                self.release(cache, &path);
            }
            Order::Park(cache, path) => {
                self.parked.retain(|(c, p)| *c != cache || *p != path);
                self.parked.push_back((cache, path));
                if self.parked.len() > PARKED
                    && let Some((cache, path)) = self.parked.pop_front()
                {
                    self.release(cache, &path);
                }
            }
            Order::Restored => {
                let Some(links) = &self.links else { return };
                match links.clear_stale(|path| self.held.holds(path)) {
                    Ok(0) => {}
                    Ok(cleared) => {
                        event!(
                            ROOTS_CLEARED,
                            paths = cleared,
                            "stale GC roots of an earlier run are removed"
                        );
                    }
                    Err(error) => {
                        event!(ROOTS_FAILED, error = %error, "stale GC roots of an earlier run cannot be removed");
                    }
                }
            }
        }
    }

    fn release(&mut self, cache: u16, path: &StorePath) {
        if !self.held.remove(path, cache) {
            return;
        }
        self.piled += 1;
        self.idle_since = Instant::now();
        if let Some(Err(error)) = self.links.as_ref().map(|links| links.remove(path)) {
            event!(ROOTS_FAILED, error = %error, "a path that was pushed stays protected until the next start");
        }
    }

    /// Notices a lost way, and drops roots that nobody needs.
    fn look_after(&mut self) {
        if self.temp.as_ref().is_some_and(|temp| !temp.is_alive()) {
            self.lose("the other end is gone");
        }
        if self.temp.is_none() && !self.held.is_empty() && self.next_try <= Instant::now() {
            self.connect();
        }
        let Some(temp) = &mut self.temp else { return };
        if self.held.is_empty() {
            if temp.is_remote() && self.idle_since.elapsed() < LINGER {
                return;
            }
            if temp.is_remote() {
                // The next path makes a new connection, and that is no loss.
                self.temp = None;
                self.piled = 0;
                return;
            }
            if self.piled == 0 {
                return;
            }
        } else if self.piled < PILED.max(2 * self.held.len()) {
            return;
        }
        match temp.only(self.held.paths()) {
            Ok(true) => self.piled = 0,
            Ok(false) => {}
            Err(error) => self.lose(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
