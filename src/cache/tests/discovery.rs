//! Tests of which address the client uses, and to which hosts it sends a token.

use super::server::{CONFIG, Server, dead};
use super::*;

fn with_token(endpoints: &[&str]) -> CacheClient {
    CacheClient::new(ClientSettings { token: TokenSource::Env("PATH".to_owned()), ..settings(endpoints) })
        .unwrap()
}

#[tokio::test]
async fn the_first_candidate_that_answers() {
    let (gone, good) = (dead().await, Server::with_config(CONFIG).await);
    let refusing = Server::bare(|_, mut conn| async move {
        conn.answer("401 X", "", "{}").await;
        Some(conn)
    })
    .await;
    let client = CacheClient::new(settings(&[&gone, &refusing.url, &good.url, &refusing.url])).unwrap();
    assert_eq!(client.endpoint(), None);
    let found = client.discover().await.unwrap();
    assert_eq!(found.endpoint, good.url);
    assert_eq!(client.endpoint().as_deref(), Some(good.url.as_str()));
    assert_eq!(client.config().unwrap().store_dir.as_deref(), Some("/nix/store"));
    assert_eq!(refusing.requests().len(), 1, "the list ends at the first that answers");
    // The result is the most informative error; its message names all failures.
    let client = CacheClient::new(settings(&[&gone, &refusing.url])).unwrap();
    let error = client.discover().await.unwrap_err();
    assert_eq!((error.class, error.status), (ErrorClass::Unauthorized, Some(401)));
    assert!(error.message.contains(&gone) && error.message.contains(&refusing.url), "{error}");
}

#[tokio::test]
async fn an_endpoint_that_goes_away_is_found_again() {
    let answer = |request: server::Request, mut conn: server::Conn| async move {
        conn.body(&request).await;
        conn.answer("200 OK", "", r#"{"missing_paths":[]}"#).await;
        Some(conn)
    };
    let (first, second) = (Server::start(answer).await, Server::start(answer).await);
    let client = CacheClient::new(settings(&[&first.url, &second.url])).unwrap();
    client.missing(hashes(1)).await.unwrap();
    assert_eq!(client.endpoint().unwrap(), first.url);
    drop(first);
    // The current request fails, and the next one discovers again.
    let mut error = None;
    while client.endpoint().unwrap() != second.url {
        error = client.missing(hashes(1)).await.err().or(error);
    }
    assert_eq!(error.unwrap().class, ErrorClass::Unreachable);
    client.missing(hashes(1)).await.unwrap();
    drop(second);
    assert_eq!(client.discover().await.unwrap_err().class, ErrorClass::Unreachable);
    assert_eq!(client.endpoint(), None, "forgotten: the next discovery starts over");
}

#[tokio::test]
async fn the_named_api_endpoint_is_used_if_it_works() {
    let api = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        conn.answer("200 OK", "", r#"{"missing_paths":[]}"#).await;
        Some(conn)
    })
    .await;
    let front = Server::with_config(&format!(r#"{{"api_endpoint":"{}/"}}"#, api.url)).await;
    let works = client(&front.url);
    assert_eq!(works.discover().await.unwrap().endpoint, api.url);
    works.missing(hashes(1)).await.unwrap();
    assert_eq!(api.calls().len(), 1);

    for named in [dead().await, "https://me:pw@x".to_owned(), "nonsense".to_owned()] {
        let front = Server::with_config(&format!(r#"{{"api_endpoint":"{named}","priority":3}}"#)).await;
        let found = client(&front.url).discover().await.unwrap();
        assert_eq!(found.endpoint, front.url, "the candidate has answered, after all");
        assert_eq!(found.config.priority, Some(3));
        assert!(found.named_unusable.is_some(), "{named}");
    }
}

#[tokio::test]
async fn a_host_that_is_not_configured_gets_no_token() {
    let elsewhere = Server::with_config(CONFIG).await;
    // Another name, so another host, although it leads to the same address.
    let named = elsewhere.url.replace("127.0.0.1", "localhost");
    let config = format!(r#"{{"api_endpoint":"{named}/","substituter_endpoint":"{named}/main"}}"#);
    let front = Server::with_config(&config).await;
    let wary = with_token(&[&front.url]);
    let found = wary.discover().await.unwrap();
    assert_eq!((found.endpoint.as_str(), elsewhere.connections()), (front.url.as_str(), 0));
    assert!(found.named_unusable.unwrap().contains("trust_api_endpoint"));
    assert!(wary.netrc_host().unwrap_err().contains("trust_api_endpoint"));
    let pull = TokenSource::Env("PATH".to_owned());
    let error = wary.readable(&format!("{named}/main"), &pull).await.unwrap_err();
    assert!(error.message.contains("trust_api_endpoint"), "{error}");
    assert_eq!(elsewhere.connections(), 0, "nothing was sent there");
    // The client trusts configured hosts, and all hosts if the administrator says so.
    let both = with_token(&[&front.url, "http://localhost:1"]);
    assert_eq!(both.discover().await.unwrap().endpoint, named);
    let trusting = CacheClient::new(ClientSettings {
        trust_api_endpoint: true,
        token: TokenSource::Env("PATH".to_owned()),
        ..settings(&[&front.url])
    });
    let trusting = trusting.unwrap();
    assert_eq!(trusting.discover().await.unwrap().endpoint, named);
    assert!(elsewhere.requests().iter().all(|r| r.header("authorization").is_some()));
}

#[tokio::test]
async fn a_host_in_a_netrc_file_is_only_a_host() {
    for (named, host) in [
        ("http://127.0.0.1:8742/main", Some("127.0.0.1")),
        (r"http://127.0.0.1/main\n\ndefault login x", None),
        ("http://x@127.0.0.1/main", None),
        ("nonsense", None),
    ] {
        let front = Server::with_config(&format!(r#"{{"substituter_endpoint":"{named}"}}"#)).await;
        let client = client(&front.url);
        assert_eq!(client.netrc_host(), Ok(None), "not asked yet");
        client.discover().await.unwrap();
        assert_eq!(client.netrc_host().unwrap().as_deref(), host, "{named}");
    }
}

#[tokio::test]
async fn a_token_does_not_follow_redirects_elsewhere() {
    let elsewhere = Server::with_config(CONFIG).await;
    // Another name, so another host, although it leads to the same address.
    let target = format!("{}/_api/v1/cache-config/main", elsewhere.url.replace("127.0.0.1", "localhost"));
    let redirecting = Server::bare(move |request, mut conn| {
        let target = target.clone();
        async move {
            conn.body(&request).await;
            conn.answer("307 Temporary Redirect", &format!("location: {target}\r\n"), "").await;
            Some(conn)
        }
    })
    .await;
    let error = with_token(&[&redirecting.url]).discover().await.unwrap_err();
    assert_eq!((error.class, error.status), (ErrorClass::Rejected, Some(307)), "{error}");
    assert!(error.message.contains("localhost"), "{error}");
    assert_eq!(elsewhere.connections(), 0);
    assert!(redirecting.requests()[0].header("authorization").unwrap().starts_with("Bearer "));
    // Another port of the same host may be another user's.
    let location = format!("location: {}/_api/v1/cache-config/main\r\n", elsewhere.url);
    let to_a_port = Server::bare(move |_, mut conn| {
        let location = location.clone();
        async move {
            conn.answer("301 Moved", &location, "").await;
            Some(conn)
        }
    })
    .await;
    let error = with_token(&[&to_a_port.url]).discover().await.unwrap_err();
    assert_eq!((error.class, error.status), (ErrorClass::Rejected, Some(301)), "{error}");
    assert_eq!(elsewhere.connections(), 0);
    // A server may move its API to another path.
    let moving = Server::bare(|request, mut conn| async move {
        match request.path.strip_prefix("/new") {
            Some(_) => conn.answer("200 OK", "", CONFIG).await,
            None => conn.answer("301 Moved", "location: /new/_api/v1/cache-config/main\r\n", "").await,
        }
        Some(conn)
    })
    .await;
    let found = with_token(&[&moving.url]).discover().await.unwrap();
    assert_eq!(found.endpoint, format!("{}/new", moving.url));
    // An upload follows no redirect.
    let to = format!("location: {}/\r\n", elsewhere.url);
    let upload = Server::start(move |request, mut conn| {
        let to = to.clone();
        async move {
            conn.body(&request).await;
            conn.answer("307 X", &to, "").await;
            Some(conn)
        }
    })
    .await;
    let before = elsewhere.requests().len();
    assert_eq!(client(&upload.url).upload(&info(9), nar(9)).await.unwrap_err().class, ErrorClass::Rejected);
    assert_eq!(elsewhere.requests().len(), before);
}

/// The environment of a process cannot be changed safely once it has threads:
/// the test runs itself again in a process that has the proxy from the start.
#[tokio::test]
async fn a_proxy_from_the_environment_but_never_for_loopback() {
    const INNER: &str = "FLYWHEEL_TEST_BEHIND_PROXY";
    if let Ok(direct) = std::env::var(INNER) {
        assert_eq!(client(&direct).discover().await.unwrap().endpoint, direct);
        let found = client("http://cache.invalid").discover().await.unwrap();
        assert_eq!(found.endpoint, "http://cache.invalid");
        return;
    }
    let (proxy, direct) = (Server::with_config(CONFIG).await, Server::with_config(CONFIG).await);
    let status = tokio::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "cache::tests::discovery::a_proxy_from_the_environment_but_never_for_loopback"])
        .env_remove("NO_PROXY")
        .env_remove("no_proxy")
        .env_remove("REQUEST_METHOD")
        .env("http_proxy", &proxy.url)
        .env("HTTP_PROXY", &proxy.url)
        .env(INNER, &direct.url)
        .stdout(std::process::Stdio::null())
        .kill_on_drop(true)
        .status()
        .await
        .unwrap();
    assert!(status.success());
    let through: Vec<String> = proxy.requests().into_iter().map(|r| r.path).collect();
    assert_eq!(through, ["http://cache.invalid/_api/v1/cache-config/main"]);
    assert_eq!(direct.requests().len(), 1);
}
