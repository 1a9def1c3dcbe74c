//! A cache: the client over HTTP before a server that fails as it is told to, and the
//! simulated cache.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use futures_util::stream;

use super::super::caches::{Cache, Fault};
use super::super::trace::Rng;
use crate::cache::tests::server::{Conn, Request, Server, dead};
use crate::cache::{CacheClient, CacheError, ClientSettings, TokenSource, UploadInfo};
use crate::daemon::push::{Board, CacheApi, SimulatedCache};
use crate::types::{CacheId, CacheName};

#[derive(Debug, Clone, Copy)]
enum Step {
    Missing(&'static [u32]),
    Upload(u32),
    Discover,
    /// The cache deletes everything.
    Delete,
}

/// A fault of the cache, or none; a step; and what comes of it.
const TABLE: &[(Option<Fault>, Step, &str)] = &[
    (None, Step::Discover, "there"),
    (None, Step::Missing(&[1, 2]), "missing: 1 2"),
    (None, Step::Upload(1), "stored"),
    (None, Step::Missing(&[1, 2]), "missing: 2"),
    (None, Step::Upload(1), "stored"),
    (None, Step::Upload(TOO_LARGE), "too-large"),
    (Some(Fault::Unreachable), Step::Missing(&[1]), "unreachable"),
    (Some(Fault::Unreachable), Step::Upload(2), "unreachable"),
    (Some(Fault::Unreachable), Step::Discover, "unreachable"),
    (Some(Fault::ServerError), Step::Missing(&[1]), "transient"),
    (Some(Fault::ServerError), Step::Upload(2), "transient"),
    (Some(Fault::ServerError), Step::Discover, "transient"),
    (Some(Fault::Unauthorized), Step::Missing(&[1]), "unauthorized"),
    (Some(Fault::Unauthorized), Step::Upload(2), "unauthorized"),
    (Some(Fault::Unauthorized), Step::Discover, "unauthorized"),
    (Some(Fault::Busy), Step::Missing(&[1]), "transient, again after 2 s"),
    (Some(Fault::Busy), Step::Upload(2), "transient, again after 2 s"),
    (Some(Fault::Busy), Step::Discover, "transient, again after 2 s"),
    (None, Step::Missing(&[1, 2]), "missing: 2"),
    (Some(Fault::NoVerdict), Step::Missing(&[1, 2]), "missing: 2"),
    (Some(Fault::NoVerdict), Step::Discover, "there"),
    // Whether it is stored is not known.
    (Some(Fault::NoVerdict), Step::Upload(2), "no-verdict"),
    (Some(Fault::StoresNothing), Step::Upload(3), "stored"),
    (Some(Fault::StoresNothing), Step::Missing(&[3]), "missing: 3"),
    (Some(Fault::StoresNothing), Step::Discover, "there"),
    (Some(Fault::Mismatch), Step::Upload(3), "mismatch"),
    (Some(Fault::Mismatch), Step::Missing(&[3]), "missing: 3"),
    (Some(Fault::Mismatch), Step::Discover, "there"),
    (Some(Fault::NoSuchCache), Step::Upload(3), "no-such-cache"),
    (Some(Fault::NoSuchCache), Step::Missing(&[3]), "no-such-cache"),
    (Some(Fault::NoSuchCache), Step::Discover, "no-such-cache"),
    (None, Step::Delete, ""),
    (None, Step::Missing(&[1, 2]), "missing: 1 2"),
];

/// A path that the cache refuses because of its size.
const TOO_LARGE: u32 = 9;

/// What Attic answers to a NAR that does not match its hash.
const MISMATCH: &str =
    r#"{"code":400,"error":"RequestError","message":"General request error: Bad NAR Hash or Size"}"#;

fn hash(n: u32) -> String {
    format!("{n:032}")
}

fn number(hash: &str) -> u32 {
    hash.parse().unwrap()
}

fn info(n: u32) -> UploadInfo {
    UploadInfo {
        cache: CacheName::parse("main").unwrap(),
        store_path_hash: hash(n),
        store_path: format!("/nix/store/{}-p", hash(n)),
        references: Vec::new(),
        system: None,
        deriver: None,
        sigs: Vec::new(),
        ca: None,
        nar_hash: format!("sha256:{}", "0".repeat(64)),
        nar_size: 5,
    }
}

fn error(error: &CacheError) -> String {
    let again = error.retry_after.map(|wait| format!(", again after {} s", wait.as_secs()));
    format!("{}{}", error.class, again.unwrap_or_default())
}

/// Makes a call and says what came of it.
async fn call(api: &CacheApi, step: Step) -> String {
    let said = |result: Result<String, CacheError>| result.unwrap_or_else(|e| error(&e));
    match step {
        Step::Missing(of) => said(api.missing(of.iter().copied().map(hash).collect()).await.map(|missing| {
            let missing: BTreeSet<u32> = missing.iter().map(|hash| number(hash)).collect();
            missing.iter().fold("missing:".to_owned(), |text, n| format!("{text} {n}"))
        })),
        Step::Upload(n) => {
            let nar = stream::iter([Ok(Bytes::from_static(b"bytes"))]);
            said(api.upload(&info(n), nar, 0).await.map(|_| "stored".to_owned()))
        }
        Step::Discover => said(api.discover().await.map(|_| "there".to_owned())),
        Step::Delete => String::new(),
    }
}

/// The fault and the content of the HTTP server.
#[derive(Default)]
struct Attic {
    fault: Option<Fault>,
    has: BTreeSet<u32>,
}

/// Answers as an Attic server with this fault does; unreachable is no fault of it.
async fn serve(attic: &Mutex<Attic>, request: Request, mut conn: Conn) -> Option<Conn> {
    let body = conn.body(&request).await;
    let fault = attic.lock().unwrap().fault;
    let upload = request.method == "PUT";
    let (status, headers, text) = match fault {
        Some(Fault::ServerError) => ("500 Internal Server Error", "", String::new()),
        Some(Fault::Unauthorized) => ("401 Unauthorized", "", String::new()),
        Some(Fault::Busy) => ("429 Too Many Requests", "retry-after: 2\r\n", String::new()),
        // The connection ends without an answer.
        Some(Fault::NoVerdict) if upload => return None,
        Some(Fault::NoSuchCache) => {
            ("404 Not Found", "", r#"{"code":404,"error":"NoSuchCache","message":"no"}"#.to_owned())
        }
        Some(Fault::Mismatch) if upload => ("400 Bad Request", "", MISMATCH.to_owned()),
        Some(Fault::StoresNothing) if upload => ("200 OK", "", r#"{"kind":"Uploaded"}"#.to_owned()),
        _ if request.path.contains("cache-config") => {
            ("200 OK", "", r#"{"is_public":true,"store_dir":"/nix/store"}"#.to_owned())
        }
        _ if upload => {
            let text = String::from_utf8_lossy(&body).into_owned();
            let head = request.header("x-attic-nar-info").map(str::to_owned);
            let named = head.unwrap_or(text);
            let at = named.find("\"store_path_hash\":\"").unwrap() + "\"store_path_hash\":\"".len();
            let n = number(&named[at..at + 32]);
            if n == TOO_LARGE {
                ("413 Payload Too Large", "", String::new())
            } else {
                attic.lock().unwrap().has.insert(n);
                ("200 OK", "", r#"{"kind":"Uploaded"}"#.to_owned())
            }
        }
        _ => {
            let asked: serde_json::Value = serde_json::from_slice(&body).unwrap();
            let mut missing = asked["store_path_hashes"].as_array().unwrap().clone();
            let has = &attic.lock().unwrap().has;
            missing.retain(|hash| !has.contains(&number(hash.as_str().unwrap())));
            ("200 OK", "", serde_json::json!({ "missing_paths": missing }).to_string())
        }
    };
    conn.answer(status, headers, &text).await;
    Some(conn)
}

#[tokio::test]
async fn the_client_over_http() {
    let attic = Arc::new(Mutex::new(Attic::default()));
    let shared = Arc::clone(&attic);
    let server = Server::bare(move |request, conn| {
        let attic = Arc::clone(&shared);
        async move { serve(&attic, request, conn).await }
    })
    .await;
    let api = |url: &str| {
        let name = CacheName::parse("main").unwrap();
        let settings = ClientSettings::new(vec![url.to_owned()], name, TokenSource::None);
        CacheApi::Http(CacheClient::new(settings).unwrap())
    };
    let (live, dead) = (api(&server.url), api(&dead().await));
    for (row, (fault, step, expected)) in TABLE.iter().enumerate() {
        attic.lock().unwrap().fault = *fault;
        if let Step::Delete = step {
            attic.lock().unwrap().has.clear();
        }
        let api = if *fault == Some(Fault::Unreachable) { &dead } else { &live };
        assert_eq!(call(api, *step).await, *expected, "row {row}: {fault:?}, {step:?}");
    }
}

#[tokio::test]
async fn the_simulated_cache() {
    let board = Board::default();
    let api = CacheApi::Simulated(SimulatedCache { id: CacheId(0), board: Arc::clone(&board) });
    let (mut cache, mut rng) = (Cache::default(), Rng::new(1));
    cache.too_large.insert(hash(TOO_LARGE));
    for (row, (fault, step, expected)) in TABLE.iter().enumerate() {
        cache.fault = fault.map(|fault| (fault, u64::MAX));
        if let Step::Delete = step {
            cache.delete(|| true);
        }
        let answer = async {
            tokio::task::yield_now().await;
            for (id, call) in std::mem::take(&mut *board.lock().unwrap()) {
                let mut request = cache.request(id.0, call, 0, &mut rng);
                cache.process(&mut request, 0, &mut rng);
                request.answer();
            }
        };
        let (said, ()) = tokio::join!(call(&api, *step), answer);
        assert_eq!(said, *expected, "row {row}: {fault:?}, {step:?}");
    }
}
