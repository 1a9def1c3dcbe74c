//! All caches, by number and by name. Caches are added while the daemon runs, and
//! none is removed before it ends. Must not know what is pushed.

use std::ops::{Index, IndexMut};

use super::{Cache, Connection, EngineParts};
use crate::daemon::attic::CacheLogin;
use crate::flow::CacheLimits;
use crate::types::CacheId;

/// The caches. A cache's number is its position. Indexing panics for a number
/// that no cache has; numbers are only made here.
#[derive(Default)]
pub(in crate::daemon) struct Caches(Vec<Cache>);

impl Caches {
    /// Caches with these connections, numbered in this order.
    pub(in crate::daemon) fn new(connections: Vec<Connection>) -> Self {
        let mut this = Self::default();
        for connection in connections {
            this.set(connection);
        }
        this
    }

    /// Adds a cache, or gives the one of the same name this connection. Returns
    /// its number; `None` when there are no more numbers.
    pub(in crate::daemon) fn set(&mut self, connection: Connection) -> Option<CacheId> {
        if let Some(id) = self.id(connection.name()) {
            self[id].reconnect(connection);
            return Some(id);
        }
        let id = CacheId(u16::try_from(self.0.len()).ok()?);
        #[cfg(not(test))]
        let cache = Cache::new(id, connection);
        #[cfg(test)]
        let cache = Cache::new(id, connection).simulated_as(self.0.first());
        self.0.push(cache);
        Some(id)
    }

    /// Starts the engines of the caches from number `first` on, and returns their
    /// limits.
    pub(in crate::daemon) fn start_engines(
        &mut self,
        first: usize,
        parts: &EngineParts<'_>,
    ) -> Vec<CacheLimits> {
        self.0.iter_mut().skip(first).map(|cache| cache.start_engine(parts)).collect()
    }

    /// The number of the cache with this name.
    pub(in crate::daemon) fn id(&self, name: &str) -> Option<CacheId> {
        self.0.iter().find(|cache| cache.name() == name).map(Cache::id)
    }

    pub(in crate::daemon) fn iter(&self) -> impl Iterator<Item = &Cache> {
        self.0.iter()
    }

    /// The numbers of all caches, in order.
    pub(in crate::daemon) fn ids(&self) -> impl Iterator<Item = CacheId> + use<> {
        (0..u16::try_from(self.0.len()).unwrap_or(u16::MAX)).map(CacheId)
    }

    /// How many caches there are.
    pub(in crate::daemon) fn len(&self) -> usize {
        self.0.len()
    }

    /// The names of all caches, by their numbers.
    pub(in crate::daemon) fn names(&self) -> Vec<String> {
        self.0.iter().map(|cache| cache.name().to_owned()).collect()
    }

    /// All caches for the attic client's login, by their numbers.
    pub(in crate::daemon) fn logins(&self) -> Vec<CacheLogin> {
        self.0.iter().map(|cache| cache.login().clone()).collect()
    }
}

impl Index<CacheId> for Caches {
    type Output = Cache;

    fn index(&self, id: CacheId) -> &Cache {
        &self.0[id.index()]
    }
}

impl IndexMut<CacheId> for Caches {
    fn index_mut(&mut self, id: CacheId) -> &mut Cache {
        &mut self.0[id.index()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Settings;

    fn connections(caches: &[&str], port: u16) -> Vec<Connection> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("flywheel.toml");
        let table = |name: &&str| format!("[caches.{name}]\nendpoints = [\"http://127.0.0.1:{port}\"]\n");
        let tables: String = caches.iter().map(table).collect();
        std::fs::write(&file, format!("default_cache = \"{}\"\n{tables}", caches[0])).unwrap();
        let env = |name: &str| name.ends_with("_DIRECTORY").then(|| dir.path().display().to_string());
        Connection::all(&Settings::load(Some(&file), &env).unwrap(), None).unwrap()
    }

    #[test]
    fn a_number_stays_with_its_name() {
        let mut caches = Caches::new(connections(&["a", "b"], 1));
        assert_eq!(
            (caches.id("a"), caches.id("b"), caches.id("c")),
            (Some(CacheId(0)), Some(CacheId(1)), None)
        );
        caches[CacheId(1)].tally.trouble = Some("offline".to_owned());
        // A changed cache keeps its number and counts; a new one gets the next number.
        let changed = connections(&["b", "c"], 2);
        let ids: Vec<_> = changed.into_iter().map(|connection| caches.set(connection)).collect();
        assert_eq!(ids, [Some(CacheId(1)), Some(CacheId(2))]);
        assert_eq!(caches.names(), ["a", "b", "c"]);
        assert_eq!(caches[CacheId(1)].login().first_endpoint, "http://127.0.0.1:2");
        assert_eq!(caches[CacheId(1)].tally.trouble.as_deref(), Some("offline"));
    }
}
