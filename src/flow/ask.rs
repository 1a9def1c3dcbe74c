//! Queries to a cache: what its answers and errors mean for the pushes asked
//! about. One query is under way at a time.

use super::cache::ASK_MOST;
use super::event::{Action, Cause, Failure, Outcome};
use super::push::{Phase, Push, Recorded};
use super::retry::{Backoff, bounded};
use super::step::Flow;
use crate::types::{CacheId, Mono, PushId};

/// Refused queries in a row after which the hashes cannot be the reason. Halving
/// the largest query finds a single bad hash within twelve.
const ASK_REFUSALS: u32 = 32;

impl Flow {
    /// Handles the answer to the query that is under way.
    pub(super) fn asked(&mut self, cache_id: CacheId, present: &[PushId], missing: &[PushId], now: Mono) {
        let Some(cache) = self.cache(cache_id) else { return };
        let Some(batch) = cache.asking.take() else { return };
        cache.ask_attempt = 0;
        cache.ask_rest = None;
        cache.ask_refusals = 0;
        cache.ask_most = (cache.ask_most * 2).min(ASK_MOST);
        cache.breaker.succeeded();
        let asked_at = cache.asked_at;
        self.deleted(cache_id, missing, asked_at);
        for &id in present {
            let asking = self.pushes.get(&id).filter(|push| push.phase == Phase::Asking);
            // Who asked after the query began is not answered by it: the push is asked
            // about again below.
            if asking.is_some_and(|push| push.ask_after <= asked_at) {
                self.settle(id, Outcome::Cached, asked_at);
            }
        }
        for &id in missing {
            let Some(push) = self.pushes.get_mut(&id).filter(|push| push.phase == Phase::Asking) else {
                continue;
            };
            if push.doomed {
                self.settle(id, Outcome::Collected, asked_at);
                continue;
            }
            push.phase = Phase::Held;
            let failed = |id: &PushId| self.pushes.get(id).is_some_and(Push::is_failed);
            let failed = self.pushes.get(&id).and_then(|push| push.references.iter().find(failed));
            match failed {
                Some(reference) => self.fail(id, Cause::Reference(reference)),
                None => self.ready_unless_blocked(id),
            }
        }
        let answered = |id: &PushId| present.contains(id);
        let left_out = batch
            .iter()
            .any(|id| self.pushes.get(id).is_some_and(|push| push.phase == Phase::Asking) && !answered(id));
        self.ask_again(&batch);
        if left_out {
            // A cache that leaves hashes out of its answer may do so again.
            let cache = &mut self.caches[usize::from(cache_id.0)];
            cache.ask_attempt += 1;
            cache.ask_rest = Some(now.after(Backoff::UPLOAD.wait(cache.ask_attempt, &mut self.rng)));
        }
    }

    /// Handles that the cache does not have these: the ledger records those that it
    /// once had as deleted, and older confirmations of this cache count no longer. Those
    /// that an upstream cache had are wanted from now on, and nothing else follows.
    fn deleted(&mut self, cache_id: CacheId, missing: &[PushId], asked_at: Mono) {
        let mut wanted = Vec::new();
        let mut was_deleted = false;
        for &id in missing {
            if let Some(push) = self.pushes.get_mut(&id)
                && push.phase == Phase::Asking
                && let Some(recorded) = push.recheck.take()
            {
                was_deleted |= recorded != Recorded::InUpstream;
                if recorded != Recorded::Unconfirmed {
                    wanted.push(id);
                }
            }
        }
        if !wanted.is_empty() {
            self.out.push(Action::Wanted(wanted));
        }
        if !was_deleted {
            return;
        }
        let cache = &mut self.caches[usize::from(cache_id.0)];
        cache.trusted_since = asked_at;
        for push in self.pushes.values_mut().filter(|push| push.cache == cache_id) {
            push.closure_at = cache.trusted(push.closure_at);
        }
        self.out.push(Action::Distrust(cache_id, asked_at));
    }

    /// Handles an error of the query that is under way.
    pub(super) fn ask_failed(&mut self, cache_id: CacheId, failure: Failure, now: Mono) {
        let Some(cache) = self.caches.get_mut(usize::from(cache_id.0)) else { return };
        let Some(batch) = cache.asking.take() else { return };
        cache.breaker.failed(failure, None, now, &mut self.rng);
        match failure {
            Failure::Unreachable | Failure::Refused => {}
            Failure::Transient { .. } | Failure::NoVerdict | Failure::Store | Failure::Engine => {
                let retry_after =
                    if let Failure::Transient { retry_after } = failure { retry_after } else { None };
                cache.ask_attempt += 1;
                let wait = Backoff::UPLOAD.wait(cache.ask_attempt, &mut self.rng);
                cache.ask_rest = Some(now.after(wait.max(bounded(retry_after))));
            }
            // The same query would be refused again. The reason may be one hash
            // or their number, so smaller queries follow until it is found.
            Failure::Mismatch | Failure::TooLarge | Failure::Rejected | Failure::Local
                if batch.len() > 1 && cache.ask_refusals < ASK_REFUSALS =>
            {
                cache.ask_refusals += 1;
                cache.ask_most = (batch.len() / 2).max(1);
            }
            Failure::NoSuchCache
            | Failure::Mismatch
            | Failure::TooLarge
            | Failure::Rejected
            | Failure::Local => {
                cache.ask_refusals += 1;
                if cache.ask_refusals > ASK_REFUSALS {
                    cache.ask_most = ASK_MOST;
                }
                for id in batch {
                    if self.pushes.get(&id).is_some_and(|push| push.phase == Phase::Asking) {
                        self.fail(id, Cause::Failed(failure));
                    }
                }
                return;
            }
        }
        self.ask_again(&batch);
    }

    /// Queues the pushes of a query that have no answer, in front and in their
    /// order. Returns false when there is none.
    pub(super) fn ask_again(&mut self, batch: &[PushId]) -> bool {
        let mut any = false;
        for &id in batch.iter().rev() {
            let Some(push) = self.pushes.get_mut(&id).filter(|push| push.phase == Phase::Asking) else {
                continue;
            };
            push.phase = Phase::Unasked;
            let cache = &mut self.caches[usize::from(push.cache.0)];
            if push.urgent {
                cache.urgent_asks.push_front(id);
            } else {
                cache.asks.push_front(id);
            }
            any = true;
        }
        any
    }
}
