//! What the attic client needs to be logged in: its configuration with a
//! server for each cache, and a file for a token that has none. Written before
//! each use, so a new address or token is in it as soon as it is known.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::attic::{Home, Server};
use crate::cache::{CacheClient, TokenSource};
use crate::config::Settings;
use crate::observe::event;
use crate::types::replace_file;

/// A cache as the client is told of it.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Served {
    /// Its name in the configuration, and the server's in the client's.
    pub(in crate::daemon) name: String,
    pub(in crate::daemon) client: CacheClient,
    /// For as long as no address has answered.
    pub(in crate::daemon) first_endpoint: String,
    pub(in crate::daemon) token: TokenSource,
}

impl Served {
    /// `SERVER:CACHE`.
    pub(in crate::daemon) fn reference(&self) -> String {
        format!("{}:{}", self.name, self.client.cache())
    }
}

/// The client's login; clones share what is served.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Login {
    pub(in crate::daemon) home: Home,
    /// Where files for tokens are made.
    pub(in crate::daemon) dir: PathBuf,
    served: Arc<Mutex<Vec<Served>>>,
}

impl Login {
    /// For these caches.
    pub(in crate::daemon) fn new(settings: &Settings, served: Vec<Served>) -> Self {
        let dir = settings.runtime_dir.clone();
        Self { home: Home::new(dir.join("attic")), dir, served: Arc::new(Mutex::new(served)) }
    }

    /// The caches, by number.
    pub(in crate::daemon) fn served(&self) -> Vec<Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Others from now on; their numbers stay.
    pub(in crate::daemon) fn serve(&self, served: Vec<Served>) {
        *self.served.lock().unwrap_or_else(PoisonError::into_inner) = served;
    }

    /// Has the configuration as it should be now. Writes small files, and only
    /// when something has changed.
    pub(in crate::daemon) fn refresh(&self) -> Result<()> {
        let servers = self.served().iter().map(|served| self.server(served)).collect::<Result<Vec<_>>>()?;
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
                    replace_file(&file, token.as_bytes(), 0o600, None)
                        .with_context(|| format!("the attic client's token file {}", file.display()))?;
                    Some(file)
                }
            }
        };
        let endpoint = served.client.endpoint().unwrap_or_else(|| served.first_endpoint.clone());
        Ok(Server { name: served.name.clone(), endpoint, token_file })
    }
}
