//! Caches for tests: a view of what a cache holds, read as Nix reads it; a cache that runs outside
//! of the daemon; and an upload gate before it, which holds uploads or fails them.

use std::collections::BTreeSet;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use flywheel::embedded::{self, Running, Settings};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::nix::PrivateNix;

/// What a cache holds, seen from outside.
#[derive(Debug, Clone)]
pub struct CacheView {
    address: String,
    name: String,
    /// The public key, as in `trusted-public-keys`.
    pub key: String,
    dir: PathBuf,
}

impl CacheView {
    pub fn new(address: &str, name: &str, key: &str, dir: &Path) -> Self {
        Self { address: address.to_owned(), name: name.to_owned(), key: key.to_owned(), dir: dir.to_owned() }
    }

    /// The address, as in `substituters`.
    pub fn url(&self) -> String {
        format!("http://{}/{}", self.address, self.name)
    }

    pub fn address(&self) -> &str {
        &self.address
    }

    /// The narinfo of a store path, when the cache has the path.
    pub fn narinfo(&self, path: &str) -> Option<String> {
        let base = base(path);
        let (status, body) = get(&self.address, &format!("/{}/{}.narinfo", self.name, &base[..32]));
        match status {
            200 => Some(body),
            404 => None,
            other => panic!("{other} for the narinfo of {path}: {body}"),
        }
    }

    pub fn has(&self, path: &str) -> bool {
        self.narinfo(path).is_some()
    }

    /// For each path, whether the cache has it.
    pub fn having(&self, paths: &[String]) -> Vec<bool> {
        paths.iter().map(|p| self.has(p)).collect()
    }

    /// Base names of all paths in the cache: its own list of hashes, and for each the narinfo as
    /// Nix reads it.
    pub fn all(&self) -> BTreeSet<String> {
        let db = rusqlite::Connection::open(self.dir.join("cache.sqlite")).unwrap();
        let mut find = db.prepare("select base from path where cache = ?1").unwrap();
        let bases = find.query_map([&self.name], |row| row.get(0)).unwrap();
        bases.collect::<Result<_, _>>().unwrap()
    }

    /// The names (after the hash) of all paths in the cache, sorted.
    pub fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = self.all().iter().map(|b| b[33..].to_owned()).collect();
        names.sort();
        names
    }

    /// Asserts that the cache has all references of its paths, as the narinfos list them.
    pub fn assert_closed(&self) {
        for base in self.all() {
            let info = self.narinfo(&base).unwrap_or_else(|| panic!("{base} is listed and not served"));
            let line = info.lines().find_map(|l| l.strip_prefix("References:")).unwrap_or_default();
            for reference in line.split_whitespace() {
                assert!(self.has(reference), "the cache has {base} without its reference {reference}");
            }
        }
    }

    /// Empties the store, makes Nix substitute these paths with signature and hash checked, and
    /// verifies the whole store.
    pub fn assert_nix_takes(&self, nix: &PrivateNix, paths: &[String]) {
        nix.wipe();
        let url = self.url();
        let options =
            ["--option", "substituters", &url, "--option", "trusted-public-keys", &self.key, "--option"];
        let mut args = vec!["--realise"];
        args.extend(paths.iter().map(String::as_str));
        args.extend(options);
        args.extend(["substitute", "true"]);
        let taken = nix.run("nix-store", &args);
        assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
        let verify = ["store", "verify", "--all", "--option", "trusted-public-keys", &self.key];
        let verified = nix.run("nix", &verify);
        assert!(verified.status.success(), "{}", String::from_utf8_lossy(&verified.stderr));
    }
}

/// The base name of a store path.
pub fn base(path: &str) -> &str {
    path.rsplit('/').next().unwrap()
}

/// Sends a GET without any HTTP library; returns status and body.
pub fn get(address: &str, path: &str) -> (u16, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    let ask = format!("GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n");
    stream.write_all(ask.as_bytes()).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let answer = String::from_utf8_lossy(&answer);
    let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}"));
    let status = head.split(' ').nth(1).and_then(|s| s.parse().ok()).unwrap_or_else(|| panic!("{head}"));
    (status, body.to_owned())
}

/// A built-in cache that runs in this process, outside of any daemon.
pub struct StandaloneCache {
    running: Option<Running>,
    shutdown: CancellationToken,
    runtime: Option<tokio::runtime::Runtime>,
    settings: Settings,
    dir: tempfile::TempDir,
}

impl StandaloneCache {
    /// Starts one for the paths of a store; `change` adjusts its settings.
    pub fn start(nix: &PrivateNix, change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::Builder::new().prefix("fwc").tempdir().unwrap();
        let mut settings = Settings {
            dir: dir.path().join("cache"),
            listen: "127.0.0.1:0".parse().unwrap(),
            host_names: Vec::new(),
            caches: vec!["main".to_owned()],
            public: true,
            store_dir: nix.store_dir().to_str().unwrap().to_owned(),
            max_size: None,
            max_nar_size: 64 << 20,
            token_dir: dir.path().to_owned(),
            priority: 41,
            upstream_cache_key_names: Vec::new(),
        };
        change(&mut settings);
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let mut cache = Self { running: None, shutdown, runtime: Some(runtime), settings, dir };
        cache.up();
        cache
    }

    fn up(&mut self) {
        self.shutdown = CancellationToken::new();
        let start = embedded::start(self.settings.clone(), None, self.shutdown.clone());
        let running = self.runtime.as_ref().unwrap().block_on(start).unwrap();
        self.settings.listen = running.addr;
        self.running = Some(running);
    }

    /// Stops the cache and frees its port.
    pub fn stop(&mut self) {
        self.shutdown.cancel();
        if let Some(running) = self.running.take() {
            self.runtime.as_ref().unwrap().block_on(running.task).unwrap().unwrap();
        }
    }

    /// Stops the cache, changes its settings, and starts it on the same port with the same
    /// contents.
    pub fn change(&mut self, change: impl FnOnce(&mut Settings)) {
        self.stop();
        change(&mut self.settings);
        self.up();
    }

    pub fn address(&self) -> SocketAddr {
        self.settings.listen
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address())
    }

    pub fn view(&self, name: &str) -> CacheView {
        let keys = &self.running.as_ref().expect("the cache runs").public_keys;
        let key = &keys.iter().find(|(cache, _)| cache == name).unwrap().1;
        CacheView::new(&self.address().to_string(), name, key, &self.settings.dir)
    }

    pub fn main(&self) -> CacheView {
        self.view("main")
    }

    pub fn token_file(&self) -> PathBuf {
        self.dir.path().join("embedded-push-token")
    }

    pub fn token(&self) -> String {
        std::fs::read_to_string(self.token_file()).unwrap().trim().to_owned()
    }

    pub fn pull_token(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("embedded-pull-token")).unwrap().trim().to_owned()
    }

    /// The `[caches.main]` table of a daemon's configuration for this cache at `url`.
    pub fn caches(&self, url: &str) -> String {
        format!("[caches.main]\nendpoints = [\"{url}\"]\ntoken_file = \"{}\"\n", self.token_file().display())
    }

    /// The same, with the attic client disabled.
    pub fn config_at(&self, url: &str) -> String {
        format!("{}[client]\nenable = false\n", self.caches(url))
    }

    pub fn config(&self) -> String {
        self.config_at(&self.url())
    }

    /// Starts an upload gate before this cache.
    pub fn gate(&self) -> UploadGate {
        self.runtime.as_ref().unwrap().block_on(UploadGate::before(self.address()))
    }
}

impl Drop for StandaloneCache {
    fn drop(&mut self) {
        self.shutdown.cancel();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// Decides about an upload: a status that is answered instead of the cache's, or `None` to pass it
/// on.
type Rule = Box<dyn Fn(&str) -> Option<u16> + Send + Sync>;

/// Changes the answer to a GET: its path, its status and its body.
type Rewrite = Box<dyn Fn(&str, &mut u16, &mut Vec<u8>) + Send + Sync>;

struct Shared {
    to: SocketAddr,
    client: reqwest::Client,
    /// Uploads are held while it is closed.
    open: watch::Sender<bool>,
    /// Base names of the uploads that have arrived, in order.
    came: watch::Sender<Vec<String>>,
    rule: Mutex<Rule>,
    rewrite: Mutex<Rewrite>,
}

/// A proxy between a daemon and a cache that can hold uploads or fail them.
pub struct UploadGate {
    shared: Arc<Shared>,
    address: SocketAddr,
}

impl UploadGate {
    async fn before(to: SocketAddr) -> Self {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = Arc::new(Shared {
            to,
            client,
            open: watch::Sender::new(true),
            came: watch::Sender::new(Vec::new()),
            rule: Mutex::new(Box::new(|_| None)),
            rewrite: Mutex::new(Box::new(|_, _, _| ())),
        });
        let app = axum::Router::new().fallback(pass).with_state(Arc::clone(&shared));
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { shared, address }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Holds uploads from now on.
    pub fn close(&self) {
        self.shared.open.send_replace(false);
    }

    /// Lets all held and further uploads pass.
    pub fn open(&self) {
        self.shared.open.send_replace(true);
    }

    /// Answers an upload with the status that `rule` returns for it.
    pub fn rule(&self, rule: impl Fn(&str) -> Option<u16> + Send + Sync + 'static) {
        *self.shared.rule.lock().unwrap() = Box::new(rule);
    }

    /// Changes the answers to reads from now on.
    pub fn rewrite(&self, rewrite: impl Fn(&str, &mut u16, &mut Vec<u8>) + Send + Sync + 'static) {
        *self.shared.rewrite.lock().unwrap() = Box::new(rewrite);
    }

    /// Base names of the uploads that have arrived so far.
    pub fn came(&self) -> Vec<String> {
        self.shared.came.borrow().clone()
    }

    /// Waits until this number of uploads has arrived.
    pub fn until_came(&self, count: usize) -> Vec<String> {
        let mut came = self.shared.came.subscribe();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let wait = came.wait_for(|all| all.len() >= count);
            tokio::time::timeout(super::daemon::MAX_WAIT, wait).await.expect("uploads come").unwrap().clone()
        })
    }
}

async fn pass(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let (head, body) = request.into_parts();
    let mut stream = reqwest::Body::wrap_stream(body.into_data_stream());
    if head.uri.path() == "/_api/v1/upload-path" {
        let info: Value = head
            .headers
            .get("x-attic-nar-info")
            .and_then(|h| serde_json::from_slice(h.as_bytes()).ok())
            .unwrap_or(json!({"store_path": ""}));
        let name = base(info["store_path"].as_str().unwrap_or_default()).to_owned();
        shared.came.send_modify(|came| came.push(name.clone()));
        let _ = shared.open.subscribe().wait_for(|open| *open).await;
        let refused = (shared.rule.lock().unwrap())(&name);
        if let Some(status) = refused {
            let text = json!({"code": status, "error": "Refused", "message": "refused by the test"});
            return (StatusCode::from_u16(status).unwrap(), axum::Json(text)).into_response();
        }
    } else if head.method == "GET" {
        stream = reqwest::Body::default();
    }
    let path = head.uri.path_and_query().map_or("/", |p| p.as_str()).to_owned();
    let is_get = head.method == "GET";
    let mut forward = shared.client.request(head.method, format!("http://{}{path}", shared.to));
    for (name, value) in &head.headers {
        if name != "transfer-encoding" && name != "connection" {
            forward = forward.header(name, value);
        }
    }
    match forward.body(stream).send().await {
        Ok(answer) => {
            let mut status = answer.status().as_u16();
            let kind = answer.headers().get("content-type").cloned();
            let mut body = answer.bytes().await.unwrap_or_default().to_vec();
            if is_get {
                (shared.rewrite.lock().unwrap())(&path, &mut status, &mut body);
            }
            let mut back = Response::builder().status(status);
            if let Some(kind) = kind {
                back = back.header("content-type", kind);
            }
            back.body(Body::from(body)).unwrap()
        }
        Err(_) => StatusCode::BAD_GATEWAY.into_response(),
    }
}
