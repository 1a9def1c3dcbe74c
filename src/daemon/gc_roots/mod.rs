//! Protects pending paths from Nix's garbage collection, from when the intake has read
//! one until the cache has confirmed it.
//!
//! ```text
//!   intake ──protect (waits until it holds)──► held ──► temporary root: also against a collection
//!   driver ──keep, release, ... ──► thread ──►   │       that runs already; ends with the process
//!                                               └─────► file in [nix] gc_roots: outlives the process
//! ```
//!
//! Protections are counted for each path and cache. The intake protects each push that it
//! reports, and the driver owns that protection from then on: it takes it back when the
//! push ends, or at once when it had the push already.
//!
//! Each kind of root works without the other. Without both, paths are pushed all the
//! same, and a path that is collected before that counts as collected. The path of a
//! failed push stays protected while it is among the latest [`FAILED_KEPT`], so that a
//! retry can still push it; more of them would fill the disk.
//!
//! Protection is bounded ([`Bounds`]): while a bound is passed, the oldest paths lose their
//! roots. They stay pending.
//!
//! Must not know what is decided about a path. Knows caches only by their numbers.

mod bounds;
mod held;
mod limit;
mod problems;
mod requests;
mod unprotected;

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::observe::event;
pub(in crate::daemon) use bounds::Bounds;
pub(in crate::daemon) use held::ONCE;
use held::{Held, Sized};
pub(in crate::daemon) use limit::Protection;
use requests::{Request, Requests};
use unprotected::Unprotected;

use crate::store::{RootFiles, RootFilesError, TempRoots};
use crate::types::{StoreDir, StorePath};

/// Paths of failed pushes that stay protected, over all caches.
const FAILED_KEPT: usize = 1000;
/// How often the temporary roots are checked while paths are held, and the delay before
/// lost ones are made again.
const LOOK: Duration = Duration::from_secs(1);
/// How long a connection to the nix-daemon is kept while no path is held.
const LINGER: Duration = Duration::from_secs(2);
/// How long requests that only take protection back are collected.
const GATHER: Duration = Duration::from_millis(20);
/// Temporary roots of paths that are not held any more that pile up before they are
/// dropped while others are held: a new connection takes time.
const PILED: usize = 1000;
/// How often the free space is measured while paths are held.
const MEASURE: Duration = Duration::from_secs(10);
/// The same, when new paths come.
const MEASURE_NEW: Duration = Duration::from_secs(1);

/// The places of Nix that GC roots need.
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

/// A handle on the GC roots; clones share them. The thread ends when `stop` is called.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct GcRoots(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// Requests that the thread has not carried out yet. The lock is never held during
    /// file or socket operations, because the driver takes it.
    requests: Mutex<Requests>,
    /// Notified when there is a new request.
    requested: Condvar,
    trouble: Mutex<Option<String>>,
    /// A copy for `status`, which must not wait for file operations.
    protection: Mutex<Protection>,
}

#[derive(Debug)]
struct State {
    places: Places,
    /// The held paths, and the caches that each is held for.
    held: Held,
    /// The latest paths of failed pushes, with their caches, oldest first.
    failed: VecDeque<(u16, StorePath)>,
    links: Option<RootFiles>,
    link_failed: bool,
    temp: Option<TempRoots>,
    /// When the temporary roots were lost, and from when on they are made again.
    lost: Option<Instant>,
    next_try: Instant,
    /// Temporary roots of paths that are not held any more.
    piled: usize,
    idle_since: Instant,
    bounds: Bounds,
    /// Pending paths that are not held because a limit is exceeded.
    unprotected: Unprotected,
    /// The free space of the store's file system when it was last measured.
    free: Option<u64>,
    measured_at: Option<Instant>,
    /// The temporary roots of paths that lost their protection are dropped without
    /// waiting for more of them.
    drop_soon: bool,
    dropped_at: Option<Instant>,
}

impl GcRoots {
    /// Opens both kinds of roots, logs which are not available, and starts the thread.
    pub(in crate::daemon) fn start(places: Places, bounds: Bounds) -> std::io::Result<Self> {
        let gc_roots = Self::open(places, bounds);
        let thread = gc_roots.clone();
        std::thread::Builder::new().name("gc-roots".to_owned()).spawn(move || thread.run())?;
        Ok(gc_roots)
    }

    fn open(places: Places, bounds: Bounds) -> Self {
        let links = RootFiles::new(&places.links, &places.store_dir);
        let temp = TempRoots::open(&places.state_dir, &places.store_dir, &places.socket);
        let trouble = problems::report(&places.links, links.as_ref().err(), temp.as_ref().err());
        let now = Instant::now();
        let state = State {
            lost: temp.is_err().then_some(now),
            held: Held::default(),
            failed: VecDeque::new(),
            links: links.ok(),
            link_failed: false,
            temp: temp.ok(),
            next_try: now + LOOK,
            piled: 0,
            idle_since: now,
            places,
            bounds,
            unprotected: Unprotected::default(),
            free: None,
            measured_at: None,
            drop_soon: false,
            dropped_at: None,
        };
        let shared = Shared {
            state: Mutex::new(state),
            requests: Mutex::default(),
            requested: Condvar::new(),
            trouble: Mutex::new(trouble),
            protection: Mutex::default(),
        };
        Self(Arc::new(shared))
    }

    /// Protects paths that are wanted in a cache, with the kinds of roots that are
    /// available, and within the bounds. Each path comes with the size of its NAR in
    /// bytes, and is protected until [`Self::release`] was called as often as this. Blocks
    /// on files and sockets.
    pub(in crate::daemon) fn protect<'a>(&self, cache: u16, paths: impl IntoIterator<Item = Sized<'a>>) {
        let mut state = self.state();
        let new = state.take(cache, paths);
        state.guard(&new);
        drop(state);
        self.apply_bounds(MEASURE_NEW);
    }

    /// Protects paths as [`Self::protect`] does, a moment later. Does not block.
    pub(in crate::daemon) fn keep(&self, cache: u16, paths: Vec<(StorePath, u64)>) {
        self.request(Request::Keep(cache, paths));
    }

    /// Puts other bounds to use.
    pub(in crate::daemon) fn set_bounds(&self, bounds: Bounds) {
        self.request(Request::Bounds(bounds));
    }

    /// Takes back one protection of a path for this cache.
    pub(in crate::daemon) fn release(&self, cache: u16, path: StorePath) {
        self.request(Request::Release(cache, path));
    }

    /// Takes over one protection of a path whose push failed: it lasts while the path is
    /// among the latest [`FAILED_KEPT`].
    pub(in crate::daemon) fn keep_failed(&self, cache: u16, path: StorePath) {
        self.request(Request::KeepFailed(cache, path));
    }

    /// Takes back the protection that [`Self::keep_failed`] took over, if it still lasts.
    pub(in crate::daemon) fn forget_failed(&self, cache: u16, path: StorePath) {
        self.request(Request::ForgetFailed(cache, path));
    }

    /// Removes the GC roots of an earlier run that no path needs. To be called when all
    /// paths that the earlier run left are protected.
    pub(in crate::daemon) fn restored(&self) {
        self.request(Request::Restored);
    }

    /// Returns the text for `status` about roots that are not available.
    pub(in crate::daemon) fn trouble(&self) -> Option<String> {
        self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the thread, which removes the temporary roots. The files stay.
    pub(in crate::daemon) fn stop(&self) {
        self.requests().stop = true;
        self.0.requested.notify_one();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.0.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn request(&self, request: Request) {
        let mut requests = self.requests();
        let prompt = request.is_prompt();
        let wakes = prompt || requests.queue.is_empty();
        requests.prompt |= prompt;
        requests.queue.push(request);
        drop(requests);
        if wakes {
            self.0.requested.notify_one();
        }
    }

    fn run(&self) {
        let mut watched = true;
        loop {
            let mut requests = self.requests();
            while requests.queue.is_empty() && !requests.stop {
                let waited = if watched {
                    let (guard, late) =
                        self.0.requested.wait_timeout(requests, LOOK).unwrap_or_else(PoisonError::into_inner);
                    (guard, late.timed_out())
                } else {
                    (self.0.requested.wait(requests).unwrap_or_else(PoisonError::into_inner), false)
                };
                requests = waited.0;
                if waited.1 {
                    break;
                }
            }
            let until = Instant::now() + GATHER;
            while !requests.queue.is_empty() && !requests.prompt && !requests.stop {
                let left = until.saturating_duration_since(Instant::now());
                if left.is_zero() {
                    break;
                }
                let waited = self.0.requested.wait_timeout(requests, left);
                requests = waited.unwrap_or_else(PoisonError::into_inner).0;
            }
            requests.prompt = false;
            let (queue, stop) = (std::mem::take(&mut requests.queue), requests.stop);
            drop(requests);
            match self.work(queue, stop) {
                Some(more) => watched = more,
                None => return,
            }
        }
    }

    /// Carries out requests and looks after the roots. Returns whether they are to be
    /// looked after again later; none: this was the end.
    fn work(&self, queue: Vec<Request>, stop: bool) -> Option<bool> {
        let mut state = self.state();
        for request in queue {
            state.carry_out(request);
        }
        if stop {
            state.temp = None;
            return None;
        }
        drop(state);
        self.apply_bounds(MEASURE);
        let mut state = self.state();
        state.look_after();
        Some(!state.held.is_empty() || state.temp.is_some() || !state.unprotected.is_empty())
    }
}

/// The thread's work without its thread, for the simulation.
#[cfg(test)]
impl GcRoots {
    pub(in crate::daemon) fn simulated(places: Places, bounds: Bounds) -> Self {
        Self::open(places, bounds)
    }

    /// Whether there are requests that are not carried out.
    pub(in crate::daemon) fn has_requests(&self) -> bool {
        !self.requests().queue.is_empty()
    }

    /// Carries out the requests.
    pub(in crate::daemon) fn turn(&self) {
        let queue = std::mem::take(&mut self.requests().queue);
        self.work(queue, false);
    }

    /// Drops the temporary roots, as the end of the process does.
    pub(in crate::daemon) fn kill(&self) {
        self.state().temp = None;
    }
}

impl State {
    /// Notes that a cache wants the paths. Returns those that no cache wanted before.
    fn take<'a>(&mut self, cache: u16, paths: impl IntoIterator<Item = Sized<'a>>) -> Vec<StorePath> {
        let is_new = |(path, size): &Sized<'a>| {
            !self.unprotected.note(path, cache) && self.held.add((path, *size), cache)
        };
        paths.into_iter().filter(is_new).map(|(path, _)| path.clone()).collect()
    }

    /// Adds roots for paths that were not held before.
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
                    Err(std::io::Error::other(
                        "the nix-daemon has closed the connection, or the file was removed",
                    ))
                };
                if let Err(error) = added {
                    // After a restart of the nix-daemon a new connection works.
                    self.lose(&error.to_string());
                    self.connect();
                }
            }
            None if self.next_try <= Instant::now() || self.lost.is_none() => self.connect(),
            None => {}
        }
    }

    /// Makes the directory of the root files again, with a file for each held path.
    fn link_again(&mut self) {
        let made = RootFiles::new(&self.places.links, &self.places.store_dir).or_else(|_| {
            // The directory exists: the lock that this process holds is in the way.
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
                    event!(ROOTS_FAILED, error = %error, "pending paths may not be protected from garbage collection while flywheeld restarts: {error}");
                }
                // The next path makes them again.
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
                "the temporary roots of pending paths were lost ({why}) and are made again"
            );
        }
    }

    /// Opens temporary roots and adds all held paths.
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
                self.drop_soon = false;
                if let Some(since) = self.lost.take() {
                    let duration_ms = u64::try_from(since.elapsed().as_millis()).unwrap_or(u64::MAX);
                    event!(
                        ROOTS_RESUMED,
                        paths = self.held.len(),
                        duration_ms = duration_ms,
                        "{} pending paths have temporary roots again, after {duration_ms} ms without",
                        self.held.len()
                    );
                }
            }
            Err(why) => {
                self.lose(&why);
                self.next_try = Instant::now() + LOOK;
            }
        }
    }

    fn carry_out(&mut self, request: Request) {
        match request {
            Request::Keep(cache, paths) => {
                let new = self.take(cache, paths.iter().map(|(path, size)| (path, *size)));
                self.guard(&new);
            }
            Request::Release(cache, path) => self.release(cache, &path),
            Request::ForgetFailed(cache, path) => self.forget_failed(cache, &path),
            Request::KeepFailed(cache, path) => {
                self.forget_failed(cache, &path);
                if self.unprotected.release(&path, cache) {
                    return;
                }
                self.failed.push_back((cache, path));
                if self.failed.len() > FAILED_KEPT
                    && let Some((cache, path)) = self.failed.pop_front()
                {
                    self.release(cache, &path);
                }
            }
            Request::Bounds(bounds) => self.set_bounds(bounds),
            Request::Restored => {
                let Some(links) = &self.links else { return };
                match links.clear_stale(|path| self.held.holds(path)) {
                    Ok(0) => {}
                    Ok(cleared) => {
                        event!(
                            ROOTS_CLEARED,
                            paths = cleared,
                            "{cleared} GC roots from before the restart were removed: their paths are not pending"
                        );
                    }
                    Err(error) => {
                        event!(ROOTS_FAILED, error = %error, "GC roots from before the restart cannot be removed: {error}");
                    }
                }
            }
        }
    }

    fn release(&mut self, cache: u16, path: &StorePath) {
        if !self.unprotected.release(path, cache) && self.held.remove(path, cache) {
            self.remove_root(path);
        }
    }

    fn forget_failed(&mut self, cache: u16, path: &StorePath) {
        let before = self.failed.len();
        self.failed.retain(|(c, p)| *c != cache || p != path);
        if self.failed.len() < before {
            self.release(cache, path);
        }
    }

    /// Removes the roots of a path that is not held any more. Its temporary root is
    /// dropped later.
    fn remove_root(&mut self, path: &StorePath) {
        self.piled += 1;
        self.idle_since = Instant::now();
        if let Some(Err(error)) = self.links.as_ref().map(|links| links.remove(path)) {
            event!(ROOTS_FAILED, error = %error, "a pushed path stays protected from garbage collection until the next start: {error}");
        }
    }

    /// Makes lost temporary roots again, and drops those of paths that are not held.
    fn look_after(&mut self) {
        if self.temp.as_ref().is_some_and(|temp| !temp.is_alive()) {
            self.lose("the nix-daemon has closed the connection, or the file was removed");
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
                // The next path makes a new connection; this does not count as a loss.
                self.temp = None;
                self.piled = 0;
                return;
            }
            if self.piled == 0 {
                return;
            }
        } else if !self.drop_soon && self.piled < PILED.max(2 * self.held.len()) {
            return;
        } else if self.drop_soon {
            // Dropping takes time for each held path, so it takes turns with other work.
            let pause = Duration::from_micros(100 * self.held.len() as u64);
            if self.dropped_at.is_some_and(|at| at.elapsed() < pause) {
                return;
            }
        }
        self.dropped_at = Some(Instant::now());
        match temp.only(self.held.paths()) {
            Ok(true) => {
                self.piled = 0;
                self.drop_soon = false;
            }
            Ok(false) => {}
            Err(error) => self.lose(&error.to_string()),
        }
    }
}

#[cfg(test)]
mod tests;
