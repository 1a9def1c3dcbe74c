//! Asking a cache what it has: one query at a time, and what its answers lead to.

use super::cache::ASK_MOST;
use super::event::{Cause, Failure, Outcome};
use super::push::Phase;
use super::retry::{Backoff, bounded};
use super::step::Flow;
use crate::types::{CacheId, Mono, PushId};

/// Queries refused in a row after which the question as such must be wrong:
/// halving the largest finds a single bad hash with twelve.
const ASK_REFUSALS: u32 = 32;

impl Flow {
    pub(super) fn asked(&mut self, cache: CacheId, present: &[PushId], missing: &[PushId], now: Mono) {
        let Some(c) = self.cache(cache) else { return };
        let Some(batch) = c.asking.take() else { return };
        c.ask_attempt = 0;
        c.ask_rest = None;
        c.ask_refusals = 0;
        c.ask_most = (c.ask_most * 2).min(ASK_MOST);
        c.breaker.succeeded();
        for &id in present {
            if self.pushes.get(&id).is_some_and(|t| t.phase == Phase::Asking) {
                self.settle(id, Outcome::Cached);
            }
        }
        for &id in missing {
            let Some(push) = self.pushes.get_mut(&id).filter(|t| t.phase == Phase::Asking) else { continue };
            if push.doomed {
                self.settle(id, Outcome::Collected);
                continue;
            }
            push.phase = Phase::Held;
            let failed = |r: &PushId| self.pushes.get(r).is_some_and(|t| t.is_failed());
            let failed = self.pushes.get(&id).and_then(|t| t.references.iter().copied().find(failed));
            match failed {
                Some(reference) => self.fail(id, Cause::Reference(reference)),
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

    pub(super) fn ask_failed(&mut self, cache: CacheId, failure: Failure, now: Mono) {
        let index = usize::from(cache.0);
        let Some(c) = self.caches.get_mut(index) else { return };
        let Some(batch) = c.asking.take() else { return };
        c.breaker.failed(failure, None, now, &mut self.rng);
        match failure {
            Failure::Unreachable | Failure::Refused => {}
            Failure::Transient { .. } | Failure::Store | Failure::Engine => {
                let retry_after =
                    if let Failure::Transient { retry_after } = failure { retry_after } else { None };
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
                if c.ask_refusals > ASK_REFUSALS {
                    c.ask_most = ASK_MOST;
                }
                for id in batch {
                    if self.pushes.get(&id).is_some_and(|t| t.phase == Phase::Asking) {
                        self.fail(id, Cause::Failed(failure));
                    }
                }
                return;
            }
        }
        self.ask_again(&batch);
    }

    /// Queues those of a query that are still being asked for, in front and in
    /// order; false when there is none.
    pub(super) fn ask_again(&mut self, batch: &[PushId]) -> bool {
        let mut any = false;
        for &id in batch.iter().rev() {
            let Some(push) = self.pushes.get_mut(&id).filter(|t| t.phase == Phase::Asking) else { continue };
            push.phase = Phase::Unasked;
            let c = &mut self.caches[usize::from(push.cache.0)];
            if push.urgent {
                c.urgent_asks.push_front(id);
            } else {
                c.asks.push_front(id);
            }
            any = true;
        }
        any
    }
}
