//! HTTP/2: a server that refuses a stream, closes the connection, answers early, or
//! gives no window. In tests the client speaks it without TLS.

use std::future::Future;

use h2::server::{SendResponse, handshake};
use h2::{Reason, RecvStream};
use tokio::net::TcpListener;
use tokio::task::AbortHandle;

use super::*;

type Call = (axum::http::Request<RecvStream>, SendResponse<Bytes>);

/// What the server does with the connection after an upload.
enum Then {
    GoOn,
    GoAway,
}

struct Server2 {
    url: String,
    task: AbortHandle,
}

impl Drop for Server2 {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn answer(respond: &mut SendResponse<Bytes>, status: u16, body: &'static str) {
    let head = axum::http::Response::builder().status(status).body(()).unwrap();
    let mut stream = respond.send_response(head, false).unwrap();
    stream.send_data(Bytes::from_static(body.as_bytes()), true).unwrap();
}

/// Reads a whole body and gives its window back.
async fn read(body: &mut RecvStream) -> usize {
    let mut length = 0;
    while let Some(Ok(piece)) = body.data().await {
        length += piece.len();
        let _ = body.flow_control().release_capacity(piece.len());
    }
    length
}

/// Starts a server that answers questions for the configuration, and calls `on` with each upload and its
/// number.
async fn start<F, R>(on: F) -> Server2
where
    F: Fn(usize, Call) -> R + Clone + Send + 'static,
    R: Future<Output = Then> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let task = tokio::spawn(async move {
        let mut uploads = 0;
        while let Ok((stream, _)) = listener.accept().await {
            let mut connection = handshake(stream).await.unwrap();
            let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
            loop {
                tokio::select! {
                    Some(()) = told.recv() => connection.graceful_shutdown(),
                    call = connection.accept() => {
                        let Some(Ok((request, mut respond))) = call else { break };
                        if request.method() == "GET" {
                            answer(&mut respond, 200, "{}");
                            continue;
                        }
                        uploads += 1;
                        let (call, tell) = (on(uploads, (request, respond)), tell.clone());
                        tokio::spawn(async move {
                            if matches!(call.await, Then::GoAway) {
                                let _ = tell.send(());
                            }
                        });
                    }
                }
            }
        }
    });
    Server2 { url, task: task.abort_handle() }
}

fn client2(url: &str) -> CacheClient {
    let network = Network { http2: true, ..Network::default() };
    let stall_timeout = Duration::from_millis(300);
    CacheClient::new(ClientSettings { network, stall_timeout, ..settings(&[url]) }).unwrap()
}

const DONE: &str = r#"{"kind":"Uploaded"}"#;

#[tokio::test]
async fn many_uploads_share_a_connection() {
    let server = start(|_, (mut request, mut respond)| async move {
        assert_eq!(request.version(), axum::http::Version::HTTP_2);
        let length = read(request.body_mut()).await;
        assert_eq!(length, 3 << 20);
        answer(&mut respond, 200, DONE);
        Then::GoOn
    })
    .await;
    let client = client2(&server.url);
    let whole = info(3 << 20);
    let uploads = (0..8).map(|_| client.upload(&whole, nar(3 << 20)));
    for outcome in futures_util::future::join_all(uploads).await {
        assert!(!outcome.unwrap().deduplicated);
    }
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_and_says_nothing_about_the_cache() {
    let server = start(|number, (mut request, mut respond)| async move {
        if number == 1 {
            respond.send_reset(Reason::REFUSED_STREAM);
            return Then::GoOn;
        }
        read(request.body_mut()).await;
        answer(&mut respond, 200, DONE);
        Then::GoOn
    })
    .await;
    let client = client2(&server.url);
    // Without a body that was sent, and without a doubt whether the cache has the path.
    let error = client.upload(&info(9), nar(9)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
    assert!(error.message.contains("refused the request before"), "{error}");
    client.upload(&info(9), nar(9)).await.unwrap();
}

#[tokio::test]
async fn after_goaway_the_next_upload_has_a_new_connection() {
    let server = start(|number, (mut request, mut respond)| async move {
        read(request.body_mut()).await;
        answer(&mut respond, 200, DONE);
        if number == 1 { Then::GoAway } else { Then::GoOn }
    })
    .await;
    let client = client2(&server.url);
    client.upload(&info(9), nar(9)).await.unwrap();
    let mut tries = 0;
    // The first try may meet the connection that is just closing.
    while let Err(error) = client.upload(&info(9), nar(9)).await {
        assert!(matches!(error.class, ErrorClass::Transient | ErrorClass::NoVerdict), "{error}");
        tries += 1;
        assert!(tries < 3, "{error}");
    }
}

#[tokio::test]
async fn a_stream_that_breaks_after_the_body_has_no_verdict() {
    let server = start(|_, (mut request, mut respond)| async move {
        read(request.body_mut()).await;
        respond.send_reset(Reason::INTERNAL_ERROR);
        Then::GoOn
    })
    .await;
    let error = client2(&server.url).upload(&info(9), nar(9)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::NoVerdict, "{error}");
}

#[tokio::test]
async fn an_early_answer_counts() {
    let server = start(|_, (request, mut respond)| async move {
        answer(&mut respond, 413, "no");
        // The server resets the stream without an error: it does not want the rest (RFC 9113, 8.1).
        drop(request);
        Then::GoOn
    })
    .await;
    let error = client2(&server.url).upload(&info(256 << 20), nar(256 << 20)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::TooLarge, "{error}");
}

#[tokio::test]
async fn a_window_that_stays_shut_is_a_stall() {
    let server = start(|_, call| async move {
        let _open = call;
        std::future::pending::<()>().await;
        Then::GoOn
    })
    .await;
    let error = client2(&server.url).upload(&info(64 << 20), nar(64 << 20)).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Transient, "{error}");
    assert!(error.message.contains("accepted no data"), "{error}");
}
