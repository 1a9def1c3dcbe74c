//! A sorted set of numbers: the references, the referrers or the sessions of a push. Most
//! pushes have a few of each; a common library has tens of thousands of referrers, which
//! may leave in any order. A backlog has a hundred thousand pushes with three of these
//! sets each, so a set of one number takes no memory of its own, and a small set a little
//! more than its numbers need: the smallest tree takes a hundred bytes.
//!
//! Must not know: the pushes and sessions themselves.

use std::collections::BTreeSet;

/// Largest set that is kept as a list.
const FEW: usize = 16;

/// A set of numbers, in their order.
#[derive(Debug, Clone, Default)]
pub(super) enum IdSet {
    #[default]
    Empty,
    One(i64),
    /// At least two, and at most [`FEW`]: how many, and room for them. The sizes are those
    /// that the allocator hands out; a slice of any length would make the set larger by 8
    /// bytes.
    Few3(u8, Box<[i64; 3]>),
    Few7(u8, Box<[i64; 7]>),
    Few16(u8, Box<[i64; FEW]>),
    // Boxed, because the set has the size of its largest variant.
    #[expect(clippy::box_collection, reason = "the enum would be larger by 16 bytes")]
    Many(Box<BTreeSet<i64>>),
}

impl IdSet {
    /// Adds a number. Returns false when it is there already.
    pub(super) fn insert(&mut self, id: i64) -> bool {
        if let Self::Many(many) = self {
            return many.insert(id);
        }
        let Err(at) = self.few().binary_search(&id) else { return false };
        let few = self.few();
        *self = Self::of(&[&few[..at], &[id], &few[at..]].concat());
        true
    }

    /// Removes a number. Returns false when it is not there.
    pub(super) fn remove(&mut self, id: i64) -> bool {
        if let Self::Many(many) = self {
            // A set that shrinks stays a tree until it is empty, so that it does not
            // change back and forth.
            let removed = many.remove(&id);
            if many.is_empty() {
                *self = Self::Empty;
            }
            return removed;
        }
        let Ok(at) = self.few().binary_search(&id) else { return false };
        let few = self.few();
        *self = Self::of(&[&few[..at], &few[at + 1..]].concat());
        true
    }

    pub(super) fn is_empty(&self) -> bool {
        matches!(self, Self::Empty)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = i64> {
        let many = if let Self::Many(many) = self { Some(many.iter()) } else { None };
        self.few().iter().chain(many.into_iter().flatten()).copied()
    }

    /// The set of these numbers, which are in order.
    fn of(ids: &[i64]) -> Self {
        let count = u8::try_from(ids.len()).unwrap_or(u8::MAX);
        match ids {
            [] => Self::Empty,
            [id] => Self::One(*id),
            ids if ids.len() <= 3 => Self::Few3(count, room(ids)),
            ids if ids.len() <= 7 => Self::Few7(count, room(ids)),
            ids if ids.len() <= FEW => Self::Few16(count, room(ids)),
            ids => Self::Many(Box::new(ids.iter().copied().collect())),
        }
    }

    /// The numbers of a set that is not a tree.
    fn few(&self) -> &[i64] {
        match self {
            Self::Empty | Self::Many(_) => &[],
            Self::One(id) => std::slice::from_ref(id),
            Self::Few3(count, few) => &few[..usize::from(*count)],
            Self::Few7(count, few) => &few[..usize::from(*count)],
            Self::Few16(count, few) => &few[..usize::from(*count)],
        }
    }
}

/// Room for at least these numbers, which come first in it.
fn room<const ROOM: usize>(ids: &[i64]) -> Box<[i64; ROOM]> {
    let mut room = [0; ROOM];
    room[..ids.len()].copy_from_slice(ids);
    Box::new(room)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set(ops in prop::collection::vec((any::<bool>(), 0..40_i64), 0..200)) {
            let (mut set, mut model) = (IdSet::default(), BTreeSet::new());
            for (add, id) in ops {
                if add {
                    prop_assert_eq!(set.insert(id), model.insert(id));
                } else {
                    prop_assert_eq!(set.remove(id), model.remove(&id));
                }
                prop_assert_eq!(set.is_empty(), model.is_empty());
                prop_assert!(set.iter().eq(model.iter().copied()));
            }
        }
    }

    /// Three of them are in each push.
    #[test]
    fn is_small() {
        assert_eq!(size_of::<IdSet>(), 16);
    }
}
