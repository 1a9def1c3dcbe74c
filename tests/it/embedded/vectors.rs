//! All requests that were recorded against a real Attic server.

use std::collections::HashMap;

use reqwest::Method;
use serde_json::{Value, json};

use super::{Server, hash, info, noise};

/// The answers in which the built-in cache differs from the recorded server, each with its reason.
fn deviation(name: &str) -> Option<(u16, &'static str)> {
    match name {
        "get-missing-paths 40000 hashes" => Some((200, "attic's database has a limit that ours has not")),
        "upload bad references" => Some((400, "Nix cannot read a narinfo with such a reference")),
        "upload store_path_hash mismatch" => Some((400, "Nix would be given another path than it asked for")),
        "upload other store dir" => Some((400, "Nix cannot read a narinfo with such a path")),
        _ => None,
    }
}

/// A body as the recording describes it: the text itself, or its length.
struct Bodies {
    /// Only the length: NARs whose content was not recorded.
    nars: HashMap<usize, Vec<u8>>,
}

impl Bodies {
    fn nar(&mut self, len: usize) -> Vec<u8> {
        self.nars.entry(len).or_insert_with(|| noise(len, len)).clone()
    }

    /// The recorded hashes belong to other bytes; where they were true they are replaced by true
    /// ones.
    fn claim(&mut self, name: &str, info: &str, sent: &[u8]) -> String {
        let Ok(mut info) = serde_json::from_str::<Value>(info) else { return info.to_owned() };
        let claimed = usize::try_from(info["nar_size"].as_u64().unwrap()).unwrap();
        match name {
            "upload wrong nar_hash" => {}
            "upload truncated body" | "upload empty body" => {
                info["nar_hash"] = hash(&self.nar(claimed)).into();
            }
            _ => info["nar_hash"] = hash(sent).into(),
        }
        info.to_string()
    }
}

#[tokio::test]
async fn recorded_requests_are_answered_as_recorded() {
    let vectors: Vec<Value> = serde_json::from_str(include_str!("../../vectors/attic.json")).unwrap();
    let private = Server::start(|_| {}).await;
    let public = Server::start(|s| (s.caches, s.public) = (vec!["pub".to_owned()], true)).await;
    let mut bodies = Bodies { nars: HashMap::new() };
    // The cache of the recording had this path.
    let mut there = info("sqc6j4i3hsiw1462x5z1xmwa0sfl65fn-x", &[], b"there");
    assert_eq!(private.upload(&there, &b"there"[..]).await.status(), 200);
    there["cache"] = "pub".into();
    assert_eq!(public.upload(&there, &b"there"[..]).await.status(), 200);
    let mut checked = 0;
    for vector in &vectors {
        let name = vector["name"].as_str().unwrap();
        if name == "upload while the server database is locked by another process" {
            continue; // has a test of its own: it needs the lock
        }
        let (request, expected) = (&vector["request"], &vector["response"]);
        let path = request["path"].as_str().unwrap();
        let body_text = request["body"].as_str().unwrap_or_default();
        let server = if path.ends_with("/pub") || body_text.contains("\"pub\"") { &public } else { &private };
        let method: Method = request["method"].as_str().unwrap().parse().unwrap();
        let mut sent = match body_text.strip_suffix(" bytes>").and_then(|t| t.strip_prefix('<')) {
            Some(len) => bodies.nar(len.parse().unwrap()),
            None => body_text.as_bytes().to_vec(),
        };
        let mut call = server.client.request(method, server.url(path));
        for (header, value) in request["headers"].as_object().unwrap() {
            let value = value.as_str().unwrap();
            let value = if header == "X-Attic-Nar-Info" {
                bodies.claim(name, value, &sent)
            } else {
                value.to_owned()
            };
            if header != "X-Attic-Nar-Info-Preamble-Size" {
                call = call.header(header, value);
            }
        }
        if name == "upload truncated body" {
            sent = bodies.nar(416)[..376].to_vec();
        }
        if name.contains("(preamble)") {
            // The recording is of a path whose NAR was not known under another name; 216 bytes
            // follow the info.
            let nar = noise(9999, 216);
            let preamble = info("zpdqd9fj2rvvgqdg2m9zwgjgzvnp57vp-x", &[], &nar).to_string();
            call = call.header("X-Attic-Nar-Info-Preamble-Size", preamble.len());
            sent = [preamble.as_bytes(), &nar].concat();
        }
        for count in ["1000", "10000", "40000"] {
            if name == format!("get-missing-paths {count} hashes") {
                let hashes: Vec<String> =
                    (0..count.parse().unwrap()).map(|n: usize| format!("{n:0>32}")).collect();
                sent = json!({"cache": "main", "store_path_hashes": hashes}).to_string().into_bytes();
            }
        }
        if let Some(token) = server.token(request["token"].as_str().unwrap()) {
            call = call.bearer_auth(token);
        }
        let answer = call.body(sent).send().await.unwrap();
        let (status, kind) =
            (answer.status().as_u16(), answer.headers()["content-type"].to_str().unwrap().to_owned());
        let text = answer.text().await.unwrap();
        checked += 1;
        if let Some((instead, why)) = deviation(name) {
            assert_eq!(status, instead, "{name} ({why}): {text}");
            continue;
        }
        assert_eq!(u64::from(status), expected["status"], "{name}: {text}");
        assert_eq!(kind, expected["headers"]["content-type"], "{name}: {text}");
        same_shape(name, &text, expected["body"].as_str().unwrap());
    }
    assert_eq!(checked, 48);
    private.stop().await;
    public.stop().await;
}

/// Errors must have the same words. JSON must have the same keys, and the same values unless they
/// depend on the server. Text must have the same keys in the same order.
fn same_shape(name: &str, ours: &str, recorded: &str) {
    if name == "root" {
        return assert!(ours.starts_with("<!doctype html>"));
    }
    if recorded.contains("<36040 chars>") || name.ends_with("00 hashes") {
        let ours: Value = serde_json::from_str(ours).unwrap();
        let count: usize = name.split(' ').nth(1).unwrap().parse().unwrap();
        return assert_eq!(ours["missing_paths"].as_array().unwrap().len(), count, "{name}");
    }
    if name == "narinfo present" {
        let keys =
            |text: &str| text.lines().map(|l| l.split(':').next().unwrap().to_owned()).collect::<Vec<_>>();
        return assert_eq!(keys(ours), keys(recorded));
    }
    let (Ok(mine), Ok(theirs)) =
        (serde_json::from_str::<Value>(ours), serde_json::from_str::<Value>(recorded))
    else {
        return assert_eq!(ours, recorded, "{name}");
    };
    let (mine, theirs) = (mine.as_object().unwrap(), theirs.as_object().unwrap());
    assert_eq!(mine.keys().collect::<Vec<_>>(), theirs.keys().collect::<Vec<_>>(), "{name}");
    for (key, value) in theirs {
        match key.as_str() {
            "substituter_endpoint" | "api_endpoint" => {
                assert!(mine[key].as_str().unwrap().starts_with("http://127.0.0.1:"));
            }
            "public_key" => assert_eq!(mine[key].as_str().unwrap().len(), value.as_str().unwrap().len()),
            "file_size" => assert!(mine[key].is_u64()),
            _ => assert_eq!(&mine[key], value, "{name}: {key}"),
        }
    }
}
