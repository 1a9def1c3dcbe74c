//! Ends of sessions, pure: which session a `session end` means, and what becomes of an end
//! whose session is not live.
//!
//! Must not know: ids and labels, the ledger, sockets.

use crate::types::SessionId;

/// How many sessions there are of a kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    None,
    One(SessionId),
    Several,
}

impl Count {
    fn of(mut sessions: impl Iterator<Item = SessionId>) -> Self {
        match (sessions.next(), sessions.next()) {
            (None, _) => Self::None,
            (Some(one), None) => Self::One(one),
            (Some(_), Some(_)) => Self::Several,
        }
    }
}

/// The CI job of a session, seen from the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum JobOf {
    /// The caller's own.
    Caller,
    /// Another one.
    Another,
    /// It has none.
    Nobody,
}

/// A live session of the caller's user.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) row: SessionId,
    /// Its window is open.
    pub(crate) open: bool,
    pub(crate) job: JobOf,
}

/// How a caller names the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// By its id, with the live session of this id and whether the caller may end it.
    Id(Option<(SessionId, bool)>),
    /// Not at all, within a CI job.
    Job {
        /// The open sessions of the job.
        open: Count,
        /// The latest session of the job that drains.
        draining: Option<SessionId>,
        /// The open sessions of no CI job.
        others: Count,
    },
    /// Not at all, outside of a CI job. The open sessions.
    Only(Count),
}

impl Target {
    /// What a caller without an id means. `in_job`: it is within a CI job. `live`: the live
    /// sessions of its user.
    pub(crate) fn unnamed(in_job: bool, live: &[Candidate]) -> Self {
        let open = |job: Option<JobOf>| {
            let of_job = live.iter().filter(move |one| one.open && job.is_none_or(|job| one.job == job));
            Count::of(of_job.map(|one| one.row))
        };
        if !in_job {
            return Self::Only(open(None));
        }
        let draining = live.iter().filter(|one| !one.open && one.job == JobOf::Caller);
        Self::Job {
            open: open(Some(JobOf::Caller)),
            draining: draining.map(|one| one.row).max(),
            others: open(Some(JobOf::Nobody)),
        }
    }
}

/// Why there is no session to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum NoSession {
    /// No session has the id.
    Unknown,
    /// The session is another user's.
    AnotherUsers,
    /// No session is open.
    NoneOpen,
    /// Several sessions are open.
    SeveralOpen,
    /// Several sessions of the CI job are open.
    SeveralOfJob,
}

/// What is done when the ledger has no session that is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Otherwise {
    /// End this one, if it is still live.
    End(SessionId),
    Refuse(NoSession),
}

/// The session that a `session end` means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Meant {
    /// This live one.
    Live(SessionId),
    /// One that the ledger may have: with the id, or the latest of the CI job.
    Recorded(Otherwise),
    /// None.
    Refused(NoSession),
}

/// Decides which session a `session end` means. A session of the caller's own CI job comes
/// first, live or closed, so that an end that is repeated does not end another session.
///
/// ```text
///  an id ──────► the live session with it ──► the recorded one
///  a CI job ───► its open session ──► its latest draining one ──► its latest recorded one ─┐
///  neither ────────────────────────────────────────────────────────────────────────────────┴► the only open one
/// ```
pub(crate) fn meant(target: Target) -> Meant {
    match target {
        Target::Id(Some((row, true))) => Meant::Live(row),
        Target::Id(Some((_, false))) => Meant::Refused(NoSession::AnotherUsers),
        Target::Id(None) => Meant::Recorded(Otherwise::Refuse(NoSession::Unknown)),
        Target::Job { open: Count::One(row), .. } => Meant::Live(row),
        Target::Job { open: Count::Several, .. } => Meant::Refused(NoSession::SeveralOfJob),
        Target::Job { open: Count::None, draining: Some(row), .. } => Meant::Live(row),
        Target::Job { open: Count::None, draining: None, others } => Meant::Recorded(match others {
            Count::One(row) => Otherwise::End(row),
            Count::None => Otherwise::Refuse(NoSession::NoneOpen),
            Count::Several => Otherwise::Refuse(NoSession::SeveralOpen),
        }),
        Target::Only(Count::One(row)) => Meant::Live(row),
        Target::Only(Count::None) => Meant::Refused(NoSession::NoneOpen),
        Target::Only(Count::Several) => Meant::Refused(NoSession::SeveralOpen),
    }
}

/// What the ledger has of the session that an end means. It may be older than what is live.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Record {
    /// Nothing.
    None,
    /// A session that the caller may not end.
    Forbidden,
    /// An open or draining session.
    Live,
    /// A closed session. `names_more`: the end names paths that are not the session's.
    Closed { names_more: bool },
    /// A session that was closed without its job.
    Abandoned,
}

/// What the daemon knows when the ledger has been read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment {
    /// The session is live.
    pub(crate) live: bool,
    /// The ledger was read for the second time.
    pub(crate) again: bool,
    /// The daemon stops.
    pub(crate) stopping: bool,
}

/// What becomes of an end whose session was not live when it was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Return {
    /// It ends the live session.
    End,
    /// The session drains again, with what is named. `limited`: only within the user's limits.
    Rejoin { limited: bool },
    /// The answer is the recorded one. `early`: the session is not closed in the ledger.
    Report { early: bool },
    /// The ledger is read again: the session was closed after it had been read.
    LookAgain,
    /// There is no session to end.
    Nothing,
    /// It is another user's.
    AnotherUsers,
    /// The daemon stops.
    Stopping,
}

/// Decides what becomes of an end whose session was not live when it was asked for.
///
/// ```text
///  not live ──► Recorded ── abandoned, or more is named ──► draining again
///                 │  │ └─ live by now: rejoined by another end ──► ended as any live session
///                 │  └─ closed, nothing more is named ──► the same answer
///                 └─ still live in the ledger: read again
/// ```
///
/// A session that its job ended with paths is recorded as draining before the intake has
/// them. When the daemon is killed in between, its next run closes the session without them,
/// and the caller asks again: that names more.
pub(crate) fn returns(record: Record, moment: Moment) -> Return {
    match (record, moment) {
        (Record::None, Moment { stopping: true, .. }) => Return::Stopping,
        (Record::None, Moment { stopping: false, .. }) => Return::Nothing,
        (Record::Forbidden, _) => Return::AnotherUsers,
        (Record::Closed { names_more: false }, Moment { live: false, .. }) => Return::Report { early: false },
        (Record::Live | Record::Closed { .. } | Record::Abandoned, Moment { stopping: true, .. }) => {
            Return::Stopping
        }
        (Record::Live | Record::Closed { .. } | Record::Abandoned, Moment { live: true, .. }) => Return::End,
        (Record::Live, Moment { again: false, .. }) => Return::LookAgain,
        (Record::Live, Moment { again: true, .. }) => Return::Report { early: true },
        (Record::Closed { names_more: true }, Moment { .. }) => Return::Rejoin { limited: true },
        (Record::Abandoned, Moment { .. }) => Return::Rejoin { limited: false },
    }
}
