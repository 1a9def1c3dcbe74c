//! The order of uploads: sessions take turns. Sessions that somebody waits for
//! go first, but never take every turn.

use crate::types::{PushId, SessionId};
use std::collections::{HashMap, VecDeque};

/// The queue of pushes that belong to no session.
pub(super) const NOBODY: SessionId = 0;

/// One of this many turns belongs to pushes that are not urgent.
const SHARE: u32 = 4;

/// The queued pushes. An entry may be stale, because the push has moved on;
/// [`Self::pop`] takes a function that checks it.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    urgent: Rotation,
    normal: Rotation,
    turn: u32,
}

impl FairQueue {
    pub(super) fn push(&mut self, session: SessionId, push: PushId, urgent: bool) {
        if urgent { self.urgent.push(session, push) } else { self.normal.push(session, push) }
    }

    /// Returns whether there are no entries, stale ones included.
    pub(super) fn is_empty(&self) -> bool {
        self.urgent.order.is_empty() && self.normal.order.is_empty()
    }

    /// Removes and returns the next push for which `valid(push, urgent)` is true.
    /// Stale entries before it are dropped and use no session's turn.
    pub(super) fn pop(&mut self, valid: impl Fn(PushId, bool) -> bool) -> Option<PushId> {
        let Self { urgent, normal, turn } = self;
        *turn = (*turn + 1) % SHARE;
        let mut urgent = || urgent.pop(|push| valid(push, true));
        let mut normal = || normal.pop(|push| valid(push, false));
        if *turn == 0 { normal().or_else(urgent) } else { urgent().or_else(normal) }
    }
}

/// A queue for each session, served in rotation.
#[derive(Debug, Default)]
struct Rotation {
    /// The sessions with a queue, the next one first.
    order: VecDeque<SessionId>,
    queues: HashMap<SessionId, VecDeque<PushId>>,
}

impl Rotation {
    fn push(&mut self, session: SessionId, push: PushId) {
        let order = &mut self.order;
        let queue = self.queues.entry(session).or_insert_with(|| {
            order.push_back(session);
            VecDeque::new()
        });
        queue.push_back(push);
    }

    fn pop(&mut self, valid: impl Fn(PushId) -> bool) -> Option<PushId> {
        loop {
            let session = self.order.pop_front()?;
            let Some(queue) = self.queues.get_mut(&session) else { continue };
            let push = std::iter::from_fn(|| queue.pop_front()).find(|push| valid(*push));
            if queue.is_empty() {
                self.queues.remove(&session);
            } else {
                self.order.push_back(session);
            }
            if push.is_some() {
                return push;
            }
        }
    }
}
