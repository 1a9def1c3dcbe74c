//! Gives every recorded answer of a real atticd (`tests/vectors/attic.json`) to the
//! client's own methods. The test changes one thing in an answer: the recorded
//! `api_endpoint` names a port of the machine that made the recording, so the test
//! puts its server's address there, and no token goes to another process.

use crate::types::CacheName;
use std::sync::Arc;

use serde_json::Value;

use super::server::Server;
use super::*;

#[derive(Debug, PartialEq)]
enum Outcome {
    Config,
    Missing(usize),
    Stored { deduplicated: bool, file_size: Option<u64> },
    Failed(ErrorClass),
}
use ErrorClass::{Forbidden, Mismatch, NoSuchCache, Rejected, Transient, Unauthorized};
use Outcome::{Config, Failed, Missing, Stored};

/// Requests that this client never makes, and why.
const NEVER_ASKED: [(&str, &str); 12] = [
    ("cache-config invalid name", "such a name is no CacheName"),
    ("get-missing-paths empty", "nothing to ask, the answer is known"),
    ("get-missing-paths malformed json", "the JSON is serde's"),
    ("get-missing-paths 1000 hashes", "the record is cut; `calls` asks 40,000"),
    ("get-missing-paths 10000 hashes", "the record is cut; it is asked in chunks of 5,000"),
    ("upload malformed info header", "the JSON is serde's"),
    ("upload without info", "every upload has it"),
    ("narinfo present", "reading is Nix's business"),
    ("narinfo private no token", "reading is Nix's business"),
    ("nix-cache-info", "reading is Nix's business"),
    ("root", "no such call"),
    ("narinfo absent", "reading is Nix's business"),
];

/// Requests that the client refuses to make although the server takes them.
const REFUSED: [&str; 3] =
    ["upload bad references", "upload store_path_hash mismatch", "upload other store dir"];

/// Uploads that the client ends itself, because the NAR's size differs from the
/// announced one. The error has the class of the server's answer.
const GIVEN_UP: [&str; 5] = [
    "upload wrong nar_size (too large claim)",
    "upload wrong nar_size (too small claim)",
    "upload truncated body",
    "upload empty body",
    "upload not a NAR but hash matches nothing",
];

fn expected(name: &str) -> Outcome {
    let uploaded = |file_size| Stored { deduplicated: false, file_size };
    match name {
        "cache-config private, token push"
        | "cache-config private, token pull-only"
        | "cache-config public, token none"
        | "cache-config public, token expired" => Config,
        "cache-config private, token none"
        | "cache-config private, token garbage"
        | "cache-config private, token expired"
        | "cache-config private, token other-caches"
        | "get-missing-paths, token none"
        | "get-missing-paths, token expired"
        | "get-missing-paths, token garbage"
        | "upload, token none"
        | "upload, token expired"
        | "upload, token garbage" => Failed(Unauthorized),
        "get-missing-paths, token pull-only"
        | "get-missing-paths public cache, token expired"
        | "upload, token pull-only" => Failed(Forbidden),
        "cache-config unknown cache" | "upload unknown cache" => Failed(NoSuchCache),
        "get-missing-paths, token push" => Missing(1),
        "get-missing-paths bad hash" => Failed(Rejected),
        "get-missing-paths 40000 hashes" => Failed(Transient),
        "upload ok (header)" | "upload ok (preamble)" => uploaded(Some(186)),
        "upload same path again" => uploaded(Some(89)),
        "upload new path 1/2" => uploaded(Some(290)),
        "upload other path with the same NAR (global dedup)" => {
            Stored { deduplicated: true, file_size: None }
        }
        "upload wrong nar_hash" => Failed(Mismatch),
        "upload while the server database is locked by another process" => Failed(Transient),
        given_up if GIVEN_UP.contains(&given_up) => Failed(Mismatch),
        refused if REFUSED.contains(&refused) => Failed(Rejected),
        other => panic!("a new vector: {other}"),
    }
}

async fn outcome(vector: &Value) -> (Outcome, Server) {
    let (request, response) = (&vector["request"], &vector["response"]);
    let (body, status) = (response["body"].as_str().unwrap().to_owned(), response["status"].to_string());
    let recorded = Arc::new((status, response["headers"]["content-type"].as_str().unwrap().to_owned(), body));
    let call = request["path"].as_str().unwrap().trim_start_matches("/_api/v1/").to_owned();
    let answer = move |request: server::Request, mut conn: server::Conn| {
        let recorded = Arc::clone(&recorded);
        async move {
            conn.body(&request).await;
            let own = format!("http://{}", request.header("host").unwrap());
            let body = recorded.2.replace("http://127.0.0.1:8081", &own);
            conn.answer(&format!("{} X", recorded.0), &format!("content-type: {}\r\n", recorded.1), &body)
                .await;
            Some(conn)
        }
    };
    let upload = || -> (UploadInfo, u64) {
        let header = request["headers"]["X-Attic-Nar-Info"].as_str();
        let mut info = header.map_or_else(|| info(216), |json| serde_json::from_str(json).unwrap());
        if vector["name"] == "upload ok (preamble)" {
            info.references = vec![format!("{}-{}", info.store_path_hash, "r".repeat(200)); 30];
        }
        let size = match request["body"].as_str().and_then(|b| b.strip_prefix('<')?.split_once(" bytes")) {
            Some(_) if header.is_none() => info.nar_size,
            Some((size, _)) => size.parse().unwrap(),
            None if request["body"].is_null() => 0,
            None => info.nar_size,
        };
        (info, size)
    };
    let is_config = call.starts_with("cache-config/");
    let server = if is_config { Server::bare(answer).await } else { Server::start(answer).await };
    let cache = match call.split_once('/') {
        Some((_, cache)) => cache.to_owned(),
        None if call == "upload-path" => upload().0.cache.to_string(),
        None => request["body"].as_str().unwrap().split('"').nth(3).unwrap().to_owned(),
    };
    let settings = ClientSettings { cache: CacheName::parse(&cache).unwrap(), ..settings(&[&server.url]) };
    let client = CacheClient::new(settings).unwrap();
    let outcome = if is_config {
        client.discover().await.map(|found| {
            assert_eq!(found.endpoint, server.url);
            assert_eq!(found.config.store_dir.as_deref(), Some("/nix/store"));
            assert_eq!(found.config.upstream_cache_key_names, Some(vec!["cache.nixos.org-1".to_owned()]));
            assert_eq!(found.config.priority, Some(41));
            Config
        })
    } else if call == "get-missing-paths" {
        let body: Option<Value> = serde_json::from_str(request["body"].as_str().unwrap()).ok();
        let asked = body
            .map_or_else(|| hashes(7), |b| serde_json::from_value(b["store_path_hashes"].clone()).unwrap());
        client.missing(asked).await.map(|missing| Missing(missing.len()))
    } else {
        let (info, size) = upload();
        let done = client.upload(&info, nar(size)).await;
        done.map(|u| Stored { deduplicated: u.deduplicated, file_size: u.file_size })
    };
    (outcome.unwrap_or_else(|e| Failed(e.class)), server)
}

#[tokio::test]
async fn every_recorded_answer_has_its_outcome() {
    let text = include_str!("../../../tests/vectors/attic.json");
    let vectors: Vec<Value> = serde_json::from_str(text).unwrap();
    let mut run = 0;
    for vector in &vectors {
        let name = vector["name"].as_str().unwrap();
        if NEVER_ASKED.iter().any(|(never, _)| *never == name) {
            continue;
        }
        let (outcome, server) = outcome(vector).await;
        assert_eq!(outcome, expected(name), "{name}");
        if REFUSED.contains(&name) {
            assert_eq!(server.connections(), 0, "{name} was sent");
            continue;
        }
        run += 1;
        if GIVEN_UP.contains(&name) {
            // How much of the body the client sent before that depends on buffers.
            continue;
        }
        // The client sent the recorded request, so the recorded answer belongs to it.
        let sent = server.requests().pop().unwrap();
        assert_eq!(sent.method, vector["request"]["method"].as_str().unwrap(), "{name}");
        assert_eq!(sent.path, vector["request"]["path"].as_str().unwrap(), "{name}");
        if let Some(recorded) = vector["request"]["headers"]["X-Attic-Nar-Info"].as_str() {
            // Python's JSON has spaces and this client's has none; the order of the fields must be equal.
            let plain = recorded.replace(": ", ":").replace(", ", ",");
            assert_eq!(sent.header("x-attic-nar-info").unwrap(), plain, "{name}");
        }
    }
    assert_eq!(run + NEVER_ASKED.len() + REFUSED.len(), vectors.len());
}
