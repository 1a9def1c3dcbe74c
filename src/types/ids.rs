//! The numbers by which the rooms speak of pushes, sessions and caches.

/// A push: one store path on its way to one cache. It is the number of the
/// push's row in the ledger, which gives no number twice.
pub type PushId = i64;

/// A session, by the number of its row in the ledger. Negative numbers stand for
/// other groups of pushes that somebody waits for and that have no row.
pub type SessionId = i64;

/// A configured cache, by its position among the caches that the daemon has
/// known since it started. A number is not used again for another cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct CacheId(pub u16);

impl CacheId {
    /// The number as an index into a list of all caches.
    #[must_use]
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}
