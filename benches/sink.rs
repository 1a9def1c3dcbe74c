//! A server that speaks Attic's API and stores nothing: it remembers the hash parts of the paths it
//! has received, and counts bytes. So a figure shows what the daemon can do, and not how fast a cache
//! compresses.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::body::Body;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::routing::{get, post, put};
use axum::{Json, Router};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

/// What the server has received.
#[derive(Default, Clone)]
pub struct Received {
    /// Hash parts of the paths that are there.
    pub paths: HashSet<String>,
    /// Uploads that were completed.
    pub uploads: u64,
    /// Bytes of bodies, of uploads that were broken off as well.
    pub bytes: u64,
    /// When the first and the latest byte of a body came.
    pub span: Option<(Instant, Instant)>,
}

type Shared = Arc<Mutex<Received>>;

/// The server. It ends with this value.
pub struct Sink {
    _runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    received: Shared,
    token: PathBuf,
}

impl Sink {
    /// `dir`: for the token file.
    pub fn start(dir: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let received = Shared::default();
        let router = Router::new()
            .route("/_api/v1/cache-config/main", get(config))
            .route("/_api/v1/get-missing-paths", post(missing))
            .route("/_api/v1/upload-path", put(upload))
            .with_state(Arc::clone(&received));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        std::fs::create_dir_all(dir).unwrap();
        let token = dir.join("sink-token");
        std::fs::write(&token, "not-checked\n").unwrap();
        Self { _runtime: runtime, address, received, token }
    }

    pub fn address(&self) -> SocketAddr {
        self.address
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    pub fn token_file(&self) -> &Path {
        &self.token
    }

    /// What was received so far.
    pub fn received(&self) -> Received {
        self.received.lock().unwrap().clone()
    }

    /// Forgets all paths and counts from 0.
    pub fn clear(&self) {
        *self.received.lock().unwrap() = Received::default();
    }
}

async fn config() -> Json<Value> {
    Json(json!({ "is_public": true, "priority": 40, "upstream_cache_key_names": [] }))
}

async fn missing(State(received): State<Shared>, Json(question): Json<Value>) -> Json<Value> {
    let received = received.lock().unwrap();
    let hashes = question["store_path_hashes"].as_array().unwrap();
    let lacks = |hash: &&Value| !received.paths.contains(hash.as_str().unwrap());
    Json(json!({ "missing_paths": hashes.iter().filter(lacks).collect::<Vec<_>>() }))
}

async fn upload(State(received): State<Shared>, headers: HeaderMap, mut body: Body) -> Json<Value> {
    let info: Value = serde_json::from_slice(headers["x-attic-nar-info"].as_bytes()).unwrap();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        let mut received = received.lock().unwrap();
        received.bytes += data.len() as u64;
        let now = Instant::now();
        received.span = Some((received.span.map_or(now, |(first, _)| first), now));
    }
    let mut received = received.lock().unwrap();
    received.uploads += 1;
    received.paths.insert(info["store_path_hash"].as_str().unwrap().to_owned());
    Json(json!({ "kind": "Uploaded", "file_size": info["nar_size"], "frac_deduplicated": null }))
}
