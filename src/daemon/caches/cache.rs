//! What the daemon keeps of one cache. Must not know the other caches.

use super::{Connection, limits};
use crate::cache::CacheClient;
use crate::config::{self, Jobs, Settings};
use crate::daemon::attic::{self, CacheLogin, Client, Engine, EngineSetup, Login};
use crate::daemon::push::{CacheApi, Tally, Target, Transfers, UpstreamKeys};
use crate::flow::CacheLimits;
use crate::types::{CacheId, PushId, StorePath};

/// One cache of the configuration.
pub(in crate::daemon) struct Cache {
    id: CacheId,
    connection: Connection,
    upstream_keys: UpstreamKeys,
    /// What carries out the uploads. `None`: the daemon itself.
    engine: Option<Engine>,
    pub(in crate::daemon) tally: Tally,
    #[cfg(test)]
    simulated: Option<crate::daemon::push::SimulatedCache>,
}

/// What is needed to start a cache's engine.
pub(in crate::daemon) struct EngineParts<'a> {
    pub(in crate::daemon) settings: &'a Settings,
    pub(in crate::daemon) transfers: &'a Transfers,
    pub(in crate::daemon) client: &'a Client,
    pub(in crate::daemon) login: &'a Login,
}

impl Cache {
    pub(super) fn new(id: CacheId, connection: Connection) -> Self {
        Self {
            id,
            connection,
            upstream_keys: UpstreamKeys::default(),
            engine: None,
            tally: Tally::default(),
            #[cfg(test)]
            simulated: None,
        }
    }

    /// Replaces the connection, after the configuration has changed.
    pub(super) fn reconnect(&mut self, connection: Connection) {
        self.upstream_keys.set(Vec::new());
        self.connection = connection;
    }

    /// Starts the engine that the configuration names, and returns the limits on
    /// uploads at a time. To be called once.
    pub(super) fn start_engine(&mut self, parts: &EngineParts<'_>) -> CacheLimits {
        let settings = parts.settings;
        match settings.caches.get(self.name()) {
            Some(cache) if cache.engine == config::Engine::Attic => {
                let setup = EngineSetup {
                    target: self.target(),
                    transfers: parts.transfers.clone(),
                    client: parts.client.clone(),
                    workspace: attic::workspace(settings, parts.login),
                    login: parts.login.clone(),
                    cache: self.login().clone(),
                    // The default of `attic push`.
                    jobs: if let Jobs::Fixed(n) = settings.push.jobs { n } else { 5 },
                    memory: settings.client.memory,
                    stall: cache.stall_timeout,
                };
                self.engine = Some(Engine::start(setup));
                Engine::LIMITS
            }
            _ => limits(settings.push.jobs),
        }
    }

    pub(in crate::daemon) fn id(&self) -> CacheId {
        self.id
    }

    /// The name in the configuration.
    pub(in crate::daemon) fn name(&self) -> &str {
        self.connection.name()
    }

    pub(in crate::daemon) fn client(&self) -> &CacheClient {
        self.connection.client()
    }

    pub(in crate::daemon) fn connection(&self) -> &Connection {
        &self.connection
    }

    pub(in crate::daemon) fn upstream_keys(&self) -> &UpstreamKeys {
        &self.upstream_keys
    }

    pub(super) fn login(&self) -> &CacheLogin {
        self.connection.login()
    }

    /// The cache as a destination.
    pub(in crate::daemon) fn target(&self) -> Target {
        Target {
            id: self.id,
            name: self.client().cache().clone(),
            api: self.api(),
            upstream_keys: self.upstream_keys.clone(),
            upstream_check: self.connection.upstream_check().clone(),
        }
    }

    fn api(&self) -> CacheApi {
        #[cfg(test)]
        if let Some(simulated) = &self.simulated {
            return CacheApi::Simulated(simulated.clone());
        }
        CacheApi::Http(self.client().clone())
    }

    /// This cache, simulated if the other one is.
    #[cfg(test)]
    pub(super) fn simulated_as(mut self, other: Option<&Self>) -> Self {
        if let Some(simulated) = other.and_then(|other| other.simulated.as_ref()) {
            self.simulate(&simulated.board);
        }
        self
    }

    /// Has all calls made of a simulated cache.
    #[cfg(test)]
    pub(in crate::daemon) fn simulate(&mut self, board: &crate::daemon::push::Board) {
        let board = std::sync::Arc::clone(board);
        self.simulated = Some(crate::daemon::push::SimulatedCache { id: self.id, board });
    }

    /// Whether the attic client carries out the uploads.
    pub(in crate::daemon) fn needs_attic(&self) -> bool {
        self.engine.is_some()
    }

    /// Uploads a path, by `transfers` or by the engine.
    /// `no_verdicts`: the uploads of it that ended without a verdict.
    pub(in crate::daemon) fn upload(
        &self,
        transfers: &Transfers,
        push: PushId,
        path: StorePath,
        no_verdicts: u32,
    ) {
        match &self.engine {
            Some(engine) => engine.upload(push, path),
            None => transfers.upload(self.target(), push, path, no_verdicts),
        }
    }
}
