//! The request body that carries the NAR: it compares the NAR's length with its
//! registered size, watches for stalls, and stops when the server has answered.
//! It copies nothing and keeps nothing: it reads a chunk when the connection has
//! room for one. Must not know URLs, tokens, or what the bytes mean.
//!
//! ```text
//!   Fresh ──► Network ◄──► Source        Fresh    the connection has not asked for the body yet
//!               │  │          │          Network  the connection has the latest chunk and must send it
//!               │  └─► Held ◄─┤          Source   the NAR's reader must give more
//!               ▼       │     ▼          Held     the server has answered, the body gives no more
//!              Done     └─► Closed       Failed   the NAR ended early, was too long, or broke
//! ```
//!
//! With HTTP/2 an upload may wait until the connection has a free stream. What it waits for
//! then is the other uploads, so that the server's silence counts from their last sign of
//! life: see [`Streams`].

use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Instant;

use super::error::Sent;

/// Time after which a reader that gives nothing counts as stalled, as on a dead
/// disk or mount. It is longer than the network's limit, because the caller's rate
/// limit delays the reader.
const SOURCE_PATIENCE: Duration = Duration::from_secs(600);

/// Number of times that the body answers "not yet" after each chunk and after each
/// wait for the reader; the runtime looks at the sockets in between. With two,
/// hyper writes the chunk and then looks for an answer before it asks for the
/// next one. With none, hyper writes as long as the socket takes bytes, and when
/// a server resets the connection after an early 413, hyper mostly sees the
/// reset and not the answer. If hyper changes, the cost is a little time or a
/// retry after an early answer.
const PAUSES: u8 = 2;

/// Bytes that an HTTP/2 connection may take of a body whose stream is not open yet: more
/// than the library's buffer and the window that servers give at first.
const UNOPENED: u64 = 4 << 20;

/// An upload that may wait for a stream is at a stall after this many times its limit,
/// whatever the other uploads do.
const STREAM_PATIENCE: u32 = 10;

type Source = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Why the body does not have the announced length, or broke off.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Failure {
    Short { missing: u64 },
    Long,
    Broken(String),
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Phase {
    Fresh,
    Network,
    Source,
    Done,
    Held,
    Closed,
    Failed(Failure),
}

/// The uploads that share the HTTP/2 streams of one server.
#[derive(Debug)]
pub(super) struct Streams(Mutex<SharedStreams>);

#[derive(Debug)]
struct SharedStreams {
    /// Uploads of whose bodies the connection has asked something.
    begun: usize,
    /// When the latest sign of life of any upload came.
    alive: Instant,
}

impl Default for Streams {
    fn default() -> Self {
        Self(Mutex::new(SharedStreams { begun: 0, alive: Instant::now() }))
    }
}

impl Streams {
    fn lock(&self) -> MutexGuard<'_, SharedStreams> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn sign_of_life(&self) {
        self.lock().alive = Instant::now();
    }

    /// Since when an upload that has not begun waits for the server and not for the other
    /// uploads. `None`: others have begun and not ended.
    fn silent_since(&self) -> Option<Instant> {
        let shared = self.lock();
        (shared.begun == 0).then_some(shared.alive)
    }

    fn last_alive(&self) -> Instant {
        self.lock().alive
    }
}

struct State {
    phase: Phase,
    /// The next chunk to send; at first the preamble, if there is one.
    next: Option<Bytes>,
    source: Option<Source>,
    /// Number of bytes of the NAR that the source has not given yet.
    left: u64,
    pauses: u8,
    moved: Instant,
    waker: Option<Waker>,
    /// Bytes that the connection has taken, the preamble's included.
    taken: u64,
    /// With HTTP/2.
    streams: Option<Arc<Streams>>,
    has_begun: bool,
}

/// The HTTP client's end of a body.
pub(super) struct Body(Arc<Mutex<State>>);

/// The caller's end of a body. Dropping it drops the NAR's reader, even when the
/// connection stays open.
pub(super) struct Watch(Arc<Mutex<State>>);

/// What a stalled upload waits for.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stall {
    Connecting,
    Sending,
    Answer,
    Source,
}

/// `streams`: the uploads to the same server, if they share HTTP/2 connections.
pub(super) fn body<S>(
    preamble: Option<Bytes>,
    nar_size: u64,
    nar: S,
    streams: Option<Arc<Streams>>,
) -> (Body, Watch)
where
    S: Stream<Item = io::Result<Bytes>> + Send + 'static,
{
    let state = Arc::new(Mutex::new(State {
        phase: Phase::Fresh,
        next: preamble,
        source: Some(Box::pin(nar)),
        left: nar_size,
        pauses: 0,
        moved: Instant::now(),
        waker: None,
        taken: 0,
        streams,
        has_begun: false,
    }));
    (Body(Arc::clone(&state)), Watch(state))
}

fn lock(state: &Mutex<State>) -> MutexGuard<'_, State> {
    state.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Stream for Body {
    type Item = io::Result<Bytes>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        lock(&self.0).poll(cx)
    }
}

impl State {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        match self.phase {
            Phase::Fresh | Phase::Network | Phase::Source => {}
            Phase::Done => return Poll::Ready(None),
            Phase::Held => {
                self.waker = Some(cx.waker().clone());
                return Poll::Pending;
            }
            Phase::Closed | Phase::Failed(_) => {
                return Poll::Ready(Some(Err(io::Error::other("nothing more of this body is sent"))));
            }
        }
        if let (false, Some(streams)) = (self.has_begun, &self.streams) {
            streams.lock().begun += 1;
        }
        self.has_begun = true;
        if self.pauses > 0 {
            return self.pause(cx);
        }
        if let Some(next) = self.next.take() {
            return self.give(next);
        }
        loop {
            if self.left == 0 {
                self.enter(Phase::Done);
                return Poll::Ready(None);
            }
            let Some(source) = self.source.as_mut() else { return Poll::Ready(None) };
            return match source.as_mut().poll_next(cx) {
                Poll::Pending => {
                    if self.phase != Phase::Source {
                        self.phase = Phase::Source;
                        self.moved = Instant::now();
                    }
                    self.waker = Some(cx.waker().clone());
                    Poll::Pending
                }
                Poll::Ready(Some(Ok(chunk))) if chunk.is_empty() => continue,
                Poll::Ready(Some(Ok(chunk))) => match self.left.checked_sub(chunk.len() as u64) {
                    None => self.fail(Failure::Long),
                    Some(left) => {
                        self.left = left;
                        if self.phase == Phase::Source {
                            // The server may have answered during the wait.
                            self.next = Some(chunk);
                            self.phase = Phase::Network;
                            self.moved = Instant::now();
                            self.pauses = PAUSES;
                            self.pause(cx)
                        } else {
                            self.give(chunk)
                        }
                    }
                },
                Poll::Ready(Some(Err(e))) => self.fail(Failure::Broken(e.to_string())),
                Poll::Ready(None) => self.fail(Failure::Short { missing: self.left }),
            };
        }
    }

    /// Answers "not yet", so that the connection looks for an answer before the next chunk.
    fn pause(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.pauses = self.pauses.saturating_sub(1);
        // One poll is enough to schedule the wake-up.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
        Poll::Pending
    }

    fn give(&mut self, chunk: Bytes) -> Poll<Option<io::Result<Bytes>>> {
        self.pauses = PAUSES;
        self.taken += chunk.len() as u64;
        if let Some(streams) = &self.streams {
            streams.sign_of_life();
        }
        // The connection knows the length and may not ask again after the last chunk.
        if self.left == 0 {
            self.enter(Phase::Done);
        } else {
            self.phase = Phase::Network;
        }
        self.moved = Instant::now();
        Poll::Ready(Some(Ok(chunk)))
    }

    fn fail(&mut self, failure: Failure) -> Poll<Option<io::Result<Bytes>>> {
        self.enter(Phase::Failed(failure));
        Poll::Ready(Some(Err(io::Error::other("the NAR is not as announced"))))
    }

    /// Returns when this upload is at a stall, and what it waits for. `now` stands for a moment
    /// that is not known yet, because other uploads have to end first.
    fn due(&self, limits: &Limits, now: Instant) -> (Instant, Stall) {
        let (limit, stall) = match self.phase {
            // The HTTP client's own connect timeout ends the request before this limit.
            Phase::Fresh => (limits.connect + limits.stall, Stall::Connecting),
            Phase::Source => (SOURCE_PATIENCE.max(limits.stall), Stall::Source),
            Phase::Network => (limits.stall, Stall::Sending),
            Phase::Done | Phase::Held | Phase::Closed | Phase::Failed(_) => (limits.answer, Stall::Answer),
        };
        let own = self.moved + limit;
        let due = match (&self.phase, &self.streams) {
            (Phase::Fresh, Some(streams)) => {
                streams.silent_since().map_or(now + limit, |since| own.max(since + limit))
            }
            // Its stream may not be open yet.
            (Phase::Network | Phase::Done, Some(streams)) if self.taken <= UNOPENED => {
                own.max(streams.last_alive() + limit).min(self.moved + limit * STREAM_PATIENCE)
            }
            _ => own,
        };
        (due, stall)
    }

    /// Enters a phase that needs no source, and drops the source.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.source = None;
        self.next = None;
        self.moved = Instant::now();
    }
}

/// Time limits of an upload.
#[derive(Debug, Clone, Copy)]
pub(super) struct Limits {
    /// Of the connection.
    pub(super) connect: Duration,
    /// Of a time without progress.
    pub(super) stall: Duration,
    /// Of the wait for the answer to a body that was sent completely.
    pub(super) answer: Duration,
}

impl Watch {
    /// Stops the body because the server has answered. The connection stays open, so
    /// that the caller can still read the answer's body.
    pub(super) fn hold(&self) {
        let mut state = lock(&self.0);
        if let Some(streams) = &state.streams {
            streams.sign_of_life();
        }
        if matches!(state.phase, Phase::Fresh | Phase::Network | Phase::Source) {
            state.enter(Phase::Held);
        }
    }

    /// Ends a body that is not done, and with it the connection.
    fn close(&self) {
        let waker = {
            let mut state = lock(&self.0);
            if !matches!(state.phase, Phase::Done | Phase::Failed(_)) {
                state.enter(Phase::Closed);
            }
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// Returns how much of the body the connection has taken. Call it before [`Self::hold`]; after that
    /// the result is never `Nothing`.
    pub(super) fn sent(&self) -> Sent {
        match lock(&self.0).phase {
            Phase::Fresh => Sent::Nothing,
            Phase::Done => Sent::All,
            Phase::Network | Phase::Source | Phase::Held | Phase::Closed | Phase::Failed(_) => Sent::Part,
        }
    }

    pub(super) fn failure(&self) -> Option<Failure> {
        match &lock(&self.0).phase {
            Phase::Failed(failure) => Some(failure.clone()),
            _ => None,
        }
    }

    /// Returns when the upload has made no progress for too long.
    ///
    /// Progress means that the connection asks for another chunk. Its buffer (under
    /// 1 MiB) and the kernel's come after that: on a link so slow that sending those
    /// takes longer than the limit, the end of an upload looks like a stall.
    pub(super) async fn stalled(&self, limits: Limits) -> Stall {
        loop {
            let now = Instant::now();
            let (due, stall) = lock(&self.0).due(&limits, now);
            if now >= due {
                return stall;
            }
            // Another phase may begin during the wait, and no limit is shorter than this.
            tokio::time::sleep_until(due.min(now + limits.stall)).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.close();
        let state = lock(&self.0);
        if let (true, Some(streams)) = (state.has_begun, &state.streams) {
            let mut shared = streams.lock();
            shared.begun -= 1;
            shared.alive = Instant::now();
        }
    }
}
