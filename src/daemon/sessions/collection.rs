//! The sessions that are open or draining, and the callers that wait for them. Must
//! not know what is left to push.

use std::collections::HashMap;
use std::time::Duration;

use tokio::time::Instant;

use super::{Caller, Naming, Opener, Session};
use crate::daemon::intake::{self, NamedPaths};
use crate::flow::{
    Begun, Callers, Candidate, JobOf, NamingQueue, OpenFor, Opened, OpeningStep, Openings, SessionLife,
    SessionLimits, Subject, TUNING, Target,
};
use crate::types::{CacheId, Mono, SessionId};

/// Delay before a naming is sent again that found the intake's queue full.
const RETRY: Duration = Duration::from_millis(100);

/// All of them.
#[derive(Debug)]
pub(in crate::daemon) struct Sessions {
    by_row: HashMap<SessionId, Session>,
    /// What each `flush` waits for, by the number of its group.
    flushes: HashMap<SessionId, SessionLife>,
    limits: SessionLimits,
    openings: Openings<NamedPaths, Opener>,
    /// Counts the changes of the routes.
    rules: u64,
    /// Namings that wait for the intake.
    queue: NamingQueue<NamedPaths, intake::Naming>,
    /// When the next of them is sent again.
    retry_at: Option<Instant>,
    callers: Callers<Caller>,
    namings: HashMap<u64, Naming>,
    last_token: u64,
    last_group: SessionId,
}

impl Default for Sessions {
    fn default() -> Self {
        Self {
            by_row: HashMap::new(),
            flushes: HashMap::new(),
            limits: SessionLimits::new(TUNING),
            openings: Openings::new(&TUNING),
            rules: 0,
            queue: NamingQueue::new(TUNING),
            retry_at: None,
            callers: Callers::default(),
            namings: HashMap::new(),
            last_token: 0,
            last_group: 0,
        }
    }
}

impl Sessions {
    /// Begins to open a session for a user.
    pub(in crate::daemon) fn begin(
        &mut self,
        uid: u32,
        purpose: OpenFor<NamedPaths>,
        opener: Opener,
    ) -> Begun<Opener> {
        self.openings.begin(&mut self.limits, (uid, self.rules), purpose, opener, Opener::has_left)
    }

    /// The session of a ticket is recorded.
    pub(in crate::daemon) fn recorded(&mut self, ticket: u64) -> Option<Opened<NamedPaths, Opener>> {
        self.openings.recorded(&mut self.limits, (ticket, self.rules), Opener::has_left)
    }

    /// The session of a ticket was refused, or could not be recorded. Returns its callers.
    pub(in crate::daemon) fn not_recorded(&mut self, ticket: u64) -> Vec<Opener> {
        self.openings.failed(&mut self.limits, ticket)
    }

    /// The caller of a job's new session was answered. `heard`: it knows the session's id.
    pub(in crate::daemon) fn answered(&mut self, ticket: u64, heard: bool) -> OpeningStep {
        self.openings.answered(ticket, heard)
    }

    /// The daemon stops: no session is opened any more. Returns the callers that are refused.
    pub(in crate::daemon) fn stop_openings(&mut self) -> Vec<Opener> {
        self.openings.stop()
    }

    /// The number of the present configuration of the routes.
    pub(in crate::daemon) fn rules(&self) -> u64 {
        self.rules
    }

    /// The routes have changed.
    pub(in crate::daemon) fn rules_changed(&mut self) {
        self.rules += 1;
    }

    /// Inserts a session that [`Self::begin`] has counted.
    pub(in crate::daemon) fn insert(&mut self, session: Session) {
        self.by_row.insert(session.row, session);
    }

    /// Inserts a session that was closed. `limited`: only within the limits. An error says which
    /// limit is reached.
    pub(in crate::daemon) fn insert_again(&mut self, session: Session, limited: bool) -> Result<(), String> {
        if limited {
            self.limits.begin(session.uid, session.is_open()).map_err(|limit| limit.to_string())?;
            self.insert(session);
        } else {
            self.insert_known(session);
        }
        Ok(())
    }

    /// Inserts a session of an earlier run.
    pub(in crate::daemon) fn insert_known(&mut self, session: Session) {
        self.limits.count(session.uid, session.is_open());
        self.insert(session);
    }

    /// Counts a session as draining.
    pub(in crate::daemon) fn drains(&mut self, uid: u32) {
        self.limits.drain(uid);
    }

    pub(in crate::daemon) fn get(&self, row: SessionId) -> Option<&Session> {
        self.by_row.get(&row)
    }

    pub(in crate::daemon) fn get_mut(&mut self, row: SessionId) -> Option<&mut Session> {
        self.by_row.get_mut(&row)
    }

    /// The sessions that push to a cache and are not closed to further paths.
    pub(in crate::daemon) fn unconfined(&self) -> impl Iterator<Item = (&Session, CacheId)> {
        let open = self.by_row.values().filter(|session| !session.confined);
        open.filter_map(|session| Some((session, session.cache?)))
    }

    /// Removes a session that is closed.
    pub(in crate::daemon) fn remove(&mut self, row: SessionId) -> Option<Session> {
        let session = self.by_row.remove(&row)?;
        self.limits.end(session.uid, session.is_open());
        Some(session)
    }

    /// The sessions for which something is due at `now`.
    pub(in crate::daemon) fn due(&self, now: Mono) -> Vec<SessionId> {
        let due = |session: &&Session| session.life.due().is_some_and(|due| due <= now);
        let mut rows: Vec<_> = self.by_row.values().filter(due).map(|session| session.row).collect();
        rows.sort_unstable();
        rows
    }

    /// When something is due for a session.
    pub(in crate::daemon) fn next_due(&self) -> Option<Mono> {
        self.by_row.values().filter_map(|session| session.life.due()).min()
    }

    /// When a naming is sent again.
    pub(in crate::daemon) fn retry_at(&self) -> Option<Instant> {
        self.retry_at
    }

    /// How many are open or draining.
    pub(in crate::daemon) fn len(&self) -> usize {
        self.by_row.len()
    }

    pub(in crate::daemon) fn any_open(&self) -> bool {
        self.by_row.values().any(Session::is_open)
    }

    /// The session with this id.
    pub(in crate::daemon) fn by_id(&self, id: &str) -> Option<&Session> {
        self.by_row.values().find(|s| s.id == id)
    }

    /// What a caller of a user means that names no session. `ci_job`: the key of its CI job.
    pub(in crate::daemon) fn unnamed(&self, uid: u32, ci_job: Option<&str>) -> Target {
        let job = |session: &Session| match (&session.ci, ci_job) {
            (None, _) => JobOf::Nobody,
            (Some(ci), Some(key)) if ci.key() == key => JobOf::Caller,
            (Some(_), _) => JobOf::Another,
        };
        let own = self.by_row.values().filter(|session| session.uid == uid);
        let live: Vec<_> = own
            .map(|session| Candidate { row: session.row, open: session.is_open(), job: job(session) })
            .collect();
        Target::unnamed(ci_job.is_some(), &live)
    }

    /// Begins a `flush`. Returns the number of its group of pushes, which is below zero.
    pub(in crate::daemon) fn begin_flush(&mut self) -> SessionId {
        self.last_group -= 1;
        self.flushes.insert(self.last_group, SessionLife::draining(&TUNING, false));
        self.last_group
    }

    /// The life of a `flush`.
    pub(in crate::daemon) fn flush_mut(&mut self, group: SessionId) -> Option<&mut SessionLife> {
        self.flushes.get_mut(&group)
    }

    /// Forgets a `flush`.
    pub(in crate::daemon) fn end_flush(&mut self, group: SessionId) {
        self.flushes.remove(&group);
    }

    /// Remembers a naming, and returns its token.
    pub(in crate::daemon) fn add_naming(&mut self, naming: Naming) -> u64 {
        self.last_token += 1;
        self.namings.insert(self.last_token, naming);
        self.last_token
    }

    /// Queues a naming for the intake. `subject`: what its callers ask for, if it has some.
    /// `needed`: it must not be refused. Returns false, and forgets it, when too many of the
    /// user wait.
    pub(in crate::daemon) fn queue_naming(
        &mut self,
        naming: intake::Naming,
        subject: Option<Subject<NamedPaths>>,
        needed: bool,
    ) -> bool {
        let token = naming.token;
        let Some(known) = self.namings.get(&token) else { return false };
        let queued = self.queue.push(known.uid, subject, naming, needed).is_ok();
        if !queued {
            self.namings.remove(&token);
        }
        queued
    }

    /// A user's naming with an equal subject that the intake does not have yet, with the
    /// session or group that it is for.
    pub(in crate::daemon) fn equal_naming(
        &self,
        uid: u32,
        subject: &Subject<NamedPaths>,
    ) -> Option<(u64, SessionId)> {
        self.queue.equal(uid, subject).map(|naming| (naming.token, naming.session))
    }

    /// Adds a caller that waits for a naming, and then for the pushes of a session or group.
    pub(in crate::daemon) fn wait(&mut self, token: u64, group: SessionId, caller: Caller) {
        if self.callers.len() >= TUNING.callers {
            self.callers.forget(|caller| caller.responder.is_gone());
        }
        self.callers.add(token, group, caller.patience, caller);
    }

    /// Sends the intake the namings that it may have. `send` returns a naming that
    /// it could not send; that is tried again at [`Self::retry_at`].
    pub(in crate::daemon) fn send_namings(
        &mut self,
        now: Instant,
        send: impl Fn(intake::Naming) -> Result<(), intake::Naming>,
    ) {
        self.retry_at = None;
        while let Some((uid, naming)) = self.queue.next() {
            if let Err(naming) = send(naming) {
                self.queue.put_back(uid, naming);
                self.retry_at = Some(now + RETRY);
                return;
            }
        }
    }

    /// Forgets a naming that the intake has finished, and returns it.
    pub(in crate::daemon) fn finish_naming(&mut self, token: u64) -> Option<Naming> {
        let naming = self.namings.remove(&token)?;
        self.queue.finished(naming.uid);
        Some(naming)
    }

    /// The callers that wait.
    pub(in crate::daemon) fn callers(&mut self) -> &mut Callers<Caller> {
        &mut self.callers
    }

    /// Whether a caller waits.
    pub(in crate::daemon) fn has_waiters(&self) -> bool {
        self.callers.len() > 0
    }

    /// When the first caller's time is over.
    pub(in crate::daemon) fn next_deadline(&self) -> Option<Mono> {
        self.callers.next_deadline()
    }
}
