//! The NAR on its way to the server: counts it against its registered size,
//! sees whether it moves, and stops it when the answer is there. Nothing is
//! copied and nothing is kept: a chunk is asked for when the connection has
//! room for it. Must not know URLs, tokens, or what the bytes mean.
//!
//! ```text
//!   Fresh ──► Network ◄──► Source        Fresh    the connection has not asked for the body yet
//!               │  │          │          Network  the connection has the last chunk and must send it
//!               │  └─► Held ◄─┤          Source   the NAR's reader must give more
//!               ▼       │     ▼          Held     an answer is there, nothing more is given
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

/// Time after which a reader that gives nothing counts as hanging, as on a dead
/// disk or mount. It is longer than the network's, because the caller's rate
/// limit delays the reader.
const SOURCE_PATIENCE: Duration = Duration::from_secs(600);

/// Number of times that the body answers "not yet" after each chunk and after each
/// wait for the reader; the runtime looks at the sockets in between. With two,
/// hyper writes the chunk and then looks for an answer before it asks for the
/// next one. With none, hyper writes as long as the socket takes bytes, and when
/// a server resets the connection after an early 413, hyper mostly sees the
/// reset and not the answer. If hyper changes, the cost is a little time or a
/// retry after an early answer.
const BREATHS: u8 = 2;

type Source = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Why the body could not be given as promised.
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
    /// What goes out next: at first the preamble, if there is one.
    next: Option<Bytes>,
    source: Option<Source>,
    /// Bytes of the NAR that are still to come from the source.
    left: u64,
    breaths: u8,
    moved: Instant,
    waker: Option<Waker>,
}

/// The body, for the HTTP client.
pub(super) struct Body(Arc<Mutex<State>>);

/// The caller's end of a body. Dropping it drops the NAR's reader, even when the
/// connection stays open.
pub(super) struct Watch(Arc<Mutex<State>>);

/// What an upload in which nothing moves waits for.
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
        breaths: 0,
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
        if self.breaths > 0 {
            return self.breathe(cx);
        }
        if let Some(next) = self.next.take() {
            return self.give(next);
        }
        loop {
            if self.left == 0 {
                self.rest(Phase::Done);
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
                            // An answer may have come during the wait.
                            self.next = Some(chunk);
                            self.phase = Phase::Network;
                            self.moved = Instant::now();
                            self.breaths = BREATHS;
                            self.breathe(cx)
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

    /// Makes the connection look for an answer first.
    fn breathe(&mut self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        self.breaths = self.breaths.saturating_sub(1);
        // Only the first step of it, which arranges for the wake-up.
        let _ = pin!(tokio::task::yield_now()).poll(cx);
        Poll::Pending
    }

    fn give(&mut self, chunk: Bytes) -> Poll<Option<io::Result<Bytes>>> {
        self.breaths = BREATHS;
        // The connection knows the length and may not ask again after the last chunk.
        if self.left == 0 {
            self.rest(Phase::Done);
        } else {
            self.phase = Phase::Network;
        }
        self.moved = Instant::now();
        Poll::Ready(Some(Ok(chunk)))
    }

    fn fail(&mut self, failure: Failure) -> Poll<Option<io::Result<Bytes>>> {
        self.rest(Phase::Failed(failure));
        Poll::Ready(Some(Err(io::Error::other("the NAR is not as announced"))))
    }

    /// Enters a phase that needs no source.
    fn rest(&mut self, phase: Phase) {
        self.phase = phase;
        self.source = None;
        self.next = None;
        self.moved = Instant::now();
    }
}

impl Watch {
    /// An answer is there: gives no more, but leaves the connection open so
    /// that the answer's body can still be read.
    pub(super) fn hold(&self) {
        let mut state = lock(&self.0);
        if matches!(state.phase, Phase::Fresh | Phase::Network | Phase::Source) {
            state.rest(Phase::Held);
        }
    }

    /// Ends a body that is not done; the connection goes with it.
    fn close(&self) {
        let waker = {
            let mut state = lock(&self.0);
            if !matches!(state.phase, Phase::Done | Phase::Failed(_)) {
                state.rest(Phase::Closed);
            }
            state.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    /// How much of the body the connection has taken. Call it before [`Self::hold`], which forgets whether
    /// anything was.
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

    /// Returns when nothing has moved for too long.
    ///
    /// Seen is what the connection asks for. Its buffer (under 1 MiB) and the
    /// kernel's come after that: on a link so slow that those alone last longer
    /// than `stall`, the end of an upload looks like a stall.
    pub(super) async fn stalled(&self, connect: Duration, stall: Duration) -> Stall {
        loop {
            let (limit, moved, stalled) = {
                let state = lock(&self.0);
                let (limit, stalled) = match state.phase {
                    // The client's own connect timeout speaks first.
                    Phase::Fresh => (connect + stall, Stall::Connecting),
                    Phase::Source => (SOURCE_PATIENCE.max(stall), Stall::Source),
                    Phase::Network => (stall, Stall::Sending),
                    Phase::Done | Phase::Held | Phase::Closed | Phase::Failed(_) => (stall, Stall::Answer),
                };
                (limit, state.moved, stalled)
            };
            let (now, due) = (Instant::now(), moved + limit);
            if now >= due {
                return stalled;
            }
            // Another phase may begin meanwhile, with the shortest of the limits.
            tokio::time::sleep_until(due.min(now + stall)).await;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.close();
    }
}
