//! The engine of each cache, for summaries. Must not know how engines work.

use std::collections::BTreeMap;

use crate::config::{Engine, Settings, Target};
use crate::ledger::SessionInfo;

/// The engines as they are configured now.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Engines {
    by_cache: BTreeMap<String, &'static str>,
    /// The caches that keep realisations: the built-in ones.
    with_realisations: Vec<String>,
    /// Since when there has been a usable attic client without a gap, in
    /// milliseconds since 1970.
    client_since: Option<i64>,
}

impl Engines {
    pub(in crate::daemon) fn new(settings: &Settings, client_since: Option<i64>) -> Self {
        let by_cache = settings.caches.iter().map(|(name, cache)| (name.clone(), Self::word(cache.engine)));
        let built_in = settings.caches.iter().filter(|(_, cache)| cache.target == Target::Embedded);
        let with_realisations = built_in.map(|(name, _)| name.clone()).collect();
        Self { by_cache: by_cache.collect(), with_realisations, client_since }
    }

    /// The engine of a session, and whether the session had to wait for the attic
    /// client.
    pub(super) fn of(&self, info: &SessionInfo) -> (String, bool) {
        let engine = self.by_cache.get(&info.new.cache).copied().unwrap_or_default();
        let waited = self.client_since.is_none_or(|since| since > info.new.started_at);
        (engine.to_owned(), engine == "attic" && waited)
    }

    /// Whether a session's cache keeps realisations.
    pub(super) fn keep_realisations(&self, info: &SessionInfo) -> bool {
        self.with_realisations.contains(&info.new.cache)
    }

    /// An engine as the configuration names it.
    pub(in crate::daemon) fn word(engine: Engine) -> &'static str {
        match engine {
            Engine::Native => "native",
            Engine::Attic => "attic",
        }
    }
}
