//! The sessions that are open or draining, and the callers that wait for them. Must
//! not know what is left to push.

use std::collections::HashMap;
use std::time::Instant;

use super::{Caller, Naming, Session, Waiter};
use crate::types::SessionId;

/// All of them.
#[derive(Debug, Default)]
pub(in crate::daemon) struct Sessions {
    by_row: HashMap<SessionId, Session>,
    waiters: Vec<Waiter>,
    namings: HashMap<u64, Naming>,
    last_token: u64,
    last_group: SessionId,
}

impl Sessions {
    pub(in crate::daemon) fn insert(&mut self, session: Session) {
        self.by_row.insert(session.row, session);
    }

    pub(in crate::daemon) fn get(&self, row: SessionId) -> Option<&Session> {
        self.by_row.get(&row)
    }

    pub(in crate::daemon) fn get_mut(&mut self, row: SessionId) -> Option<&mut Session> {
        self.by_row.get_mut(&row)
    }

    pub(in crate::daemon) fn remove(&mut self, row: SessionId) -> Option<Session> {
        self.by_row.remove(&row)
    }

    /// How many are open or draining.
    pub(in crate::daemon) fn len(&self) -> usize {
        self.by_row.len()
    }

    pub(in crate::daemon) fn any_open(&self) -> bool {
        self.by_row.values().any(Session::is_open)
    }

    /// How many open sessions a user has.
    pub(in crate::daemon) fn open_of(&self, uid: u32) -> usize {
        self.by_row.values().filter(|s| s.uid == uid && s.is_open()).count()
    }

    /// How many sessions and pushes of a user are open or draining.
    pub(in crate::daemon) fn all_of(&self, uid: u32) -> usize {
        self.by_row.values().filter(|s| s.uid == uid).count()
    }

    /// The session with this id.
    pub(in crate::daemon) fn by_id(&self, id: &str) -> Option<&Session> {
        self.by_row.values().find(|s| s.id == id)
    }

    /// The user's session of a CI job. An error says that there are several.
    pub(in crate::daemon) fn of_job(&self, uid: u32, key: &str) -> Result<Option<&Session>, String> {
        let of_job = |s: &&Session| s.uid == uid && s.ci.as_ref().is_some_and(|ci| ci.key() == key);
        let mut of_job = self.by_row.values().filter(of_job);
        match (of_job.next(), of_job.next()) {
            (Some(_), Some(_)) => Err(format!(
                "CI job {key} has several open sessions: name one (`flywheelctl session list` shows them)"
            )),
            (one, _) => Ok(one),
        }
    }

    /// The user's only open session. For a caller within a CI job, sessions of
    /// other CI jobs do not count. An error says that there is none, or several.
    pub(in crate::daemon) fn only_open(&self, uid: u32, ci_job: Option<&str>) -> Result<&Session, String> {
        let of_another = |s: &Session| ci_job.is_some() && s.ci.is_some();
        let mut open = self.by_row.values().filter(|s| s.uid == uid && s.is_open() && !of_another(s));
        match (open.next(), open.next()) {
            (Some(one), None) => Ok(one),
            (None, _) => Err("you have no open session: `flywheelctl session start` opens one".to_owned()),
            (Some(_), Some(_)) => Err(
                "you have several open sessions: name one, or set FLYWHEEL_SESSION (`flywheelctl session list` shows them)"
                    .to_owned(),
            ),
        }
    }

    /// Makes a number for a group of pushes that is no session: below zero.
    pub(in crate::daemon) fn new_group(&mut self) -> SessionId {
        self.last_group -= 1;
        self.last_group
    }

    /// Remembers a naming, and returns its token.
    pub(in crate::daemon) fn add_naming(&mut self, naming: Naming) -> u64 {
        self.last_token += 1;
        self.namings.insert(self.last_token, naming);
        self.last_token
    }

    /// Forgets a naming, and returns it.
    pub(in crate::daemon) fn take_naming(&mut self, token: u64) -> Option<Naming> {
        self.namings.remove(&token)
    }

    /// Whether the intake works on a naming of this session or group.
    pub(in crate::daemon) fn has_naming(&self, row: SessionId) -> bool {
        self.namings.values().any(|naming| naming.row == row)
    }

    /// Takes the callers from namings where `which` is true. The namings stay.
    pub(in crate::daemon) fn take_callers(&mut self, which: impl Fn(&Caller) -> bool) -> Vec<Caller> {
        let namings = self.namings.values_mut();
        namings.filter_map(|naming| naming.caller.take_if(|caller| which(caller))).collect()
    }

    pub(in crate::daemon) fn add_waiter(&mut self, waiter: Waiter) {
        self.waiters.push(waiter);
    }

    pub(in crate::daemon) fn has_waiters(&self) -> bool {
        !self.waiters.is_empty()
    }

    /// Removes the waiters where `which` is true, and returns them.
    pub(in crate::daemon) fn take_waiters(&mut self, which: impl Fn(&Waiter) -> bool) -> Vec<Waiter> {
        self.waiters.extract_if(.., |waiter| which(waiter)).collect()
    }

    /// The waiters, without those whose caller has closed its connection.
    pub(in crate::daemon) fn waiters(&mut self) -> impl Iterator<Item = &mut Waiter> {
        self.waiters.retain(|waiter| !waiter.responder.is_gone());
        self.waiters.iter_mut()
    }

    /// When the first caller's time is over.
    pub(in crate::daemon) fn next_deadline(&self) -> Option<Instant> {
        let namings = self.namings.values().filter_map(|n| Some(n.caller.as_ref()?.deadline));
        self.waiters.iter().map(|w| w.deadline).chain(namings).min()
    }
}
