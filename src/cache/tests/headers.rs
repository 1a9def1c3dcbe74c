//! Extra headers: which requests carry them, and that no other host and no message gets
//! them.

use super::server::Server;
use super::*;
use crate::types::{StoreDir, StorePath};

const NAME: &str = "cf-access-client-secret";
const VALUE: &str = "s3cret-0123456789";

fn with_headers(url: &str, dir: &std::path::Path, text: &str) -> CacheClient {
    let file = dir.join("headers");
    std::fs::write(&file, text).unwrap();
    let network = Network { headers_file: Some(file), ..Network::default() };
    CacheClient::new(ClientSettings { network, ..settings(&[url]) }).unwrap()
}

#[tokio::test]
async fn every_request_to_the_cache_has_them_and_no_message() {
    let server = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        let echo = format!("you said {}", request.header(NAME).unwrap_or("nothing"));
        conn.answer("418 X", "", &echo).await;
        Some(conn)
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let client = with_headers(&server.url, dir.path(), &format!("{NAME}: {VALUE}\n"));
    client.discover().await.unwrap();
    let errors =
        [client.missing(hashes(1)).await.unwrap_err(), client.upload(&info(9), nar(9)).await.unwrap_err()];
    for error in errors {
        let text = format!("{error} {error:?} {client:?}");
        assert!(text.contains("you said [token]") && !text.contains("s3cret"), "{text}");
    }
    let requests = server.requests();
    assert!(requests.len() >= 3 && requests.iter().all(|r| r.header(NAME) == Some(VALUE)), "{requests:?}");
    // Nix cannot send headers, so the question whether Nix can read the cache has none.
    let _ = client.readable(&format!("{}/main", server.url), &TokenSource::None).await;
    assert_eq!(server.requests().pop().unwrap().header(NAME), None);
    assert!(client.scrub(&format!("a {VALUE} b")).contains("a [token] b"));
}

#[tokio::test]
async fn no_other_host_gets_them() {
    // Another name is another host, also where it leads to the same address.
    let other = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        conn.answer("404 Not Found", "", "").await;
        Some(conn)
    })
    .await;
    let elsewhere = other.url.replace("127.0.0.1", "localhost");
    let (named, moved) = (elsewhere.clone(), elsewhere.clone());
    let server = Server::bare(move |request, mut conn| {
        let (named, moved) = (named.clone(), moved.clone());
        async move {
            conn.body(&request).await;
            if request.path.starts_with("/moved/") {
                conn.answer("302 X", &format!("location: {moved}{}\r\n", request.path), "").await;
            } else if request.path.contains("cache-config") {
                let config = format!(r#"{{"api_endpoint":"{named}/","is_public":true}}"#);
                conn.answer("200 OK", "", &config).await;
            } else {
                conn.answer("302 X", &format!("location: {moved}/storage\r\n"), "").await;
            }
            Some(conn)
        }
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let text = format!("{NAME}: {VALUE}\n");
    with_headers(&format!("{}/moved", server.url), dir.path(), &text).discover().await.unwrap_err();
    let client = with_headers(&server.url, dir.path(), &text);
    client.discover().await.unwrap();
    client.missing(hashes(1)).await.unwrap_err();
    client.upload(&info(9), nar(9)).await.unwrap_err();
    assert!(other.requests().is_empty(), "{:?}", other.requests());
    // A read may lead to the server's storage, which gets no header.
    let store_dir = StoreDir::new("/nix/store").unwrap();
    let from = client.substituter(&TokenSource::None, &store_dir).await.unwrap();
    let path = StorePath::parse("a64qcx6rx81vhi139l1w70ad26xwcxjz-x").unwrap();
    client.check(&from, &path, None).await.unwrap_err();
    let narinfo = server.requests().into_iter().find(|r| r.path.ends_with(".narinfo")).unwrap();
    assert_eq!(narinfo.header(NAME), Some(VALUE));
    let led = other.requests();
    assert!(!led.is_empty() && led.iter().all(|r| r.header(NAME).is_none()), "{led:?}");
}

#[tokio::test]
async fn a_file_is_read_again_and_what_cannot_be_used_is_named() {
    let server = Server::with_config("{}").await;
    let dir = tempfile::tempdir().unwrap();
    let client = with_headers(&server.url, dir.path(), &format!("{NAME}: {VALUE}\n"));
    assert_eq!(client.reload_token().unwrap(), Renewed { token: false, headers: true });
    assert_eq!(client.reload_token().unwrap(), Renewed::default());
    std::fs::write(dir.path().join("headers"), "Authorization: x\n").unwrap();
    let error = client.reload_token().unwrap_err();
    assert_eq!(error.class, ErrorClass::Unauthorized);
    assert!(error.message.contains("sets authorization in line 1"), "{error}");
    client.discover().await.unwrap();
    assert_eq!(server.requests().pop().unwrap().header(NAME), Some(VALUE), "the old ones stay");
    let first = with_headers(&server.url, dir.path(), "nonsense");
    assert!(first.discover().await.unwrap_err().message.contains("no colon in line 1"));
}
