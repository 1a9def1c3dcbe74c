//! The referrers of a push as a sorted set. Most pushes have a few; a common
//! library has tens of thousands, which may leave in any order. A backlog has a
//! hundred thousand of these sets, and even the smallest tree takes a hundred
//! bytes, so a small set is a vector.
//!
//! Must not know: the pushes themselves.

use crate::types::PushId;
use std::collections::BTreeSet;

/// Largest set that is kept as a vector.
const FEW: usize = 16;

/// A set of pushes, in the order of their numbers.
#[derive(Debug, Clone)]
pub(super) enum Referrers {
    Few(Vec<PushId>),
    Many(BTreeSet<PushId>),
}

impl Default for Referrers {
    fn default() -> Self {
        Self::Few(Vec::new())
    }
}

impl Referrers {
    /// Adds a push. Returns false when it is there already.
    pub(super) fn insert(&mut self, id: PushId) -> bool {
        match self {
            Self::Few(few) => {
                let Err(at) = few.binary_search(&id) else { return false };
                if few.len() < FEW {
                    // Doubling would reserve memory that most sets never use.
                    few.reserve_exact(1);
                    few.insert(at, id);
                    return true;
                }
                let mut many: BTreeSet<PushId> = std::mem::take(few).into_iter().collect();
                many.insert(id);
                *self = Self::Many(many);
                true
            }
            Self::Many(many) => many.insert(id),
        }
    }

    pub(super) fn remove(&mut self, id: PushId) {
        match self {
            Self::Few(few) => {
                if let Ok(at) = few.binary_search(&id) {
                    few.remove(at);
                }
            }
            Self::Many(many) => {
                many.remove(&id);
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = PushId> {
        let (few, many) = match self {
            Self::Few(few) => (Some(few), None),
            Self::Many(many) => (None, Some(many)),
        };
        few.into_iter().flatten().chain(many.into_iter().flatten()).copied()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn is_a_set(ops in prop::collection::vec((any::<bool>(), 0..40_u32), 0..200)) {
            let (mut set, mut model) = (Referrers::default(), BTreeSet::new());
            for (add, n) in ops {
                let id = PushId::from(n);
                if add {
                    prop_assert_eq!(set.insert(id), model.insert(id));
                } else {
                    set.remove(id);
                    model.remove(&id);
                }
                prop_assert!(set.iter().eq(model.iter().copied()));
            }
        }
    }
}
