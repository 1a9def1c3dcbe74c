//! How a task ends, is given up and taken up again, and what that means for
//! those that refer to it.

use super::event::{Action, Cause, Outcome, TaskId};
use super::step::Flow;
use super::task::{Phase, Task};

/// Parked tasks that are passed over in one step because something that is not
/// parked refers to them.
const KEPT_MOST: usize = 16;

impl Flow {
    /// Removes a task that is done with, and frees what waited for it.
    pub(super) fn settle(&mut self, id: TaskId, outcome: Outcome) {
        let mut stack = vec![(id, outcome)];
        while let Some((id, outcome)) = stack.pop() {
            let Some(task) = self.tasks.remove(&id) else { continue };
            let c = &mut self.caches[usize::from(task.cache.0)];
            c.tasks -= 1;
            match task.phase {
                Phase::Parked(_) => {
                    c.parked -= 1;
                    self.given_up.remove(&id);
                }
                Phase::Uploading => c.uploading -= 1,
                Phase::Resting(until) => {
                    self.rests.remove(&(until, id));
                }
                Phase::Unasked | Phase::Asking | Phase::Held | Phase::Ready => {}
            }
            self.out.push(Action::Settled(id, outcome));
            for session in &task.sessions {
                if let Some(group) = self.groups.get_mut(session) {
                    group.tasks.remove(&id);
                }
            }
            if !task.is_parked() {
                self.leave_groups(&task.sessions);
            }
            for reference in &task.references {
                if let Some(r) = self.tasks.get_mut(reference) {
                    r.referrers.remove(id);
                }
            }
            for referrer in task.referrers.iter() {
                let Some(r) = self.tasks.get_mut(&referrer) else { continue };
                if let Some(at) = r.references.iter().position(|r| *r == id) {
                    r.references.remove(at);
                }
                if outcome == Outcome::Collected {
                    // A valid path's references are valid: it is gone as well.
                    // One that was not asked for yet may still be in the cache.
                    r.doomed = true;
                    if matches!(r.phase, Phase::Held | Phase::Parked(Cause::Reference(_))) {
                        stack.push((referrer, Outcome::Collected));
                    }
                } else {
                    self.ready_unless_blocked(referrer);
                }
            }
        }
    }

    /// Gives a task up for now, and with it what refers to it.
    pub(super) fn park(&mut self, id: TaskId, cause: Cause) {
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
            self.given_up.insert(id);
            self.out.push(Action::Parked(id, cause));
            self.leave_groups(&sessions);
            let held = |r: &TaskId| self.tasks.get(r).is_some_and(|t| t.phase == Phase::Held);
            stack.extend(referrers.iter().filter(held).map(|r| (r, Cause::Reference(id))));
        }
    }

    pub(super) fn retry(&mut self, which: Option<Vec<TaskId>>) {
        if which.is_none() {
            // Whoever keeps the books names them again.
            self.forgot = false;
        }
        let ids = which.unwrap_or_else(|| self.all(Task::is_parked));
        ids.into_iter().for_each(|id| self.reopen(id));
    }

    /// Forgets parked tasks beyond the bound, the oldest first, but none that
    /// something known refers to: that would lose what it waits for. Whoever
    /// admits a task names its parked references again.
    pub(super) fn let_go_of_parked(&mut self) {
        let mut kept = 0;
        while self.given_up.len() > self.given_up_most && kept < KEPT_MOST {
            let Some(&oldest) = self.given_up.iter().nth(kept) else { return };
            let mut id = oldest;
            while let Some(referrer) = self.tasks.get(&id).and_then(|t| t.referrers.iter().next()) {
                id = referrer;
            }
            if self.tasks.get(&id).is_some_and(|t| t.is_parked()) {
                self.forget_parked(id);
            } else {
                // It is parked as well when its turn has come.
                kept += 1;
            }
        }
    }

    fn forget_parked(&mut self, id: TaskId) {
        self.given_up.remove(&id);
        let Some(task) = self.tasks.remove(&id) else { return };
        let c = &mut self.caches[usize::from(task.cache.0)];
        c.tasks -= 1;
        c.parked -= 1;
        self.forgot = true;
        for session in &task.sessions {
            if let Some(group) = self.groups.get_mut(session) {
                group.tasks.remove(&id);
            }
        }
        for reference in &task.references {
            if let Some(r) = self.tasks.get_mut(reference) {
                r.referrers.remove(id);
            }
        }
        self.out.push(Action::Forgotten(id));
    }

    /// In order of their numbers: a map's own order is another in every process.
    pub(super) fn all(&self, which: impl Fn(&Task) -> bool) -> Vec<TaskId> {
        let mut ids: Vec<_> = self.tasks.iter().filter(|(_, t)| which(t)).map(|(&id, _)| id).collect();
        ids.sort_unstable();
        ids
    }

    /// Takes a parked task up again, with what is parked because of it and what
    /// it is parked because of.
    pub(super) fn reopen(&mut self, id: TaskId) {
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
            self.given_up.remove(&id);
            self.caches[index].asks.push_back(id);
            self.out.push(Action::Reopened(id));
            reopened.push((id, sessions));
            let because = Phase::Parked(Cause::Reference(id));
            let waits = |r: &TaskId| self.tasks.get(r).is_some_and(|t| t.phase == because);
            stack.extend(referrers.iter().filter(waits));
        }
        // Only now: moving one to the front moves its references as well, and
        // passes over those that are still parked.
        for (id, sessions) in reopened {
            sessions.into_iter().for_each(|session| self.join(session, id));
            self.inherit_urgency(id);
        }
    }
}
