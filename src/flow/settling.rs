//! How a push ends, is given up and taken up again, and what that means for
//! those that refer to it.

use super::event::{Action, Cause, Outcome};
use super::push::{Phase, Push};
use super::step::Flow;
use crate::types::PushId;

/// Failed pushes that are passed over in one step because something that is not
/// failed refers to them.
const KEPT_MOST: usize = 16;

impl Flow {
    /// Removes a push that is done with, and frees what waited for it.
    pub(super) fn settle(&mut self, id: PushId, outcome: Outcome) {
        let mut stack = vec![(id, outcome)];
        while let Some((id, outcome)) = stack.pop() {
            let Some(push) = self.pushes.remove(&id) else { continue };
            let c = &mut self.caches[usize::from(push.cache.0)];
            c.pushes -= 1;
            match push.phase {
                Phase::Failed(_) => {
                    c.failed -= 1;
                    self.failed.remove(&id);
                }
                Phase::Uploading => c.uploading -= 1,
                Phase::Resting(until) => {
                    self.rests.remove(&(until, id));
                }
                Phase::Unasked | Phase::Asking | Phase::Held | Phase::Ready => {}
            }
            self.out.push(Action::Settled(id, outcome));
            for session in &push.sessions {
                if let Some(group) = self.groups.get_mut(session) {
                    group.pushes.remove(&id);
                }
            }
            if !push.is_failed() {
                self.leave_groups(&push.sessions);
            }
            for reference in &push.references {
                if let Some(r) = self.pushes.get_mut(reference) {
                    r.referrers.remove(id);
                }
            }
            for referrer in push.referrers.iter() {
                let Some(r) = self.pushes.get_mut(&referrer) else { continue };
                if let Some(at) = r.references.iter().position(|r| *r == id) {
                    r.references.remove(at);
                }
                if outcome == Outcome::Collected {
                    // A valid path's references are valid: it is gone as well.
                    // One that was not asked for yet may still be in the cache.
                    r.doomed = true;
                    if matches!(r.phase, Phase::Held | Phase::Failed(Cause::Reference(_))) {
                        stack.push((referrer, Outcome::Collected));
                    }
                } else {
                    self.ready_unless_blocked(referrer);
                }
            }
        }
    }

    /// Gives a push up for now, and with it what refers to it.
    pub(super) fn fail(&mut self, id: PushId, cause: Cause) {
        let mut stack = vec![(id, cause)];
        while let Some((id, cause)) = stack.pop() {
            let Some(push) = self.pushes.get_mut(&id) else { continue };
            if push.is_failed() {
                continue;
            }
            push.phase = Phase::Failed(cause);
            let sessions = push.sessions.clone();
            let referrers = push.referrers.clone();
            self.caches[usize::from(push.cache.0)].failed += 1;
            self.failed.insert(id);
            self.out.push(Action::Failed(id, cause));
            self.leave_groups(&sessions);
            let held = |r: &PushId| self.pushes.get(r).is_some_and(|t| t.phase == Phase::Held);
            stack.extend(referrers.iter().filter(held).map(|r| (r, Cause::Reference(id))));
        }
    }

    pub(super) fn retry(&mut self, which: Option<Vec<PushId>>) {
        if which.is_none() {
            // Whoever keeps the books names them again.
            self.forgot = false;
        }
        let ids = which.unwrap_or_else(|| self.all(Push::is_failed));
        ids.into_iter().for_each(|id| self.reopen(id));
    }

    /// Forgets failed pushes beyond the bound, the oldest first, but none that
    /// something known refers to: that would lose what it waits for. Whoever
    /// admits a push names its failed references again.
    pub(super) fn forget_oldest_failed(&mut self) {
        let mut kept = 0;
        while self.failed.len() > self.given_up_most && kept < KEPT_MOST {
            let Some(&oldest) = self.failed.iter().nth(kept) else { return };
            let mut id = oldest;
            while let Some(referrer) = self.pushes.get(&id).and_then(|t| t.referrers.iter().next()) {
                id = referrer;
            }
            if self.pushes.get(&id).is_some_and(|t| t.is_failed()) {
                self.forget_failed(id);
            } else {
                // It is failed as well when its turn has come.
                kept += 1;
            }
        }
    }

    fn forget_failed(&mut self, id: PushId) {
        self.failed.remove(&id);
        let Some(push) = self.pushes.remove(&id) else { return };
        let c = &mut self.caches[usize::from(push.cache.0)];
        c.pushes -= 1;
        c.failed -= 1;
        self.forgot = true;
        for session in &push.sessions {
            if let Some(group) = self.groups.get_mut(session) {
                group.pushes.remove(&id);
            }
        }
        for reference in &push.references {
            if let Some(r) = self.pushes.get_mut(reference) {
                r.referrers.remove(id);
            }
        }
        self.out.push(Action::Forgotten(id));
    }

    /// In order of their numbers: a map's own order is another in every process.
    pub(super) fn all(&self, which: impl Fn(&Push) -> bool) -> Vec<PushId> {
        let mut ids: Vec<_> = self.pushes.iter().filter(|(_, t)| which(t)).map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes a failed push up again, with what is failed because of it and what
    /// it is failed because of.
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
            push.urgent = false;
            let index = usize::from(push.cache.0);
            let sessions = push.sessions.clone();
            let referrers = push.referrers.clone();
            // All of them: with one left failed it would only be failed again.
            stack.extend(push.references.iter().copied());
            self.caches[index].failed -= 1;
            self.failed.remove(&id);
            self.caches[index].asks.push_back(id);
            self.out.push(Action::Reopened(id));
            reopened.push((id, sessions));
            let because = Phase::Failed(Cause::Reference(id));
            let waits = |r: &PushId| self.pushes.get(r).is_some_and(|t| t.phase == because);
            stack.extend(referrers.iter().filter(waits));
        }
        // Only now: moving one to the front moves its references as well, and
        // passes over those that are still failed.
        for (id, sessions) in reopened {
            sessions.into_iter().for_each(|session| self.join(session, id));
            self.inherit_urgency(id);
        }
    }
}
