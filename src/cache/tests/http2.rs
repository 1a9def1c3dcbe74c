//! HTTP/2: a server that refuses a stream, closes the connection, answers early, or
//! gives no window. In tests the client speaks it without TLS.

use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use tokio::net::{TcpListener, TcpStream};
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

/// Starts a server that answers questions, and calls `on` with each upload and its number.
async fn start<F, R>(on: F) -> Server2
where
    F: Fn(usize, Call) -> R + Clone + Send + 'static,
    R: Future<Output = Then> + Send + 'static,
{
    start_with(100, on).await
}

/// The same, with this number of streams at a time on each connection.
async fn start_with<F, R>(streams: u32, on: F) -> Server2
where
    F: Fn(usize, Call) -> R + Clone + Send + 'static,
    R: Future<Output = Then> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let uploads = Arc::new(AtomicUsize::new(0));
    let task = tokio::spawn(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            connections.spawn(serve(stream, streams, Arc::clone(&uploads), on.clone()));
        }
    });
    Server2 { url, task: task.abort_handle() }
}

async fn serve<F, R>(stream: TcpStream, streams: u32, uploads: Arc<AtomicUsize>, on: F)
where
    F: Fn(usize, Call) -> R + Clone + Send + 'static,
    R: Future<Output = Then> + Send + 'static,
{
    let mut builder = Builder::new();
    let Ok(mut connection) = builder.max_concurrent_streams(streams).handshake::<_, Bytes>(stream).await
    else {
        return;
    };
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
                if request.method() == "POST" {
                    answer(&mut respond, 200, r#"{"missing_paths":[]}"#);
                    continue;
                }
                let number = uploads.fetch_add(1, Ordering::SeqCst) + 1;
                let (call, tell) = (on(number, (request, respond)), tell.clone());
                tokio::spawn(async move {
                    if matches!(call.await, Then::GoAway) {
                        let _ = tell.send(());
                    }
                });
            }
        }
    }
}

fn client2(url: &str) -> CacheClient {
    client_with(url, settings(&[url]).connect_timeout, Duration::from_millis(300))
}

fn client_with(url: &str, connect_timeout: Duration, stall_timeout: Duration) -> CacheClient {
    let network = Network { http2: true, ..Network::default() };
    CacheClient::new(ClientSettings { network, connect_timeout, stall_timeout, ..settings(&[url]) }).unwrap()
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

/// Time passes only where the server lets it pass: together the uploads take longer than a
/// connection may, and each less than a stall.
#[tokio::test(start_paused = true)]
async fn an_upload_waits_for_a_stream_as_long_as_the_others_make_progress() {
    // A blocking task keeps the clock from going on while the runtime waits for sockets.
    let (end, ended) = std::sync::mpsc::channel::<()>();
    let holds_the_clock = tokio::task::spawn_blocking(move || ended.recv());
    let server = start_with(1, |_, (mut request, mut respond)| async move {
        let length = read(request.body_mut()).await;
        assert!(length >= 9);
        tokio::time::advance(Duration::from_millis(400)).await;
        answer(&mut respond, 200, DONE);
        Then::GoOn
    })
    .await;
    let client = client_with(&server.url, Duration::from_millis(500), Duration::from_millis(1_500));
    // The server's limit is known from the first answer on; what was begun before it is refused.
    client.upload(&info(9), nar(9)).await.unwrap();
    let sizes = [9, 100_000, 9, 3 << 20, 9, 9, 9, 9];
    let uploads = sizes.map(|size| {
        let client = client.clone();
        async move { client.upload(&info(size), nar(size)).await }
    });
    for outcome in futures_util::future::join_all(uploads).await {
        outcome.unwrap();
    }
    drop(end);
    let _ = holds_the_clock.await;
}

#[tokio::test]
async fn questions_do_not_wait_for_the_streams_of_uploads() {
    let (arrived, mut arrives) = tokio::sync::mpsc::unbounded_channel();
    let asked = Arc::new(tokio::sync::Notify::new());
    let answered = Arc::clone(&asked);
    let server = start_with(1, move |_, (mut request, mut respond)| {
        let (arrived, answered) = (arrived.clone(), Arc::clone(&answered));
        async move {
            arrived.send(()).unwrap();
            answered.notified().await;
            read(request.body_mut()).await;
            answer(&mut respond, 200, DONE);
            Then::GoOn
        }
    })
    .await;
    let network = Network { http2: true, ..Network::default() };
    let client = CacheClient::new(ClientSettings { network, ..settings(&[&server.url]) }).unwrap();
    let uploading = {
        let client = client.clone();
        tokio::spawn(async move { client.upload(&info(9), nar(9)).await })
    };
    arrives.recv().await.unwrap();
    assert!(client.missing(hashes(1)).await.unwrap().is_empty());
    asked.notify_one();
    uploading.await.unwrap().unwrap();
}

#[tokio::test]
async fn an_upload_that_gets_no_stream_of_a_silent_server_ends() {
    let server = start_with(1, |_, call| async move {
        let _open = call;
        std::future::pending::<()>().await;
        Then::GoOn
    })
    .await;
    let client = client_with(&server.url, Duration::from_millis(500), Duration::from_millis(300));
    let uploads = (0..3).map(|_| async { client.upload(&info(9), nar(9)).await.unwrap_err() });
    for error in futures_util::future::join_all(uploads).await {
        let (unreachable, no_verdict) = (ErrorClass::Unreachable, ErrorClass::NoVerdict);
        assert!([unreachable, no_verdict, ErrorClass::Transient].contains(&error.class), "{error}");
    }
}
