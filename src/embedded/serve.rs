//! Accepts a bounded number of connections, and ends them in an orderly way. Must
//! not know what the server serves.

use std::convert::Infallible;
use std::net::IpAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use bytes::Bytes;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http1;
use hyper::service::{Service, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Largest number of connections: enough for the jobs of one host. Each connection holds a buffer of at most
/// [`BUFFER`].
const MOST_CONNECTIONS: usize = 256;

/// Largest buffer of one connection in bytes; it holds a request's head or a chunk of its body.
const BUFFER: usize = 64 * 1024;

/// Time from a connection's beginning to the end of its first request's head.
const FIRST_HEAD: Duration = Duration::from_secs(10);

/// Time for which the server keeps a connection without a request: longer than
/// clients keep theirs, so that no client sends a request while the server closes
/// the connection. The head of a later request must arrive within this time too.
const IDLE: Duration = Duration::from_secs(120);

/// Largest number of connections of one peer other than this host.
const MOST_OF_A_PEER: usize = MOST_CONNECTIONS / 2;

/// Time that requests have to finish after the shutdown was requested.
const GRACE: Duration = Duration::from_secs(10);

/// Pause after an accept failed, for example because the process has no free file descriptor.
const BREATH: Duration = Duration::from_millis(100);

/// Serves until `shutdown`, then gives running requests a limited time to finish.
///
/// When the server, or one peer, has its largest number of connections, the server
/// closes the connection that has waited longest for a request in favour of the new
/// one. So idle connections keep no other out. If every connection has a request,
/// new ones wait; a new one of a peer at its limit is closed.
pub(super) async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    let places = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    let open = Arc::new(Open::default());
    let cut_off = CancellationToken::new();
    loop {
        let accepted = match shutdown.run_until_cancelled(listener.accept()).await {
            None => break,
            Some(Ok(accepted)) => accepted,
            Some(Err(e)) => {
                crate::observe::event!(BUILT_IN_TROUBLE, error = %e, "built-in cache: a connection cannot be accepted");
                shutdown.run_until_cancelled(tokio::time::sleep(BREATH)).await;
                continue;
            }
        };
        let (stream, peer) = (accepted.0, accepted.1.ip().to_canonical());
        let of_peer = open.count(peer);
        if !peer.is_loopback() && of_peer >= MOST_OF_A_PEER && !open.close_one(Some(peer)) {
            crate::observe::detail!(peer = %peer, "built-in cache: a peer has too many connections");
            continue; // closes this one
        }
        if places.available_permits() == 0 {
            open.close_one(None);
        }
        let place = shutdown.run_until_cancelled(Arc::clone(&places).acquire_owned()).await;
        let Some(Ok(place)) = place else { break };
        let entry = open.add(peer, cut_off.child_token());
        let (router, shutdown, open) = (router.clone(), shutdown.clone(), Arc::clone(&open));
        connections.spawn(async move {
            let _place = place;
            entry.end.run_until_cancelled(connection(stream, router, shutdown, &entry)).await;
            open.remove(&entry);
        });
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(GRACE, connections.wait()).await.is_err() {
        crate::observe::event!(
            BUILT_IN_TROUBLE,
            connections = connections.len(),
            "built-in cache: connections are cut off"
        );
        cut_off.cancel();
        connections.wait().await;
    }
}

/// The open connections, oldest first.
#[derive(Default)]
struct Open(Mutex<Vec<Arc<Entry>>>);

/// An open connection.
struct Entry {
    peer: IpAddr,
    end: CancellationToken,
    requests: Mutex<Requests>,
}

/// The state of a connection's requests.
struct Requests {
    /// Number of requests whose answer is not sent yet: 0 or 1.
    under_way: usize,
    any: bool,
    idle_since: Instant,
}

impl Open {
    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, peer: IpAddr, end: CancellationToken) -> Arc<Entry> {
        let requests = Mutex::new(Requests { under_way: 0, any: false, idle_since: Instant::now() });
        let entry = Arc::new(Entry { peer, end, requests });
        self.entries().push(Arc::clone(&entry));
        entry
    }

    fn remove(&self, entry: &Arc<Entry>) {
        self.entries().retain(|other| !Arc::ptr_eq(other, entry));
    }

    fn count(&self, peer: IpAddr) -> usize {
        self.entries().iter().filter(|entry| entry.peer == peer && !entry.end.is_cancelled()).count()
    }

    /// Ends the connection (of `peer`, if given) that has waited longest for a request. Returns false if every
    /// connection has a request.
    fn close_one(&self, peer: Option<IpAddr>) -> bool {
        let entries = self.entries();
        let waiting = entries.iter().filter(|entry| peer.is_none_or(|peer| peer == entry.peer));
        let waiting = waiting.filter(|entry| !entry.end.is_cancelled());
        let idle = waiting.filter_map(|entry| Some((entry.idle_since()?, entry)));
        let Some((_, entry)) = idle.min_by_key(|(since, _)| *since) else { return false };
        entry.end.cancel();
        true
    }
}

impl Entry {
    fn requests(&self) -> MutexGuard<'_, Requests> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns since when the connection has no request, or `None` while it has one.
    fn idle_since(&self) -> Option<Instant> {
        let requests = self.requests();
        (requests.under_way == 0).then_some(requests.idle_since)
    }

    fn begin(self: &Arc<Self>) -> UnderWay {
        let mut requests = self.requests();
        requests.under_way += 1;
        requests.any = true;
        UnderWay(Arc::clone(self))
    }
}

/// Marks a request as running until its answer is sent or dropped.
struct UnderWay(Arc<Entry>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        let mut requests = self.0.requests();
        requests.under_way = requests.under_way.saturating_sub(1);
        requests.idle_since = Instant::now();
    }
}

/// An answer's body; the request counts as running until this is dropped.
struct AnswerBody {
    body: axum::body::Body,
    _under_way: UnderWay,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

async fn connection(stream: TcpStream, router: Router, shutdown: CancellationToken, entry: &Arc<Entry>) {
    let _ = stream.set_nodelay(true); // without it the connection is only slower
    let router = TowerToHyperService::new(router);
    let service = service_fn(|request: Request<Incoming>| {
        let (under_way, answer) = (entry.begin(), router.call(request));
        async move {
            let answer = answer.await?;
            Ok::<_, Infallible>(answer.map(|body| AnswerBody { body, _under_way: under_way }))
        }
    });
    let mut connection = std::pin::pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(IDLE)
            .max_buf_size(BUFFER)
            .serve_connection(TokioIo::new(stream), service)
    );
    let mut first_head = std::pin::pin!(tokio::time::sleep(FIRST_HEAD));
    let mut looked = false;
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = &mut first_head, if !looked => {
                looked = true;
                if !entry.requests().any {
                    return;
                }
            }
            () = shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                break connection.await;
            }
        }
    };
    if let Err(e) = ended {
        crate::observe::detail!(error = %e, "built-in cache: a connection ended"); // the client's fault, so it is only a detail
    }
}
