//! The caches of the configuration: the built-in one, and a client for each.

use std::net::SocketAddr;
use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;

use crate::cache::{CacheClient, ClientSettings, TokenSource};
use crate::config::{self, Cache, Jobs, Settings, Target, Token};
use crate::daemon::attic::client::Handle;
use crate::daemon::attic::engine::{self, Engine, Means};
use crate::daemon::attic::login::{Login, Served};
use crate::daemon::caches::netrc::{Netrc, Read};
use crate::daemon::push::transfer::Transfers;
use crate::embedded::{self, Running};
use crate::flow::CacheLimits;
use crate::observe::event;
use crate::types::{CacheId, CacheName, StoreDir};

/// Uploads at a time when the configuration leaves it open.
const AUTO: CacheLimits = CacheLimits { least: 1, most: 128 };

pub(in crate::daemon) async fn start_embedded(
    settings: &Settings,
    store_dir: &StoreDir,
    closing: &CancellationToken,
) -> Result<Option<Running>> {
    let Some(built_in) = &settings.embedded else { return Ok(None) };
    let running = embedded::start(
        embedded::Settings {
            dir: built_in.dir.clone(),
            listen: built_in.listen,
            caches: built_in.caches.clone(),
            public: built_in.public,
            store_dir: store_dir.as_str().to_owned(),
            max_size: built_in.max_size,
            max_nar_size: built_in.max_nar_size,
            token_dir: settings.state_dir.clone(),
            priority: built_in.priority,
            upstream_cache_key_names: Vec::new(),
        },
        closing.clone(),
    )
    .await
    .context("the built-in cache")?;
    for (name, key) in &running.public_keys {
        event!(BUILT_IN_SERVES, cache = name, address = %running.addr, public_key = key, "the built-in cache serves");
    }
    Ok(Some(running))
}

/// What others must know of the built-in cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct BuiltIn {
    address: SocketAddr,
    push_token_file: PathBuf,
    pull_token_file: PathBuf,
}

impl BuiltIn {
    pub(in crate::daemon) fn of(running: &Running) -> Self {
        Self {
            address: running.addr,
            push_token_file: running.push_token_file.clone(),
            pull_token_file: running.pull_token_file.clone(),
        }
    }
}

/// A way to a cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Line {
    pub(in crate::daemon) served: Served,
    /// The file that the token is in.
    pub(in crate::daemon) token_file: Option<PathBuf>,
}

impl Line {
    pub(in crate::daemon) fn new(name: &str, cache: &Cache, built_in: Option<&BuiltIn>) -> Result<Self> {
        let Some((endpoints, token)) = whereabouts(cache, built_in) else {
            bail!("the cache {name} is built in, and the built-in cache does not run")
        };
        let token_file = match &token {
            TokenSource::File(file) => Some(file.clone()),
            TokenSource::Env(_) | TokenSource::None => None,
        };
        let first_endpoint = endpoints.first().cloned().unwrap_or_default();
        let mut settings = ClientSettings::new(endpoints, CacheName::parse(&cache.cache)?, token.clone());
        settings.stall_timeout = cache.stall_timeout;
        let client = CacheClient::new(settings).with_context(|| format!("the cache {name}"))?;
        let served = Served { name: name.to_owned(), client, first_endpoint, token };
        Ok(Self { served, token_file })
    }

    pub(in crate::daemon) fn name(&self) -> &str {
        &self.served.name
    }

    pub(in crate::daemon) fn client(&self) -> &CacheClient {
        &self.served.client
    }
}

/// Where a cache is and where its token is; nothing for a built-in one that
/// does not run.
fn whereabouts(cache: &Cache, built_in: Option<&BuiltIn>) -> Option<(Vec<String>, TokenSource)> {
    match (&cache.target, built_in) {
        (Target::Embedded, Some(at)) => {
            let address = format!("http://{}", at.address);
            Some((vec![address], TokenSource::File(at.push_token_file.clone())))
        }
        (Target::Embedded, None) => None,
        (Target::Remote(urls), _) => {
            let token = match &cache.token {
                Token::File(file) => TokenSource::File(file.clone()),
                Token::Env(variable) => TokenSource::Env(variable.clone()),
                Token::None => TokenSource::None,
            };
            Some((urls.clone(), token))
        }
    }
}

/// The file for Nix, when one is to be kept, with the caches as Nix reads them.
pub(in crate::daemon) fn netrc(
    settings: &Settings,
    built_in: Option<&BuiltIn>,
    lines: &[Line],
) -> Option<Netrc> {
    let pull = |cache: &Cache| match (&cache.target, &cache.pull_token, built_in, &settings.embedded) {
        (Target::Remote(_), Some(file), ..) => TokenSource::File(file.clone()),
        (Target::Embedded, _, Some(at), Some(own)) if !own.public => {
            TokenSource::File(at.pull_token_file.clone())
        }
        _ => TokenSource::None,
    };
    let read = |line: &Line| {
        let cache = settings.caches.get(line.name())?;
        Some(Read { name: line.name().to_owned(), client: line.client().clone(), pull: pull(cache) })
    };
    let file = settings.nix.netrc.clone()?;
    Some(Netrc::new(file, settings.nix.netrc_group.clone(), lines.iter().filter_map(read).collect()))
}

/// What carries out a cache's uploads when we do not, and how many at a time.
pub(in crate::daemon) fn engine(
    number: CacheId,
    settings: &Settings,
    transfers: &Transfers,
    client: &Handle,
    login: &Login,
    served: &Served,
) -> (Option<Engine>, CacheLimits) {
    match settings.caches.get(&served.name) {
        Some(cache) if cache.engine == config::Engine::Attic => {
            let means = Means {
                cache: number,
                transfers: transfers.clone(),
                client: client.clone(),
                place: crate::daemon::attic::client::place(settings, login),
                login: login.clone(),
                served: served.clone(),
                // attic's own number when the configuration leaves it open.
                jobs: if let Jobs::Fixed(n) = settings.push.jobs { n } else { 5 },
                memory: settings.client.memory,
                stall: cache.stall_timeout,
            };
            (Some(engine::start(means)), engine::LIMITS)
        }
        _ => (None, limits(settings.push.jobs)),
    }
}

pub(in crate::daemon) fn limits(jobs: Jobs) -> CacheLimits {
    match jobs {
        Jobs::Auto => AUTO,
        Jobs::Fixed(n) => CacheLimits { least: n, most: n },
    }
}
