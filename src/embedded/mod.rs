//! The built-in cache, which keeps paths in a directory. It speaks the Attic API, so
//! that clients can push to it as to any Attic server, and serves the paths to Nix
//! as a substituter. It is for one host, for trying out and for tests. Must not know
//! any other room.
//!
//! A request goes `serve` → `host` → `access` → `api`, `upload` or `nix` → `cache_store`.

mod access;
mod api;
mod cache_store;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod host;
mod narinfo;
mod nix;
mod port;
mod realisations;
mod secrets;
mod serve;
mod upload;
mod wire;

use std::net::{SocketAddr, TcpListener as StdListener};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::routing::{get, post, put};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use access::Access;
use api::App;
use cache_store::{CacheStore, Done};
pub use error::EmbeddedError;
pub(crate) use host::HostNames;
use port::Port;
pub use realisations::Realisations;
use secrets::CacheKey;

use crate::types::CacheName;

/// Largest number of uploads received at a time; others wait.
const UPLOADS: usize = 64;

/// Longest time without a byte of a request's body; after it the request fails.
const STALL: Duration = Duration::from_secs(120);

/// Smallest `max_size` in bytes; below it, every upload would evict another one.
const SMALLEST_MAX_SIZE: u64 = 1 << 20;

/// Settings of a built-in cache.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The directory of its files; made with mode 0700 if it does not exist.
    pub dir: PathBuf,
    /// The address to listen on; port 0 takes a free port.
    pub listen: SocketAddr,
    /// Names of hosts, without a port, under which clients reach this server, beside its addresses,
    /// `localhost` and this host's name.
    pub host_names: Vec<String>,
    /// The caches' names.
    pub caches: Vec<String>,
    /// Whether reading needs no token.
    pub public: bool,
    /// The store directory of every path in the cache, like `/nix/store`.
    pub store_dir: String,
    /// Size in bytes above which the cache evicts the least recently used paths; `None` means no limit.
    pub max_size: Option<u64>,
    /// The largest NAR that the cache accepts, in bytes.
    pub max_nar_size: u64,
    /// The directory of the tokens and keys (files of mode 0600).
    pub token_dir: PathBuf,
    /// Nix asks substituters with a lower number first.
    pub priority: u32,
    /// Clients need not push paths that are signed by these keys.
    pub upstream_cache_key_names: Vec<String>,
}

/// A running built-in cache.
#[derive(Debug)]
pub struct Running {
    /// The address that it listens on.
    pub addr: SocketAddr,
    /// Why it does not listen yet, for example because another process has the port; `None` when it listens.
    pub port_trouble: watch::Receiver<Option<String>>,
    /// The file of the token that may push and read.
    pub push_token_file: PathBuf,
    /// The file of the token that may only read.
    pub pull_token_file: PathBuf,
    /// Each cache and its key, in the format of Nix's `trusted-public-keys`.
    pub public_keys: Vec<(String, String)>,
    /// Takes the realisations of paths in the cache.
    pub realisations: Realisations,
    /// Ends after the shutdown, when everything is on the disk, or with the reason why the cache had to stop.
    pub task: JoinHandle<Result<(), EmbeddedError>>,
}

/// Limits of one server.
struct Limits {
    uploads: Semaphore,
    max_nar_size: u64,
    stall: Duration,
}

/// Opens or makes the cache and serves it until `shutdown`. When this returns, the cache answers, or
/// `port_trouble` says why it does not: then it listens as soon as the address is free.
///
/// `passed` is a socket that listens already; without it the server listens on the address in the settings.
pub async fn start(
    settings: Settings,
    passed: Option<StdListener>,
    shutdown: CancellationToken,
) -> Result<Running, EmbeddedError> {
    check(&settings)?;
    let port = Port::open(settings.listen, passed)?;
    let (addr, port_trouble) = (port.addr(), port.trouble());
    let opened = tokio::task::spawn_blocking(move || open(settings, addr)).await;
    let (app, files, done) = opened.unwrap_or(Err(EmbeddedError::Writer))?;
    let public_keys = app.keys.iter().map(|(cache, key)| (cache.clone(), key.public())).collect();
    let realisations = Realisations::new(app.cache_store.writer.publisher());
    let task = tokio::spawn(run(port, Arc::new(app), done, shutdown));
    let (push_token_file, pull_token_file) = files;
    Ok(Running { addr, port_trouble, push_token_file, pull_token_file, public_keys, realisations, task })
}

fn check(settings: &Settings) -> Result<(), EmbeddedError> {
    let wrong = |text: String| Err(EmbeddedError::Setting(text));
    if settings.caches.is_empty() {
        return wrong("no cache is named; set [embedded] caches".to_owned());
    }
    if let Some(error) = settings.caches.iter().find_map(|name| CacheName::parse(name).err()) {
        return wrong(error.to_string());
    }
    if let Some(name) = settings.host_names.iter().find(|name| !host::is_name(name)) {
        return wrong(format!("{name:?} in host_names is not the name of a host, such as cache.example.com"));
    }
    if !settings.store_dir.starts_with('/') || settings.store_dir.ends_with('/') {
        return wrong(format!("store_dir {:?} is not absolute, or ends with a slash", settings.store_dir));
    }
    if settings.max_size.is_some_and(|size| size < SMALLEST_MAX_SIZE) {
        return wrong(format!("max_size is below {SMALLEST_MAX_SIZE} bytes"));
    }
    Ok(())
}

type TokenFiles = (PathBuf, PathBuf);

fn open(settings: Settings, addr: SocketAddr) -> Result<(App, TokenFiles, Done), EmbeddedError> {
    let (cache_store, done) = CacheStore::open(&settings.dir, &settings.store_dir, settings.max_size)?;
    let (push_file, push) = secrets::token(&settings.token_dir, "embedded-push-token")?;
    let (pull_file, pull) = secrets::token(&settings.token_dir, "embedded-pull-token")?;
    let keys = settings
        .caches
        .iter()
        .map(|cache| Ok((cache.clone(), CacheKey::read_or_make(&settings.token_dir, cache)?)))
        .collect::<Result<_, EmbeddedError>>()?;
    let app = App {
        cache_store,
        access: Access { public: settings.public, push, pull },
        keys,
        store_dir: settings.store_dir,
        priority: settings.priority,
        upstream_cache_key_names: settings.upstream_cache_key_names,
        addr,
        names: HostNames::new(&settings.host_names),
        limits: Limits {
            uploads: Semaphore::new(UPLOADS),
            max_nar_size: settings.max_nar_size,
            stall: STALL,
        },
    };
    Ok((app, (push_file, pull_file), done))
}

async fn run(
    port: Port,
    app: Arc<App>,
    mut done: Done,
    shutdown: CancellationToken,
) -> Result<(), EmbeddedError> {
    // This token is a child of the caller's, because the end of the writer thread must also end the serving.
    let stop = shutdown.child_token();
    let router = router(Arc::clone(&app));
    drop(app);
    let mut serving = std::pin::pin!(async {
        if let Some(listener) = stop.run_until_cancelled(port.listener()).await {
            serve::serve(listener, router, stop.clone()).await;
        }
    });
    tokio::select! {
        () = &mut serving => {}
        _ = &mut done => {
            stop.cancel();
            serving.await;
            return Err(EmbeddedError::Writer);
        }
    }
    // The last connection has dropped the writer's handle, so the thread ends when it has written everything.
    done.await.map_err(|_| EmbeddedError::Writer)
}

fn router(app: Arc<App>) -> Router {
    Router::new()
        .route("/", get(api::root))
        .route("/_api/v1/cache-config/{cache}", get(api::cache_config).fallback(api::fixed_caches))
        .route("/_api/v1/get-missing-paths", post(api::get_missing_paths))
        .route("/_api/v1/upload-path", put(upload::upload_path))
        .route("/{cache}/nix-cache-info", get(nix::cache_info))
        .route("/{cache}/{file}", get(nix::nar_info))
        .route("/{cache}/nar/{file}", get(nix::nar))
        .route("/{cache}/realisations/{file}", get(realisations::hashed))
        .route("/{cache}/build-trace-v2/{derivation}/{file}", get(realisations::named))
        .fallback(api::unknown_url)
        .layer(axum::middleware::from_fn_with_state(Arc::clone(&app), host::own_names))
        .with_state(app)
}
