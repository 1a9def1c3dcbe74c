//! The set of held paths, and the caches that each is held for. It may have a hundred
//! thousand entries, so an entry is small: nearly always one path for one cache.

use crate::types::StorePath;
use std::collections::BTreeSet;

#[derive(Debug, Default)]
pub(super) struct Held {
    by: BTreeSet<(StorePath, u16)>,
    paths: usize,
}

impl Held {
    /// Holds the path for this cache. Returns whether it was not held for any cache before.
    pub(super) fn add(&mut self, path: &StorePath, cache: u16) -> bool {
        let new = !self.holds(path);
        self.by.insert((path.clone(), cache));
        self.paths += usize::from(new);
        new
    }

    /// Stops holding the path for this cache. Returns whether no cache is left that it is
    /// held for.
    pub(super) fn remove(&mut self, path: &StorePath, cache: u16) -> bool {
        let last = self.by.remove(&(path.clone(), cache)) && !self.holds(path);
        self.paths -= usize::from(last);
        last
    }

    pub(super) fn holds(&self, path: &StorePath) -> bool {
        self.by.range((path.clone(), 0)..=(path.clone(), u16::MAX)).next().is_some()
    }

    /// Returns each held path once.
    pub(super) fn paths(&self) -> impl Iterator<Item = &StorePath> {
        let mut last = None;
        self.by.iter().map(|(path, _)| path).filter(move |path| last.replace(*path) != Some(*path))
    }

    /// Returns the number of held paths.
    pub(super) fn len(&self) -> usize {
        self.paths
    }

    pub(super) fn is_empty(&self) -> bool {
        self.paths == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_is_held_while_any_cache_wants_it() {
        let path = |n: u8| StorePath::parse(&format!("{n:032}-p")).unwrap();
        let mut held = Held::default();
        assert!(held.add(&path(2), 0) && held.add(&path(1), 7));
        assert!(!held.add(&path(1), 0) && !held.add(&path(1), 7));
        assert_eq!((held.paths().cloned().collect::<Vec<_>>(), held.len()), (vec![path(1), path(2)], 2));
        assert!(!held.remove(&path(1), 3) && !held.remove(&path(1), 7));
        assert!(held.holds(&path(1)) && held.remove(&path(1), 0) && !held.holds(&path(1)));
        assert!(held.remove(&path(2), 0) && held.is_empty());
    }
}
