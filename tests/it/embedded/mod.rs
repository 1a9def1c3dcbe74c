//! The built-in cache from outside: real HTTP, real Nix, a real kill and a really full disk.

mod nix;
mod process;
mod vectors;

use std::path::Path;

use flywheel::embedded::{Running, Settings, start};
use reqwest::{Client, Method, Response};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

fn settings(dir: &Path, caches: &[&str], public: bool) -> Settings {
    Settings {
        dir: dir.join("cache"),
        listen: "127.0.0.1:0".parse().unwrap(),
        host_names: Vec::new(),
        caches: caches.iter().map(|c| (*c).to_owned()).collect(),
        public,
        store_dir: "/nix/store".to_owned(),
        max_size: None,
        max_nar_size: 64 << 20,
        token_dir: dir.to_owned(),
        priority: 41,
        upstream_cache_key_names: vec!["cache.nixos.org-1".to_owned()],
    }
}

struct Server {
    running: Running,
    shutdown: CancellationToken,
    client: Client,
    dir: Option<TempDir>,
}

impl Server {
    async fn start(change: impl FnOnce(&mut Settings)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mut settings = settings(dir.path(), &["main"], false);
        change(&mut settings);
        let mut server = Self::with(settings).await;
        server.dir = Some(dir);
        server
    }

    async fn with(settings: Settings) -> Self {
        let shutdown = CancellationToken::new();
        let running = start(settings, None, shutdown.clone()).await.unwrap();
        Self { running, shutdown, client: client(), dir: None }
    }

    fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.running.addr)
    }

    fn token(&self, kind: &str) -> Option<String> {
        match kind {
            "push" => Some(read(&self.running.push_token_file)),
            "pull-only" => Some(read(&self.running.pull_token_file)),
            "none" => None,
            other => Some(format!("not.a.token-{other}")),
        }
    }

    async fn get(&self, path: &str) -> Response {
        let token = self.token("push").unwrap();
        self.client.get(self.url(path)).bearer_auth(token).send().await.unwrap()
    }

    async fn upload(&self, info: &Value, nar: impl Into<reqwest::Body>) -> Response {
        upload(&self.client, &self.url(""), &self.token("push").unwrap(), info, nar).await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        drop(self.client);
        self.running.task.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn another_name_is_not_this_server() {
    let server = Server::start(|settings| {
        settings.public = true;
        settings.host_names = vec!["cache.example.com".to_owned()];
    })
    .await;
    let ask = |host: &'static str| {
        server.client.get(server.url("/main/nix-cache-info")).header("host", host).send()
    };
    for (host, status) in [("cache.example.com", 200), ("localhost:1", 200), ("evil.example", 421)] {
        assert_eq!(ask(host).await.unwrap().status(), status, "{host}");
    }
    let refused: Value = ask("evil.example").await.unwrap().json().await.unwrap();
    assert!(refused["message"].as_str().unwrap().contains("host_names"), "{refused}");
    server.stop().await;
}

/// Sends these bytes and returns the whole answer.
async fn raw(server: &Server, request: &str) -> String {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let mut stream = tokio::net::TcpStream::connect(server.running.addr).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    String::from_utf8_lossy(&answer).into_owned()
}

#[tokio::test]
async fn names_of_other_files_are_not_found() {
    let server = Server::start(|settings| settings.public = true).await;
    std::fs::write(server.dir.as_ref().unwrap().path().join("secret.narinfo"), "secret").unwrap();
    for path in [
        "/main/../secret.narinfo",
        "/main/..%2fsecret.narinfo",
        "/main/%2e%2e/secret.narinfo",
        "/main/..%5csecret.narinfo",
        "/main/nar/../../cache.sqlite",
        "/main/nar/..%2f..%2fcache.sqlite.nar",
        "/main/nar/%00.nar",
        "/main/nar/.nar",
        "/main//etc/passwd",
        "/%2e%2e/nix-cache-info",
        "/main%2f..%2fmain/nix-cache-info",
        "/main/realisations/..%2f..%2fsecret!out.doi",
        "/main/realisations/sha256:%2e%2e!out.doi",
        "/main/build-trace-v2/..%2f..%2fsecret/out.doi",
    ] {
        let answer =
            raw(&server, &format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"))
                .await;
        let status = answer.split(' ').nth(1).unwrap();
        assert!(["400", "404"].contains(&status) && !answer.contains("secret\r"), "{path}: {answer}");
    }
    server.stop().await;
}

/// Each field that becomes a line of a narinfo, with a line break or what else would add one.
#[tokio::test]
async fn no_field_of_an_upload_adds_a_line_to_a_narinfo() {
    let server = Server::start(|_| {}).await;
    let nar = noise(1, 100);
    let line = "x\nURL: nar/evil.nar";
    let other = base(2);
    for (field, value) in [
        ("system", json!(line)),
        ("system", json!("a b")),
        ("ca", json!(line)),
        ("sigs", json!([format!("k:{line}")])),
        ("sigs", json!(["k:\u{2028}"])),
        ("sigs", json!(vec!["k:s"; 17])),
        ("deriver", json!(format!("{other}\n{line}"))),
        ("references", json!([format!("{other}\n{line}")])),
        ("references", json!([format!("{other} {other}")])),
        ("references", json!(["../../etc/passwd"])),
        ("store_path", json!(format!("/nix/store/{}\n{line}", base(1)))),
        ("store_path", json!(format!("/nix/store/../store/{}", base(1)))),
        ("store_path_hash", json!("../../../../../../../../etc/passw")),
        ("nar_hash", json!(format!("sha256:{}\n", "0".repeat(64)))),
        ("nar_size", json!(-1)),
        ("nar_size", json!(u64::MAX)),
        ("cache", json!("../main")),
        ("cache", json!("main\n")),
    ] {
        let mut sent = info(&base(1), &[], &nar);
        sent[field] = value;
        // As a preamble, since a header cannot carry each of these.
        let preamble = sent.to_string();
        let call =
            server.client.put(server.url("/_api/v1/upload-path")).bearer_auth(server.token("push").unwrap());
        let call = call.header("X-Attic-Nar-Info-Preamble-Size", preamble.len());
        let answer = call.body([preamble.as_bytes(), &nar].concat()).send().await.unwrap();
        let status = answer.status().as_u16();
        assert!([400, 404, 413].contains(&status), "{preamble}: {status}");
        assert!(answer.text().await.unwrap().len() < 1000, "{preamble}");
    }
    assert_eq!(server.get(&format!("/main/{}.narinfo", &base(1)[..32])).await.status(), 404);
    server.stop().await;
}

/// Lengths that no body has, a chunked body with trailers, and one that stops in the middle.
#[tokio::test]
async fn bodies_that_are_not_what_they_say_store_nothing() {
    let server = Server::start(|_| {}).await;
    let nar = vec![b'n'; 100];
    let token = server.token("push").unwrap();
    let upload = |more: &str, body: &str| {
        let info = info(&base(1), &[], &nar);
        format!(
            "PUT /_api/v1/upload-path HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nAuthorization: Bearer {token}\r\n\
             X-Attic-Nar-Info: {info}\r\n{more}\r\n\r\n{body}"
        )
    };
    for (more, body) in [
        ("Content-Length: -1", ""),
        ("Content-Length: 99999999999999999999", ""),
        ("Content-Length: 100\r\nContent-Length: 3", "abc"),
        ("Content-Length: 3", "abc"),
        ("Transfer-Encoding: chunked", "zz\r\nabc\r\n0\r\n\r\n"),
        ("Transfer-Encoding: chunked", "ffffffffffffffff1\r\nabc"),
        ("Transfer-Encoding: chunked", "3\r\nabc\r\n0\r\nAuthorization: Bearer x\r\n\r\n"),
    ] {
        let answer = raw(&server, &upload(more, body)).await;
        assert!(answer.starts_with("HTTP/1.1 400") || answer.is_empty(), "{more} {body}: {answer}");
    }
    let narinfo = format!("/main/{}.narinfo", &base(1)[..32]);
    assert_eq!(server.get(&narinfo).await.status(), 404);
    // Trailers after a good body change nothing.
    let chunked = format!("64\r\n{}\r\n0\r\nX-Attic-Nar-Info: {{}}\r\n\r\n", "n".repeat(100));
    let answer = raw(&server, &upload("Transfer-Encoding: chunked", &chunked)).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(server.get(&narinfo).await.status(), 200);
    server.stop().await;
}

#[tokio::test]
async fn connections_that_ask_nothing_keep_nobody_out() {
    use tokio::io::AsyncWriteExt as _;
    let server = Server::start(|settings| settings.public = true).await;
    let mut silent = Vec::new();
    for _ in 0..300 {
        let mut stream = tokio::net::TcpStream::connect(server.running.addr).await.unwrap();
        stream.write_all(b"GET /main/nix-cache-info HTTP/1.1\r\n").await.unwrap();
        silent.push(stream);
    }
    // Before any of them is too old to be waited for.
    let answer = server.get("/main/nix-cache-info");
    let answer = tokio::time::timeout(std::time::Duration::from_secs(8), answer).await;
    assert_eq!(answer.expect("an answer while 300 others hold connections").status(), 200);
    drop(silent);
    server.stop().await;
}

/// 300 clients ask for a NAR and take nothing of it, so that the server has to wait for each.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_that_take_nothing_keep_nobody_out() {
    use tokio::io::AsyncWriteExt as _;
    let server = Server::start(|settings| settings.public = true).await;
    let nar = noise(1, 6 << 20);
    assert_eq!(server.upload(&info(&base(1), &[], &nar), nar).await.status(), 200);
    let ask = format!("GET /main/nar/{}.nar HTTP/1.1\r\nHost: localhost\r\n\r\n", &base(1)[..32]);
    let mut slow = Vec::new();
    for _ in 0..256 {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4096).unwrap();
        let mut stream = socket.connect(server.running.addr).await.unwrap();
        stream.write_all(ask.as_bytes()).await.unwrap();
        // The answer has begun, so this connection has a place and does not only wait for a request.
        stream.readable().await.unwrap();
        slow.push(stream);
    }
    let fresh = client().get(server.url("/main/nix-cache-info")).send();
    let answer = tokio::time::timeout(std::time::Duration::from_secs(90), fresh).await;
    assert_eq!(answer.expect("an answer while 256 others take nothing").unwrap().status(), 200);
    drop(slow);
    server.stop().await;
}

#[tokio::test]
async fn a_taken_port_is_listened_on_when_it_is_free() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = other.local_addr().unwrap();
    let mut server = Server::start(|settings| {
        settings.public = true;
        settings.listen = addr;
    })
    .await;
    let why = server.running.port_trouble.borrow().clone().expect("it does not listen");
    assert!(why.contains(&addr.to_string()) && why.contains("[embedded] listen"), "{why}");
    drop(other);
    server.running.port_trouble.wait_for(Option::is_none).await.unwrap();
    assert_eq!(server.get("/main/nix-cache-info").await.status(), 200);
    server.stop().await;
    // One that never gets its port ends as well.
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start(|settings| settings.listen = other.local_addr().unwrap()).await;
    server.stop().await;
}

fn client() -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    Client::builder().no_proxy().build().unwrap()
}

async fn upload(
    client: &Client,
    url: &str,
    token: &str,
    info: &Value,
    nar: impl Into<reqwest::Body>,
) -> Response {
    client
        .put(format!("{url}/_api/v1/upload-path"))
        .bearer_auth(token)
        .header("X-Attic-Nar-Info", info.to_string())
        .body(nar)
        .send()
        .await
        .unwrap()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap().trim().to_owned()
}

fn hash(bytes: &[u8]) -> String {
    let hex: String = Sha256::digest(bytes).iter().map(|b| format!("{b:02x}")).collect();
    format!("sha256:{hex}")
}

fn noise(seed: usize, len: usize) -> Vec<u8> {
    (0..len.div_ceil(32))
        .flat_map(|i| <[u8; 32]>::from(Sha256::digest(format!("{seed} {i}"))))
        .take(len)
        .collect()
}

fn base(n: usize) -> String {
    format!("{n:0>32}-p")
}

fn info(base: &str, references: &[String], nar: &[u8]) -> Value {
    json!({"cache": "main", "store_path_hash": &base[..32], "store_path": format!("/nix/store/{base}"),
        "references": references, "system": null, "deriver": null, "sigs": [], "ca": null,
        "nar_hash": hash(nar), "nar_size": nar.len()})
}

#[tokio::test]
async fn a_locked_database_answers_500_and_then_recovers() {
    let server = Server::start(|_| {}).await;
    let database = server.dir.as_ref().unwrap().path().join("cache/cache.sqlite");
    let other = rusqlite::Connection::open(database).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    let answer = server.upload(&info(&base(1), &[], b"x"), &b"x"[..]).await;
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.json::<Value>().await.unwrap()["error"], "InternalServerError");
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(server.upload(&info(&base(1), &[], b"x"), &b"x"[..]).await.status(), 200);
    server.stop().await;
}

/// `attic cache create`, `configure` and `destroy`: the attic client prints the `message` of the
/// answer's JSON.
#[tokio::test]
async fn caches_cannot_be_made_changed_or_removed_over_http() {
    let server = Server::start(|_| {}).await;
    let url = server.url("/_api/v1/cache-config/main");
    for method in [Method::POST, Method::PATCH, Method::DELETE] {
        let call = server.client.request(method.clone(), &url).bearer_auth(server.token("push").unwrap());
        let answer = call.json(&json!({"is_public": true})).send().await.unwrap();
        assert_eq!(answer.status(), 405, "{method}");
        assert_eq!(answer.headers()["allow"], "GET,HEAD", "{method}");
        let body: Value = answer.json().await.unwrap();
        assert_eq!((&body["code"], &body["error"]), (&json!(405), &json!("MethodNotAllowed")));
        assert!(body["message"].as_str().unwrap().contains("configuration"), "{body}");
    }
    server.stop().await;
}

#[tokio::test]
async fn what_is_there_is_not_replaced_and_large_nars_are_verified_and_shared() {
    let server = Server::start(|s| s.max_nar_size = 1 << 20).await;
    for len in [100, 700_000] {
        let (a, b) = (noise(len, len), noise(len + 1, len));
        let (one, two) = (base(len), base(len + 1));
        let kind = |answer: Value| answer["kind"].clone();
        assert_eq!(
            kind(server.upload(&info(&one, &[], &a), a.clone()).await.json().await.unwrap()),
            "Uploaded"
        );
        assert_eq!(
            kind(server.upload(&info(&one, &[], &b), b.clone()).await.json().await.unwrap()),
            "Uploaded"
        );
        assert_eq!(
            kind(server.upload(&info(&one, &[], &a), a.clone()).await.json().await.unwrap()),
            "Deduplicated"
        );
        assert_eq!(
            kind(server.upload(&info(&two, &[], &a), a.clone()).await.json().await.unwrap()),
            "Deduplicated"
        );
        for name in [&one, &two] {
            let nar = server.get(&format!("/main/nar/{}.nar", &name[..32])).await;
            assert_eq!(nar.headers()["content-type"], "application/x-nix-nar");
            let nar = zstd::decode_all(&nar.bytes().await.unwrap()[..]).unwrap();
            assert!(nar == a, "the first content stays");
        }
        let head = server.client.head(server.url(&format!("/main/nar/{}.nar", &one[..32])));
        let head = head.bearer_auth(server.token("pull-only").unwrap()).send().await.unwrap();
        assert!(head.status() == 200 && head.headers().contains_key("content-length"));
        // The bytes are wrong, too few or too many; also for a path that is there already.
        let other = base(len + 2);
        for (claimed, bytes) in [(&a, &b[..]), (&b, &b[..len - 1]), (&b, &[&b[..], b"x"].concat()[..])] {
            for name in [&other, &one] {
                let answer = server.upload(&info(name, &[], claimed), bytes.to_vec()).await;
                assert_eq!(answer.status(), 400, "{}", answer.text().await.unwrap());
            }
        }
        assert_eq!(server.get(&format!("/main/{}.narinfo", &other[..32])).await.status(), 404);
    }
    let nars = server.dir.as_ref().unwrap().path().join("cache/nar");
    assert_eq!(std::fs::read_dir(nars).unwrap().count(), 1);
    // The client sees an answer that comes before the body was read, and no broken pipe.
    let huge = noise(1, 5 << 20);
    let answer = server.upload(&info(&base(5), &[], &huge), huge.clone()).await;
    assert_eq!(answer.status(), 413);
    let answer = answer.json::<Value>().await.unwrap();
    assert_eq!((answer["code"].as_u64(), answer["error"].as_str()), (Some(413), Some("PayloadTooLarge")));
    server.stop().await;
}

/// 2,000 small paths through 8 connections: all of them are accepted and served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_thousand_small_paths() {
    let server = Server::start(|_| {}).await;
    let lanes: Vec<_> = (0..8)
        .map(|lane| {
            let (client, url, token) = (server.client.clone(), server.url(""), server.token("push").unwrap());
            tokio::spawn(async move {
                for n in (lane..2000).step_by(8) {
                    let nar = noise(n, 400);
                    assert_eq!(
                        upload(&client, &url, &token, &info(&base(n), &[], &nar), nar).await.status(),
                        200
                    );
                }
            })
        })
        .collect();
    for lane in lanes {
        lane.await.unwrap();
    }
    let hashes: Vec<String> = (0..2000).map(|n| base(n)[..32].to_owned()).collect();
    let question = json!({"cache": "main", "store_path_hashes": hashes});
    let call = server
        .client
        .post(server.url("/_api/v1/get-missing-paths"))
        .bearer_auth(server.token("push").unwrap());
    let answer: Value = call.json(&question).send().await.unwrap().json().await.unwrap();
    assert_eq!(answer["missing_paths"], json!([]));
    server.stop().await;
}
