//! Jobs and callers: what they ask, and what they were answered.

use std::collections::BTreeSet;

use super::trace::Moment;
use crate::control::messages::Summary;
use crate::control::server::Answer;

/// The users. The first and the last one go to cache 0, the second to cache 1.
pub(super) const UIDS: [u32; 3] = [1001, 1002, 1003];
/// How long a caller may wait for its answer after its deadline, in milliseconds.
pub(super) const LATE: u64 = 2_000;

/// The cache of a user's paths.
pub(super) fn cache_of(uid: u32) -> u16 {
    u16::from(uid == UIDS[1])
}

/// A CI job with its session.
#[derive(Debug)]
pub(super) struct Job {
    pub(super) uid: u32,
    /// When its start was asked for.
    pub(super) started: Moment,
    /// The Nix database was there while its session was opened.
    pub(super) sees_rows: bool,
    /// The session's id, once it is known.
    pub(super) id: Option<String>,
    /// The number of its anchor's process. None: it has none.
    pub(super) anchor: Option<i32>,
    /// The job is over: its processes have ended.
    pub(super) dead: bool,
    /// It does not end its session any more.
    pub(super) finished: bool,
    /// The answer to the end of its session.
    pub(super) ended: Option<Summary>,
    /// Its end was asked for, whatever came of that.
    pub(super) end_asked: bool,
    /// When its end was first asked for.
    pub(super) first_end: Option<Moment>,
    pub(super) named: BTreeSet<String>,
    /// When its caller learned that everything of it is taken in: what is built later is not
    /// the session's.
    pub(super) taken_in: Option<Moment>,
    /// The ledger has surely recorded that its caller knows it.
    pub(super) is_recorded: bool,
    /// What was said of it may be lost: the power was cut, the disk was full, or the daemon was
    /// killed before that was recorded.
    pub(super) may_be_lost: bool,
}

/// What a call asks for.
#[derive(Debug, Clone)]
pub(super) enum Asked {
    Start {
        job: usize,
    },
    /// `again`: the session's end has been answered before. `recorded`: the session was not
    /// live when this was asked, so the answer may be the one of an earlier end.
    #[expect(dead_code, reason = "the trace shows all of it")]
    End {
        job: usize,
        wait: bool,
        timeout: u64,
        paths: Vec<String>,
        again: bool,
        recorded: bool,
    },
    Push {
        cache: u16,
        paths: Vec<String>,
        wait: bool,
    },
    Flush {
        before: BTreeSet<String>,
    },
    Status,
}

/// A call that is not answered.
pub(super) struct Call {
    pub(super) asked: Asked,
    pub(super) at: Moment,
    /// When it must have been answered. None: the caller does not care.
    pub(super) deadline: Option<u64>,
    pub(super) answer: Answer,
    pub(super) number: u64,
}
