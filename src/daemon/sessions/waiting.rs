//! Callers that wait, and what for. Must not know how long it takes.

use std::time::Duration;

use tokio::time::Instant;

use crate::control::messages::ErrorCode;
use crate::control::server::{Peer, Responder};
use crate::flow::Patience;
use crate::types::{Mono, SessionId};

/// Longest wait that a caller may ask for.
const LONGEST: Duration = Duration::from_secs(24 * 3600);

/// What a caller asked for, and so what it is answered.
#[derive(Debug, Clone, Copy)]
pub(in crate::daemon) enum Asked {
    /// `session end`: the session's summary.
    End(SessionId),
    /// `push`: the summary of the unnamed session that the push is.
    Push(SessionId),
    /// `flush`: that nothing is left, or how much is, and what became of the pushes of this
    /// group, which is no session.
    Flush(SessionId, Peer),
}

impl Asked {
    /// The session that it is about.
    pub(in crate::daemon) fn session(self) -> Option<SessionId> {
        match self {
            Self::End(row) | Self::Push(row) => Some(row),
            Self::Flush(..) => None,
        }
    }
}

/// A caller, and how long it waits. `Caller<()>`: the session that it asks about has not
/// been found or opened yet.
#[derive(Debug)]
pub(in crate::daemon) struct Caller<A = Asked> {
    pub(in crate::daemon) asked: A,
    pub(in crate::daemon) responder: Responder,
    pub(in crate::daemon) since: Instant,
    pub(in crate::daemon) patience: Patience,
    /// The greatest number of unsettled pushes so far, as the total of progress.
    pub(in crate::daemon) total: u64,
}

impl Caller<()> {
    /// A caller whose request has just arrived.
    pub(in crate::daemon) fn new(responder: Responder, wait: bool, timeout_ms: u64, now: Mono) -> Self {
        let deadline = now.after(Duration::from_millis(timeout_ms).min(LONGEST));
        let patience = Patience { wait, patient: true, since: now, deadline };
        Self { asked: (), responder, since: Instant::now(), patience, total: 0 }
    }

    /// The caller, now that it is known what it asks about.
    pub(in crate::daemon) fn about(self, asked: Asked) -> Caller {
        let Self { asked: (), responder, since, patience, total } = self;
        Caller { asked, responder, since, patience, total }
    }
}

/// A caller of a session that is being opened.
#[derive(Debug)]
pub(in crate::daemon) enum Opener {
    /// `session start`: the session's id is the answer.
    Start(Responder),
    /// `push`.
    Push(Caller<()>),
}

impl Opener {
    fn responder(&self) -> &Responder {
        match self {
            Self::Start(responder) => responder,
            Self::Push(caller) => &caller.responder,
        }
    }

    /// Whether the caller has closed its connection.
    pub(super) fn has_left(&self) -> bool {
        self.responder().is_gone()
    }

    /// Refuses the request.
    pub(in crate::daemon) fn refuse(self, code: ErrorCode, message: impl Into<String>) {
        match self {
            Self::Start(responder) => responder.refuse(code, message),
            Self::Push(caller) => caller.responder.refuse(code, message),
        }
    }
}

/// A naming that the intake works on, or that waits for it.
#[derive(Debug)]
pub(in crate::daemon) struct Naming {
    pub(in crate::daemon) row: SessionId,
    /// The user whose turn it takes.
    pub(in crate::daemon) uid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_caller_waits_for_a_day_at_most() {
        let day = Mono(1_000).after(LONGEST);
        for (timeout_ms, deadline) in [(0, Mono(1_000)), (365 * 24 * 3_600_000, day), (u64::MAX, day)] {
            let (responder, _answer) = Responder::pair();
            let caller = Caller::new(responder, true, timeout_ms, Mono(1_000));
            assert_eq!(caller.patience.deadline, deadline, "{timeout_ms}");
        }
    }
}
