//! The step: takes one event and returns the actions that follow.

use std::collections::{BTreeSet, HashMap};
use std::time::Duration;

use super::cache::{Cache, CacheLimits, CacheView, Upload};
use super::concurrency::ConcurrencyLimit;
use super::event::{Action, Cause, Event, Failure, NewPush, Outcome, Purpose};
use super::fair_queue::NOBODY;
use super::group::PushGroup;
use super::id_set::IdSet;
use super::push::{ClosureAt, Phase, Push, Recorded};
use super::push_table::PushTable;
use super::retry::{self, Backoff, Rng, bounded};
use crate::types::{CacheId, Mono, PushId, SessionId};

/// Attempts after which a push fails whose path cannot be read.
const LOCAL_TRIES: u32 = 5;

/// How often the closure of a push may be too old before its upload, in a row.
const RECHECKS: u8 = 8;

/// Most pushes of one [`Action::Recheck`].
const RECHECK_MOST: usize = 1_024;

/// Time until a push is tried again whose closure could not be read.
const RECHECK_REST: Duration = Duration::from_secs(1);

/// How long a confirmation counts, unless [`Flow::with_recheck_after`] says otherwise.
const RECHECK_AFTER: Duration = Duration::from_secs(600);

/// Most failed pushes that are known here. Older ones are forgotten; the ledger
/// has them.
const FAILED_MOST: usize = 10_000;

/// Places that a table may have beyond four times its content, before it becomes smaller.
const SPARE: usize = 4_096;

/// The decisions about all pushes of one daemon.
#[derive(Debug)]
pub(crate) struct Flow {
    pub(super) caches: Vec<Cache>,
    pub(super) pushes: PushTable<Push>,
    /// The failed ones among them.
    pub(super) failed: BTreeSet<PushId>,
    /// Most failed pushes that are kept, see [`Flow::forget_oldest_failed`].
    pub(super) failed_most: usize,
    /// Whether failed pushes were forgotten since the last retry of all.
    pub(super) forgot: bool,
    pub(super) groups: HashMap<SessionId, PushGroup>,
    /// The groups that take in every push that is admitted, see [`Event::WantAll`].
    pub(super) gathering: Vec<SessionId>,
    /// Pushes that wait after an error, and until when.
    pub(super) rests: BTreeSet<(Mono, PushId)>,
    pub(super) rng: Rng,
    /// How long a confirmation counts.
    pub(super) recheck_after: Duration,
    pub(super) stopped: bool,
    pub(super) out: Vec<Action>,
}

impl Flow {
    /// Starts with caches numbered from 0 and without pushes. `seed` decides
    /// every jitter.
    pub(crate) fn new(caches: &[CacheLimits], seed: u64) -> Self {
        Self {
            caches: caches.iter().map(Cache::new).collect(),
            pushes: PushTable::default(),
            failed: BTreeSet::new(),
            failed_most: FAILED_MOST,
            forgot: false,
            groups: HashMap::new(),
            gathering: Vec::new(),
            rests: BTreeSet::new(),
            rng: Rng::new(seed),
            recheck_after: RECHECK_AFTER,
            stopped: false,
            out: Vec::new(),
        }
    }

    /// Sets how long a confirmation counts before the closure of a push is confirmed
    /// again. At least a few seconds, or no upload would ever begin.
    pub(crate) fn with_recheck_after(mut self, recheck_after: Duration) -> Self {
        self.recheck_after = recheck_after;
        self
    }

    /// Adds a cache, which gets the next number.
    pub(crate) fn add_cache(&mut self, limits: CacheLimits) {
        self.caches.push(Cache::new(&limits));
    }

    /// Handles an event and returns the actions in order. Total: an event about
    /// something unknown changes nothing.
    pub(crate) fn step(&mut self, event: Event, now: Mono) -> Vec<Action> {
        let shown: Vec<_> = self.caches.iter().map(|cache| cache.breaker.shown()).collect();
        match event {
            Event::Admit { cache, pushes } => pushes.into_iter().for_each(|push| self.admit(cache, push)),
            Event::Asked { cache, present, missing } => self.asked(cache, &present, &missing, now),
            Event::AskFailed { cache, failure, .. } => self.ask_failed(cache, failure, now),
            Event::Uploaded(id, took) => self.uploaded(id, Outcome::Pushed, took, now),
            Event::RoundTrip(cache, took) => {
                if let Some(cache) = self.cache(cache) {
                    cache.concurrency.round_trip(took);
                }
            }
            Event::InUpstream(id, at) => self.in_upstream(id, at),
            Event::Arrived(id) => {
                if let Some(cache) = self.pushes.get(&id).map(|push| push.cache)
                    && let Some(cache) = self.cache(cache)
                {
                    cache.others.seen(now);
                }
                self.uploaded(id, Outcome::Cached, Duration::ZERO, now);
            }
            Event::UploadFailed(id, failure) => self.upload_failed(id, failure, now),
            Event::Collected(id) => {
                self.leave_upload(id);
                self.settle(id, Outcome::Collected, now);
            }
            Event::Rechecked(cache) => self.rechecked(cache, now),
            Event::Unconfirmed(session) => self.unconfirmed(session),
            Event::Probed(cache, result) => self.probed(cache, result, now),
            Event::ProbeNow(cache) => {
                if let Some(cache) = self.cache(cache) {
                    cache.breaker.probe_now(now);
                    cache.ask_rest = None;
                }
            }
            Event::Retry(which) => self.retry(which, now),
            Event::Want(session, pushes) => pushes.into_iter().for_each(|id| self.want(session, id)),
            Event::WantAll(group) => self.want_all(group),
            Event::Flush(session) => self.flush(session),
            Event::Forget(session) => self.forget(session),
            Event::Hold(cache, held) => {
                if let Some(cache) = self.cache(cache) {
                    cache.held = held;
                }
            }
            Event::Limits(cache, limits) => {
                if let Some(cache) = self.cache(cache) {
                    cache.most = limits.most;
                    cache.concurrency = ConcurrencyLimit::new(limits.least, limits.most);
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
                self.out.push(Action::Breaker(id_of_cache(index), after));
            }
        }
        self.give_back();
        std::mem::take(&mut self.out)
    }

    /// Gives memory back after a backlog. The lists become half full, so that this is
    /// seldom.
    fn give_back(&mut self) {
        for Cache { asks, .. } in &mut self.caches {
            if asks.capacity() > SPARE + 4 * asks.len() {
                asks.shrink_to(2 * asks.len());
            }
        }
    }

    /// Returns when the next [`Event::Tick`] is due at the latest.
    pub(crate) fn next_deadline(&self) -> Option<Mono> {
        if self.stopped {
            return None;
        }
        let rest = self.rests.first().map(|&(at, _)| at);
        let caches = self.caches.iter().flat_map(|cache| [cache.breaker.due(), cache.ask_rest]);
        caches.chain([rest]).flatten().min()
    }

    /// Returns a cache's state and counts for `status`.
    pub(crate) fn view(&self, cache: CacheId) -> Option<CacheView> {
        let cache = self.caches.get(usize::from(cache.0))?;
        Some(CacheView {
            state: cache.breaker.shown(),
            pending: cache.pushes - cache.failed,
            uploading: cache.uploading,
            failed: cache.failed,
            limit: cache.most.min(cache.concurrency.limit() + cache.large.count),
        })
    }

    /// Returns the number of uploads and queries under way, over all caches.
    pub(crate) fn in_flight(&self) -> u32 {
        self.caches.iter().map(|cache| cache.uploading + u32::from(cache.asking.is_some())).sum()
    }

    /// Returns how many pushes of a session are neither settled nor failed.
    pub(crate) fn unsettled(&self, session: SessionId) -> u32 {
        self.groups.get(&session).map_or(0, |group| group.unsettled)
    }

    /// Returns the sessions that a push belongs to.
    pub(crate) fn sessions_of(&self, push: PushId) -> impl Iterator<Item = SessionId> {
        self.pushes.get(&push).into_iter().flat_map(|push| push.sessions.iter())
    }

    /// Returns the pushes that are being uploaded to a cache.
    #[cfg(test)]
    pub(crate) fn uploading(&self, cache: CacheId) -> impl Iterator<Item = PushId> {
        let uploading = move |push: &Push| push.cache == cache && push.phase == Phase::Uploading;
        self.pushes.iter().filter(move |(_, push)| uploading(push)).map(|(id, _)| id)
    }

    /// Returns whether the cache deletes paths if it does not have the path of this push.
    #[cfg(test)]
    pub(crate) fn was_in_cache(&self, push: PushId) -> bool {
        let recorded = self.pushes.get(&push).and_then(|push| push.recheck);
        recorded.is_some_and(|recorded| recorded != Recorded::InUpstream)
    }

    /// Returns whether a push is known and failed.
    pub(crate) fn is_failed(&self, push: PushId) -> bool {
        self.pushes.get(&push).is_some_and(Push::is_failed)
    }

    /// Returns how many uploads of a push have ended without a verdict.
    pub(crate) fn no_verdicts(&self, push: PushId) -> u32 {
        self.pushes.get(&push).map_or(0, |push| u32::from(push.no_verdicts))
    }

    /// Returns the number of known pushes, over all caches.
    pub(crate) fn known(&self) -> usize {
        self.pushes.len()
    }

    /// Returns whether there are failed pushes that are not known here.
    pub(crate) fn has_forgotten(&self) -> bool {
        self.forgot
    }

    pub(super) fn cache(&mut self, cache: CacheId) -> Option<&mut Cache> {
        self.caches.get_mut(usize::from(cache.0))
    }

    fn admit(&mut self, cache_id: CacheId, new: NewPush) {
        let id = new.id;
        if let Some(known) = self.pushes.get_mut(&id) {
            known.ask_after = known.ask_after.max(new.ask_after);
            let is_stale = known.phase == Phase::Stale;
            new.sessions.iter().for_each(|s| self.want(*s, id));
            if is_stale {
                self.renew_closure(id, &new);
            }
            return;
        }
        let Some(cache) = self.cache(cache_id) else { return };
        cache.pushes += 1;
        let is_failed = new.purpose == Purpose::Failed;
        if is_failed {
            cache.failed += 1;
            self.failed.insert(id);
        } else {
            cache.asks.push_back(id);
            if new.built && new.purpose == Purpose::Wanted {
                cache.others.observe(id);
            }
        }
        let mut references = IdSet::default();
        for reference in new.references.into_iter().filter(|reference| *reference != id) {
            if let Some(push) = self.pushes.get_mut(&reference) {
                push.referrers.insert(id);
                references.insert(reference);
            }
        }
        let push = Push {
            cache: cache_id,
            phase: if is_failed { Phase::Failed(Cause::Earlier) } else { Phase::Unasked },
            references,
            referrers: IdSet::default(),
            sessions: IdSet::default(),
            queued_for: new.sessions.first().copied().unwrap_or(NOBODY),
            urgent: false,
            nar_size: new.nar_size,
            attempts: 0,
            mismatched: false,
            recheck: match new.purpose {
                Purpose::Recheck => Some(Recorded::InCache),
                Purpose::Upstream => Some(Recorded::InUpstream),
                Purpose::Wanted | Purpose::Failed => None,
            },
            // The caller may not have learned yet that the cache has deleted paths.
            closure_at: self.caches[usize::from(cache_id.0)].trusted(ClosureAt::new(new.closure_at)),
            ask_after: new.ask_after,
            rechecks: 0,
            no_verdicts: 0,
            ask_first: false,
            doomed: false,
        };
        self.pushes.insert(id, push);
        new.sessions.into_iter().for_each(|s| self.want(s, id));
        if !is_failed {
            self.gathering.clone().into_iter().for_each(|group| self.want(group, id));
        }
    }

    /// Gives a stale push the part of its closure that is not confirmed, to wait for.
    fn renew_closure(&mut self, id: PushId, new: &NewPush) {
        let mut failed = None;
        let mut references = IdSet::default();
        for &reference in new.references.iter().filter(|reference| **reference != id) {
            if let Some(known) = self.pushes.get_mut(&reference)
                && known.referrers.insert(id)
            {
                failed = failed.or(known.is_failed().then_some(reference));
                references.insert(reference);
            }
        }
        let Some(push) = self.pushes.get_mut(&id) else { return };
        push.references = references;
        push.closure_at = self.caches[usize::from(push.cache.0)].trusted(ClosureAt::new(new.closure_at));
        push.phase = Phase::Held;
        let (urgent, session) = (push.urgent, push.queued_for);
        if urgent {
            new.references.iter().for_each(|reference| self.promote(session, *reference));
        }
        match failed {
            Some(reference) => self.fail(id, Cause::Reference(reference)),
            None => self.ready_unless_blocked(id),
        }
    }

    /// Handles the end of [`Action::Recheck`].
    fn rechecked(&mut self, cache_id: CacheId, now: Mono) {
        let Some(ids) = self.cache(cache_id).and_then(|cache| cache.rechecking.take()) else { return };
        for id in ids {
            if self.pushes.get(&id).is_some_and(|push| push.phase == Phase::Stale) {
                self.rest(id, now.after(RECHECK_REST));
            }
        }
    }

    fn uploaded(&mut self, id: PushId, outcome: Outcome, took: Duration, now: Mono) {
        if let Some((index, upload)) = self.leave_upload(id) {
            let cache = &mut self.caches[index];
            if outcome == Outcome::Pushed {
                cache.breaker.succeeded();
                if self.pushes.get(&id).is_some_and(|push| !push.is_large()) {
                    // This upload is no longer counted.
                    let held_back =
                        cache.small_uploading() + 1 >= cache.concurrency.limit() && !cache.queue.is_empty();
                    cache.concurrency.succeeded(now, upload.round, took, held_back);
                } else if let Some(push) = self.pushes.get(&id) {
                    cache.others.sent(push.nar_size, took);
                }
            }
            self.settle(id, outcome, upload.began);
        }
    }

    /// Settles a push whose path an upstream cache has, as of `at`.
    fn in_upstream(&mut self, id: PushId, at: Mono) {
        if self.leave_upload(id).is_some() {
            self.settle(id, Outcome::Upstream, at);
        }
    }

    fn upload_failed(&mut self, id: PushId, failure: Failure, now: Mono) {
        let Some((index, upload)) = self.leave_upload(id) else { return };
        let cache = &mut self.caches[index];
        cache.breaker.failed(failure, Some(id), now, &mut self.rng);
        let Some(push) = self.pushes.get_mut(&id) else { return };
        let wait = Backoff::UPLOAD.wait(push.attempts, &mut self.rng);
        match failure {
            Failure::Refused => self.make_ready(id),
            Failure::Store | Failure::Engine => self.rest(id, now.after(wait)),
            // The breaker is closed now. A path whose upload breaks the
            // connection each time waits on its own, so that other paths go first.
            Failure::Unreachable if push.attempts <= 2 => self.make_ready(id),
            Failure::Unreachable => self.rest(id, now.after(wait)),
            Failure::Transient { retry_after } => {
                cache.concurrency.strained(now, upload.round, retry_after.is_some());
                self.rest(id, now.after(wait.max(bounded(retry_after))));
            }
            Failure::NoVerdict if usize::from(push.no_verdicts) < retry::NO_VERDICT.len() => {
                let wait = retry::after_no_verdict(push.no_verdicts, &mut self.rng);
                push.no_verdicts += 1;
                push.ask_first = true;
                self.rest(id, now.after(wait));
            }
            Failure::Local if push.attempts < LOCAL_TRIES => self.rest(id, now.after(wait)),
            Failure::Mismatch if !push.mismatched => {
                push.mismatched = true;
                self.make_ready(id);
            }
            Failure::Mismatch
            | Failure::NoVerdict
            | Failure::Local
            | Failure::NoSuchCache
            | Failure::TooLarge
            | Failure::Rejected => {
                self.fail(id, Cause::Failed(failure));
            }
        }
    }

    fn probed(&mut self, cache_id: CacheId, result: Result<(), Failure>, now: Mono) {
        let Some(cache) = self.caches.get_mut(usize::from(cache_id.0)) else { return };
        if cache.breaker.probed(result, now, &mut self.rng) {
            // Many hosts see at the same moment that the cache is back, so each
            // starts with few uploads.
            cache.concurrency.restart();
            cache.ask_rest = None;
        }
    }

    /// Ends a push's upload and returns its cache's index and the upload, or `None` when
    /// it was not being uploaded. The caller decides the push's next phase.
    fn leave_upload(&mut self, id: PushId) -> Option<(usize, Upload)> {
        let push = self.pushes.get_mut(&id)?;
        if push.phase != Phase::Uploading {
            return None;
        }
        push.phase = Phase::Held;
        let index = usize::from(push.cache.0);
        let cache = &mut self.caches[index];
        let upload = cache.end_upload(id, push)?;
        Some((index, upload))
    }

    pub(super) fn ready_unless_blocked(&mut self, id: PushId) {
        if self.pushes.get(&id).is_some_and(|push| push.phase == Phase::Held && push.references.is_empty()) {
            self.make_ready(id);
        }
    }

    pub(super) fn make_ready(&mut self, id: PushId) {
        if let Some(push) = self.pushes.get_mut(&id) {
            push.phase = Phase::Ready;
            let cache = &mut self.caches[usize::from(push.cache.0)];
            let queue = if push.is_large() { &mut cache.large_queue } else { &mut cache.queue };
            queue.push(push.queued_for, id, push.urgent);
        }
    }

    fn rest(&mut self, id: PushId, until: Mono) {
        if let Some(push) = self.pushes.get_mut(&id) {
            push.phase = Phase::Resting(until);
            self.rests.insert((until, id));
        }
    }

    /// Ends the wait of a push that rests now, in this step.
    pub(super) fn end_rest(&mut self, id: PushId, now: Mono) {
        if let Some(push) = self.pushes.get(&id)
            && let Phase::Resting(until) = push.phase
        {
            self.rests.remove(&(until, id));
            self.rest(id, now);
        }
    }

    /// Makes pushes ready whose wait is over, or has the cache asked first.
    fn wake(&mut self, now: Mono) {
        while let Some(&(until, id)) = self.rests.first().filter(|(until, _)| *until <= now) {
            self.rests.remove(&(until, id));
            let Some(push) = self.pushes.get_mut(&id).filter(|push| push.phase == Phase::Resting(until))
            else {
                continue;
            };
            if std::mem::take(&mut push.ask_first) {
                push.phase = Phase::Unasked;
                let cache = &mut self.caches[usize::from(push.cache.0)];
                let asks = if push.urgent { &mut cache.urgent_asks } else { &mut cache.asks };
                asks.push_back(id);
            } else {
                self.make_ready(id);
            }
        }
    }

    /// Begins the probe, the query and the uploads that one cache allows now.
    fn pump(&mut self, index: usize, now: Mono) {
        let mut outdated = Vec::new();
        let Self { caches, pushes, groups, rests, rng, out, stopped, recheck_after, .. } = self;
        let cache = &mut caches[index];
        if *stopped {
            return;
        }
        // Also while the breaker is closed: a deadline must not stay in the past.
        if cache.ask_rest.is_some_and(|at| at <= now) {
            cache.ask_rest = None;
        }
        if cache.breaker.begin_probe(now) {
            out.push(Action::Probe(id_of_cache(index)));
        }
        if !cache.breaker.is_open() {
            return;
        }
        if cache.asking.is_none() && cache.ask_rest.is_none() {
            let mut batch = Vec::new();
            while batch.len() < cache.ask_most {
                let Some(id) = cache.urgent_asks.pop_front().or_else(|| cache.asks.pop_front()) else {
                    break;
                };
                if let Some(push) = pushes.get_mut(&id).filter(|push| push.phase == Phase::Unasked) {
                    push.phase = Phase::Asking;
                    batch.push(id);
                }
            }
            if !batch.is_empty() {
                cache.asking = Some(batch.clone());
                cache.asked_at = now;
                out.push(Action::Ask(id_of_cache(index), batch));
            }
        }
        while !cache.held && cache.uploading < cache.most {
            let ready = |id, urgent| {
                pushes.get(&id).is_some_and(|push| push.phase == Phase::Ready && push.urgent == urgent)
            };
            // Large and small uploads take turns when few places are free.
            cache.large_next = !cache.large_next;
            let room = cache.small_uploading() < cache.concurrency.limit();
            let mut large = cache.large.has_room().then_some(&mut cache.large_queue);
            let mut small = room.then_some(&mut cache.queue);
            if !cache.large_next {
                std::mem::swap(&mut large, &mut small);
            }
            let next = large.and_then(|queue| queue.pop(ready)).or_else(|| small?.pop(ready));
            let Some(id) = next else { break };
            if let Some(push) = pushes.get_mut(&id) {
                if push.closure_at.get().is_none_or(|at| now.since(at) > *recheck_after) {
                    push.phase = Phase::Stale;
                    push.rechecks += 1;
                    if push.rechecks > RECHECKS {
                        outdated.push(id);
                    } else {
                        cache.stale.push_back(id);
                    }
                    continue;
                }
                let last = |session| groups.get(&session).is_some_and(PushGroup::waits_for_one);
                let awaited = push.is_large() && push.sessions.iter().any(last);
                if !awaited && let Some(wait) = cache.others.draw(id, push.nar_size, now, rng) {
                    let until = now.after(wait.max(Duration::from_millis(1)));
                    push.phase = Phase::Resting(until);
                    push.ask_first = true;
                    rests.insert((until, id));
                    continue;
                }
                push.phase = Phase::Uploading;
                push.rechecks = 0;
                push.attempts += 1;
                cache.begin_upload(id, push, now);
                out.push(Action::Upload(id_of_cache(index), id, push.attempts));
            }
        }
        if cache.rechecking.is_none() && !cache.stale.is_empty() {
            let stale = |id: &PushId| pushes.get(id).is_some_and(|push| push.phase == Phase::Stale);
            let most = cache.stale.len().min(RECHECK_MOST);
            let batch: Vec<PushId> = cache.stale.drain(..most).filter(stale).collect();
            if !batch.is_empty() {
                cache.rechecking = Some(batch.clone());
                out.push(Action::Recheck(id_of_cache(index), batch));
            }
        }
        outdated.into_iter().for_each(|id| self.fail(id, Cause::Outdated));
    }
}

/// Returns the number of the cache at an index.
fn id_of_cache(index: usize) -> CacheId {
    CacheId(u16::try_from(index).unwrap_or(u16::MAX))
}
