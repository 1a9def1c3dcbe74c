//! Tests of the requests as the server receives them, and of malformed answers.

use crate::types::CacheName;
use std::collections::HashSet;

use serde_json::{Value, json};

use super::server::Server;
use super::*;

#[tokio::test]
async fn forty_thousand_hashes_are_asked_in_chunks() {
    let server = Server::start(|request, mut conn| async move {
        let asked: Value = serde_json::from_slice(&conn.body(&request).await).unwrap();
        let asked = asked["store_path_hashes"].as_array().unwrap();
        assert!(asked.len() <= 5_000);
        // Every second one is missing.
        let missing: Vec<&Value> = asked.iter().step_by(2).collect();
        conn.answer("200 OK", "", &json!({ "missing_paths": missing }).to_string()).await;
        Some(conn)
    })
    .await;
    let missing = client(&server.url).missing(hashes(40_000)).await.unwrap();
    assert_eq!(missing, hashes(40_000).into_iter().step_by(2).collect::<HashSet<_>>());
    assert_eq!(server.calls().len(), 8);
    assert_eq!(server.connections(), 1, "kept alive");
    assert!(client(&server.url).missing(Vec::new()).await.unwrap().is_empty());
    assert_eq!(server.calls().len(), 8, "nothing to ask");
}

#[tokio::test]
async fn an_answer_to_another_question_is_none() {
    let server = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        conn.answer("200 OK", "", r#"{"missing_paths":["00000000000000000000000000000099"]}"#).await;
        Some(conn)
    })
    .await;
    let error = client(&server.url).missing(hashes(3)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient);
    assert!(error.message.contains("not asked"), "{error}");
}

#[tokio::test]
async fn cut_and_senseless_successes_are_no_successes() {
    for answer in [
        "HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"missing_paths\":[",
        "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\n{\"mis",
        "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}",
        "HTTP/1.1 200 OK\r\ncontent-length: 6\r\n\r\n<html>",
        "HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n",
        "HTTP/1.1 204 No Content\r\n\r\n",
    ] {
        let server = Server::bare(move |request, mut conn| async move {
            conn.body(&request).await;
            let ok = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
            conn.raw(if request.method == "GET" { ok } else { answer }).await;
            (request.method == "GET").then_some(conn)
        })
        .await;
        let client = client(&server.url);
        let missing = client.missing(hashes(1)).await.unwrap_err();
        let upload = client.upload(&info(10), nar(10)).await.unwrap_err();
        assert_eq!(missing.class, ErrorClass::Transient, "{answer}: {missing}");
        assert_eq!(upload.class, ErrorClass::NoVerdict, "{answer}: {upload}");
    }
    let server = Server::bare(|_, mut conn| async move {
        conn.raw("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{\"is_public\":").await;
        None
    })
    .await;
    assert_eq!(client(&server.url).discover().await.unwrap_err().class, ErrorClass::Transient);
}

#[tokio::test]
async fn retry_after_comes_through() {
    let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(3600));
    for (status, value) in [("429 Too Many Requests", "17".to_owned()), ("503 Service Unavailable", date)] {
        let header = format!("retry-after: {value}\r\n");
        let server = Server::start(move |request, mut conn| {
            let header = header.clone();
            async move {
                conn.body(&request).await;
                conn.answer(status, &header, "slow down").await;
                Some(conn)
            }
        })
        .await;
        let error = client(&server.url).upload(&info(10), nar(10)).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Transient);
        let wait = error.retry_after.unwrap().as_secs();
        assert!(if value == "17" { wait == 17 } else { (3_000..=3_600).contains(&wait) }, "{wait}");
    }
}

#[tokio::test]
async fn large_upload_info_goes_before_the_body() {
    let server = Server::start(|request, mut conn| async move {
        let body = conn.body(&request).await;
        for name in ["nar-info", "nar-info-preamble-size"] {
            let attic = request.header(&format!("x-attic-{name}"));
            assert_eq!(request.header(&format!("x-celler-{name}")), attic, "celler has its own names");
        }
        let kind = match request.header("x-attic-nar-info-preamble-size") {
            Some(size) => {
                let (json, nar) = body.split_at(size.parse().unwrap());
                let info: UploadInfo = serde_json::from_slice(json).unwrap();
                assert_eq!(nar.len() as u64, info.nar_size);
                "Deduplicated"
            }
            None => {
                assert!(request.header("x-attic-nar-info").unwrap().len() < 4096);
                "Uploaded"
            }
        };
        assert!(request.header("transfer-encoding").is_none());
        conn.answer("200 OK", "", &format!("{{\"kind\":\"{kind}\",\"file_size\":null,\"new\":1}}")).await;
        Some(conn)
    })
    .await;
    let client = client(&server.url);
    let mut info = info(200_000);
    let base = info.store_path["/nix/store/".len()..].to_owned();
    for (references, deduplicated) in [(0, false), (10, false), (200, true)] {
        info.references = vec![base.clone(); references];
        let uploaded = client.upload(&info, nar(200_000)).await.unwrap();
        assert_eq!(uploaded, Uploaded { deduplicated, file_size: None }, "{references}");
    }
    // A header can contain ASCII only.
    info.references.clear();
    info.deriver = Some("ü".to_owned());
    assert!(client.upload(&info, nar(200_000)).await.unwrap().deduplicated);
    assert_eq!(server.connections(), 1, "kept alive");
}

#[tokio::test]
async fn what_must_not_be_sent_is_not() {
    let server = Server::start(|_, _| async { None }).await;
    let client = client(&server.url);
    let good = info(10);
    let changed = |change: fn(&mut UploadInfo)| {
        let mut info = good.clone();
        change(&mut info);
        info
    };
    for wrong in [
        changed(|i| i.cache = CacheName::parse("other").unwrap()),
        changed(|i| i.store_path_hash.replace_range(..1, "b")),
        changed(|i| i.store_path_hash.truncate(31)),
        changed(|i| i.store_path = "a64qcx6rx81vhi139l1w70ad26xwcxjz-x".to_owned()),
        changed(|i| i.references.push("/nix/store/a64qcx6rx81vhi139l1w70ad26xwcxjz-x".to_owned())),
        changed(|i| i.references.push("a64qcx6rx81vhi139l1w70ad26xwcxjz".to_owned())),
        changed(|i| i.references.push("e64qcx6rx81vhi139l1w70ad26xwcxjz-x".to_owned())),
        changed(|i| i.nar_hash = "sha256:00".to_owned()),
        changed(|i| i.nar_hash = i.nar_hash.replace("sha256", "sha512")),
    ] {
        assert_eq!(
            client.upload(&wrong, nar(10)).await.unwrap_err().class,
            ErrorClass::Rejected,
            "{wrong:?}"
        );
    }
    assert_eq!(server.connections(), 0);
}

#[test]
fn cache_names_are_attics() {
    for good in ["a", "valid-name", "Another_Valid_Name", "plan9", "user+cache", &"x".repeat(50)] {
        assert_eq!(CacheName::parse(good).unwrap().as_str(), good);
    }
    for bad in ["", "b ad", "-a", "_a", "+a", "a/b", "a*", "ä", "a\n", &"x".repeat(51)] {
        assert!(CacheName::parse(bad).is_err(), "{bad:?}");
    }
}
