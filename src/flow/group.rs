//! Groups of pushes that somebody waits for: who counts, who goes first, and
//! when nothing is left.

use std::collections::BTreeSet;

use super::event::Action;
use super::push::Phase;
use super::step::Flow;
use crate::types::{PushId, SessionId};

/// What a group still waits for.
#[derive(Debug, Default)]
pub(super) struct PushGroup {
    /// Tasks of it that are neither settled nor failed.
    pub(super) unsettled: u32,
    /// Somebody waits: its pushes go first, and the last one is announced.
    pub(super) flushing: bool,
    /// Its pushes that are known, failed ones among them. In order, so that the
    /// same events lead to the same actions.
    pub(super) pushes: BTreeSet<PushId>,
}

impl Flow {
    pub(super) fn want(&mut self, session: SessionId, id: PushId) {
        let Some(push) = self.pushes.get_mut(&id) else { return };
        if push.sessions.contains(&session) {
            return;
        }
        push.sessions.push(session);
        let failed = push.is_failed();
        self.groups.entry(session).or_default().pushes.insert(id);
        if !failed {
            self.join(session, id);
        }
    }

    /// Counts an unsettled push in a group that it already names.
    pub(super) fn join(&mut self, session: SessionId, id: PushId) {
        let Some(group) = self.groups.get_mut(&session) else { return };
        group.unsettled += 1;
        if group.flushing {
            self.promote(session, id);
        }
    }

    pub(super) fn forget(&mut self, session: SessionId) {
        let Some(group) = self.groups.remove(&session) else { return };
        for id in group.pushes {
            if let Some(push) = self.pushes.get_mut(&id) {
                push.sessions.retain(|s| *s != session);
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
        for id in group.pushes.iter().copied().collect::<Vec<_>>() {
            self.promote(session, id);
        }
    }

    /// Moves a push and whatever it waits for to the front.
    pub(super) fn promote(&mut self, session: SessionId, id: PushId) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let Some(push) = self.pushes.get_mut(&id) else { continue };
            if push.urgent || push.is_failed() {
                continue;
            }
            push.urgent = true;
            push.lane = session;
            stack.extend(push.references.iter().copied());
            let c = &mut self.caches[usize::from(push.cache.0)];
            match push.phase {
                Phase::Unasked => c.urgent_asks.push_back(id),
                Phase::Ready if push.is_large() => c.large_queue.push(session, id, true),
                Phase::Ready => c.queue.push(session, id, true),
                Phase::Asking | Phase::Held | Phase::Uploading | Phase::Resting(_) | Phase::Failed(_) => {}
            }
        }
    }

    /// What an urgent push waits for is urgent.
    pub(super) fn inherit_urgency(&mut self, id: PushId) {
        let Some(push) = self.pushes.get(&id) else { return };
        let urgent = |r: PushId| self.pushes.get(&r).filter(|t| t.urgent && !t.is_failed()).map(|t| t.lane);
        let lane = push.referrers.iter().find_map(urgent);
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
