//! Tests of the token's sources, and that no message contains a token.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::server::Server;
use super::*;

const TOKEN: &str = "tok-5ecret.VALUE_0123456789";

fn from_file(endpoint: &str, path: &std::path::Path) -> CacheClient {
    let token = TokenSource::File(path.to_owned());
    CacheClient::new(ClientSettings { token, ..settings(&[endpoint]) }).unwrap()
}

#[tokio::test]
async fn a_file_is_read_again_and_trimmed() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let server = Server::with_config("{}").await;
    let client = from_file(&server.url, &path);
    let error = client.discover().await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Unauthorized);
    assert!(error.message.contains(path.to_str().unwrap()), "{error}");
    std::fs::write(&path, "\n one \r\n").unwrap();
    assert!(client.reload_token().unwrap().token);
    assert!(!client.reload_token().unwrap().any());
    client.discover().await.unwrap();
    std::fs::write(&path, "two").unwrap();
    client.discover().await.unwrap();
    // Somebody is replacing the file; the client goes on with the old token.
    std::fs::remove_file(&path).unwrap();
    assert!(client.reload_token().is_err());
    client.discover().await.unwrap();
    let sent: Vec<_> =
        server.requests().iter().map(|r| r.header("authorization").unwrap().to_owned()).collect();
    assert_eq!(sent, ["Bearer one", "Bearer two", "Bearer two"]);
}

#[test]
fn what_is_no_token_is_said_clearly() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    for (content, word) in [
        (&b""[..], "empty"),
        (b" \n", "empty"),
        (b"tok-5ecret\nrest", "line break"),
        (b"tok-5ecret\0", "control character"),
        (b"tok-5ecret\x1b[0m", "control character"),
        (b"tok-5ecret \xff", "not text"),
        ("tok-5ecret-ü".as_bytes(), "ASCII"),
        (&[b'x'; 20_000], "more than"),
    ] {
        std::fs::write(&path, content).unwrap();
        let error = from_file("http://h", &path).reload_token().unwrap_err();
        assert_eq!(error.class, ErrorClass::Unauthorized);
        assert!(error.message.contains(word) && !error.message.contains("5ecret"), "{error}");
    }
    let error = from_file("http://h", dir.path()).reload_token().unwrap_err();
    assert!(error.message.contains("not a regular file"), "{error}");
    let env = |name: &str| {
        let token = TokenSource::Env(name.to_owned());
        CacheClient::new(ClientSettings { token, ..settings(&["http://h"]) }).unwrap()
    };
    assert!(env("PATH").reload_token().unwrap().token);
    assert!(env("FLYWHEEL_TEST_NOT_SET").reload_token().unwrap_err().message.contains("not set"));
    assert!(!client("http://h").reload_token().unwrap().any());
}

#[tokio::test]
async fn a_token_is_in_no_output() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    std::fs::write(&path, TOKEN).unwrap();
    // A server that echoes the request.
    let server = Server::bare(|request, mut conn| async move {
        conn.body(&request).await;
        let echo = request.header("authorization").unwrap().to_owned();
        let location = format!("location: http://elsewhere.invalid/{echo}\r\n");
        match request.path.as_str() {
            "/moved/_api/v1/cache-config/main" => conn.answer("302 X", &location, &echo).await,
            _ if request.method == "GET" => conn.answer("200 OK", "", "{}").await,
            // If the client cut the text before scrubbing it, the cut would be within the token.
            _ if request.method == "POST" => {
                conn.answer("418 X", "", &format!("{}{echo}", "x".repeat(285))).await;
            }
            _ => conn.answer("418 X", "", &format!("you said {echo}")).await,
        }
        Some(conn)
    })
    .await;
    let client = from_file(&server.url, &path);
    let mut output = [
        client.upload(&info(9), nar(9)).await.unwrap_err(),
        client.missing(hashes(1)).await.unwrap_err(),
        from_file(&format!("{}/moved", server.url), &path).discover().await.unwrap_err(),
    ]
    .iter()
    .flat_map(|e| [format!("{e}"), format!("{e:?}")])
    .collect::<Vec<_>>();
    assert!(output[0].contains("you said Bearer [token]"), "{}", output[0]);
    assert_eq!(server.requests().pop().unwrap().header("authorization"), Some(&*format!("Bearer {TOKEN}")));
    let secret = TokenSource::File(path).read().unwrap().unwrap();
    output.extend([
        format!("{client:?}"),
        format!("{secret:?}"),
        format!("{secret}"),
        format!("{:?}", client.discover().await),
    ]);
    for text in output {
        assert!(!text.contains("5ecret"), "{text}");
    }
}

#[test]
fn expiry_is_read_only_where_it_can_be() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("token");
    let expiry = |token: &str| {
        std::fs::write(&path, token).unwrap();
        from_file("http://h", &path).token_expiry()
    };
    let jwt = |claims: &str| format!("eyJhbGciOiJIUzI1NiJ9.{}.c2ln", URL_SAFE_NO_PAD.encode(claims));
    assert_eq!(expiry(&jwt(r#"{"exp":4102444800,"sub":"ü"}"#)), Some(4_102_444_800));
    assert_eq!(expiry(&jwt(r#"{"exp":12.5}"#)), Some(12));
    for odd in [
        jwt("{}"),
        jwt("[1"),
        jwt(r#"{"exp":"x"}"#),
        "garbage".to_owned(),
        "a.b".to_owned(),
        "a.*.c".to_owned(),
    ] {
        assert_eq!(expiry(&odd), None, "{odd}");
    }
    assert_eq!(client("http://h").token_expiry(), None);
}
