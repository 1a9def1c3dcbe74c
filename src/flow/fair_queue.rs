//! Whose turn it is: one lane for each session, taken in rotation; queue of
//! sessions that are being flushed go first, but never take every turn.

use crate::types::{PushId, SessionId};
use std::collections::{HashMap, VecDeque};

/// The lane of pushes that no session waits for.
pub(super) const NOBODY: SessionId = 0;

/// Of this many turns one belongs to the queue that are not urgent.
const SHARE: u32 = 4;

/// Queued pushes. An entry may be stale (the push has moved on): whoever takes
/// one checks it.
#[derive(Debug, Default)]
pub(super) struct FairQueue {
    urgent: Rotation,
    normal: Rotation,
    turn: u32,
}

impl FairQueue {
    pub(super) fn push(&mut self, lane: SessionId, push: PushId, urgent: bool) {
        if urgent { self.urgent.push(lane, push) } else { self.normal.push(lane, push) }
    }

    /// Whether nothing waits. Entries that are stale count as waiting.
    pub(super) fn is_empty(&self) -> bool {
        self.urgent.order.is_empty() && self.normal.order.is_empty()
    }

    /// The next entry that `valid(push, urgent)` says is not stale; `None` when
    /// there is none. Stale ones are dropped and cost nobody a turn.
    pub(super) fn pop(&mut self, valid: impl Fn(PushId, bool) -> bool) -> Option<PushId> {
        let Self { urgent, normal, turn } = self;
        *turn = (*turn + 1) % SHARE;
        let mut urgent = || urgent.pop(|push| valid(push, true));
        let mut normal = || normal.pop(|push| valid(push, false));
        if *turn == 0 { normal().or_else(urgent) } else { urgent().or_else(normal) }
    }
}

/// FairQueue in turn, each first in, first out.
#[derive(Debug, Default)]
struct Rotation {
    order: VecDeque<SessionId>,
    queue: HashMap<SessionId, VecDeque<PushId>>,
}

impl Rotation {
    fn push(&mut self, lane: SessionId, push: PushId) {
        let order = &mut self.order;
        let queue = self.queue.entry(lane).or_insert_with(|| {
            order.push_back(lane);
            VecDeque::new()
        });
        queue.push_back(push);
    }

    fn pop(&mut self, valid: impl Fn(PushId) -> bool) -> Option<PushId> {
        loop {
            let lane = self.order.pop_front()?;
            let Some(queue) = self.queue.get_mut(&lane) else { continue };
            let push = std::iter::from_fn(|| queue.pop_front()).find(|push| valid(*push));
            if queue.is_empty() {
                self.queue.remove(&lane);
            } else {
                self.order.push_back(lane);
            }
            if push.is_some() {
                return push;
            }
        }
    }
}
