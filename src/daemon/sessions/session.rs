//! The sessions that are open or draining, and who waits for what.

use std::collections::HashMap;
use std::time::Instant;

use crate::control::messages::CiJob;
use crate::control::server::Responder;
use crate::daemon::sessions::anchors::Watch;
use crate::ledger::{Ledger, SessionRow};
use crate::types::{CacheId, SessionId};

/// A session that has not closed.
#[derive(Debug)]
pub(in crate::daemon) struct Session {
    pub(in crate::daemon) row: SessionRow,
    pub(in crate::daemon) id: String,
    pub(in crate::daemon) label: Option<String>,
    /// Where it pushes to; `None`: its paths are skipped.
    pub(in crate::daemon) cache: Option<CacheId>,
    pub(in crate::daemon) uid: u32,
    pub(in crate::daemon) ci: Option<CiJob>,
    /// When the first `session end` came; `None` while it is open.
    pub(in crate::daemon) ending: Option<Instant>,
    /// Its job went away without ending it, so far.
    pub(in crate::daemon) abandoned: bool,
    /// Tells when the job goes away.
    pub(in crate::daemon) watch: Option<Watch>,
    /// Named paths that were not valid, and the like.
    pub(in crate::daemon) warnings: Vec<String>,
    /// Not all that it named could be looked at yet.
    pub(in crate::daemon) unlooked: bool,
}

/// Most warnings that are kept of a session; one more says that there were more.
const WARNINGS: usize = 100;

impl Session {
    /// Something that the session's end has to tell, once.
    pub(in crate::daemon) fn warn(&mut self, ledger: &Ledger, text: String) {
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
pub(in crate::daemon) enum Asked {
    /// `session end`: the session's summary.
    End(SessionRow),
    /// `push`: the same, of the unnamed session that the push is.
    Push(SessionRow),
    /// `flush`: only that nothing is left.
    Flush,
}

/// A caller that waits.
#[derive(Debug)]
pub(in crate::daemon) struct Waiter {
    pub(in crate::daemon) group: SessionId,
    pub(in crate::daemon) asked: Asked,
    pub(in crate::daemon) responder: Responder,
    pub(in crate::daemon) since: Instant,
    pub(in crate::daemon) deadline: Instant,
    /// The most that was seen unsettled: what progress is measured against.
    pub(in crate::daemon) total: u64,
}

/// A naming that the intake works on, and who waits for it.
#[derive(Debug)]
pub(in crate::daemon) struct Pending {
    pub(in crate::daemon) row: SessionRow,
    /// `None` when the daemon itself asked.
    pub(in crate::daemon) caller: Option<Caller>,
}

/// Who asked, and how.
#[derive(Debug)]
pub(in crate::daemon) struct Caller {
    pub(in crate::daemon) asked: Asked,
    pub(in crate::daemon) responder: Responder,
    pub(in crate::daemon) wait: bool,
    pub(in crate::daemon) since: Instant,
    pub(in crate::daemon) deadline: Instant,
}

/// All of that.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Sessions {
    pub(in crate::daemon) sessions: HashMap<SessionRow, Session>,
    pub(in crate::daemon) waiters: Vec<Waiter>,
    pub(in crate::daemon) namings: HashMap<u64, Pending>,
    last_token: u64,
    last_group: SessionId,
}

impl Sessions {
    /// Remembers a naming; its token.
    pub(in crate::daemon) fn expect(&mut self, pending: Pending) -> u64 {
        self.last_token += 1;
        self.namings.insert(self.last_token, pending);
        self.last_token
    }

    /// A number for a group that is no session: below zero.
    pub(in crate::daemon) fn new_group(&mut self) -> SessionId {
        self.last_group -= 1;
        self.last_group
    }

    /// The session with this id.
    pub(in crate::daemon) fn by_id(&self, id: &str) -> Option<&Session> {
        self.sessions.values().find(|s| s.id == id)
    }

    /// The caller's session of a CI job.
    pub(in crate::daemon) fn of_job(&self, uid: u32, key: &str) -> Result<Option<&Session>, String> {
        let of_job = |s: &&Session| s.uid == uid && s.ci.as_ref().is_some_and(|ci| ci.key() == key);
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
    pub(in crate::daemon) fn only_open(&self, uid: u32, ci_job: Option<&str>) -> Result<&Session, String> {
        let of_another = |s: &Session| ci_job.is_some() && s.ci.is_some();
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
