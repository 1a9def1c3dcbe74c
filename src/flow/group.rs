//! The pushes of a session or of a `flush`: how many are unsettled, which go first, when
//! none is left, and for a `flush` what became of them.

use std::collections::{BTreeMap, BTreeSet};

use super::event::{Action, Outcome};
use super::id_set::IdSet;
use super::push::{Phase, Recorded};
use super::step::Flow;
use crate::types::{Mono, PushId, SessionId};

/// The pushes of one session.
#[derive(Debug, Default)]
pub(super) struct PushGroup {
    /// Its pushes that are neither settled nor failed.
    pub(super) unsettled: u32,
    /// Whether somebody waits: its pushes go first, and [`Action::Quiet`] follows
    /// the last one.
    pub(super) flushing: bool,
    /// Whether a push of it was uploaded since [`Flow::take_uploaded`].
    pub(super) uploaded: bool,
    /// NAR bytes of its pushes that were uploaded.
    pub(super) bytes: u64,
    /// Its pushes that are known, failed ones included. Sorted, so that the same
    /// events lead to the same actions.
    pub(super) pushes: BTreeSet<PushId>,
    /// How its pushes settled, only after [`super::Event::WantAll`]: the ledger has no record
    /// of such a group. One entry for each push that the group has had.
    pub(super) settled: Option<BTreeMap<PushId, Outcome>>,
}

impl PushGroup {
    /// Removes a push that has settled. One that was uploaded counts as uploaded also when
    /// the cache is asked about it once more.
    pub(super) fn settle(&mut self, id: PushId, outcome: Outcome, nar_size: u64) {
        self.pushes.remove(&id);
        if outcome == Outcome::Pushed {
            self.uploaded = true;
            self.bytes += nar_size;
        }
        if let Some(settled) = &mut self.settled
            && settled.get(&id) != Some(&Outcome::Pushed)
        {
            settled.insert(id, outcome);
        }
    }

    /// Returns whether somebody waits, and for one push only.
    pub(super) fn waits_for_one(&self) -> bool {
        self.flushing && self.unsettled == 1
    }
}

/// How the pushes of a group settled.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupCounts {
    /// Those that were uploaded.
    pub(crate) pushed: u64,
    /// Those that the cache had.
    pub(crate) cached: u64,
    /// Those that an upstream cache has.
    pub(crate) upstream: u64,
    /// Those whose paths were removed from the store.
    pub(crate) collected: u64,
    /// NAR bytes of those that were uploaded.
    pub(crate) bytes: u64,
}

/// How far the uploads of a session are.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct GroupProgress {
    /// Its pushes that are being uploaded.
    pub(crate) uploading: Vec<PushId>,
    /// NAR bytes of its pushes that were uploaded.
    pub(crate) bytes: u64,
    /// NAR bytes of its pushes that are neither settled nor failed.
    pub(crate) left: u64,
}

impl Flow {
    /// Returns how far the uploads of a session are, without those of other sessions.
    pub(crate) fn progress(&self, session: SessionId) -> GroupProgress {
        let Some(group) = self.groups.get(&session) else { return GroupProgress::default() };
        let running = self.caches.iter().flat_map(|cache| cache.running.keys());
        let uploading = running.filter(|id| group.pushes.contains(id)).copied().collect();
        let left = group.pushes.iter().filter_map(|id| self.pushes.get(id)).filter(|push| !push.is_failed());
        GroupProgress { uploading, bytes: group.bytes, left: left.map(|push| push.nar_size).sum() }
    }

    /// Returns how the pushes settled that a group asked for with
    /// [`super::Event::WantAll`]. Each push is counted once.
    pub(crate) fn counts(&self, group: SessionId) -> GroupCounts {
        let mut counts = GroupCounts::default();
        let Some(group) = self.groups.get(&group) else { return counts };
        for outcome in group.settled.iter().flat_map(BTreeMap::values) {
            *match outcome {
                Outcome::Pushed => &mut counts.pushed,
                Outcome::Cached => &mut counts.cached,
                Outcome::Upstream => &mut counts.upstream,
                Outcome::Collected => &mut counts.collected,
            } += 1;
        }
        counts.bytes = group.bytes;
        counts
    }

    /// Adds to a group all unsettled pushes, and those that are admitted before its
    /// [`super::Event::Flush`]. Counts from now on how its pushes settle.
    pub(super) fn want_all(&mut self, id: SessionId) {
        let group = self.groups.entry(id).or_default();
        group.settled.get_or_insert_default();
        if !group.flushing && !self.gathering.contains(&id) {
            self.gathering.push(id);
        }
        for push in self.all(|push| !push.is_failed()) {
            self.want(id, push);
        }
    }

    /// Adds a known push to a session.
    pub(super) fn want(&mut self, session: SessionId, id: PushId) {
        let Some(push) = self.pushes.get_mut(&id) else { return };
        if !push.sessions.insert(session) {
            return;
        }
        let failed = push.is_failed();
        self.groups.entry(session).or_default().pushes.insert(id);
        if !failed {
            self.join(session, id);
        }
    }

    /// Counts an unsettled push in a session that it already names.
    pub(super) fn join(&mut self, session: SessionId, id: PushId) {
        let Some(group) = self.groups.get_mut(&session) else { return };
        group.unsettled += 1;
        if group.flushing {
            self.promote(session, id);
        }
    }

    /// Returns whether a push of a session was uploaded since the last call.
    pub(crate) fn take_uploaded(&mut self, session: SessionId) -> bool {
        self.groups.get_mut(&session).is_some_and(|group| std::mem::take(&mut group.uploaded))
    }

    /// Makes the pushes of a session that are only remembered as confirmed pending.
    pub(super) fn unconfirmed(&mut self, session: SessionId) {
        let Some(group) = self.groups.get(&session) else { return };
        let mut pending = Vec::new();
        for &id in &group.pushes {
            let Some(push) = self.pushes.get_mut(&id) else { continue };
            match push.recheck {
                // If the cache does not have it, that still shows that it deletes paths.
                Some(Recorded::InCache) => push.recheck = Some(Recorded::Unconfirmed),
                Some(Recorded::InUpstream) => push.recheck = None,
                Some(Recorded::Unconfirmed) | None => continue,
            }
            pending.push(id);
        }
        if !pending.is_empty() {
            self.out.push(Action::Wanted(pending));
        }
    }

    /// Removes a session; its pushes go on without it.
    pub(super) fn forget(&mut self, session: SessionId) {
        self.gathering.retain(|group| *group != session);
        let Some(group) = self.groups.remove(&session) else { return };
        for id in group.pushes {
            if let Some(push) = self.pushes.get_mut(&id) {
                push.sessions.remove(session);
            }
        }
    }

    /// Moves a session's pushes to the front, and announces when none is left.
    pub(super) fn flush(&mut self, session: SessionId) {
        self.gathering.retain(|group| *group != session);
        let group = self.groups.entry(session).or_default();
        group.flushing = true;
        if group.unsettled == 0 {
            self.out.push(Action::Quiet(session));
            return;
        }
        for id in group.pushes.iter().copied().collect::<Vec<_>>() {
            self.promote(session, id);
        }
        self.hurry(session);
    }

    /// Ends the wait of a large push for its moment when it is all that somebody waits for.
    fn hurry(&mut self, session: SessionId) {
        let Some(group) = self.groups.get(&session).filter(|group| group.waits_for_one()) else { return };
        let left = |id: &&PushId| self.pushes.get(id).is_some_and(|push| !push.is_failed());
        let Some(&id) = group.pushes.iter().find(left) else { return };
        if let Some(push) = self.pushes.get_mut(&id)
            && let Phase::Resting(until) = push.phase
            // The pause after an upload without a verdict stays as long as it is.
            && push.no_verdicts == 0
            && push.ask_first
            && self.caches[usize::from(push.cache.0)].others.has_drawn(id)
        {
            push.phase = Phase::Resting(Mono(0));
            self.rests.remove(&(until, id));
            self.rests.insert((Mono(0), id));
        }
    }

    /// Moves a push to the front, with the references that it waits for.
    pub(super) fn promote(&mut self, session: SessionId, id: PushId) {
        let mut stack = vec![id];
        while let Some(id) = stack.pop() {
            let Some(push) = self.pushes.get_mut(&id) else { continue };
            if push.urgent || push.is_failed() {
                continue;
            }
            push.urgent = true;
            push.queued_for = session;
            stack.extend(push.references.iter());
            let cache = &mut self.caches[usize::from(push.cache.0)];
            match push.phase {
                Phase::Unasked => cache.urgent_asks.push_back(id),
                Phase::Ready if push.is_large() => cache.large_queue.push(session, id, true),
                Phase::Ready => cache.queue.push(session, id, true),
                Phase::Asking
                | Phase::Held
                | Phase::Stale
                | Phase::Uploading
                | Phase::Resting(_)
                | Phase::Failed(_) => {}
            }
        }
    }

    /// Makes a push urgent if an urgent push refers to it.
    pub(super) fn inherit_urgency(&mut self, id: PushId) {
        let Some(push) = self.pushes.get(&id) else { return };
        let urgent = |id| {
            self.pushes.get(&id).filter(|push| push.urgent && !push.is_failed()).map(|push| push.queued_for)
        };
        let session = push.referrers.iter().find_map(urgent);
        if let Some(session) = session {
            self.promote(session, id);
        }
    }

    /// Counts a push that has settled or failed out of its sessions.
    pub(super) fn leave_groups(&mut self, sessions: &IdSet) {
        for session in sessions.iter() {
            let Some(group) = self.groups.get_mut(&session) else { continue };
            group.unsettled = group.unsettled.saturating_sub(1);
            if group.flushing && group.unsettled == 0 {
                self.out.push(Action::Quiet(session));
            }
            self.hurry(session);
        }
    }
}
