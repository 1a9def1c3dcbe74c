//! Where the paths of somebody go: the configuration's `[[route]]`s, asked for a
//! session when it opens and for who made a path of no session.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::people::who_is;
use crate::attribution::Maker;
use crate::config::{Destination, Settings, Who};
use crate::types::CacheId;

/// How long is believed who a number is.
const KNOWN: Duration = Duration::from_secs(300);
/// People that are remembered.
const PEOPLE: usize = 1024;

/// The cache for somebody; none: their paths are skipped.
pub(in crate::daemon) fn destination(
    settings: &Settings,
    caches: &[String],
    (uid, gid): (u32, u32),
    label: Option<&str>,
) -> Option<CacheId> {
    let to =
        |name: &str| caches.iter().position(|c| c == name).and_then(|n| u16::try_from(n).ok()).map(CacheId);
    if settings.routes.is_empty() {
        return to(&settings.default_cache);
    }
    let person = who_is(uid, gid);
    let who =
        Who { user: (uid, person.name.as_deref()), groups: &person.groups, label: label.unwrap_or_default() };
    match settings.route(&who) {
        Destination::Cache(name) => to(name),
        Destination::Skip => None,
    }
}

/// The destinations of people without a session.
pub(in crate::daemon) struct UnownedRoutes {
    settings: Arc<Settings>,
    caches: Vec<String>,
    known: HashMap<(u32, u32), (Option<CacheId>, Instant)>,
}

impl UnownedRoutes {
    pub(in crate::daemon) fn new(settings: Arc<Settings>, caches: Vec<String>) -> Self {
        Self { settings, caches, known: HashMap::new() }
    }

    /// Where a path of no session goes: where its maker's go, when that is
    /// known, else to the default cache.
    pub(in crate::daemon) fn cache(&mut self, maker: Option<&Maker>, default: CacheId) -> Option<CacheId> {
        let Some(person) = maker.and_then(|m| m.lineage.person).filter(|_| !self.settings.routes.is_empty())
        else {
            return Some(default);
        };
        if let Some((cache, at)) = self.known.get(&person)
            && at.elapsed() < KNOWN
        {
            return *cache;
        }
        let cache = destination(&self.settings, &self.caches, person, None);
        if self.known.len() >= PEOPLE {
            self.known.clear();
        }
        self.known.insert(person, (cache, Instant::now()));
        cache
    }
}
