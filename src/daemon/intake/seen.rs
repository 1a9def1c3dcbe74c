//! Which rows of the Nix database have been handed on: a bit each. Rows are
//! numbered densely and never twice, so ten million of them take a megabyte.

/// A growing set of small numbers.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Seen {
    words: Vec<u64>,
}

/// The largest number that is remembered; above it nothing counts as seen,
/// which costs a question to the cache and nothing else.
const MOST: usize = 1 << 28;

impl Seen {
    pub(in crate::daemon) fn contains(&self, id: i64) -> bool {
        let Some((word, bit)) = place(id) else { return false };
        self.words.get(word).is_some_and(|w| w & bit != 0)
    }

    pub(in crate::daemon) fn insert(&mut self, id: i64) {
        let Some((word, bit)) = place(id) else { return };
        if word >= self.words.len() {
            self.words.resize(word + 1, 0);
        }
        self.words[word] |= bit;
    }

    pub(in crate::daemon) fn clear(&mut self) {
        self.words = Vec::new();
    }
}

fn place(id: i64) -> Option<(usize, u64)> {
    let id = usize::try_from(id).ok().filter(|id| *id < MOST)?;
    Some((id / 64, 1 << (id % 64)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn holds_what_was_inserted_and_nothing_else() {
        let mut seen = Seen::default();
        for id in [0, 1, 63, 64, 1000] {
            assert!(!seen.contains(id));
            seen.insert(id);
            assert!(seen.contains(id));
        }
        assert!(!seen.contains(65) && !seen.contains(-1));
        seen.insert(-1);
        seen.insert(i64::MAX);
        assert!(!seen.contains(i64::MAX));
        seen.clear();
        assert!(!seen.contains(64));
    }
}
