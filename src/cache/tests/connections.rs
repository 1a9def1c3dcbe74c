//! Tests of connections that break, stall, or bring an answer before the end of the request.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use futures_util::StreamExt;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::{Notify, oneshot};

use super::server::Server;
use super::*;

const LARGE: u64 = 256 << 20;
const EARLY: [(&str, ErrorClass); 2] =
    [("413 Payload Too Large", ErrorClass::TooLarge), ("401 Unauthorized", ErrorClass::Unauthorized)];

/// Reports when it is dropped.
fn watched(
    nar: impl Stream<Item = io::Result<Bytes>> + Send + 'static,
) -> (impl Stream<Item = io::Result<Bytes>> + Send, oneshot::Receiver<()>) {
    let (gone, dropped) = oneshot::channel::<()>();
    let nar = nar.map(move |chunk| {
        let _held = &gone;
        chunk
    });
    (nar, dropped)
}

#[tokio::test]
async fn an_early_answer_counts_while_the_server_takes_nothing() {
    for (status, class) in EARLY {
        let server = Server::start(move |_, mut conn| async move {
            conn.answer(status, "", "no").await;
            // The server neither reads nor closes, so only the client can end the upload.
            std::future::pending::<()>().await;
            Some(conn)
        })
        .await;
        let (nar, dropped) = watched(nar(LARGE));
        let error = client(&server.url).upload(&info(LARGE), nar).await.unwrap_err();
        assert_eq!((error.class, error.status.is_some()), (class, true), "{error}");
        // The client drops the NAR's reader, although the connection is still open.
        dropped.await.unwrap_err();
    }
}

#[tokio::test]
async fn an_early_answer_counts_while_the_server_throws_the_rest_away() {
    for (status, class) in EARLY {
        let server = Server::start(move |_, mut conn| async move {
            conn.answer(status, "", "no").await;
            conn.drain().await;
            None
        })
        .await;
        let error = client(&server.url).upload(&info(LARGE), nar(LARGE)).await.unwrap_err();
        assert_eq!(error.class, class, "{error}");
    }
}

/// The client is waiting for its reader when the answer and the reset arrive. If they
/// arrived together during a write, no client could see the answer in time. It would
/// see a broken connection, and the next attempt might see the answer.
#[tokio::test]
async fn an_early_answer_counts_when_a_reset_follows_it() {
    for (status, class) in EARLY {
        let (waiting, answered) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (wait, tell) = (Arc::clone(&waiting), Arc::clone(&answered));
        let server = Server::start(move |_, mut conn| {
            let (wait, tell) = (Arc::clone(&wait), Arc::clone(&tell));
            async move {
                conn.exactly(1 << 20).await;
                wait.notified().await;
                conn.answer(status, "", "no").await;
                conn.reset();
                tell.notify_one();
                None
            }
        })
        .await;
        let pause = async move {
            waiting.notify_one();
            answered.notified().await;
        };
        let rest = futures_util::stream::once(pause).flat_map(|()| nar(LARGE));
        let both = nar(1 << 20).chain(rest);
        let error = client(&server.url).upload(&info(LARGE + (1 << 20)), both).await.unwrap_err();
        assert_eq!(error.class, class, "{error}");
    }
}

#[tokio::test]
async fn an_early_success_is_one() {
    // Attic gives this answer for a NAR that it has, if it requires no proof of possession.
    let server = Server::start(|_, mut conn| async move {
        conn.answer("200 OK", "", r#"{"kind":"Deduplicated"}"#).await;
        conn.drain().await;
        None
    })
    .await;
    assert!(client(&server.url).upload(&info(LARGE), nar(LARGE)).await.unwrap().deduplicated);
}

#[tokio::test]
async fn a_reset_amid_the_body_concerns_the_path_and_not_the_cache() {
    let server = Server::start(|_, mut conn| async move {
        let mut some = vec![0; 100_000];
        conn.stream.read_exact(&mut some).await.unwrap();
        conn.reset();
        None
    })
    .await;
    let error = client(&server.url).upload(&info(LARGE), nar(LARGE)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
    assert_eq!(error.status, None);
}

#[tokio::test]
async fn no_connection_is_unreachable() {
    let dead = client(&server::dead().await);
    assert_eq!(dead.discover().await.unwrap_err().class, ErrorClass::Unreachable);
    assert_eq!(dead.missing(hashes(1)).await.unwrap_err().class, ErrorClass::Unreachable);
    assert_eq!(dead.upload(&info(9), nar(9)).await.unwrap_err().class, ErrorClass::Unreachable);
    let closing = Server::bare(|_, conn| async move {
        conn.reset();
        None
    })
    .await;
    assert_eq!(client(&closing.url).discover().await.unwrap_err().class, ErrorClass::Unreachable);
    // The server does not speak TLS.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let plain = async move {
        let (mut hello, _) = listener.accept().await.unwrap();
        hello.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await.unwrap();
        hello.read_u8().await.unwrap();
    };
    let client = client(&url);
    let (outcome, ()) = tokio::join!(client.discover(), plain);
    let error = outcome.unwrap_err();
    assert_eq!(error.class, ErrorClass::Unreachable, "{error}");
}

#[tokio::test]
async fn silence_is_a_stall() {
    let silent = Server::bare(|request, mut conn| async move {
        conn.body(&request).await;
        std::future::pending::<()>().await;
        None
    })
    .await;
    assert_eq!(impatient(&silent.url).discover().await.unwrap_err().class, ErrorClass::Transient);

    let takes_all = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        std::future::pending::<()>().await;
        None
    })
    .await;
    let client = impatient(&takes_all.url);
    assert_eq!(client.missing(hashes(1)).await.unwrap_err().class, ErrorClass::Transient);
    let error = client.upload(&info(1 << 20), nar(1 << 20)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::NoVerdict, "the server has the whole body: {error}");
    assert!(error.message.contains("no answer"), "{error}");

    // The first of these uploads is answered when two later ones have failed: it is more patient.
    let (received, release) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
    let (sent, answer, uploads) =
        (Arc::clone(&received), Arc::clone(&release), Arc::new(AtomicUsize::new(0)));
    let slow = Server::start(move |request, mut conn| {
        let (sent, answer, uploads) = (Arc::clone(&sent), Arc::clone(&answer), Arc::clone(&uploads));
        async move {
            conn.body(&request).await;
            if uploads.fetch_add(1, Ordering::SeqCst) > 0 {
                std::future::pending::<()>().await;
            }
            sent.notify_one();
            answer.notified().await;
            conn.answer("200 OK", "", r#"{"kind":"Uploaded"}"#).await;
            Some(conn)
        }
    })
    .await;
    let client = impatient(&slow.url);
    let patient = client.clone();
    let patient = tokio::spawn(async move { patient.upload_again(&info(9), nar(9), 5).await });
    received.notified().await;
    for no_verdicts in [0, 1] {
        let error = client.upload_again(&info(9), nar(9), no_verdicts).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::NoVerdict, "{error}");
    }
    release.notify_one();
    patient.await.unwrap().expect("the patience grows");

    let takes_nothing = Server::start(|_, conn| async move {
        std::future::pending::<()>().await;
        Some(conn)
    })
    .await;
    let (nar, dropped) = watched(nar(LARGE));
    let error = impatient(&takes_nothing.url).upload(&info(LARGE), nar).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
    assert!(error.message.contains("accepted no data"), "{error}");
    dropped.await.unwrap_err();

    let half = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        conn.raw("HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{").await;
        std::future::pending::<()>().await;
        Some(conn)
    })
    .await;
    let error = impatient(&half.url).missing(hashes(1)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
}

#[tokio::test]
async fn a_slow_reader_is_not_the_servers_stall() {
    let server = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        conn.answer("200 OK", "", r#"{"kind":"Uploaded"}"#).await;
        Some(conn)
    })
    .await;
    // The reader pauses for longer than the server may.
    let slow = nar(1 << 17).then(|chunk| async move {
        tokio::time::sleep(Duration::from_millis(400)).await;
        chunk
    });
    impatient(&server.url).upload(&info(1 << 17), slow).await.unwrap();
}

#[tokio::test]
async fn a_nar_that_is_not_as_announced() {
    let server = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        conn.answer("500 X", "", "the server should not have had it whole").await;
        None
    })
    .await;
    let client = client(&server.url);
    let broken = nar(1 << 20).chain(futures_util::stream::iter([Err(io::Error::other("bad sector"))]));
    let error = client.upload(&info(LARGE), broken).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Local);
    assert!(error.message.contains("bad sector"), "{error}");
    // The client never reads a chunk that begins exactly at the announced end: the
    // server has the announced bytes by then, and checks them.
    for given in [0, 1, (1 << 20) - 8, 1 << 20, 1 << 21] {
        let error = client.upload(&info((1 << 20) - 7), nar(given)).await.unwrap_err();
        assert_eq!((error.class, error.status), (ErrorClass::Mismatch, None), "{given}: {error}");
    }
}

#[tokio::test]
async fn a_question_is_repeated_once_on_a_connection_that_just_closed() {
    let questions = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&questions);
    let server = Server::start(move |request, mut conn| {
        let nth = count.fetch_add(1, Ordering::SeqCst);
        async move {
            conn.body(&request).await;
            if nth == 0 {
                return None;
            }
            conn.answer("200 OK", "", r#"{"missing_paths":[]}"#).await;
            Some(conn)
        }
    })
    .await;
    assert!(client(&server.url).missing(hashes(1)).await.unwrap().is_empty());
    assert_eq!(questions.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn sixteen_at_once_keep_their_connections() {
    let server = Server::start(|request, mut conn| async move {
        conn.body(&request).await;
        conn.answer("200 OK", "", r#"{"kind":"Uploaded","file_size":1}"#).await;
        Some(conn)
    })
    .await;
    let client = client(&server.url);
    for _ in 0..4 {
        let mut uploads = tokio::task::JoinSet::new();
        for _ in 0..16 {
            let client = client.clone();
            uploads.spawn(async move { client.upload(&info(100_000), nar(100_000)).await });
        }
        while let Some(done) = uploads.join_next().await {
            done.unwrap().unwrap();
        }
    }
    assert_eq!(server.calls().len(), 64);
    assert!(server.connections() <= 17, "{} connections", server.connections());
    let discoveries = server.requests().len() - server.calls().len();
    assert_eq!(discoveries, 1, "those who know nothing ask once");
}
