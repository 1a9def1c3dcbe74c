//! Sessions that are being opened, pure: whether an opening begins, which push is part of
//! an equal one's, and what follows once the session is recorded.
//!
//! Must not know: what a caller or a named path is, sockets, the clock.

use std::collections::BTreeMap;

use super::{LimitReached, PushSubject, SessionLimits, Tuning};

/// What a session is opened for.
#[derive(Debug)]
pub(crate) enum Purpose<P> {
    /// A CI job: the session is open until the job ends it.
    Job,
    /// A push of these paths: the session drains from the beginning.
    Push(PushSubject<P>),
}

/// Where an opening stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stage {
    /// The session's cache and anchor are looked up, and it is recorded.
    Recording,
    /// It is recorded, and its caller is about to learn its id. A job only.
    Answering,
}

/// What happens to an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Event {
    /// The session is recorded. `awaited`: a caller still waits for it.
    Recorded { awaited: bool },
    /// It was refused, or could not be recorded.
    Failed,
    /// The caller was answered. `heard`: it knows the session's id.
    Answered { heard: bool },
    /// The daemon stops.
    Stop,
}

/// What the driver does about an opening.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// Nothing.
    Wait,
    /// Answer the caller with the session's id, and record that it is known.
    Answer,
    /// Let the session end without its job: nobody knows its id.
    Abandon,
    /// Begin the naming of the push.
    Take,
    /// Refuse the callers with the reason.
    Refuse,
    /// Refuse the callers because the daemon stops. What is recorded is restored by its
    /// next run.
    Stop,
}

/// Decides what follows an event. `is_job`: the session is a job's. `stopping`: the daemon
/// stops. Returns the next stage, none when the opening is over. Total: a pair that is not
/// drawn changes nothing.
///
/// ```text
///  start ──► Recording ── recorded ──► Answering ── heard ──► an open session
///             │  │  │                     └─ not heard ──► an abandoned session
///             │  │  └─ recorded, the caller has left ────► an abandoned session
///             │  └─ refused, failed ──► refused
///             └─ recorded, the daemon stops ──► refused; the next run restores it
///  push ───► Recording ── recorded ──► a draining session; its naming begins
///             └─ (as above)
/// ```
pub(super) fn step(is_job: bool, stage: Stage, event: Event, stopping: bool) -> (Option<Stage>, Step) {
    match (stage, event) {
        (Stage::Recording, Event::Recorded { .. }) if stopping => (None, Step::Stop),
        (Stage::Recording, Event::Recorded { .. }) if !is_job => (None, Step::Take),
        (Stage::Recording, Event::Recorded { awaited: true }) => (Some(Stage::Answering), Step::Answer),
        (Stage::Recording, Event::Recorded { awaited: false }) => (None, Step::Abandon),
        (Stage::Recording, Event::Failed) => (None, Step::Refuse),
        (Stage::Recording, Event::Stop) => (Some(stage), Step::Stop),
        (Stage::Answering, Event::Answered { heard: true }) => (None, Step::Wait),
        (Stage::Answering, Event::Answered { heard: false }) => (None, Step::Abandon),
        (Stage::Recording, Event::Answered { .. })
        | (Stage::Answering, Event::Recorded { .. } | Event::Failed | Event::Stop) => {
            (Some(stage), Step::Wait)
        }
    }
}

/// A session that is being opened.
#[derive(Debug)]
struct Opening<P, C> {
    uid: u32,
    /// Under which configuration of the routes it began.
    rules: u64,
    purpose: Purpose<P>,
    stage: Stage,
    /// Who waits for it. A job has one.
    callers: Vec<C>,
}

/// What becomes of a request for a session.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Begun<C> {
    /// Have it looked up and recorded, under this ticket.
    Record(u64),
    /// An equal push is being opened: the caller is answered together with its callers.
    Joined,
    /// A limit is reached, and nothing has changed.
    Refused(LimitReached, C),
    /// The daemon stops.
    Stopping(C),
}

/// What is done about an opening, and who waits for it.
#[derive(Debug)]
pub(crate) struct Opened<P, C> {
    pub(crate) step: Step,
    /// What it is for, unless somebody still waits for more of it.
    pub(crate) purpose: Option<Purpose<P>>,
    pub(crate) callers: Vec<C>,
    /// The routes have changed since it began: they have to be examined again.
    pub(crate) outdated: bool,
}

/// All sessions that are being opened. `C` is a caller, `P` a set of named paths.
#[derive(Debug)]
pub(crate) struct Openings<P, C> {
    by_ticket: BTreeMap<u64, Opening<P, C>>,
    last: u64,
    most_callers: usize,
    stopping: bool,
}

impl<P: PartialEq, C> Openings<P, C> {
    pub(crate) fn new(tuning: &Tuning) -> Self {
        Self { by_ticket: BTreeMap::new(), last: 0, most_callers: tuning.callers, stopping: false }
    }

    /// Begins an opening for a user, which takes a place in `limits`. A push equal to one that
    /// is being opened takes none. `rules`: the present configuration of the routes.
    /// `has_left`: whether a caller has closed its connection; those that have are forgotten
    /// when many wait.
    pub(crate) fn begin(
        &mut self,
        limits: &mut SessionLimits,
        (uid, rules): (u32, u64),
        purpose: Purpose<P>,
        caller: C,
        has_left: impl Fn(&C) -> bool,
    ) -> Begun<C> {
        if self.stopping {
            return Begun::Stopping(caller);
        }
        let most_callers = self.most_callers;
        if let Some(equal) = self.equal(uid, &purpose) {
            if equal.callers.len() >= most_callers {
                equal.callers.retain(|caller| !has_left(caller));
            }
            equal.callers.push(caller);
            return Begun::Joined;
        }
        if let Err(limit) = limits.begin(uid, matches!(purpose, Purpose::Job)) {
            return Begun::Refused(limit, caller);
        }
        self.last += 1;
        let opening = Opening { uid, rules, purpose, stage: Stage::Recording, callers: vec![caller] };
        self.by_ticket.insert(self.last, opening);
        Begun::Record(self.last)
    }

    /// The opening of an equal push of the same user. Two jobs are never equal.
    fn equal(&mut self, uid: u32, purpose: &Purpose<P>) -> Option<&mut Opening<P, C>> {
        let Purpose::Push(subject) = purpose else { return None };
        let is_equal = |opening: &&mut Opening<P, C>| match &opening.purpose {
            Purpose::Push(of) => opening.uid == uid && of == subject,
            Purpose::Job => false,
        };
        self.by_ticket.values_mut().find(is_equal)
    }

    /// The session of a ticket is recorded. `rules`: the present configuration of the routes.
    pub(crate) fn recorded(
        &mut self,
        limits: &mut SessionLimits,
        (ticket, rules): (u64, u64),
        has_left: impl Fn(&C) -> bool,
    ) -> Option<Opened<P, C>> {
        let opening = self.by_ticket.get(&ticket)?;
        let (uid, outdated) = (opening.uid, opening.rules != rules);
        let is_job = matches!(opening.purpose, Purpose::Job);
        let awaited = opening.callers.iter().any(|caller| !has_left(caller));
        let opened = self.step(ticket, Event::Recorded { awaited })?;
        if opened.step == Step::Stop {
            limits.end(uid, is_job);
        }
        Some(Opened { outdated, ..opened })
    }

    /// The session of a ticket was refused, or could not be recorded: it gives its place back.
    pub(crate) fn failed(&mut self, limits: &mut SessionLimits, ticket: u64) -> Vec<C> {
        let Some(opening) = self.by_ticket.get(&ticket) else { return Vec::new() };
        let (uid, is_job) = (opening.uid, matches!(opening.purpose, Purpose::Job));
        let opened = self.step(ticket, Event::Failed).filter(|opened| opened.step == Step::Refuse);
        if opened.is_some() {
            limits.end(uid, is_job);
        }
        opened.map(|opened| opened.callers).unwrap_or_default()
    }

    /// The caller of a job's session was answered. `heard`: it knows the session's id.
    pub(crate) fn answered(&mut self, ticket: u64, heard: bool) -> Step {
        self.step(ticket, Event::Answered { heard }).map_or(Step::Wait, |opened| opened.step)
    }

    /// The daemon stops. Returns the callers that are refused.
    pub(crate) fn stop(&mut self) -> Vec<C> {
        self.stopping = true;
        let tickets: Vec<u64> = self.by_ticket.keys().copied().collect();
        let steps = tickets.into_iter().filter_map(|ticket| self.step(ticket, Event::Stop));
        steps.filter(|opened| opened.step == Step::Stop).flat_map(|opened| opened.callers).collect()
    }

    /// Hands an event to an opening. The callers leave it with any step but [`Step::Wait`].
    fn step(&mut self, ticket: u64, event: Event) -> Option<Opened<P, C>> {
        let opening = self.by_ticket.get_mut(&ticket)?;
        let is_job = matches!(opening.purpose, Purpose::Job);
        let (next, step) = step(is_job, opening.stage, event, self.stopping);
        let callers = if step == Step::Wait { Vec::new() } else { std::mem::take(&mut opening.callers) };
        let purpose = match next {
            Some(stage) => {
                opening.stage = stage;
                None
            }
            None => self.by_ticket.remove(&ticket).map(|opening| opening.purpose),
        };
        Some(Opened { step, purpose, callers, outdated: false })
    }
}
