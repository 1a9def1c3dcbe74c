//! The step: one event in, the actions it leads to out.

use std::collections::{BTreeSet, HashMap};

use super::cache::{Cache, CacheLimits, CacheView};
use super::event::{Action, CacheId, Cause, Event, Failure, NewTask, Outcome, SessionId, TaskId, Time};
use super::lanes::NOBODY;
use super::pace::Pace;
use super::referrers::Referrers;
use super::retry::{Backoff, Rng, bounded};
use super::session::Group;
use super::task::{Phase, Task};

/// Tries after which a task that cannot be read here is parked.
const LOCAL_TRIES: u32 = 5;

/// Parked tasks that are known here; older ones are forgotten, and known only
/// to whoever keeps the books.
const PARKED_MOST: usize = 10_000;

/// All decisions of one daemon.
#[derive(Debug)]
pub struct Flow {
    pub(super) caches: Vec<Cache>,
    /// In boxes: a table of a hundred thousand is half empty, and twice there while it grows.
    pub(super) tasks: HashMap<TaskId, Box<Task>>,
    /// Given-up ones among them; see [`Flow::let_go_of_parked`].
    pub(super) given_up: BTreeSet<TaskId>,
    pub(super) given_up_most: usize,
    pub(super) forgot: bool,
    pub(super) groups: HashMap<SessionId, Group>,
    pub(super) rests: BTreeSet<(Time, TaskId)>,
    pub(super) rng: Rng,
    pub(super) stopped: bool,
    pub(super) out: Vec<Action>,
}

impl Flow {
    /// For caches numbered from 0; `seed` decides every jitter.
    pub fn new(caches: &[CacheLimits], seed: u64) -> Self {
        Self {
            caches: caches.iter().map(Cache::new).collect(),
            tasks: HashMap::new(),
            given_up: BTreeSet::new(),
            given_up_most: PARKED_MOST,
            forgot: false,
            groups: HashMap::new(),
            rests: BTreeSet::new(),
            rng: Rng::new(seed),
            stopped: false,
            out: Vec::new(),
        }
    }

    /// One more cache, which gets the next number.
    pub fn add_cache(&mut self, limits: CacheLimits) {
        self.caches.push(Cache::new(&limits));
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
            Event::Hold(cache, held) => {
                if let Some(c) = self.cache(cache) {
                    c.held = held;
                }
            }
            Event::Limits(cache, limits) => {
                if let Some(c) = self.cache(cache) {
                    c.pace = Pace::new(limits.least, limits.most);
                }
            }
            Event::Tick => {}
            Event::Stop => self.stopped = true,
            Event::Go => self.stopped = false,
        }
        self.let_go_of_parked();
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

    /// The groups that wait for a task.
    pub fn sessions_of(&self, task: TaskId) -> &[SessionId] {
        self.tasks.get(&task).map_or(&[], |t| &t.sessions)
    }

    /// Whether a task is given up for now.
    pub fn is_parked(&self, task: TaskId) -> bool {
        self.tasks.get(&task).is_some_and(|t| t.is_parked())
    }

    /// Neither settled nor forgotten, over all caches.
    pub fn known(&self) -> usize {
        self.tasks.len()
    }

    /// Whether more are given up than are known here.
    pub fn has_forgotten(&self) -> bool {
        self.forgot
    }

    pub(super) fn cache(&mut self, cache: CacheId) -> Option<&mut Cache> {
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
            self.given_up.insert(id);
        } else {
            c.asks.push_back(id);
        }
        let mut references = new.references;
        references.retain(|r| *r != id && self.tasks.get_mut(r).is_some_and(|r| r.referrers.insert(id)));
        references.shrink_to_fit();
        let task = Task {
            cache,
            phase: if new.parked { Phase::Parked(Cause::Earlier) } else { Phase::Unasked },
            references,
            referrers: Referrers::default(),
            sessions: Vec::new(),
            lane: new.sessions.first().copied().unwrap_or(NOBODY),
            urgent: false,
            attempts: 0,
            mismatched: false,
            doomed: false,
        };
        self.tasks.insert(id, Box::new(task));
        new.sessions.into_iter().for_each(|s| self.want(s, id));
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
            Failure::Store | Failure::Engine => self.rest(id, now.after(wait)),
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

    /// The cache's index when the task was being uploaded.
    pub(super) fn leave_upload(&mut self, id: TaskId) -> Option<usize> {
        let task = self.tasks.get_mut(&id)?;
        if task.phase != Phase::Uploading {
            return None;
        }
        task.phase = Phase::Held;
        let index = usize::from(task.cache.0);
        self.caches[index].uploading -= 1;
        Some(index)
    }

    pub(super) fn ready_unless_blocked(&mut self, id: TaskId) {
        if self.tasks.get(&id).is_some_and(|t| t.phase == Phase::Held && t.references.is_empty()) {
            self.make_ready(id);
        }
    }

    pub(super) fn make_ready(&mut self, id: TaskId) {
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
        while !c.held && c.uploading < c.pace.limit() {
            let ready =
                |id, urgent| tasks.get(&id).is_some_and(|t| t.phase == Phase::Ready && t.urgent == urgent);
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
