//! The ends of a push, settled or failed, its retry, and what each means for its
//! referrers.

use super::event::{Action, Cause, Outcome};
use super::id_set::IdSet;
use super::other_hosts::Origin;
use super::push::{ClosureAt, Phase, Push, Recorded};
use super::step::Flow;
use crate::types::{Mono, PushId};

/// Failed pushes that one step passes over because a push that has not failed
/// refers to them.
const KEPT_MOST: usize = 16;

impl Flow {
    /// Removes a push that has settled, and makes referrers ready that waited for
    /// it alone. `at`: when the request began that confirmed it.
    pub(super) fn settle(&mut self, id: PushId, outcome: Outcome, at: Mono) {
        let mut stack = vec![(id, outcome)];
        while let Some((id, outcome)) = stack.pop() {
            let Some(push) = self.pushes.remove(&id) else { continue };
            let cache = &mut self.caches[usize::from(push.cache.0)];
            cache.pushes -= 1;
            let from = match outcome {
                Outcome::Pushed => Some(Origin::Here),
                Outcome::Cached if push.attempts == 0 => Some(Origin::Elsewhere),
                Outcome::Cached | Outcome::Upstream | Outcome::Collected => None,
            };
            cache.others.left(id, from, at);
            match push.phase {
                Phase::Failed(_) => {
                    cache.failed -= 1;
                    self.failed.remove(&id);
                }
                Phase::Uploading => {
                    cache.end_upload(id, &push);
                }
                Phase::Resting(until) => {
                    self.rests.remove(&(until, id));
                }
                Phase::Unasked | Phase::Asking | Phase::Held | Phase::Ready | Phase::Stale => {}
            }
            // An upload may have begun before the cache was seen to delete paths.
            let closure_at = push.closure_at.min(cache.trusted(ClosureAt::at(at)));
            if let Some(at) = closure_at.get()
                && outcome != Outcome::Collected
                && push.references.is_empty()
            {
                self.out.push(Action::Confirmed(id, at));
            }
            self.out.push(Action::Settled(id, outcome));
            for session in push.sessions.iter() {
                if let Some(group) = self.groups.get_mut(&session) {
                    group.settle(id, outcome, push.nar_size);
                }
            }
            if !push.is_failed() {
                self.leave_groups(&push.sessions);
            }
            for reference in push.references.iter() {
                if let Some(reference) = self.pushes.get_mut(&reference) {
                    reference.referrers.remove(id);
                }
            }
            for referrer_id in push.referrers.iter() {
                let Some(referrer) = self.pushes.get_mut(&referrer_id) else { continue };
                referrer.references.remove(id);
                referrer.closure_at = referrer.closure_at.min(closure_at);
                if outcome == Outcome::Collected {
                    // A valid path's references are valid, so the referrer was
                    // removed as well. If the cache has not been asked about it
                    // yet, the cache may still have it.
                    referrer.doomed = true;
                    // Whether the cache has the removed reference is not known.
                    referrer.closure_at = ClosureAt::UNKNOWN;
                    if matches!(referrer.phase, Phase::Held | Phase::Failed(Cause::Reference(_))) {
                        stack.push((referrer_id, Outcome::Collected));
                    }
                } else {
                    self.inherit_references(referrer_id, &push.references);
                    self.ready_unless_blocked(referrer_id);
                }
            }
        }
    }

    /// Makes a push wait for what a confirmed reference of it still waits for: the
    /// cache has the reference, but not its whole closure.
    fn inherit_references(&mut self, id: PushId, references: &IdSet) {
        let mut failed = None;
        for reference in references.iter().filter(|reference| *reference != id) {
            let Some(known) = self.pushes.get_mut(&reference) else { continue };
            if known.referrers.insert(id) {
                failed = failed.or(known.is_failed().then_some(reference));
                if let Some(push) = self.pushes.get_mut(&id) {
                    push.references.insert(reference);
                }
            }
        }
        let Some(push) = self.pushes.get(&id) else { return };
        if let (Some(reference), Phase::Held) = (failed, push.phase) {
            self.fail(id, Cause::Reference(reference));
        } else if push.urgent && !push.is_failed() {
            let session = push.queued_for;
            references.iter().for_each(|reference| self.promote(session, reference));
        }
    }

    /// Fails a push, and the referrers that wait for it.
    pub(super) fn fail(&mut self, id: PushId, cause: Cause) {
        let mut stack = vec![(id, cause)];
        while let Some((id, cause)) = stack.pop() {
            let Some(push) = self.pushes.get_mut(&id) else { continue };
            if push.is_failed() {
                continue;
            }
            push.phase = Phase::Failed(cause);
            if push.recheck.take().is_some_and(|recorded| recorded != Recorded::Unconfirmed) {
                self.out.push(Action::Wanted(vec![id]));
            }
            let sessions = push.sessions.clone();
            let referrers = push.referrers.clone();
            self.caches[usize::from(push.cache.0)].failed += 1;
            self.failed.insert(id);
            self.out.push(Action::Failed(id, cause));
            self.leave_groups(&sessions);
            let held = |id: &PushId| self.pushes.get(id).is_some_and(|push| push.phase == Phase::Held);
            stack.extend(referrers.iter().filter(held).map(|referrer| (referrer, Cause::Reference(id))));
        }
    }

    /// Takes failed pushes up again: the given ones, or all that are known. Who asks for that
    /// need not wait for the end of a long pause either: the cache is asked now about those
    /// whose last upload had no verdict.
    pub(super) fn retry(&mut self, which: Option<Vec<PushId>>, now: Mono) {
        if which.is_none() {
            // The caller admits the forgotten ones again from the ledger.
            self.forgot = false;
        }
        let waits = |push: &Push| push.ask_first && matches!(push.phase, Phase::Resting(_));
        for id in which.unwrap_or_else(|| self.all(|push| push.is_failed() || waits(push))) {
            if self.pushes.get(&id).is_some_and(&waits) {
                self.end_rest(id, now);
            }
            self.reopen(id);
        }
    }

    /// Forgets failed pushes beyond the bound, the oldest first. One with a known
    /// referrer stays, because the referrer must not be uploaded before it. An
    /// admission names a push's failed references again.
    pub(super) fn forget_oldest_failed(&mut self) {
        let mut kept = 0;
        while self.failed.len() > self.failed_most && kept < KEPT_MOST {
            let Some(&oldest) = self.failed.iter().nth(kept) else { return };
            let mut id = oldest;
            while let Some(referrer) = self.pushes.get(&id).and_then(|push| push.referrers.iter().next()) {
                id = referrer;
            }
            if self.pushes.get(&id).is_some_and(Push::is_failed) {
                self.forget_failed(id);
            } else {
                // A referrer that has not failed will fail when its references are checked.
                kept += 1;
            }
        }
    }

    fn forget_failed(&mut self, id: PushId) {
        self.failed.remove(&id);
        let Some(push) = self.pushes.remove(&id) else { return };
        let cache = &mut self.caches[usize::from(push.cache.0)];
        cache.others.left(id, None, Mono(0));
        cache.pushes -= 1;
        cache.failed -= 1;
        self.forgot = true;
        for session in push.sessions.iter() {
            if let Some(group) = self.groups.get_mut(&session) {
                group.pushes.remove(&id);
            }
        }
        for reference in push.references.iter() {
            if let Some(reference) = self.pushes.get_mut(&reference) {
                reference.referrers.remove(id);
            }
        }
        self.out.push(Action::Forgotten(id));
    }

    /// Returns the pushes for which `which` is true, in the order of their
    /// numbers.
    pub(super) fn all(&self, which: impl Fn(&Push) -> bool) -> Vec<PushId> {
        let mut ids: Vec<_> = self.pushes.iter().filter(|(_, push)| which(push)).map(|(id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes a failed push up again, with its failed references and with the
    /// referrers that failed because of it.
    pub(super) fn reopen(&mut self, id: PushId) {
        let mut stack = vec![id];
        let mut reopened = Vec::new();
        while let Some(id) = stack.pop() {
            let Some(push) = self.pushes.get_mut(&id) else { continue };
            if !push.is_failed() {
                continue;
            }
            push.phase = Phase::Unasked;
            push.attempts = 0;
            push.mismatched = false;
            push.rechecks = 0;
            push.no_verdicts = 0;
            push.ask_first = false;
            push.urgent = false;
            let index = usize::from(push.cache.0);
            let sessions = push.sessions.clone();
            let referrers = push.referrers.clone();
            // With a failed reference left it would fail again.
            stack.extend(push.references.iter());
            self.caches[index].failed -= 1;
            self.failed.remove(&id);
            self.caches[index].asks.push_back(id);
            self.out.push(Action::Reopened(id));
            reopened.push((id, sessions));
            let because = Phase::Failed(Cause::Reference(id));
            let waits = |id: &PushId| self.pushes.get(id).is_some_and(|push| push.phase == because);
            stack.extend(referrers.iter().filter(waits));
        }
        // Promotion also moves references to the front and passes over failed
        // ones, so it follows when all have been reopened.
        for (id, sessions) in reopened {
            sessions.iter().for_each(|session| self.join(session, id));
            self.inherit_urgency(id);
        }
    }
}
