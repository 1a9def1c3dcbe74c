//! A server that speaks Attic's API and stores nothing: it remembers the hash parts of the paths it
//! has received, and counts bytes. So a figure shows what the daemon can do, and not how fast a cache
//! compresses. It can also behave like servers that bear only so much.

use std::collections::HashSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse as _, Response};
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

/// How it treats uploads.
#[derive(Debug, Default, Clone, Copy)]
pub enum Manner {
    /// Takes all of them at once.
    #[default]
    Parallel,
    /// Takes one after the other, each for this long, as a database with one writer does.
    Serial(Duration),
    /// Answers 429 with `Retry-After: 1` to those above so many a second.
    PerSecond(u32),
}

/// Uploads above the rate that [`Manner::PerSecond`] takes in a burst.
const BURST: f64 = 20.0;

type Shared = Arc<Server>;

/// What the server knows.
struct Server {
    received: Mutex<Received>,
    manner: Manner,
    /// Held by the upload whose turn it is.
    turn: tokio::sync::Mutex<()>,
    /// Uploads that may come now, as of when.
    allowed: Mutex<(f64, Instant)>,
}

impl Server {
    fn received(&self) -> MutexGuard<'_, Received> {
        self.received.lock().unwrap()
    }

    /// Whether one more upload may come now, at so many a second.
    fn allows(&self, per_second: u32) -> bool {
        let mut allowed = self.allowed.lock().unwrap();
        let now = Instant::now();
        let more = now.duration_since(allowed.1).as_secs_f64() * f64::from(per_second);
        *allowed = ((allowed.0 + more).min(BURST), now);
        let allows = allowed.0 >= 1.0;
        allowed.0 -= if allows { 1.0 } else { 0.0 };
        allows
    }
}

/// The server. It ends with this value.
pub struct Sink {
    _runtime: tokio::runtime::Runtime,
    address: SocketAddr,
    server: Shared,
    token: PathBuf,
}

impl Sink {
    /// `dir`: for the token file.
    pub fn start(dir: &Path) -> Self {
        Self::with(dir, Manner::default())
    }

    /// The same, with a manner.
    pub fn with(dir: &Path, manner: Manner) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let server = Arc::new(Server {
            received: Mutex::default(),
            manner,
            turn: tokio::sync::Mutex::default(),
            allowed: Mutex::new((BURST, Instant::now())),
        });
        let router = Router::new()
            .route("/_api/v1/cache-config/main", get(config))
            .route("/_api/v1/get-missing-paths", post(missing))
            .route("/_api/v1/upload-path", put(upload))
            .with_state(Arc::clone(&server));
        let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        runtime.spawn(async move { axum::serve(listener, router).await });
        std::fs::create_dir_all(dir).unwrap();
        let token = dir.join("sink-token");
        std::fs::write(&token, "not-checked\n").unwrap();
        Self { _runtime: runtime, address, server, token }
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
        self.server.received().clone()
    }

    /// Forgets all paths and counts from 0.
    pub fn clear(&self) {
        *self.server.received() = Received::default();
    }
}

async fn config() -> Json<Value> {
    Json(json!({ "is_public": true, "priority": 40, "upstream_cache_key_names": [] }))
}

async fn missing(State(server): State<Shared>, Json(question): Json<Value>) -> Json<Value> {
    let received = server.received();
    let hashes = question["store_path_hashes"].as_array().unwrap();
    let lacks = |hash: &&Value| !received.paths.contains(hash.as_str().unwrap());
    Json(json!({ "missing_paths": hashes.iter().filter(lacks).collect::<Vec<_>>() }))
}

async fn upload(State(server): State<Shared>, headers: HeaderMap, mut body: Body) -> Response {
    let info: Value = serde_json::from_slice(headers["x-attic-nar-info"].as_bytes()).unwrap();
    while let Some(Ok(frame)) = body.frame().await {
        let Ok(data) = frame.into_data() else { continue };
        let mut received = server.received();
        received.bytes += data.len() as u64;
        let now = Instant::now();
        received.span = Some((received.span.map_or(now, |(first, _)| first), now));
    }
    match server.manner {
        Manner::Parallel => {}
        Manner::Serial(each) => {
            let _turn = server.turn.lock().await;
            tokio::time::sleep(each).await;
        }
        Manner::PerSecond(most) if !server.allows(most) => {
            return (StatusCode::TOO_MANY_REQUESTS, [("retry-after", "1")]).into_response();
        }
        Manner::PerSecond(_) => {}
    }
    let mut received = server.received();
    received.uploads += 1;
    received.paths.insert(info["store_path_hash"].as_str().unwrap().to_owned());
    Json(json!({ "kind": "Uploaded", "file_size": info["nar_size"], "frac_deduplicated": null }))
        .into_response()
}
