//! The step: one event in, the actions it leads to out.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::cache::{Cache, CacheLimits, CacheView};
use super::concurrency::ConcurrencyLimit;
use super::event::{Action, Cause, Event, Failure, NewPush, Outcome};
use super::fair_queue::NOBODY;
use super::group::PushGroup;
use super::push::{Phase, Push};
use super::referrers::Referrers;
use super::retry::{Backoff, Rng, bounded};
use crate::types::{CacheId, Mono, PushId, SessionId};

/// Tries after which a push that cannot be read here is failed.
const LOCAL_TRIES: u32 = 5;

/// Failed pushes that are known here; older ones are forgotten, and known only
/// to whoever keeps the books.
const PARKED_MOST: usize = 10_000;

/// All decisions of one daemon.
#[derive(Debug)]
pub struct Flow {
    pub(super) caches: Vec<Cache>,
    /// In boxes: a table of a hundred thousand is half empty, and twice there while it grows.
    pub(super) pushes: HashMap<PushId, Box<Push>>,
    /// Given-up ones among them; see [`Flow::forget_oldest_failed`].
    pub(super) failed: BTreeSet<PushId>,
    pub(super) given_up_most: usize,
    pub(super) forgot: bool,
    pub(super) groups: HashMap<SessionId, PushGroup>,
    pub(super) rests: BTreeSet<(Mono, PushId)>,
    pub(super) rng: Rng,
    pub(super) stopped: bool,
    pub(super) out: Vec<Action>,
}

impl Flow {
    /// For caches numbered from 0; `seed` decides every jitter.
    pub fn new(caches: &[CacheLimits], seed: u64) -> Self {
        Self {
            caches: caches.iter().map(Cache::new).collect(),
            pushes: HashMap::new(),
            failed: BTreeSet::new(),
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
    pub fn step(&mut self, event: Event, now: Mono) -> Vec<Action> {
        let shown: Vec<_> = self.caches.iter().map(|c| c.breaker.shown()).collect();
        match event {
            Event::Admit { cache, pushes } => pushes.into_iter().for_each(|push| self.admit(cache, push)),
            Event::Asked { cache, present, missing } => self.asked(cache, &present, &missing, now),
            Event::AskFailed { cache, failure, .. } => self.ask_failed(cache, failure, now),
            Event::Uploaded(id, took) => self.uploaded(id, Outcome::Pushed, took, now),
            Event::RoundTrip(cache, took) => {
                if let Some(c) = self.caches.get_mut(usize::from(cache.0)) {
                    c.concurrency.round_trip(took);
                }
            }
            Event::InUpstream(id) => self.uploaded(id, Outcome::Upstream, Duration::ZERO, now),
            Event::UploadFailed(id, failure) => self.upload_failed(id, failure, now),
            Event::Collected(id) => {
                self.leave_upload(id);
                self.settle(id, Outcome::Collected);
            }
            Event::Probed(cache, result) => self.probed(cache, result, now),
            Event::ProbeNow(cache) => {
                if let Some(c) = self.cache(cache) {
                    c.breaker.probe_now(now);
                    c.ask_rest = None;
                }
            }
            Event::Retry(which) => self.retry(which),
            Event::Want(session, pushes) => pushes.into_iter().for_each(|id| self.want(session, id)),
            Event::WantAll(session) => {
                let all = self.all(|t| !t.is_failed());
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
                    c.most = limits.most;
                    c.concurrency = ConcurrencyLimit::new(limits.least, limits.most);
                }
            }
            Event::Tick => {}
            Event::Stop => self.stopped = true,
            Event::Resume => self.stopped = false,
        }
        self.forget_oldest_failed();
        self.wake(now);
        for index in 0..self.caches.len() {
            self.pump(index, now);
        }
        for (index, before) in shown.into_iter().enumerate() {
            let after = self.caches[index].breaker.shown();
            if before != after {
                self.out.push(Action::Breaker(cache_id(index), after));
            }
        }
        std::mem::take(&mut self.out)
    }

    /// When [`Event::Tick`] is wanted at the latest.
    pub fn next_deadline(&self) -> Option<Mono> {
        if self.stopped {
            return None;
        }
        let rest = self.rests.first().map(|&(at, _)| at);
        let caches = self.caches.iter().flat_map(|c| [c.breaker.due(), c.ask_rest]);
        caches.chain([rest]).flatten().min()
    }

    /// One cache as it stands.
    pub fn view(&self, cache: CacheId) -> Option<CacheView> {
        let c = self.caches.get(usize::from(cache.0))?;
        Some(CacheView {
            state: c.breaker.shown(),
            pending: c.pushes - c.failed,
            uploading: c.uploading,
            failed: c.failed,
            limit: c.most.min(c.concurrency.limit() + c.large.count),
        })
    }

    /// Uploads and queries under way, over all caches.
    pub fn in_flight(&self) -> u32 {
        self.caches.iter().map(|c| c.uploading + u32::from(c.asking.is_some())).sum()
    }

    /// How many pushes of a group are neither settled nor failed.
    pub fn unsettled(&self, session: SessionId) -> u32 {
        self.groups.get(&session).map_or(0, |g| g.unsettled)
    }

    /// Whether a push is known, that is neither settled nor never admitted.
    pub fn knows(&self, push: PushId) -> bool {
        self.pushes.contains_key(&push)
    }

    /// The groups that wait for a push.
    pub fn sessions_of(&self, push: PushId) -> &[SessionId] {
        self.pushes.get(&push).map_or(&[], |t| &t.sessions)
    }

    /// Whether a push is given up for now.
    pub fn is_failed(&self, push: PushId) -> bool {
        self.pushes.get(&push).is_some_and(|t| t.is_failed())
    }

    /// Neither settled nor forgotten, over all caches.
    pub fn known(&self) -> usize {
        self.pushes.len()
    }

    /// Whether more are given up than are known here.
    pub fn has_forgotten(&self) -> bool {
        self.forgot
    }

    pub(super) fn cache(&mut self, cache: CacheId) -> Option<&mut Cache> {
        self.caches.get_mut(usize::from(cache.0))
    }

    fn admit(&mut self, cache: CacheId, new: NewPush) {
        let id = new.id;
        if self.pushes.contains_key(&id) {
            new.sessions.into_iter().for_each(|s| self.want(s, id));
            return;
        }
        let Some(c) = self.cache(cache) else { return };
        c.pushes += 1;
        if new.failed {
            c.failed += 1;
            self.failed.insert(id);
        } else {
            c.asks.push_back(id);
        }
        let mut references = new.references;
        references.retain(|r| *r != id && self.pushes.get_mut(r).is_some_and(|r| r.referrers.insert(id)));
        references.shrink_to_fit();
        let push = Push {
            cache,
            phase: if new.failed { Phase::Failed(Cause::Earlier) } else { Phase::Unasked },
            references,
            referrers: Referrers::default(),
            sessions: Vec::new(),
            lane: new.sessions.first().copied().unwrap_or(NOBODY),
            urgent: false,
            nar_size: new.nar_size,
            round: 0,
            attempts: 0,
            mismatched: false,
            doomed: false,
        };
        self.pushes.insert(id, Box::new(push));
        new.sessions.into_iter().for_each(|s| self.want(s, id));
    }

    fn uploaded(&mut self, id: PushId, outcome: Outcome, took: Duration, now: Mono) {
        if let Some(index) = self.leave_upload(id) {
            let c = &mut self.caches[index];
            if outcome == Outcome::Pushed {
                c.breaker.succeeded();
                if let Some(push) = self.pushes.get(&id).filter(|push| !push.is_large()) {
                    // The place of this one is free already.
                    let held_back = c.small_uploading() + 1 >= c.concurrency.limit() && !c.queue.is_empty();
                    c.concurrency.succeeded(now, push.round, took, held_back);
                }
            }
            self.settle(id, outcome);
        }
    }

    fn upload_failed(&mut self, id: PushId, failure: Failure, now: Mono) {
        let Some(index) = self.leave_upload(id) else { return };
        let c = &mut self.caches[index];
        c.breaker.failed(failure, Some(id), now, &mut self.rng);
        let Some(push) = self.pushes.get_mut(&id) else { return };
        let wait = Backoff::UPLOAD.wait(push.attempts, &mut self.rng);
        match failure {
            Failure::Refused => self.make_ready(id),
            Failure::Store | Failure::Engine => self.rest(id, now.after(wait)),
            // The breaker is closed now. A path that brings the connection down
            // every time waits on its own, so that it costs nobody else.
            Failure::Unreachable if push.attempts <= 2 => self.make_ready(id),
            Failure::Unreachable => self.rest(id, now.after(wait)),
            Failure::Transient { retry_after } => {
                c.concurrency.strained(now, push.round, retry_after.is_some());
                self.rest(id, now.after(wait.max(bounded(retry_after))));
            }
            Failure::Local if push.attempts < LOCAL_TRIES => self.rest(id, now.after(wait)),
            Failure::Mismatch if !push.mismatched => {
                push.mismatched = true;
                self.make_ready(id);
            }
            Failure::Mismatch
            | Failure::Local
            | Failure::NoSuchCache
            | Failure::TooLarge
            | Failure::Rejected => {
                self.fail(id, Cause::Failed(failure));
            }
        }
    }

    fn probed(&mut self, cache: CacheId, result: Result<(), Failure>, now: Mono) {
        let index = usize::from(cache.0);
        let Some(c) = self.caches.get_mut(index) else { return };
        if c.breaker.probed(result, now, &mut self.rng) {
            // Many hosts see the cache come back at the same moment: each
            // starts with little and grows.
            c.concurrency.restart();
            c.ask_rest = None;
        }
    }

    /// The cache's index when the push was being uploaded.
    pub(super) fn leave_upload(&mut self, id: PushId) -> Option<usize> {
        let push = self.pushes.get_mut(&id)?;
        if push.phase != Phase::Uploading {
            return None;
        }
        push.phase = Phase::Held;
        let index = usize::from(push.cache.0);
        let c = &mut self.caches[index];
        c.uploading -= 1;
        if push.is_large() {
            c.large.end(push.nar_size);
        }
        Some(index)
    }

    pub(super) fn ready_unless_blocked(&mut self, id: PushId) {
        if self.pushes.get(&id).is_some_and(|t| t.phase == Phase::Held && t.references.is_empty()) {
            self.make_ready(id);
        }
    }

    pub(super) fn make_ready(&mut self, id: PushId) {
        if let Some(push) = self.pushes.get_mut(&id) {
            push.phase = Phase::Ready;
            let c = &mut self.caches[usize::from(push.cache.0)];
            let queue = if push.is_large() { &mut c.large_queue } else { &mut c.queue };
            queue.push(push.lane, id, push.urgent);
        }
    }

    fn rest(&mut self, id: PushId, until: Mono) {
        if let Some(push) = self.pushes.get_mut(&id) {
            push.phase = Phase::Resting(until);
            self.rests.insert((until, id));
        }
    }

    /// Tasks whose rest is over queue again.
    fn wake(&mut self, now: Mono) {
        while let Some(&(until, id)) = self.rests.first().filter(|(until, _)| *until <= now) {
            self.rests.remove(&(until, id));
            if self.pushes.get(&id).is_some_and(|t| t.phase == Phase::Resting(until)) {
                self.make_ready(id);
            }
        }
    }

    /// Begins what one cache is ready for.
    fn pump(&mut self, index: usize, now: Mono) {
        let Self { caches, pushes, out, stopped, .. } = self;
        let c = &mut caches[index];
        if *stopped {
            return;
        }
        // Also while the breaker is closed: a pause that is over must not stay a deadline.
        if c.ask_rest.is_some_and(|at| at <= now) {
            c.ask_rest = None;
        }
        if c.breaker.begin_probe(now) {
            out.push(Action::Probe(cache_id(index)));
        }
        if !c.breaker.is_open() {
            return;
        }
        if c.asking.is_none() && c.ask_rest.is_none() {
            let mut batch = Vec::new();
            while batch.len() < c.ask_most {
                let Some(id) = c.urgent_asks.pop_front().or_else(|| c.asks.pop_front()) else { break };
                if let Some(push) = pushes.get_mut(&id).filter(|t| t.phase == Phase::Unasked) {
                    push.phase = Phase::Asking;
                    batch.push(id);
                }
            }
            if !batch.is_empty() {
                c.asking = Some(batch.clone());
                out.push(Action::Ask(cache_id(index), batch));
            }
        }
        while !c.held && c.uploading < c.most {
            let ready =
                |id, urgent| pushes.get(&id).is_some_and(|t| t.phase == Phase::Ready && t.urgent == urgent);
            // In turn, so that neither kind waits for the other when places are few.
            c.large_next = !c.large_next;
            let room = c.small_uploading() < c.concurrency.limit();
            let mut large = c.large.has_room().then_some(&mut c.large_queue);
            let mut small = room.then_some(&mut c.queue);
            if !c.large_next {
                std::mem::swap(&mut large, &mut small);
            }
            let next = large.and_then(|queue| queue.pop(ready)).or_else(|| small?.pop(ready));
            let Some(id) = next else { break };
            if let Some(push) = pushes.get_mut(&id) {
                push.phase = Phase::Uploading;
                push.attempts += 1;
                push.round = c.concurrency.began(now, c.small_uploading());
                c.uploading += 1;
                if push.is_large() {
                    c.large.begin(push.nar_size);
                }
                out.push(Action::Upload(cache_id(index), id, push.attempts));
            }
        }
    }
}

fn cache_id(index: usize) -> CacheId {
    CacheId(u16::try_from(index).unwrap_or(u16::MAX))
}
