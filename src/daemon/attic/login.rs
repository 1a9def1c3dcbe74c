//! The attic client's login: its configuration file with one server per cache, and
//! a file for each token that comes from the environment or a program. They are written before
//! each use, so that a new endpoint or token takes effect at once.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result};

use crate::attic::{Home, Server};
use crate::cache::{CacheClient, TokenSource};
use crate::config::Settings;
use crate::observe::event;
use crate::types::replace_file;

/// A cache as the attic client's configuration names it.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct CacheLogin {
    /// The cache's name in the daemon's configuration, and the server's name in
    /// the attic client's.
    pub(in crate::daemon) name: String,
    pub(in crate::daemon) client: CacheClient,
    /// The endpoint that is written as long as none has answered.
    pub(in crate::daemon) first_endpoint: String,
    pub(in crate::daemon) token: TokenSource,
}

impl CacheLogin {
    /// The cache as an argument of the attic client: `SERVER:CACHE`.
    pub(super) fn reference(&self) -> String {
        format!("{}:{}", self.name, self.client.cache())
    }
}

/// The login. Clones share the list of caches.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Login {
    home: Home,
    /// The directory for token files.
    dir: PathBuf,
    caches: Arc<Mutex<Vec<CacheLogin>>>,
}

impl Login {
    /// A login without caches; [`Self::set`] names them.
    pub(in crate::daemon) fn new(settings: &Settings) -> Self {
        let dir = settings.runtime_dir.clone();
        Self { home: Home::new(dir.join("attic")), dir, caches: Arc::default() }
    }

    /// The directory that the attic client takes for its user's configuration.
    pub(super) fn home(&self) -> &Home {
        &self.home
    }

    /// The caches, by their numbers.
    pub(in crate::daemon) fn caches(&self) -> Vec<CacheLogin> {
        self.caches.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Sets the caches, by their numbers.
    pub(in crate::daemon) fn set(&self, caches: Vec<CacheLogin>) {
        *self.caches.lock().unwrap_or_else(PoisonError::into_inner) = caches;
    }

    /// Writes the files whose content has changed. Blocks for a moment.
    pub(super) fn refresh(&self) -> Result<()> {
        let servers = self.caches().iter().map(|cache| self.server(cache)).collect::<Result<Vec<_>>>()?;
        let dir = self.home.dir().display();
        if self.home.write(&servers).with_context(|| format!("the attic client's configuration in {dir}"))? {
            event!(CLIENT_LOGGED_IN, dir = %dir, "the attic client is logged in: its configuration is in {dir}");
        }
        Ok(())
    }

    fn server(&self, cache: &CacheLogin) -> Result<Server> {
        let token_file = match &cache.token {
            TokenSource::File(file) => Some(file.clone()),
            TokenSource::None => None,
            TokenSource::Env(_) | TokenSource::Supplied(_) => {
                let file = self.dir.join(format!("attic-token-{}", cache.name));
                let token = cache.token.text()?.unwrap_or_default();
                if std::fs::read(&file).is_ok_and(|now| now == token.as_bytes()) {
                    Some(file)
                } else {
                    replace_file(&file, token.as_bytes(), 0o600, None)
                        .with_context(|| format!("the attic client's token file {}", file.display()))?;
                    Some(file)
                }
            }
        };
        let endpoint = cache.client.endpoint().unwrap_or_else(|| cache.first_endpoint.clone());
        Ok(Server { name: cache.name.clone(), endpoint, token_file })
    }
}
