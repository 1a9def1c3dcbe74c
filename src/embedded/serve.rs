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
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
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

/// Time that a client may leave an answer waiting, without taking any of it, before a new connection may have
/// its place.
const SLOW: Duration = Duration::from_secs(10);

/// Longest time that a client may leave an answer waiting without taking any of it. Longer than [`SLOW`], so
/// that a client on a bad line is ended early only where others need its place.
const STUCK: Duration = Duration::from_secs(120);

/// Time between two looks for connections that are stuck, or that may give their place to a new one.
const LOOK: Duration = Duration::from_secs(1);

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
/// one; if there is none, the one whose client has taken nothing of its answer for
/// the longest time, [`SLOW`] at least. So connections that ask or take nothing keep
/// no other out. If the server works for every connection, new ones wait; a new one
/// of a peer at its limit is closed.
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
                crate::observe::event!(BUILT_IN_TROUBLE, error = %e, "built-in cache: a connection cannot be accepted: {e}");
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
        let Some(place) = shutdown.run_until_cancelled(take_place(&places, &open)).await else { break };
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
            "built-in cache: {} connections did not end in time and are closed",
            connections.len()
        );
        cut_off.cancel();
        connections.wait().await;
    }
}

/// Waits for a place. Closes connections that ask or take nothing while there is none.
async fn take_place(places: &Arc<Semaphore>, open: &Open) -> OwnedSemaphorePermit {
    loop {
        if places.available_permits() == 0 {
            open.close_one(None);
        }
        // The semaphore is never closed.
        if let Ok(Ok(place)) = tokio::time::timeout(LOOK, Arc::clone(places).acquire_owned()).await {
            return place;
        }
    }
}

/// The open connections, oldest first.
#[derive(Default)]
struct Open(Mutex<Vec<Arc<Entry>>>);

/// An open connection.
struct Entry {
    peer: IpAddr,
    end: CancellationToken,
    state: Mutex<State>,
}

/// What a connection waits for.
#[derive(Clone, Copy)]
struct State {
    turn: Turn,
    /// Whether the head of a request has arrived.
    any_request: bool,
}

/// Whose turn it is. HTTP/1 has one request at a time.
#[derive(Clone, Copy)]
enum Turn {
    /// The client has no request under way since then.
    Idle(Instant),
    /// The server reads a request, or makes its answer.
    Server,
    /// The client has an answer to take, and has taken nothing of it since then.
    Client(Instant),
}

impl Open {
    fn entries(&self) -> MutexGuard<'_, Vec<Arc<Entry>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn add(&self, peer: IpAddr, end: CancellationToken) -> Arc<Entry> {
        let state = Mutex::new(State { turn: Turn::Idle(Instant::now()), any_request: false });
        let entry = Arc::new(Entry { peer, end, state });
        self.entries().push(Arc::clone(&entry));
        entry
    }

    fn remove(&self, entry: &Arc<Entry>) {
        self.entries().retain(|other| !Arc::ptr_eq(other, entry));
    }

    fn count(&self, peer: IpAddr) -> usize {
        self.entries().iter().filter(|entry| entry.peer == peer && !entry.end.is_cancelled()).count()
    }

    /// Ends the connection (of `peer`, if given) that has waited longest for a request, else the one that has
    /// waited longest, and at least [`SLOW`], for its client to take an answer. Returns false if there is neither.
    fn close_one(&self, peer: Option<IpAddr>) -> bool {
        let entries = self.entries();
        let candidates = entries.iter().filter(|entry| peer.is_none_or(|peer| peer == entry.peer));
        let candidates = candidates.filter(|entry| !entry.end.is_cancelled());
        let waiting = candidates.filter_map(|entry| match entry.state().turn {
            Turn::Idle(since) => Some(((0, since), entry)),
            Turn::Client(since) if since.elapsed() >= SLOW => Some(((1, since), entry)),
            Turn::Client(_) | Turn::Server => None,
        });
        let Some((_, entry)) = waiting.min_by_key(|(order, _)| *order) else { return false };
        entry.end.cancel();
        true
    }
}

impl Entry {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(self: &Arc<Self>) -> UnderWay {
        *self.state() = State { turn: Turn::Server, any_request: true };
        UnderWay(Arc::clone(self))
    }

    /// Returns whether the client has left the connection waiting for too long.
    fn is_stuck(&self) -> bool {
        match self.state().turn {
            // The connection ends by itself after `IDLE`, unless its client does not take the end of an answer.
            Turn::Idle(since) => since.elapsed() > IDLE + STUCK,
            Turn::Client(since) => since.elapsed() > STUCK,
            Turn::Server => false,
        }
    }
}

/// A request under way, until its answer is sent or dropped.
struct UnderWay(Arc<Entry>);

impl UnderWay {
    fn turn(&self, turn: Turn) {
        self.0.state().turn = turn;
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.turn(Turn::Idle(Instant::now()));
    }
}

/// An answer's body; the request is under way until this is dropped.
struct AnswerBody {
    body: axum::body::Body,
    under_way: UnderWay,
}

impl Body for AnswerBody {
    type Data = Bytes;
    type Error = axum::Error;

    /// The connection asks for a frame when the client has taken most of the one before.
    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(cx);
        self.under_way.turn(match &frame {
            Poll::Ready(_) => Turn::Client(Instant::now()),
            Poll::Pending => Turn::Server,
        });
        frame
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
            Ok::<_, Infallible>(answer.map(|body| AnswerBody { body, under_way }))
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
    let mut look = tokio::time::interval(STUCK / 4);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let ended = loop {
        tokio::select! {
            ended = connection.as_mut() => break ended,
            () = &mut first_head, if !looked => {
                looked = true;
                if !entry.state().any_request {
                    return;
                }
            }
            _ = look.tick() => {
                if entry.is_stuck() {
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
