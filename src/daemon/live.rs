//! The sessions that are open or draining, and who waits for what.

use std::collections::HashMap;
use std::time::Instant;

use super::anchors::Watch;
use crate::control::messages::CiJob;
use crate::control::server::Responder;
use crate::ledger::{Ledger, SessionRow};
use crate::types::{CacheId, SessionId};

/// A session that has not closed.
#[derive(Debug)]
pub(super) struct Live {
    pub(super) row: SessionRow,
    pub(super) id: String,
    pub(super) label: Option<String>,
    /// Where it pushes to; `None`: its paths are skipped.
    pub(super) cache: Option<CacheId>,
    pub(super) uid: u32,
    pub(super) ci: Option<CiJob>,
    /// When the first `session end` came; `None` while it is open.
    pub(super) ending: Option<Instant>,
    /// Its job went away without ending it, so far.
    pub(super) abandoned: bool,
    /// Tells when the job goes away.
    pub(super) watch: Option<Watch>,
    /// Named paths that were not valid, and the like.
    pub(super) warnings: Vec<String>,
    /// Not all that it named could be looked at yet.
    pub(super) unlooked: bool,
}

/// Most warnings that are kept of a session; one more says that there were more.
const WARNINGS: usize = 100;

impl Live {
    /// Something that the session's end has to tell, once.
    pub(super) fn warn(&mut self, ledger: &Ledger, text: String) {
        if self.warnings.len() > WARNINGS || self.warnings.contains(&text) {
            return;
        }
        let full = self.warnings.len() == WARNINGS;
        self.warnings.push(if full { "there were more warnings".to_owned() } else { text });
        ledger.session_warnings(self.row, &self.warnings);
    }
}

/// What a caller is told when the group it waits for is settled.
#[derive(Debug, Clone, Copy)]
pub(super) enum Asked {
    /// `session end`: the session's summary.
    End(SessionRow),
    /// `push`: the same, of the unnamed session that the push is.
    Push(SessionRow),
    /// `flush`: only that nothing is left.
    Flush,
}

/// A caller that waits.
#[derive(Debug)]
pub(super) struct Waiter {
    pub(super) group: SessionId,
    pub(super) asked: Asked,
    pub(super) responder: Responder,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
    /// The most that was seen unsettled: what progress is measured against.
    pub(super) total: u64,
}

/// A naming that the intake works on, and who waits for it.
#[derive(Debug)]
pub(super) struct Pending {
    pub(super) row: SessionRow,
    /// `None` when the daemon itself asked.
    pub(super) caller: Option<Caller>,
}

/// Who asked, and how.
#[derive(Debug)]
pub(super) struct Caller {
    pub(super) asked: Asked,
    pub(super) responder: Responder,
    pub(super) wait: bool,
    pub(super) since: Instant,
    pub(super) deadline: Instant,
}

/// All of that.
#[derive(Debug, Default)]
pub(super) struct Desk {
    pub(super) sessions: HashMap<SessionRow, Live>,
    pub(super) waiters: Vec<Waiter>,
    pub(super) namings: HashMap<u64, Pending>,
    last_token: u64,
    last_group: SessionId,
}

impl Desk {
    /// Remembers a naming; its token.
    pub(super) fn expect(&mut self, pending: Pending) -> u64 {
        self.last_token += 1;
        self.namings.insert(self.last_token, pending);
        self.last_token
    }

    /// A number for a group that is no session: below zero.
    pub(super) fn new_group(&mut self) -> SessionId {
        self.last_group -= 1;
        self.last_group
    }

    /// The session with this id.
    pub(super) fn by_id(&self, id: &str) -> Option<&Live> {
        self.sessions.values().find(|s| s.id == id)
    }

    /// The caller's session of a CI job.
    pub(super) fn of_job(&self, uid: u32, key: &str) -> Result<Option<&Live>, String> {
        let of_job = |s: &&Live| s.uid == uid && s.ci.as_ref().is_some_and(|ci| ci.key() == key);
        let mut of_job = self.sessions.values().filter(of_job);
        match (of_job.next(), of_job.next()) {
            (Some(_), Some(_)) => Err(format!(
                "CI job {key} has several open sessions: name one (`flywheelctl session list` shows them)"
            )),
            (one, _) => Ok(one),
        }
    }

    /// The caller's only open session. From within a CI job that is never the
    /// session of another one.
    pub(super) fn only_open(&self, uid: u32, ci_job: Option<&str>) -> Result<&Live, String> {
        let of_another = |s: &Live| ci_job.is_some() && s.ci.is_some();
        let mut open =
            self.sessions.values().filter(|s| s.uid == uid && s.ending.is_none() && !of_another(s));
        match (open.next(), open.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err("you have no open session: `flywheelctl session start` opens one".to_owned()),
            (Some(_), Some(_)) => Err(
                "you have several open sessions: name one, or set FLYWHEEL_SESSION (`flywheelctl session list` shows them)"
                    .to_owned(),
            ),
        }
    }
}
