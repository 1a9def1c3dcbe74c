//! Starts the built-in cache. Must not know what is in it.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use tokio::sync::mpsc::Sender;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::daemon::inbox::Input;
use crate::embedded::{self, Running};
use crate::observe::event;
use crate::types::StoreDir;

/// Starts the built-in cache if the configuration has one. It ends when `closing`
/// is cancelled. `passed` is the socket that systemd listens on for it.
///
/// If its address cannot be listened on, the cache is started all the same and
/// reports to `out` when it listens.
pub(in crate::daemon) async fn start(
    settings: &Settings,
    store_dir: &StoreDir,
    passed: Option<TcpListener>,
    closing: &CancellationToken,
    out: Sender<Input>,
) -> Result<Option<Running>> {
    let Some(built_in) = &settings.embedded else {
        if passed.is_some() {
            event!(
                CONFIG_WARNING,
                "systemd passes a socket for the built-in cache, and no cache is built in: disable \
                 flywheeld-cache.socket, or set endpoints = \"embedded\" for a cache"
            );
        }
        return Ok(None);
    };
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
        passed,
        closing.clone(),
    )
    .await
    .context("the built-in cache")?;
    if running.port_trouble.borrow().is_none() {
        announce(running.addr, &running.public_keys);
    } else {
        let (addr, keys) = (running.addr, running.public_keys.clone());
        tokio::spawn(await_port(running.port_trouble.clone(), addr, keys, out));
    }
    Ok(Some(running))
}

fn announce(addr: SocketAddr, public_keys: &[(String, String)]) {
    for (name, key) in public_keys {
        event!(BUILT_IN_SERVES, cache = name, address = %addr, public_key = key, "the built-in cache serves {name} at {addr}; its key for trusted-public-keys is {key}");
    }
}

/// Reports that the built-in cache cannot listen, and again when it listens.
async fn await_port(
    mut trouble: watch::Receiver<Option<String>>,
    addr: SocketAddr,
    public_keys: Vec<(String, String)>,
    out: Sender<Input>,
) {
    let _ = out.send(Input::BuiltInPort).await;
    // An error means that the built-in cache has ended.
    if trouble.wait_for(Option::is_none).await.is_ok() {
        announce(addr, &public_keys);
        let _ = out.send(Input::BuiltInPort).await;
    }
}

/// The address and token files of the built-in cache.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct BuiltIn {
    address: SocketAddr,
    push_token_file: PathBuf,
    pull_token_file: PathBuf,
    port_trouble: watch::Receiver<Option<String>>,
}

impl BuiltIn {
    /// Those of a running one.
    pub(in crate::daemon) fn of(running: &Running) -> Self {
        Self {
            address: running.addr,
            push_token_file: running.push_token_file.clone(),
            pull_token_file: running.pull_token_file.clone(),
            port_trouble: running.port_trouble.clone(),
        }
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Why it does not listen, if it does not. While it does not, another process may
    /// have its address, so no request may go there.
    pub(in crate::daemon) fn port_trouble(&self) -> &watch::Receiver<Option<String>> {
        &self.port_trouble
    }

    pub(super) fn push_token_file(&self) -> &Path {
        &self.push_token_file
    }

    pub(super) fn pull_token_file(&self) -> &Path {
        &self.pull_token_file
    }
}
