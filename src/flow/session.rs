//! Groups of tasks that somebody waits for: who counts, who goes first, and
//! when nothing is left.

use std::collections::BTreeSet;

use super::event::{Action, SessionId, TaskId};
use super::step::Flow;
use super::task::Phase;

/// What a group still waits for.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Tasks of it that are neither settled nor parked.
    pub(super) unsettled: u32,
    /// Somebody waits: its tasks go first, and the last one is announced.
    pub(super) flushing: bool,
    /// Its tasks that are known, parked ones among them. In order, so that the
    /// same events lead to the same actions.
    pub(super) tasks: BTreeSet<TaskId>,
}

impl Flow {
    pub(super) fn want(&mut self, session: SessionId, id: TaskId) {
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
    pub(super) fn join(&mut self, session: SessionId, id: TaskId) {
        let Some(group) = self.groups.get_mut(&session) else { return };
        group.unsettled += 1;
        if group.flushing {
            self.promote(session, id);
        }
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        let Some(group) = self.groups.remove(&session) else { return };
        for id in group.tasks {
            if let Some(task) = self.tasks.get_mut(&id) {
                task.sessions.retain(|s| *s != session);
            }
        }
    }

    pub(super) fn flush(&mut self, session: SessionId) {
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
    pub(super) fn promote(&mut self, session: SessionId, id: TaskId) {
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

    /// What an urgent task waits for is urgent.
    pub(super) fn inherit_urgency(&mut self, id: TaskId) {
        let Some(task) = self.tasks.get(&id) else { return };
        let urgent = |r: TaskId| self.tasks.get(&r).filter(|t| t.urgent && !t.is_parked()).map(|t| t.lane);
        let lane = task.referrers.iter().find_map(urgent);
        if let Some(lane) = lane {
            self.promote(lane, id);
        }
    }

    pub(super) fn leave_groups(&mut self, sessions: &[SessionId]) {
        for &session in sessions {
            let Some(group) = self.groups.get_mut(&session) else { continue };
            group.unsettled = group.unsettled.saturating_sub(1);
            if group.flushing && group.unsettled == 0 {
                self.out.push(Action::Quiet(session));
            }
        }
    }
}
