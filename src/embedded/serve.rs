//! Accepting connections, with bounds, and ending them in order. Must not know
//! what is served.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Jobs of one host; each connection holds a buffer of at most [`BUFFER`].
const MOST_CONNECTIONS: usize = 256;

/// Of one connection: a request's head, or a chunk of its body.
const BUFFER: usize = 64 * 1024;

/// For a request's head to arrive, and how long an idle connection is kept:
/// longer than clients keep theirs, so that they do not send into a closing one.
const HEAD_TIMEOUT: Duration = Duration::from_secs(120);

/// For requests that are under way when the end is asked for.
const GRACE: Duration = Duration::from_secs(10);

/// After an accept that failed: there may be no file descriptors for a while.
const BREATH: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then lets what is under way finish for a while.
pub(super) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let cut_off = CancellationToken::new();
    while let Some(Ok(place)) = shutdown.run_until_cancelled(Arc::clone(&places).acquire_owned()).await {
        let accepted = match shutdown.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok((stream, _))) => stream,
            Some(Err(e)) => {
                crate::observe::event!(BUILT_IN_TROUBLE, error = %e, "embedded cache: a connection cannot be accepted");
                shutdown.run_until_cancelled(tokio::time::sleep(BREATH)).await;
                continue;
            }
        };
        let (router, shutdown, cut_off) = (router.clone(), shutdown.clone(), cut_off.clone());
        connections.spawn(async move {
            let _place = place;
            cut_off.run_until_cancelled(connection(accepted, router, shutdown)).await;
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        crate::observe::event!(
            BUILT_IN_TROUBLE,
            connections = connections.len(),
            "embedded cache: connections are cut off"
        );
        cut_off.cancel();
        connections.wait().await;
    }
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken) {
    let _ = stream.set_nodelay(true); // only slower without
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
    );
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(e) = ended {
        crate::observe::detail!(error = %e, "embedded cache: a connection ended"); // the client's business
    }
}
