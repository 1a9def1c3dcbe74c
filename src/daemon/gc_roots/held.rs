//! The held paths, oldest first, with their sizes, and how often each is held for which
//! cache: once for a push, and once more for each admission of it that is on its way. There
//! may be a hundred thousand of them, so an entry is small: nearly always one path for one
//! cache. Must not know how a path is protected.

use std::collections::VecDeque;
use std::hash::{BuildHasher as _, RandomState};

use hashbrown::HashTable;

use crate::types::StorePath;

/// A path to hold, with the size of its NAR in bytes.
pub(super) type Sized<'a> = (&'a StorePath, u64);

/// In place of a cache: the path is held once for this, however often it is added.
pub(in crate::daemon) const ONCE: u16 = u16::MAX;

/// Places that the slots may have beyond four times the held paths, before they become
/// fewer.
const SPARE: usize = 4_096;

#[derive(Debug, Default)]
pub(super) struct Held {
    /// Oldest first. `None`: not held any more.
    slots: VecDeque<Option<Slot>>,
    /// The number of the first slot. Those of the others follow it, and wrap around.
    first: u32,
    /// The numbers of the slots, found by the hash of their paths. A map with paths as its
    /// keys would be six times as large.
    numbers: HashTable<u32>,
    hasher: RandomState,
    bytes: u64,
}

/// A held path.
#[derive(Debug)]
struct Slot {
    path: StorePath,
    nar_size: u64,
    holders: Holders,
}

/// The caches that a path is held for, each with how often it is held.
#[derive(Debug)]
enum Holders {
    One([(u16, u32); 1]),
    // Boxed, because a slot has the size of the largest variant.
    #[expect(clippy::box_collection, reason = "a slot would be larger by 16 bytes")]
    Many(Box<Vec<(u16, u32)>>),
}

/// A path that is not held any more, and the caches that it was held for, each as often
/// as it was.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct LetGo {
    pub(super) path: StorePath,
    pub(super) nar_size: u64,
    pub(super) caches: Vec<u16>,
}

impl Holders {
    fn list(&self) -> &[(u16, u32)] {
        match self {
            Self::One(one) => one,
            Self::Many(many) => many,
        }
    }

    fn times(&mut self, cache: u16) -> Option<&mut u32> {
        let list = match self {
            Self::One(one) => one.as_mut_slice(),
            Self::Many(many) => many.as_mut_slice(),
        };
        list.iter_mut().find(|(known, _)| *known == cache).map(|(_, times)| times)
    }

    fn add(&mut self, cache: u16) {
        match self.times(cache) {
            Some(times) => *times = if cache == ONCE { 1 } else { *times + 1 },
            None => *self = Self::Many(Box::new([self.list(), &[(cache, 1)]].concat())),
        }
    }

    /// Removes the cache once. Returns whether no cache is left.
    fn remove(&mut self, cache: u16) -> bool {
        let Some(times) = self.times(cache).filter(|times| **times > 0) else { return false };
        *times -= 1;
        self.list().iter().all(|(_, times)| *times == 0)
    }
}

impl Held {
    /// Holds the path for this cache, once more if it is held already. Returns whether it
    /// was not held for any cache before.
    pub(super) fn add(&mut self, (path, nar_size): Sized<'_>, cache: u16) -> bool {
        if let Some(slot) = self.slot(path) {
            slot.holders.add(cache);
            return false;
        }
        let number = self.number(self.slots.len());
        let holders = Holders::One([(cache, 1)]);
        self.slots.push_back(Some(Slot { path: path.clone(), nar_size, holders }));
        let Self { slots, first, numbers, hasher, .. } = self;
        let rehash = |number: &u32| hash_of(hasher, slots, *first, *number);
        numbers.insert_unique(hasher.hash_one(path), number, rehash);
        self.bytes = self.bytes.saturating_add(nar_size);
        true
    }

    /// Holds the path once less for this cache. Returns whether it is not held for any
    /// cache any more.
    pub(super) fn remove(&mut self, path: &StorePath, cache: u16) -> bool {
        let last = self.slot(path).is_some_and(|slot| slot.holders.remove(cache));
        if last {
            self.forget(path);
        }
        last
    }

    /// Stops holding the oldest path, for all caches.
    pub(super) fn let_go_oldest(&mut self) -> Option<LetGo> {
        let path = self.paths().next()?.clone();
        let Slot { path, nar_size, holders } = self.forget(&path)?;
        let each = holders.list().iter().flat_map(|(cache, times)| (0..*times).map(|_| *cache));
        Some(LetGo { path, nar_size, caches: each.collect() })
    }

    fn forget(&mut self, path: &StorePath) -> Option<Slot> {
        let Self { slots, first, numbers, hasher, bytes } = self;
        let is_it = |number: &u32| is_at(slots, *first, *number, path);
        let (number, _) = numbers.find_entry(hasher.hash_one(path), is_it).ok()?.remove();
        let slot = slots.get_mut(place(*first, number))?.take()?;
        *bytes = bytes.saturating_sub(slot.nar_size);
        while slots.front().is_some_and(Option::is_none) {
            slots.pop_front();
            *first = first.wrapping_add(1);
        }
        // Empty slots stay in between until they are half of all, and so does the memory of
        // a backlog.
        if slots.len() > 2 * numbers.len() + 64 || slots.capacity() > 4 * numbers.len() + SPARE {
            self.renumber();
        }
        Some(slot)
    }

    /// Removes the empty slots, and gives memory back.
    fn renumber(&mut self) {
        let Self { slots, first, numbers, hasher, .. } = self;
        slots.retain(Option::is_some);
        slots.shrink_to(2 * slots.len());
        *first = 0;
        *numbers = HashTable::with_capacity(2 * slots.len());
        let paths = slots.iter().flatten().map(|slot| &slot.path);
        for (number, path) in (0..).zip(paths) {
            let rehash = |number: &u32| hash_of(hasher, slots, 0, *number);
            numbers.insert_unique(hasher.hash_one(path), number, rehash);
        }
    }

    fn number(&self, place: usize) -> u32 {
        // There is no memory for as many paths as a number has values.
        self.first.wrapping_add(u32::try_from(place).unwrap_or(u32::MAX))
    }

    fn slot(&mut self, path: &StorePath) -> Option<&mut Slot> {
        let Self { slots, first, numbers, hasher, .. } = self;
        let is_it = |number: &u32| is_at(slots, *first, *number, path);
        let number = *numbers.find(hasher.hash_one(path), is_it)?;
        slots.get_mut(place(*first, number))?.as_mut()
    }

    pub(super) fn holds(&self, path: &StorePath) -> bool {
        let is_it = |number: &u32| is_at(&self.slots, self.first, *number, path);
        self.numbers.find(self.hasher.hash_one(path), is_it).is_some()
    }

    /// Returns each held path once, oldest first.
    pub(super) fn paths(&self) -> impl Iterator<Item = &StorePath> + Clone {
        self.slots.iter().flatten().map(|slot| &slot.path)
    }

    /// Returns the number of held paths.
    pub(super) fn len(&self) -> usize {
        self.numbers.len()
    }

    /// Returns the size of the held paths' NARs in bytes.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn is_empty(&self) -> bool {
        self.numbers.is_empty()
    }
}

/// Returns where the slot with this number is.
fn place(first: u32, number: u32) -> usize {
    number.wrapping_sub(first) as usize
}

fn is_at(slots: &VecDeque<Option<Slot>>, first: u32, number: u32, path: &StorePath) -> bool {
    matches!(slots.get(place(first, number)), Some(Some(slot)) if slot.path == *path)
}

fn hash_of(hasher: &RandomState, slots: &VecDeque<Option<Slot>>, first: u32, number: u32) -> u64 {
    match slots.get(place(first, number)) {
        Some(Some(slot)) => hasher.hash_one(&slot.path),
        // Not reached: each number is that of a held path.
        Some(None) | None => 0,
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
        assert_eq!((held.paths().cloned().collect::<Vec<_>>(), held.len()), (vec![path(2), path(1)], 2));
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
    fn the_slots_do_not_grow_with_paths_that_came_and_went() {
        let mut held = Held::default();
        held.add((&path(0), 1), 0);
        for _ in 0..10_000 {
            held.add((&path(1), 1), 0);
            held.remove(&path(1), 0);
        }
        assert!(held.slots.len() < 100, "{}", held.slots.len());
        assert_eq!(held.let_go_oldest().unwrap().path, path(0));
    }

    /// Many paths in a random order of operations are what a map with ages says.
    #[test]
    fn agrees_with_a_plain_model() {
        use std::collections::BTreeMap;
        let (mut held, mut model) = (Held::default(), BTreeMap::<u8, (u64, Vec<u16>)>::new());
        held.first = u32::MAX - 20;
        let mut random = 7_u64;
        let mut draw = |below: u64| {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            (random >> 33) % below
        };
        for age in 0..20_000_u64 {
            let (n, cache) = (draw(200) as u8, draw(3) as u16);
            match draw(10) {
                // The number of paths goes up and down.
                0 => {
                    let oldest = model.iter().min_by_key(|(_, (age, _))| *age).map(|(n, _)| *n);
                    let expected = oldest.and_then(|n| model.remove(&n).map(|(_, caches)| (path(n), caches)));
                    let let_go = held.let_go_oldest().map(|let_go| (let_go.path, let_go.caches));
                    let sorted = |mut caches: Vec<u16>| {
                        caches.sort_unstable();
                        caches
                    };
                    assert_eq!(
                        let_go.map(|(path, caches)| (path, sorted(caches))),
                        expected.map(|(path, caches)| (path, sorted(caches)))
                    );
                }
                d if d < 5 + (age / 3_000 % 2) * 3 => {
                    let (_, caches) = model.entry(n).or_insert((age, Vec::new()));
                    caches.push(cache);
                    assert_eq!(held.add((&path(n), u64::from(n)), cache), caches.len() == 1);
                }
                _ => {
                    let mut last = false;
                    if let Some((_, caches)) = model.get_mut(&n)
                        && let Some(at) = caches.iter().position(|c| *c == cache)
                    {
                        caches.remove(at);
                        last = caches.is_empty();
                    }
                    if last {
                        model.remove(&n);
                    }
                    assert_eq!(held.remove(&path(n), cache), last);
                }
            }
            assert_eq!((held.len(), held.holds(&path(n))), (model.len(), model.contains_key(&n)));
            assert_eq!(held.bytes(), model.keys().map(|n| u64::from(*n)).sum::<u64>());
            let mut ages: Vec<_> = model.iter().map(|(n, (age, _))| (*age, path(*n))).collect();
            ages.sort_unstable();
            assert!(held.paths().eq(ages.iter().map(|(_, path)| path)), "oldest first");
        }
    }

    #[test]
    fn the_memory_of_a_backlog_is_given_back() {
        let path = |n: u32| StorePath::parse(&format!("{n:032}-p")).unwrap();
        let mut held = Held::default();
        (0..50_000).for_each(|n| assert!(held.add((&path(n), 1), 0)));
        (0..49_990).for_each(|n| assert!(held.remove(&path(n), 0)));
        assert!(held.slots.capacity() < 10_000, "{}", held.slots.capacity());
        assert!(held.numbers.capacity() < 10_000, "{}", held.numbers.capacity());
        assert!(held.paths().eq((49_990..50_000).map(path).collect::<Vec<_>>().iter()));
    }

    /// A backlog of a hundred thousand paths is to stay small.
    #[test]
    fn a_slot_is_small() {
        assert_eq!(size_of::<Option<Slot>>(), 40);
    }
}
