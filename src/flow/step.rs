//! The step: one event in, the actions it leads to out.

use std::collections::{BTreeSet, HashMap, VecDeque};

use super::event::{Action, CacheId, Cause, Event, Failure, NewTask, Outcome, SessionId, TaskId, Time};
use super::gate::{Gate, GateState};
use super::lanes::{Lanes, NOBODY};
use super::pace::Pace;
use super::retry::{Backoff, Rng};
use super::session::Group;
use super::task::{Phase, Task};

/// Hashes in one query. A real server answers 500 to 40,000 and 200 to 10,000.
const ASK_MOST: usize = 4_000;

/// Queries refused in a row after which the question as such must be wrong:
/// halving the largest finds a single bad hash with twelve.
const ASK_REFUSALS: u32 = 32;

/// Tries after which a task that cannot be read here is parked.
const LOCAL_TRIES: u32 = 5;

/// Uploads at a time to one cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Never fewer.
    pub least: u32,
    /// Never more.
    pub most: u32,
}

/// A cache as status shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheView {
    /// Open, away or refusing.
    pub state: GateState,
    /// Neither settled nor parked, uploads included.
    pub pending: usize,
    /// Being uploaded.
    pub uploading: u32,
    /// Given up for now.
    pub parked: usize,
    /// Uploads allowed at a time now.
    pub limit: u32,
}

#[derive(Debug)]
struct Cache {
    gate: Gate,
    pace: Pace,
    lanes: Lanes,
    asks: VecDeque<TaskId>,
    urgent_asks: VecDeque<TaskId>,
    /// The query that is under way.
    asking: Option<Vec<TaskId>>,
    /// Hashes in the next query: fewer after one that was refused as such.
    ask_most: usize,
    /// Queries refused as such since the last good one.
    ask_refusals: u32,
    ask_attempt: u32,
    ask_rest: Option<Time>,
    uploading: u32,
    tasks: usize,
    parked: usize,
}

/// All decisions of one daemon.
#[derive(Debug)]
pub struct Flow {
    caches: Vec<Cache>,
    tasks: HashMap<TaskId, Task>,
    groups: HashMap<SessionId, Group>,
    rests: BTreeSet<(Time, TaskId)>,
    rng: Rng,
    stopped: bool,
    out: Vec<Action>,
}

impl Flow {
    /// For caches numbered from 0; `seed` decides every jitter.
    pub fn new(caches: &[CacheLimits], seed: u64) -> Self {
        let caches = caches
            .iter()
            .map(|limits| Cache {
                gate: Gate::new(),
                pace: Pace::new(limits.least, limits.most),
                lanes: Lanes::default(),
                asks: VecDeque::new(),
                urgent_asks: VecDeque::new(),
                asking: None,
                ask_most: ASK_MOST,
                ask_refusals: 0,
                ask_attempt: 0,
                ask_rest: None,
                uploading: 0,
                tasks: 0,
                parked: 0,
            })
            .collect();
        Self {
            caches,
            tasks: HashMap::new(),
            groups: HashMap::new(),
            rests: BTreeSet::new(),
            rng: Rng::new(seed),
            stopped: false,
            out: Vec::new(),
        }
    }

    /// Takes what happened; returns what to do, in order. Total: an event about
    /// something that is no longer known changes nothing.
    pub fn step(&mut self, event: Event, now: Time) -> Vec<Action> {
        let shown: Vec<_> = self.caches.iter().map(|c| c.gate.shown()).collect();
        match event {
            Event::Admit { cache, tasks } => tasks.into_iter().for_each(|task| self.admit(cache, task)),
            Event::Asked { cache, present, missing } => self.asked(cache, &present, &missing, now),
            Event::AskFailed { cache, failure, .. } => self.ask_failed(cache, failure, now),
            Event::Uploaded(id) => self.uploaded(id, Outcome::Pushed),
            Event::InUpstream(id) => self.uploaded(id, Outcome::Upstream),
            Event::UploadFailed(id, failure) => self.upload_failed(id, failure, now),
            Event::Collected(id) => {
                self.leave_upload(id);
                self.settle(id, Outcome::Collected);
            }
            Event::Probed(cache, result) => self.probed(cache, result, now),
            Event::Nudge(cache) => {
                if let Some(c) = self.cache(cache) {
                    c.gate.nudge(now);
                    c.ask_rest = None;
                }
            }
            Event::Retry(which) => self.retry(which),
            Event::Want(session, tasks) => tasks.into_iter().for_each(|id| self.want(session, id)),
            Event::WantAll(session) => {
                let all = self.all(|t| !t.is_parked());
                all.into_iter().for_each(|id| self.want(session, id));
            }
            Event::Flush(session) => self.flush(session),
            Event::Forget(session) => self.forget(session),
            Event::Limits(cache, limits) => {
                if let Some(c) = self.cache(cache) {
                    c.pace = Pace::new(limits.least, limits.most);
                }
            }
            Event::Tick => {}
            Event::Stop => self.stopped = true,
        }
        self.wake(now);
        for index in 0..self.caches.len() {
            self.pump(index, now);
        }
        for (index, before) in shown.into_iter().enumerate() {
            let after = self.caches[index].gate.shown();
            if before != after {
                self.out.push(Action::Gate(cache_id(index), after));
            }
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Tick`] is wanted at the latest.
    pub fn next_deadline(&self) -> Option<Time> {
        if self.stopped {
            return None;
        }
        let rest = self.rests.first().map(|&(at, _)| at);
        let caches = self.caches.iter().flat_map(|c| [c.gate.due(), c.ask_rest]);
        caches.chain([rest]).flatten().min()
    }

    /// One cache as it stands.
    pub fn view(&self, cache: CacheId) -> Option<CacheView> {
        let c = self.caches.get(usize::from(cache.0))?;
        Some(CacheView {
            state: c.gate.shown(),
            pending: c.tasks - c.parked,
            uploading: c.uploading,
            parked: c.parked,
            limit: c.pace.limit(),
        })
    }

    /// Uploads and queries under way, over all caches.
    pub fn in_flight(&self) -> u32 {
        self.caches.iter().map(|c| c.uploading + u32::from(c.asking.is_some())).sum()
    }

    /// How many tasks of a group are neither settled nor parked.
    pub fn unsettled(&self, session: SessionId) -> u32 {
        self.groups.get(&session).map_or(0, |g| g.unsettled)
    }

    /// Whether a task is known, that is neither settled nor never admitted.
    pub fn knows(&self, task: TaskId) -> bool {
        self.tasks.contains_key(&task)
    }

    fn cache(&mut self, cache: CacheId) -> Option<&mut Cache> {
        self.caches.get_mut(usize::from(cache.0))
    }

    fn admit(&mut self, cache: CacheId, new: NewTask) {
        let id = new.id;
        if self.tasks.contains_key(&id) {
            new.sessions.into_iter().for_each(|s| self.want(s, id));
            return;
        }
        let Some(c) = self.cache(cache) else { return };
        c.tasks += 1;
        if new.parked {
            c.parked += 1;
        } else {
            c.asks.push_back(id);
        }
        let mut references = new.references;
        references.retain(|r| *r != id && self.tasks.get_mut(r).is_some_and(|r| r.referrers.insert(id)));
        let task = Task {
            cache,
            phase: if new.parked { Phase::Parked(Cause::Earlier) } else { Phase::Unasked },
            references,
            referrers: BTreeSet::new(),
            sessions: Vec::new(),
            lane: new.sessions.first().copied().unwrap_or(NOBODY),
            urgent: false,
            attempts: 0,
            mismatched: false,
            doomed: false,
        };
        self.tasks.insert(id, task);
        new.sessions.into_iter().for_each(|s| self.want(s, id));
    }

    fn want(&mut self, session: SessionId, id: TaskId) {
        let Some(task) = self.tasks.get_mut(&id) else { return };
        if task.sessions.contains(&session) {
            return;
        }
        task.sessions.push(session);
        let parked = task.is_parked();
        self.groups.entry(session).or_default().tasks.insert(id);
        if !parked {
            self.join(session, id);
        }
    }

    /// Counts an unsettled task in a group that it already names.
    fn join(&mut self, session: SessionId, id: TaskId) {
        let Some(group) = self.groups.get_mut(&session) else { return };
        group.unsettled += 1;
        if group.flushing {
            self.promote(session, id);
        }
    }

    fn forget(&mut self, session: SessionId) {
        let Some(group) = self.groups.remove(&session) else { return };
        for id in group.tasks {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.sessions.retain(|s| *s != session);
            }
        }
    }

    fn flush(&mut self, session: SessionId) {
        let group = self.groups.entry(session).or_default();
        group.flushing = true;
        if group.unsettled == 0 {
            self.out.push(Action::Quiet(session));
            return;
        }
        for id in group.tasks.iter().copied().collect::<Vec<_>>() {
            self.promote(session, id);
        }
    }

    /// Moves a task and whatever it waits for to the front.
    fn promote(&mut self, session: SessionId, id: TaskId) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            if task.urgent || task.is_parked() {
                continue;
            }
            task.urgent = true;
            task.lane = session;
            stack.extend(task.references.iter().copied());
            let c = &mut self.caches[usize::from(task.cache.0)];
            match task.phase {
                Phase::Unasked => c.urgent_asks.push_back(id),
                Phase::Ready => c.lanes.push(session, id, true),
                Phase::Asking | Phase::Held | Phase::Uploading | Phase::Resting(_) | Phase::Parked(_) => {}
            }
        }
    }

    fn asked(&mut self, cache: CacheId, present: &[TaskId], missing: &[TaskId], now: Time) {
        let Some(c) = self.cache(cache) else { return };
        let Some(batch) = c.asking.take() else { return };
        c.ask_attempt = 0;
        c.ask_rest = None;
        c.ask_refusals = 0;
        c.ask_most = (c.ask_most * 2).min(ASK_MOST);
        c.gate.succeeded();
        for &id in present {
            if self.tasks.get(&id).is_some_and(|t| t.phase == Phase::Asking) {
                self.settle(id, Outcome::Cached);
            }
        }
        for &id in missing {
            let Some(task) = self.tasks.get_mut(&id).filter(|t| t.phase == Phase::Asking) else { continue };
            if task.doomed {
                self.settle(id, Outcome::Collected);
                continue;
            }
            task.phase = Phase::Held;
            let parked = |r: &TaskId| self.tasks.get(r).is_some_and(Task::is_parked);
            let parked = self.tasks.get(&id).and_then(|t| t.references.iter().copied().find(parked));
            match parked {
                Some(reference) => self.park(id, Cause::Reference(reference)),
                None => self.ready_unless_blocked(id),
            }
        }
        if self.ask_again(&batch) {
            // An answer that leaves some out may do so again: not at once.
            let c = &mut self.caches[usize::from(cache.0)];
            c.ask_attempt += 1;
            c.ask_rest = Some(now.after(Backoff::UPLOAD.wait(c.ask_attempt, &mut self.rng)));
        }
    }

    fn ask_failed(&mut self, cache: CacheId, failure: Failure, now: Time) {
        let index = usize::from(cache.0);
        let Some(c) = self.caches.get_mut(index) else { return };
        let Some(batch) = c.asking.take() else { return };
        c.gate.failed(failure, None, now, &mut self.rng);
        match failure {
            Failure::Unreachable | Failure::Refused => {}
            Failure::Transient { retry_after } => {
                c.ask_attempt += 1;
                let wait = Backoff::UPLOAD.wait(c.ask_attempt, &mut self.rng);
                c.ask_rest = Some(now.after(wait.max(bounded(retry_after))));
            }
            // The answer is about the question, not the moment: asking again
            // would get it again. It may be about one hash of many, or about
            // their number, so fewer are asked until the one is found.
            Failure::Mismatch | Failure::TooLarge | Failure::Rejected | Failure::Local
                if batch.len() > 1 && c.ask_refusals < ASK_REFUSALS =>
            {
                c.ask_refusals += 1;
                c.ask_most = (batch.len() / 2).max(1);
            }
            Failure::NoSuchCache
            | Failure::Mismatch
            | Failure::TooLarge
            | Failure::Rejected
            | Failure::Local => {
                c.ask_refusals += 1;
                for id in batch {
                    if self.tasks.get(&id).is_some_and(|t| t.phase == Phase::Asking) {
                        self.park(id, Cause::Failed(failure));
                    }
                }
                return;
            }
        }
        self.ask_again(&batch);
    }

    /// Queues those of a query that are still being asked for, in front and in
    /// order; false when there is none.
    fn ask_again(&mut self, batch: &[TaskId]) -> bool {
        let mut any = false;
        for &id in batch.iter().rev() {
            let Some(task) = self.tasks.get_mut(&id).filter(|t| t.phase == Phase::Asking) else { continue };
            task.phase = Phase::Unasked;
            let c = &mut self.caches[usize::from(task.cache.0)];
            if task.urgent {
                c.urgent_asks.push_front(id);
            } else {
                c.asks.push_front(id);
            }
            any = true;
        }
        any
    }

    fn uploaded(&mut self, id: TaskId, outcome: Outcome) {
        if let Some(index) = self.leave_upload(id) {
            let c = &mut self.caches[index];
            if outcome == Outcome::Pushed {
                c.gate.succeeded();
                c.pace.succeeded();
            }
            self.settle(id, outcome);
        }
    }

    fn upload_failed(&mut self, id: TaskId, failure: Failure, now: Time) {
        let Some(index) = self.leave_upload(id) else { return };
        let c = &mut self.caches[index];
        c.gate.failed(failure, Some(id), now, &mut self.rng);
        let Some(task) = self.tasks.get_mut(&id) else { return };
        let wait = Backoff::UPLOAD.wait(task.attempts, &mut self.rng);
        match failure {
            Failure::Refused => self.make_ready(id),
            // The gate is closed now. A path that brings the connection down
            // every time waits on its own, so that it costs nobody else.
            Failure::Unreachable if task.attempts <= 2 => self.make_ready(id),
            Failure::Unreachable => self.rest(id, now.after(wait)),
            Failure::Transient { retry_after } => {
                c.pace.strained();
                self.rest(id, now.after(wait.max(bounded(retry_after))));
            }
            Failure::Local if task.attempts < LOCAL_TRIES => self.rest(id, now.after(wait)),
            Failure::Mismatch if !task.mismatched => {
                task.mismatched = true;
                self.make_ready(id);
            }
            Failure::Mismatch
            | Failure::Local
            | Failure::NoSuchCache
            | Failure::TooLarge
            | Failure::Rejected => {
                self.park(id, Cause::Failed(failure));
            }
        }
    }

    fn probed(&mut self, cache: CacheId, result: Result<(), Failure>, now: Time) {
        let index = usize::from(cache.0);
        let Some(c) = self.caches.get_mut(index) else { return };
        if c.gate.probed(result, now, &mut self.rng) {
            // Many hosts see the cache come back at the same moment: each
            // starts with little and grows.
            c.pace.restart();
            c.ask_rest = None;
        }
    }

    fn retry(&mut self, which: Option<Vec<TaskId>>) {
        let ids = which.unwrap_or_else(|| self.all(Task::is_parked));
        ids.into_iter().for_each(|id| self.reopen(id));
    }

    /// In order of their numbers: a map's own order is another in every process.
    fn all(&self, which: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let mut ids: Vec<_> = self.tasks.iter().filter(|(_, t)| which(t)).map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes a parked task up again, with what is parked because of it and what
    /// it is parked because of.
    fn reopen(&mut self, id: TaskId) {
        let mut stack = vec![id];
        let mut reopened = Vec::new();
        while let Some(id) = stack.pop() {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            if !task.is_parked() {
                continue;
            }
            task.phase = Phase::Unasked;
            task.attempts = 0;
            task.mismatched = false;
            task.urgent = false;
            let index = usize::from(task.cache.0);
            let sessions = task.sessions.clone();
            let referrers = task.referrers.clone();
            // All of them: with one left parked it would only be parked again.
            stack.extend(task.references.iter().copied());
            self.caches[index].parked -= 1;
            self.caches[index].asks.push_back(id);
            self.out.push(Action::Reopened(id));
            reopened.push((id, sessions));
            let because = |t: &Task| t.phase == Phase::Parked(Cause::Reference(id));
            stack.extend(referrers.into_iter().filter(|r| self.tasks.get(r).is_some_and(because)));
        }
        // Only now: moving one to the front moves its references as well, and
        // passes over those that are still parked.
        for (id, sessions) in reopened {
            sessions.into_iter().for_each(|session| self.join(session, id));
            self.inherit_urgency(id);
        }
    }

    /// What an urgent task waits for is urgent.
    fn inherit_urgency(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let urgent = |r: &TaskId| self.tasks.get(r).filter(|t| t.urgent && !t.is_parked()).map(|t| t.lane);
        if let Some(lane) = task.referrers.iter().find_map(urgent) {
            self.promote(lane, id);
        }
    }

    /// The cache's index when the task was being uploaded.
    fn leave_upload(&mut self, id: TaskId) -> Option<usize> {
        let task = self.tasks.get_mut(&id)?;
        if task.phase != Phase::Uploading {
            return None;
        }
        task.phase = Phase::Held;
        let index = usize::from(task.cache.0);
        self.caches[index].uploading -= 1;
        Some(index)
    }

    fn ready_unless_blocked(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|t| t.phase == Phase::Held && t.references.is_empty()) {
            self.make_ready(id);
        }
    }

    fn make_ready(&mut self, id: TaskId) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.phase = Phase::Ready;
            self.caches[usize::from(task.cache.0)].lanes.push(task.lane, id, task.urgent);
        }
    }

    fn rest(&mut self, id: TaskId, until: Time) {
        if let Some(task) = self.tasks.get_mut(&id) {
            task.phase = Phase::Resting(until);
            self.rests.insert((until, id));
        }
    }

    /// Removes a task that is done with, and frees what waited for it.
    fn settle(&mut self, id: TaskId, outcome: Outcome) {
        let mut stack = vec![(id, outcome)];
        while let Some((id, outcome)) = stack.pop() {
            let Some(task) = self.tasks.remove(&id) else { continue };
            let c = &mut self.caches[usize::from(task.cache.0)];
            c.tasks -= 1;
            match task.phase {
                Phase::Parked(_) => c.parked -= 1,
                Phase::Uploading => c.uploading -= 1,
                Phase::Resting(until) => {
                    self.rests.remove(&(until, id));
                }
                Phase::Unasked | Phase::Asking | Phase::Held | Phase::Ready => {}
            }
            self.out.push(Action::Settled(id, outcome));
            for session in &task.sessions {
                self.groups.get_mut(session).map(|g| g.tasks.remove(&id));
            }
            if !task.is_parked() {
                self.leave_groups(&task.sessions);
            }
            for reference in &task.references {
                self.tasks.get_mut(reference).map(|r| r.referrers.remove(&id));
            }
            for referrer in task.referrers {
                let Some(r) = self.tasks.get_mut(&referrer) else { continue };
                if let Some(at) = r.references.iter().position(|r| *r == id) {
                    r.references.remove(at);
                }
                if outcome == Outcome::Collected {
                    // A valid path's references are valid: it is gone as well.
                    // One that was not asked for yet may still be in the cache.
                    r.doomed = true;
                    if r.phase == Phase::Held {
                        stack.push((referrer, Outcome::Collected));
                    }
                } else {
                    self.ready_unless_blocked(referrer);
                }
            }
        }
    }

    /// Gives a task up for now, and with it what refers to it.
    fn park(&mut self, id: TaskId, cause: Cause) {
        let mut stack = vec![(id, cause)];
        while let Some((id, cause)) = stack.pop() {
            let Some(task) = self.tasks.get_mut(&id) else { continue };
            if task.is_parked() {
                continue;
            }
            task.phase = Phase::Parked(cause);
            let sessions = task.sessions.clone();
            let referrers = task.referrers.clone();
            self.caches[usize::from(task.cache.0)].parked += 1;
            self.out.push(Action::Parked(id, cause));
            self.leave_groups(&sessions);
            let held = |r: &TaskId| self.tasks.get(r).is_some_and(|t| t.phase == Phase::Held);
            stack.extend(referrers.into_iter().filter(held).map(|r| (r, Cause::Reference(id))));
        }
    }

    fn leave_groups(&mut self, sessions: &[SessionId]) {
        for &session in sessions {
            let Some(group) = self.groups.get_mut(&session) else { continue };
            group.unsettled = group.unsettled.saturating_sub(1);
            if group.flushing && group.unsettled == 0 {
                self.out.push(Action::Quiet(session));
            }
        }
    }

    /// Tasks whose rest is over queue again.
    fn wake(&mut self, now: Time) {
        while let Some(&(until, id)) = self.rests.first().filter(|(until, _)| *until <= now) {
            self.rests.remove(&(until, id));
            if self.tasks.get(&id).is_some_and(|t| t.phase == Phase::Resting(until)) {
                self.make_ready(id);
            }
        }
    }

    /// Begins what one cache is ready for.
    fn pump(&mut self, index: usize, now: Time) {
        let Self { caches, tasks, out, stopped, .. } = self;
        let c = &mut caches[index];
        if *stopped {
            return;
        }
        // Also while the gate is closed: a pause that is over must not stay a deadline.
        if c.ask_rest.is_some_and(|at| at <= now) {
            c.ask_rest = None;
        }
        if c.gate.begin_probe(now) {
            out.push(Action::Probe(cache_id(index)));
        }
        if !c.gate.is_open() {
            return;
        }
        if c.asking.is_none() && c.ask_rest.is_none() {
            let mut batch = Vec::new();
            while batch.len() < c.ask_most {
                let Some(id) = c.urgent_asks.pop_front().or_else(|| c.asks.pop_front()) else { break };
                if let Some(task) = tasks.get_mut(&id).filter(|t| t.phase == Phase::Unasked) {
                    task.phase = Phase::Asking;
                    batch.push(id);
                }
            }
            if !batch.is_empty() {
                c.asking = Some(batch.clone());
                out.push(Action::Ask(cache_id(index), batch));
            }
        }
        while c.uploading < c.pace.limit() {
            let ready = |id, urgent| {
                tasks.get(&id).is_some_and(|t: &Task| t.phase == Phase::Ready && t.urgent == urgent)
            };
            let Some(id) = c.lanes.pop(ready) else { break };
            if let Some(task) = tasks.get_mut(&id) {
                task.phase = Phase::Uploading;
                task.attempts += 1;
                c.uploading += 1;
                out.push(Action::Upload(cache_id(index), id, task.attempts));
            }
        }
    }
}

fn cache_id(index: usize) -> CacheId {
    CacheId(u16::try_from(index).unwrap_or(u16::MAX))
}

/// What a server asks for, as far as we follow it.
fn bounded(retry_after: Option<std::time::Duration>) -> std::time::Duration {
    retry_after.unwrap_or_default().min(std::time::Duration::from_secs(600))
}
