//! Applies the bounds: measures free space, ends the protection of the oldest paths while
//! a bound is passed, and protects them again when there is room. The decision is in
//! `bounds`.

use std::path::Path;
use std::sync::PoisonError;
use std::time::Duration;

use tokio::time::Instant;

use super::bounds::{Bounds, Figures};
use super::{GcRoots, State};
use crate::observe::detail;

/// The figures that `status` shows.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(in crate::daemon) struct Protection {
    /// NARs of the paths that are protected, in bytes.
    pub(in crate::daemon) bytes: u64,
    /// Pending paths that are not protected because a limit is exceeded.
    pub(in crate::daemon) unprotected: u64,
    /// Paths that have lost their protection since the daemon started.
    pub(in crate::daemon) let_go: u64,
    /// A sentence about the bound that is passed.
    pub(in crate::daemon) warning: Option<String>,
}

impl GcRoots {
    /// Returns the figures as of the last change.
    pub(in crate::daemon) fn protection(&self) -> Protection {
        self.0.protection.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Compares the held paths with the bounds. Measures the free space first unless that
    /// was done within `every`. Blocks on files and sockets.
    pub(super) fn apply_bounds(&self, every: Duration) {
        // A file system that hangs must not keep the lock.
        let dir = self.state().measure_due(every);
        let free = dir.map(|dir| free_space(&dir));
        let mut state = self.state();
        if let Some(free) = free {
            state.measured(free);
        }
        state.enforce();
        let protection = state.protection();
        drop(state);
        *self.0.protection.lock().unwrap_or_else(PoisonError::into_inner) = protection;
    }
}

impl State {
    /// Returns the store directory when its free space has to be measured.
    fn measure_due(&self, every: Duration) -> Option<std::path::PathBuf> {
        let needed = self.bounds.min_free > 0 && !(self.held.is_empty() && self.unprotected.is_empty());
        let due = needed && self.measured_at.is_none_or(|at| at.elapsed() >= every);
        due.then(|| self.places.store_dir.as_path().to_owned())
    }

    pub(super) fn measured(&mut self, free: Option<u64>) {
        self.measured_at = Some(Instant::now());
        self.free = free;
        if free.is_some_and(|free| free < self.bounds.min_free) {
            let store_dir = &self.places.store_dir;
            self.unprotected.keep_existing(|path| std::fs::symlink_metadata(store_dir.file(path)).is_ok());
        }
    }

    pub(super) fn set_bounds(&mut self, bounds: Bounds) {
        self.bounds = bounds;
        self.measured_at = None;
    }

    pub(super) fn enforce(&mut self) {
        let figures = Figures {
            held: self.held.bytes(),
            unprotected: self.unprotected.bytes(),
            free: self.free.filter(|_| self.bounds.min_free > 0),
        };
        let Some((passed, surplus)) = self.bounds.surplus(figures) else {
            self.protect_again(self.bounds.room(figures));
            return;
        };
        let goal = figures.held.saturating_sub(surplus);
        // Paths of failed pushes go first: nothing will push them until somebody asks.
        while self.held.bytes() > goal
            && let Some((cache, path)) = self.failed.pop_front()
        {
            self.release(cache, &path);
        }
        let mut let_go = Vec::new();
        while self.held.bytes() > goal
            && let Some(oldest) = self.held.let_go_oldest()
        {
            self.remove_root(&oldest.path);
            let_go.push(oldest);
        }
        self.drop_soon = true;
        self.unprotected.add(let_go, passed, self.held.bytes(), self.free);
    }

    fn protect_again(&mut self, room: u64) {
        if room == 0 || self.unprotected.is_empty() {
            return;
        }
        let mut new = Vec::new();
        for again in self.unprotected.take(room) {
            for cache in again.caches {
                self.held.add((&again.path, again.nar_size), cache);
            }
            new.push(again.path);
        }
        self.guard(&new);
    }

    fn protection(&self) -> Protection {
        let counts = self.unprotected.counts();
        let warning = counts.passed.map(|key| {
            format!(
                "{} pending paths ({} bytes) are not protected from garbage collection, because [nix] {key} is \
                 exceeded; those that are collected before the cache takes them are not pushed: see why the cache \
                 does not take them, make room, or raise the limit",
                counts.paths, counts.bytes
            )
        });
        Protection { bytes: self.held.bytes(), unprotected: counts.paths, let_go: counts.total, warning }
    }
}

/// Returns the bytes that unprivileged users may still write; `None` when the file system
/// does not say.
fn free_space(dir: &Path) -> Option<u64> {
    match rustix::fs::statvfs(dir) {
        Ok(stat) => Some(stat.f_bavail.saturating_mul(stat.f_frsize)),
        Err(error) => {
            detail!(error = %error, "the free space of {} cannot be measured", dir.display());
            None
        }
    }
}
