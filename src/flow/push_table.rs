//! A table of what is known of each push, found by the push's number. There may be a
//! hundred thousand of them, so the entries are in one list, which the allocator makes
//! longer in place: a map of boxes takes 40 bytes more for each, and gives its memory back
//! in pieces.
//!
//! Must not know: what an entry is.

use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use crate::types::PushId;

/// Places that the table may have beyond four times its content, before it becomes smaller.
/// An entry has a hundred bytes, and most of the time there are none.
const SPARE: usize = 256;

/// Entries by the numbers of their pushes.
#[derive(Debug)]
pub(crate) struct PushTable<V> {
    /// In no order.
    entries: Vec<(PushId, V)>,
    /// The places of the entries, found by the hash of their pushes' numbers.
    places: HashTable<u32>,
    hasher: RandomState,
}

impl<V> Default for PushTable<V> {
    fn default() -> Self {
        Self { entries: Vec::new(), places: HashTable::new(), hasher: RandomState::new() }
    }
}

impl<V> PushTable<V> {
    /// Adds or replaces an entry.
    pub(crate) fn insert(&mut self, push: PushId, value: V) {
        if let Some(known) = self.get_mut(&push) {
            *known = value;
            return;
        }
        // There is no memory for as many pushes as a place has values.
        let place = u32::try_from(self.entries.len()).unwrap_or(u32::MAX);
        self.entries.push((push, value));
        let Self { entries, places, hasher } = self;
        places.insert_unique(hasher.hash_one(push), place, |at| hash_at(hasher, entries, *at));
    }

    /// Removes and returns an entry. Gives memory back when a backlog is over: the table
    /// becomes half full then, so that this is seldom.
    pub(crate) fn remove(&mut self, push: &PushId) -> Option<V> {
        let Self { entries, places, hasher } = self;
        let is_it = |at: &u32| is_at(entries, *at, *push);
        let (place, _) = places.find_entry(hasher.hash_one(push), is_it).ok()?.remove();
        let (_, removed) = entries.swap_remove(place as usize);
        // The last entry has taken the place.
        if let Some((moved, _)) = entries.get(place as usize) {
            let was = entries.len();
            if let Some(at) = places.find_mut(hasher.hash_one(moved), |at| *at as usize == was) {
                *at = place;
            }
        }
        if entries.capacity() > SPARE + 4 * entries.len() {
            entries.shrink_to(2 * entries.len());
            places.shrink_to(2 * entries.len(), |at| hash_at(hasher, entries, *at));
        }
        Some(removed)
    }

    /// Returns the entry of a push.
    pub(crate) fn get(&self, push: &PushId) -> Option<&V> {
        let is_it = |at: &u32| is_at(&self.entries, *at, *push);
        let place = *self.places.find(self.hasher.hash_one(push), is_it)?;
        self.entries.get(place as usize).map(|(_, value)| value)
    }

    /// Returns the entry of a push, to change it.
    pub(crate) fn get_mut(&mut self, push: &PushId) -> Option<&mut V> {
        let Self { entries, places, hasher } = self;
        let place = *places.find(hasher.hash_one(push), |at| is_at(entries, *at, *push))?;
        entries.get_mut(place as usize).map(|(_, value)| value)
    }

    /// Returns whether a push has an entry.
    pub(crate) fn contains_key(&self, push: &PushId) -> bool {
        self.get(push).is_some()
    }

    /// Returns the number of entries.
    pub(crate) fn len(&self) -> usize {
        self.entries.len()
    }

    /// Returns all entries, in no order.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (PushId, &V)> {
        self.entries.iter().map(|(push, value)| (*push, value))
    }

    /// Returns the number of entries for which there is memory.
    #[cfg(test)]
    pub(super) fn capacity(&self) -> usize {
        self.entries.capacity().max(self.places.capacity())
    }

    /// Returns all entries, in no order, to change them.
    pub(crate) fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.entries.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
impl<V> std::ops::Index<&PushId> for PushTable<V> {
    type Output = V;

    /// Returns the entry of a push that is known.
    fn index(&self, push: &PushId) -> &V {
        let place = self.places.find(self.hasher.hash_one(push), |at| is_at(&self.entries, *at, *push));
        &self.entries[place.map_or(usize::MAX, |place| *place as usize)].1
    }
}

fn is_at<V>(entries: &[(PushId, V)], place: u32, push: PushId) -> bool {
    entries.get(place as usize).is_some_and(|(known, _)| *known == push)
}

fn hash_at<V>(hasher: &RandomState, entries: &[(PushId, V)], place: u32) -> u64 {
    entries.get(place as usize).map_or(0, |(push, _)| hasher.hash_one(push))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_map(ops in prop::collection::vec((0..3_u8, 0..60_i64, any::<u16>()), 0..300)) {
            let (mut table, mut model) = (PushTable::default(), BTreeMap::new());
            for (op, push, value) in ops {
                if op == 0 {
                    prop_assert_eq!(table.remove(&push), model.remove(&push));
                } else {
                    table.insert(push, value);
                    model.insert(push, value);
                }
                prop_assert_eq!(table.len(), model.len());
                for push in 0..60 {
                    prop_assert_eq!(table.get(&push), model.get(&push));
                }
                let all: BTreeMap<_, _> = table.iter().map(|(push, value)| (push, *value)).collect();
                prop_assert_eq!(&all, &model);
            }
        }
    }

    #[test]
    fn gives_memory_back() {
        let mut table = PushTable::default();
        (0..50_000).for_each(|push| table.insert(push, [push; 4]));
        (100..50_000).for_each(|push| assert_eq!(table.remove(&push), Some([push; 4])));
        assert!(table.capacity() <= 2 * (SPARE + 400), "{} places", table.capacity());
        assert!((0..100).all(|push| table[&push] == [push; 4]));
    }
}
