//! The caches of the configuration: the built-in one, and a client for each.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;

use super::client::Handle;
use super::engine::{self, Engine, Means};
use super::login::{Login, Served};
use super::netrc::Read;
use super::transfer::Transfers;
use crate::cache::{CacheClient, CacheName, ClientSettings, TokenSource};
use crate::config::{self, Cache, Jobs, Settings, Target, Token};
use crate::embedded::{self, Running};
use crate::flow::{CacheId, CacheLimits};
use crate::observe::event;
use crate::store::StoreDir;

/// Uploads at a time when the configuration leaves it open.
const AUTO: CacheLimits = CacheLimits { least: 2, most: 16 };

pub(super) async fn start_embedded(
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

/// A client for each cache, and the file that its token is in.
pub(super) fn clients(
    settings: &Settings,
    built_in: Option<&Running>,
) -> Result<(Vec<CacheClient>, Vec<Option<PathBuf>>)> {
    let (mut clients, mut files) = (Vec::new(), Vec::new());
    for (name, cache) in &settings.caches {
        let Some((endpoints, token)) = whereabouts(cache, built_in) else {
            bail!("the cache {name} is built in, and the built-in cache does not run")
        };
        files.push(match &token {
            TokenSource::File(file) => Some(file.clone()),
            TokenSource::Env(_) | TokenSource::None => None,
        });
        let mut settings = ClientSettings::new(endpoints, CacheName::parse(&cache.cache)?, token);
        settings.stall_timeout = cache.stall_timeout;
        clients.push(CacheClient::new(settings).with_context(|| format!("the cache {name}"))?);
    }
    Ok((clients, files))
}

/// Where a cache is and where its token is; nothing for a built-in one that
/// does not run.
pub(super) fn whereabouts(cache: &Cache, built_in: Option<&Running>) -> Option<(Vec<String>, TokenSource)> {
    match (&cache.target, built_in) {
        (Target::Embedded, Some(running)) => {
            let address = format!("http://{}", running.addr);
            Some((vec![address], TokenSource::File(running.push_token_file.clone())))
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

/// The caches as Nix reads them.
pub(super) fn reads(settings: &Settings, built_in: Option<&Running>, clients: &[CacheClient]) -> Vec<Read> {
    let pull = |cache: &Cache| match (&cache.target, &cache.pull_token, built_in, &settings.embedded) {
        (Target::Remote(_), Some(file), ..) => TokenSource::File(file.clone()),
        (Target::Embedded, _, Some(running), Some(own)) if !own.public => {
            TokenSource::File(running.pull_token_file.clone())
        }
        _ => TokenSource::None,
    };
    let read = |((name, cache), client): ((&String, &Cache), &CacheClient)| Read {
        name: name.clone(),
        client: client.clone(),
        pull: pull(cache),
    };
    settings.caches.iter().zip(clients).map(read).collect()
}

/// What carries out each cache's uploads when we do not, and how many at a time.
pub(super) fn engines(
    settings: &Settings,
    transfers: &Transfers,
    client: &Handle,
    login: &Login,
) -> (Vec<Option<Engine>>, Vec<CacheLimits>) {
    let of = |(number, (cache, served)): (u16, (&Cache, &Served))| match cache.engine {
        config::Engine::Native => (None, limits(settings.push.jobs)),
        config::Engine::Attic => {
            let means = Means {
                cache: CacheId(number),
                transfers: transfers.clone(),
                client: client.clone(),
                place: super::client::place(settings, login),
                login: login.clone(),
                served: served.clone(),
                // attic's own number when the configuration leaves it open.
                jobs: if let Jobs::Fixed(n) = settings.push.jobs { n } else { 5 },
                memory: settings.client.memory,
                stall: cache.stall_timeout,
            };
            (Some(engine::start(means)), engine::LIMITS)
        }
    };
    (0..).zip(settings.caches.values().zip(&login.served)).map(of).unzip()
}

fn limits(jobs: Jobs) -> CacheLimits {
    match jobs {
        Jobs::Auto => AUTO,
        Jobs::Fixed(n) => CacheLimits { least: n, most: n },
    }
}
