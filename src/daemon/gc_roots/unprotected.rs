//! Pending paths that lost their protection because a limit was exceeded, and what is said
//! of them: once when the first loses it, and once when none is left.

use std::collections::BTreeMap;

use super::bounds::Passed;
use super::held::{LetGo, ONCE};
use crate::observe::event;
use crate::types::StorePath;

/// Each path with the size of its NAR and the caches that it would be held for, each as
/// often as it would be.
#[derive(Debug, Default)]
pub(super) struct Unprotected {
    by: BTreeMap<StorePath, (u64, Vec<u16>)>,
    bytes: u64,
    /// Paths that lost their protection since `by` was empty, and their bytes.
    episode: (u64, u64),
    /// The bound that was passed last.
    passed: Option<Passed>,
    /// Paths that lost their protection since the daemon started.
    total: u64,
}

/// What `status` shows of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Counts {
    pub(super) paths: u64,
    pub(super) bytes: u64,
    pub(super) total: u64,
    pub(super) passed: Option<&'static str>,
}

impl Unprotected {
    /// Adds paths that have just lost their protection. `held` and `free` are the bytes
    /// that are still protected and those that are free.
    pub(super) fn add(&mut self, paths: Vec<LetGo>, passed: Passed, held: u64, free: Option<u64>) {
        if paths.is_empty() {
            return;
        }
        let first = self.by.is_empty();
        if first {
            self.episode = (0, 0);
        }
        self.passed = Some(passed);
        self.total += paths.len() as u64;
        self.episode.0 += paths.len() as u64;
        for LetGo { path, nar_size, caches } in paths {
            self.bytes = self.bytes.saturating_add(nar_size);
            self.episode.1 = self.episode.1.saturating_add(nar_size);
            self.by.insert(path, (nar_size, caches));
        }
        if first {
            event!(
                PROTECTION_LIMITED,
                limit = passed.key(),
                paths = self.episode.0,
                protected_bytes = held,
                free_bytes = free.unwrap_or_default(),
                "[nix] {} is exceeded: the oldest {} pending paths are not protected from garbage collection any more; \
                 they stay pending and are pushed if they still exist when the cache takes them",
                passed.key(),
                self.episode.0
            );
        }
    }

    /// Notes that one of them is wanted in a cache, once more. Returns whether it is one.
    pub(super) fn note(&mut self, path: &StorePath, cache: u16) -> bool {
        let Some((_, caches)) = self.by.get_mut(path) else { return false };
        if cache != ONCE || !caches.contains(&cache) {
            caches.push(cache);
        }
        true
    }

    /// Notes that one of them is wanted in a cache once less. Returns whether it is one.
    pub(super) fn release(&mut self, path: &StorePath, cache: u16) -> bool {
        let Some((_, caches)) = self.by.get_mut(path) else { return false };
        if let Some(at) = caches.iter().position(|c| *c == cache) {
            caches.swap_remove(at);
        }
        if caches.is_empty() {
            self.remove(path);
        }
        true
    }

    /// Forgets the paths for which `exists` returns false: they are collected.
    pub(super) fn keep_existing(&mut self, exists: impl Fn(&StorePath) -> bool) {
        let gone: Vec<StorePath> = self.by.keys().filter(|path| !exists(path)).cloned().collect();
        for path in gone {
            self.remove(&path);
        }
    }

    /// Takes paths of `room` bytes at most, to protect them again.
    pub(super) fn take(&mut self, mut room: u64) -> Vec<LetGo> {
        let mut taken = Vec::new();
        for (path, (nar_size, caches)) in &self.by {
            if *nar_size > room {
                break;
            }
            room -= nar_size;
            taken.push(LetGo { path: path.clone(), nar_size: *nar_size, caches: caches.clone() });
        }
        for LetGo { path, .. } in &taken {
            self.remove(path);
        }
        taken
    }

    fn remove(&mut self, path: &StorePath) {
        let Some((nar_size, _)) = self.by.remove(path) else { return };
        self.bytes = self.bytes.saturating_sub(nar_size);
        if self.by.is_empty() {
            let (paths, bytes) = self.episode;
            event!(
                PROTECTION_WHOLE,
                paths = paths,
                bytes = bytes,
                "all pending paths are protected from garbage collection again; {paths} were without protection meanwhile"
            );
        }
    }

    /// The size of their NARs in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by.is_empty()
    }

    pub(super) fn counts(&self) -> Counts {
        let passed = self.passed.filter(|_| !self.by.is_empty()).map(Passed::key);
        Counts { paths: self.by.len() as u64, bytes: self.bytes, total: self.total, passed }
    }
}
