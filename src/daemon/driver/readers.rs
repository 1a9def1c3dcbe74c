//! What is told to those who use the client or read the caches themselves.

use std::collections::BTreeMap;

use crate::config::{Engine, Settings};
use crate::control::messages as m;
use crate::control::messages::Reply;
use crate::control::server::Responder;
use crate::daemon::attic::client::View;
use crate::daemon::attic::login::Served;
use crate::daemon::caches::netrc::Netrc;
use crate::daemon::driver::Driver;
use crate::flow::{ClientState, Event};
use crate::ledger::SessionInfo;
use crate::types::CacheId;

/// The client as it stands, for a caller.
pub(in crate::daemon) fn client(view: &View, settings: &Settings) -> m::ClientStatus {
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
        installable: Some(settings.client.installable.clone()),
        since: record.map(|r| r.since),
        took_ms: record.map(|r| r.took_ms),
        waited_ms: record.map(|r| r.waited_ms),
        error: view.error.clone(),
    }
}

impl Driver {
    /// `client status`, `client exec` and `nix-conf`.
    pub(in crate::daemon) fn readers(&self, check: bool, responder: Responder) {
        let client = client(&self.client.view(), &self.settings);
        let (served, netrc) = (self.login.served(), self.netrc.clone());
        let default = self.settings.default_cache.clone();
        tokio::spawn(async move {
            let servers = served.iter().map(|served| server(served, &default, netrc.as_ref(), check));
            let servers = futures_util::future::join_all(servers).await;
            let netrc = netrc.map(|netrc| netrc.file.display().to_string());
            responder.reply(Reply::Client(m::ClientInfo { client, servers, netrc }));
        });
    }
}

/// One cache; with `check`, whether it can be read as Nix would.
async fn server(served: &Served, default: &str, netrc: Option<&Netrc>, check: bool) -> m::ClientServer {
    let config = served.client.config().unwrap_or_default();
    let (mut readable, mut problem) = (None, netrc.and_then(Netrc::trouble).filter(|_| check));
    if let (Some(substituter), true) = (&config.substituter_endpoint, check) {
        let pull = netrc.map(|netrc| netrc.pull(&served.name)).unwrap_or_default();
        let read = served.client.readable(substituter, &pull).await;
        readable = Some(read.is_ok());
        problem = read.err().map(|error| error.to_string()).or(problem);
    }
    m::ClientServer {
        name: served.name.clone(),
        cache: served.client.cache().to_string(),
        default: served.name == default,
        endpoint: served.client.endpoint().or_else(|| Some(served.first_endpoint.clone())),
        substituter: config.substituter_endpoint,
        public_key: config.public_key,
        public: config.is_public,
        readable,
        problem,
    }
}

/// Which way the caches' paths go, for summaries.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Ways {
    engines: BTreeMap<String, &'static str>,
    /// Since when there is an attic client without a gap.
    client: Option<i64>,
}

impl Ways {
    /// The engine of a session, and whether it had to wait for the client.
    pub(in crate::daemon) fn of(&self, info: &SessionInfo) -> (String, bool) {
        let engine = self.engines.get(&info.new.cache).copied().unwrap_or_default();
        let waited = self.client.is_none_or(|first| first > info.new.started_at);
        (engine.to_owned(), engine == "attic" && waited)
    }
}

impl Driver {
    /// The caches whose uploads are the attic client's work go on, or wait.
    pub(in crate::daemon) fn client_usable(&mut self, usable: bool) {
        for number in 0..u16::try_from(self.caches.len()).unwrap_or(u16::MAX) {
            if self.engines[usize::from(number)].is_some() {
                self.step(Event::Hold(CacheId(number), !usable));
            }
        }
    }

    /// Why nothing goes to a cache although it answers.
    pub(in crate::daemon) fn waits_for_client(&self, cache: CacheId) -> Option<String> {
        let waits = self.engines[usize::from(cache.0)].is_some() && !self.client.is_usable();
        waits.then(|| {
            let why = self.client.view().error.map(|why| format!(" ({why})")).unwrap_or_default();
            format!("waiting for the attic client{why}")
        })
    }

    /// As they are now.
    pub(in crate::daemon) fn ways(&self) -> Ways {
        let engines = self.settings.caches.iter().map(|(name, cache)| (name.clone(), word(cache.engine)));
        let view = self.client.view();
        let client = view.record.filter(|_| view.program.is_some()).map(|record| record.first);
        Ways { engines: engines.collect(), client }
    }
}

/// An engine as the configuration names it.
pub(in crate::daemon) fn word(engine: Engine) -> &'static str {
    match engine {
        Engine::Native => "native",
        Engine::Attic => "attic",
    }
}
