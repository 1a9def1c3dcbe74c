//! Starts the built-in cache. Must not know what is in it.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::embedded::{self, Running};
use crate::observe::event;
use crate::types::StoreDir;

/// Starts the built-in cache if the configuration has one. It ends when `closing`
/// is cancelled.
pub(in crate::daemon) async fn start(
    settings: &Settings,
    store_dir: &StoreDir,
    closing: &CancellationToken,
) -> Result<Option<Running>> {
    let Some(built_in) = &settings.embedded else { return Ok(None) };
    let running = embedded::start(
        embedded::Settings {
            dir: built_in.dir.clone(),
            listen: built_in.listen,
            host_names: built_in.host_names.clone(),
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

/// The address and token files of the built-in cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct BuiltIn {
    address: SocketAddr,
    push_token_file: PathBuf,
    pull_token_file: PathBuf,
}

impl BuiltIn {
    /// Those of a running one.
    pub(in crate::daemon) fn of(running: &Running) -> Self {
        Self {
            address: running.addr,
            push_token_file: running.push_token_file.clone(),
            pull_token_file: running.pull_token_file.clone(),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    pub(super) fn push_token_file(&self) -> &Path {
        &self.push_token_file
    }

    pub(super) fn pull_token_file(&self) -> &Path {
        &self.pull_token_file
    }
}
