//! The attic client as callers see it, and what its absence means for caches.

use futures_util::future::join_all;

use super::Driver;
use crate::config::Settings;
use crate::control::messages as m;
use crate::control::messages::Reply;
use crate::control::server::Responder;
use crate::daemon::attic::CacheLogin;
use crate::daemon::caches::{Cache, Netrc};
use crate::flow::{ClientState, Event};
use crate::types::CacheId;

impl Driver {
    /// The present state of the client.
    pub(super) fn client_status(&self) -> m::ClientStatus {
        let view = self.parts.client.view();
        let Some(state) = view.state else {
            return m::ClientStatus { state: "disabled".to_owned(), ..m::ClientStatus::default() };
        };
        let state = match state {
            ClientState::Absent => "absent",
            ClientState::Trying => "trying",
            ClientState::Ready => "ready",
            ClientState::Updating => "updating",
            ClientState::Broken => "broken",
        };
        let record = view.record.as_ref().filter(|_| view.program.is_some());
        m::ClientStatus {
            state: state.to_owned(),
            path: view.program.as_ref().map(|path| path.display().to_string()),
            version: record.map(|r| r.version.clone()),
            installable: Some(self.parts.settings.client.installable.clone()),
            since: record.map(|r| r.since),
            took_ms: record.map(|r| r.took_ms),
            waited_ms: record.map(|r| r.waited_ms),
            error: view.error.clone(),
        }
    }

    /// Serves `client status`, `client exec` and `nix-conf`. `check`: whether each
    /// cache can be read is tried.
    pub(super) fn client_info(&self, check: bool, responder: Responder) {
        let client = self.client_status();
        let (caches, netrc) = (self.parts.login.caches(), self.parts.netrc.clone());
        let settings = std::sync::Arc::clone(&self.parts.settings);
        tokio::spawn(async move {
            let servers = caches.iter().map(|cache| server(cache, &settings, netrc.as_ref(), check));
            let servers = join_all(servers).await;
            let netrc = netrc.map(|netrc| netrc.file().display().to_string());
            responder.reply(Reply::Client(m::ClientInfo { client, servers, netrc }));
        });
    }

    /// Lets uploads to each cache begin, or holds them: while the cache's engine has no
    /// attic client, and while the ledger is behind.
    pub(super) fn update_holds(&mut self) {
        let (usable, behind) = (self.parts.client.is_usable(), self.ledger_behind);
        let hold = |cache: &Cache| (cache.id(), behind || (cache.needs_attic() && !usable));
        let holds: Vec<_> = self.parts.caches.iter().map(hold).collect();
        for (cache, hold) in holds {
            self.step(Event::Hold(cache, hold));
        }
    }

    /// Why nothing is uploaded to a cache although it answers.
    pub(super) fn waits_for_client(&self, cache: CacheId) -> Option<String> {
        let waits = self.parts.caches[cache].needs_attic() && !self.parts.client.is_usable();
        waits.then(|| {
            let why = self.parts.client.view().error.map(|why| format!(" ({why})")).unwrap_or_default();
            format!("waiting for the attic client{why}")
        })
    }
}

/// What is known of one cache; with `check`, also whether Nix could read it.
async fn server(
    cache: &CacheLogin,
    settings: &Settings,
    netrc: Option<&Netrc>,
    check: bool,
) -> m::ClientServer {
    let config = cache.client.config().unwrap_or_default();
    let (mut readable, mut problem) = (None, netrc.and_then(Netrc::trouble).filter(|_| check));
    if let (Some(substituter), true) = (&config.substituter_endpoint, check) {
        let pull = netrc.map(|netrc| netrc.pull(&cache.name)).unwrap_or_default();
        let read = cache.client.readable(substituter, &pull).await;
        readable = Some(read.is_ok());
        problem = read.err().map(|error| error.to_string()).or(problem);
    }
    let tls = settings.caches.get(&cache.name).map(|cache| cache.network.tls.clone()).unwrap_or_default();
    let shown = |file: std::path::PathBuf| file.display().to_string();
    m::ClientServer {
        name: cache.name.clone(),
        cache: cache.client.cache().to_string(),
        default: cache.name == settings.default_cache,
        endpoint: cache.client.endpoint().or_else(|| Some(cache.first_endpoint.clone())),
        substituter: config.substituter_endpoint,
        public_key: config.public_key,
        public: config.is_public,
        readable,
        problem,
        ca_file: tls.ca_file.map(shown),
        client_cert: tls.client_cert.map(shown),
        client_key: tls.client_key.map(shown),
    }
}
