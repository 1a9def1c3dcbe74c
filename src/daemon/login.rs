//! What the attic client needs to be logged in: its configuration with a
//! server for each cache, and a file for a token that has none. Written before
//! each use, so a new address or token is in it as soon as it is known.

use std::path::PathBuf;

use anyhow::{Context as _, Result};

use super::servers;
use crate::attic::{Home, Server, atomically};
use crate::cache::{CacheClient, TokenSource};
use crate::config::Settings;
use crate::embedded::Running;
use crate::observe::event;

/// A cache as the client is told of it.
#[derive(Debug, Clone)]
pub(super) struct Served {
    /// Its name in the configuration, and the server's in the client's.
    pub(super) name: String,
    pub(super) client: CacheClient,
    /// For as long as no address has answered.
    pub(super) first_endpoint: String,
    pub(super) token: TokenSource,
}

impl Served {
    /// `SERVER:CACHE`.
    pub(super) fn reference(&self) -> String {
        format!("{}:{}", self.name, self.client.cache())
    }
}

/// The client's login.
#[derive(Debug, Clone)]
pub(super) struct Login {
    pub(super) home: Home,
    /// Where files for tokens are made.
    pub(super) dir: PathBuf,
    pub(super) served: Vec<Served>,
}

impl Login {
    /// For the caches of the configuration and their clients, in their order.
    pub(super) fn new(settings: &Settings, built_in: Option<&Running>, clients: &[CacheClient]) -> Self {
        let served = settings.caches.iter().zip(clients).map(|((name, cache), client)| {
            let (endpoints, token) = servers::whereabouts(cache, built_in).unwrap_or_default();
            Served {
                name: name.clone(),
                client: client.clone(),
                first_endpoint: endpoints.into_iter().next().unwrap_or_default(),
                token,
            }
        });
        let dir = settings.runtime_dir.clone();
        Self { home: Home::new(dir.join("attic")), dir, served: served.collect() }
    }

    /// Has the configuration as it should be now. Writes small files, and only
    /// when something has changed.
    pub(super) fn refresh(&self) -> Result<()> {
        let servers = self.served.iter().map(|served| self.server(served)).collect::<Result<Vec<_>>>()?;
        let dir = self.home.dir().display();
        if self.home.write(&servers).with_context(|| format!("the attic client's configuration in {dir}"))? {
            event!(CLIENT_LOGGED_IN, dir = %dir, "the attic client is logged in: its configuration is written");
        }
        Ok(())
    }

    fn server(&self, served: &Served) -> Result<Server> {
        let token_file = match &served.token {
            TokenSource::File(file) => Some(file.clone()),
            TokenSource::None => None,
            TokenSource::Env(_) => {
                let file = self.dir.join(format!("attic-token-{}", served.name));
                let token = served.token.text()?.unwrap_or_default();
                if std::fs::read(&file).is_ok_and(|now| now == token.as_bytes()) {
                    Some(file)
                } else {
                    atomically(&file, token.as_bytes(), 0o600, None)
                        .with_context(|| format!("the attic client's token file {}", file.display()))?;
                    Some(file)
                }
            }
        };
        let endpoint = served.client.endpoint().unwrap_or_else(|| served.first_endpoint.clone());
        Ok(Server { name: served.name.clone(), endpoint, token_file })
    }
}
