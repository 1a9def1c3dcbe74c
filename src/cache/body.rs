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

pub(super) fn body<S>(preamble: Option<Bytes>, nar_size: u64, nar: S) -> (Body, Watch)
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

    /// Enters a phase that needs no source, and drops the source.
    fn enter(&mut self, phase: Phase) {
        self.phase = phase;
        self.source = None;
        self.next = None;
        self.moved = Instant::now();
    }
}

impl Watch {
    /// Stops the body because the server has answered. The connection stays open, so
    /// that the caller can still read the answer's body.
    pub(super) fn hold(&self) {
        let mut state = lock(&self.0);
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
    /// takes longer than `stall`, the end of an upload looks like a stall.
    ///
    /// `answer` limits the wait for the answer to a body that was sent completely.
    pub(super) async fn stalled(&self, connect: Duration, stall: Duration, answer: Duration) -> Stall {
        loop {
            let (limit, moved, stalled) = {
                let state = lock(&self.0);
                let (limit, stalled) = match state.phase {
                    // The HTTP client's own connect timeout ends the request before this limit.
                    Phase::Fresh => (connect + stall, Stall::Connecting),
                    Phase::Source => (SOURCE_PATIENCE.max(stall), Stall::Source),
                    Phase::Network => (stall, Stall::Sending),
                    Phase::Done | Phase::Held | Phase::Closed | Phase::Failed(_) => (answer, Stall::Answer),
                };
                (limit, state.moved, stalled)
            };
            let (now, due) = (Instant::now(), moved + limit);
            if now >= due {
                return stalled;
            }
            // Another phase may begin during the wait, and no limit is shorter than `stall`.
            tokio::time::sleep_until(due.min(now + stall)).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.close();
    }
}
