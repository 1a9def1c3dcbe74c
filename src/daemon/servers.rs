//! The caches of the configuration: the built-in one, and a client for each.

use std::path::PathBuf;

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;

use crate::cache::{CacheClient, CacheName, ClientSettings, TokenSource};
use crate::config::{Jobs, Settings, Target, Token};
use crate::embedded::{self, Running};
use crate::flow::CacheLimits;
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
        let (endpoints, token) = match (&cache.target, built_in) {
            (Target::Embedded, Some(running)) => {
                (vec![format!("http://{}", running.addr)], TokenSource::File(running.push_token_file.clone()))
            }
            (Target::Embedded, None) => {
                bail!("the cache {name} is built in, and the built-in cache does not run")
            }
            (Target::Remote(urls), _) => {
                let token = match &cache.token {
                    Token::File(file) => TokenSource::File(file.clone()),
                    Token::Env(variable) => TokenSource::Env(variable.clone()),
                    Token::None => TokenSource::None,
                };
                (urls.clone(), token)
            }
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

pub(super) fn limits(jobs: Jobs) -> CacheLimits {
    match jobs {
        Jobs::Auto => AUTO,
        Jobs::Fixed(n) => CacheLimits { least: n, most: n },
    }
}
