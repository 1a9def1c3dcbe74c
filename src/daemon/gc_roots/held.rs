//! The held paths, with their sizes and ages, and how often each is held for which cache:
//! once for a push, and once more for each admission of it that is on its way. There may
//! be a hundred thousand of them, so an entry is small: nearly always one path for one
//! cache. Must not know how a path is protected.

use crate::types::StorePath;
use std::collections::{BTreeMap, VecDeque};

/// A path to hold, with the size of its NAR in bytes.
pub(super) type Sized<'a> = (&'a StorePath, u64);

/// In place of a cache: the path is held once for this, however often it is added.
pub(in crate::daemon) const ONCE: u16 = u16::MAX;

#[derive(Debug, Default)]
pub(super) struct Held {
    by: BTreeMap<(StorePath, u16), Entry>,
    /// The held paths with their numbers, oldest first, and some that are not held any
    /// more.
    ages: VecDeque<(u64, StorePath)>,
    next: u64,
    paths: usize,
    bytes: u64,
}

#[derive(Debug, Clone, Copy)]
struct Entry {
    /// The number of the path; the smallest is the oldest path's. The same for all caches.
    number: u64,
    nar_size: u64,
    /// How often the path is held for this cache.
    times: u32,
}

/// A path that is not held any more, and the caches that it was held for, each as often
/// as it was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LetGo {
    pub(super) path: StorePath,
    pub(super) nar_size: u64,
    pub(super) caches: Vec<u16>,
}

impl Held {
    /// Holds the path for this cache, once more if it is held already. Returns whether it
    /// was not held for any cache before.
    pub(super) fn add(&mut self, (path, nar_size): Sized<'_>, cache: u16) -> bool {
        let known = self.entry(path);
        let entry = known.unwrap_or(Entry { number: self.next, nar_size, times: 0 });
        let entry = self.by.entry((path.clone(), cache)).or_insert(Entry { times: 0, ..entry });
        entry.times = if cache == ONCE { 1 } else { entry.times + 1 };
        if known.is_none() {
            self.ages.push_back((self.next, path.clone()));
            self.next += 1;
            self.paths += 1;
            self.bytes = self.bytes.saturating_add(nar_size);
        }
        known.is_none()
    }

    /// Holds the path once less for this cache. Returns whether it is not held for any
    /// cache any more.
    pub(super) fn remove(&mut self, path: &StorePath, cache: u16) -> bool {
        let key = (path.clone(), cache);
        let Some(entry) = self.by.get_mut(&key) else { return false };
        entry.times -= 1;
        if entry.times > 0 {
            return false;
        }
        let Some(entry) = self.by.remove(&key) else { return false };
        let last = !self.holds(path);
        if last {
            self.forget(entry);
        }
        last
    }

    /// Stops holding the oldest path, for all caches.
    pub(super) fn let_go_oldest(&mut self) -> Option<LetGo> {
        loop {
            let (number, path) = self.ages.pop_front()?;
            let Some(entry) = self.entry(&path).filter(|entry| entry.number == number) else { continue };
            let each = self.range(&path);
            let caches: Vec<u16> =
                each.flat_map(|((_, cache), entry)| (0..entry.times).map(|_| *cache)).collect();
            for cache in &caches {
                self.by.remove(&(path.clone(), *cache));
            }
            self.forget(entry);
            return Some(LetGo { path, nar_size: entry.nar_size, caches });
        }
    }

    fn forget(&mut self, entry: Entry) {
        self.paths -= 1;
        self.bytes = self.bytes.saturating_sub(entry.nar_size);
        // Removed paths stay in the list until they are half of it.
        if self.ages.len() > 2 * self.paths + 64 {
            let mut ages = std::mem::take(&mut self.ages);
            ages.retain(|(number, path)| self.entry(path).is_some_and(|entry| entry.number == *number));
            self.ages = ages;
        }
    }

    fn range(&self, path: &StorePath) -> impl Iterator<Item = (&(StorePath, u16), &Entry)> {
        self.by.range((path.clone(), 0)..=(path.clone(), u16::MAX))
    }

    fn entry(&self, path: &StorePath) -> Option<Entry> {
        self.range(path).next().map(|(_, entry)| *entry)
    }

    pub(super) fn holds(&self, path: &StorePath) -> bool {
        self.entry(path).is_some()
    }

    /// Returns each held path once.
    pub(super) fn paths(&self) -> impl Iterator<Item = &StorePath> {
        let mut last = None;
        self.by.keys().map(|(path, _)| path).filter(move |path| last.replace(*path) != Some(*path))
    }

    /// Returns the number of held paths.
    pub(super) fn len(&self) -> usize {
        self.paths
    }

    /// Returns the size of the held paths' NARs in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paths == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn path(n: u8) -> StorePath {
        StorePath::parse(&format!("{n:032}-p")).unwrap()
    }

    #[test]
    fn a_path_is_held_while_any_cache_wants_it() {
        let mut held = Held::default();
        assert!(held.add((&path(2), 5), 0) && held.add((&path(1), 7), 7));
        assert!(!held.add((&path(1), 7), 0) && !held.add((&path(1), 7), 7));
        assert_eq!((held.paths().cloned().collect::<Vec<_>>(), held.len()), (vec![path(1), path(2)], 2));
        assert_eq!(held.bytes(), 12);
        assert!(!held.remove(&path(1), 3) && !held.remove(&path(1), 7));
        assert!(!held.remove(&path(1), 7) && !held.remove(&path(1), 7), "it was held twice");
        assert!(held.holds(&path(1)) && held.remove(&path(1), 0) && !held.holds(&path(1)));
        assert_eq!(held.bytes(), 5);
        assert!(held.remove(&path(2), 0) && held.is_empty());
        assert!(held.add((&path(2), 5), ONCE) && !held.add((&path(2), 5), ONCE));
        assert!(held.remove(&path(2), ONCE) && held.is_empty());
        assert_eq!(held.bytes(), 0);
    }

    #[test]
    fn the_oldest_path_goes_first_and_a_path_that_came_back_is_young() {
        let mut held = Held::default();
        for n in [3, 1, 2] {
            held.add((&path(n), 10), 0);
        }
        held.add((&path(3), 10), 4);
        held.add((&path(3), 10), 4);
        held.remove(&path(1), 0);
        held.add((&path(1), 10), 0);
        let mut gone = Vec::new();
        while let Some(let_go) = held.let_go_oldest() {
            gone.push((let_go.path, let_go.caches));
        }
        assert_eq!(gone, [(path(3), vec![0, 4, 4]), (path(2), vec![0]), (path(1), vec![0])]);
        assert!(held.is_empty() && held.bytes() == 0);
    }

    #[test]
    fn the_list_of_ages_does_not_grow_with_paths_that_came_and_went() {
        let mut held = Held::default();
        held.add((&path(0), 1), 0);
        for _ in 0..10_000 {
            held.add((&path(1), 1), 0);
            held.remove(&path(1), 0);
        }
        assert!(held.ages.len() < 100, "{}", held.ages.len());
        assert_eq!(held.let_go_oldest().unwrap().path, path(0));
    }
}
