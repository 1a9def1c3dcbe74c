//! Whose turn it is: one lane for each session, taken in rotation; lanes of
//! sessions that are being flushed go first, but never take every turn.

use std::collections::{HashMap, VecDeque};

use super::event::{SessionId, TaskId};

/// The lane of tasks that no session waits for.
pub(super) const NOBODY: SessionId = 0;

/// Of this many turns one belongs to the lanes that are not urgent.
const SHARE: u32 = 4;

/// Queued tasks. An entry may be stale (the task has moved on): whoever takes
/// one checks it.
#[derive(Debug, Default)]
pub(super) struct Lanes {
    urgent: Rotation,
    normal: Rotation,
    turn: u32,
}

impl Lanes {
    pub(super) fn push(&mut self, lane: SessionId, task: TaskId, urgent: bool) {
        if urgent { self.urgent.push(lane, task) } else { self.normal.push(lane, task) }
    }

    /// The next entry; `None` when there is none.
    pub(super) fn pop(&mut self) -> Option<TaskId> {
        self.turn = (self.turn + 1) % SHARE;
        let (first, second) = if self.turn == 0 {
            (&mut self.normal, &mut self.urgent)
        } else {
            (&mut self.urgent, &mut self.normal)
        };
        first.pop().or_else(|| second.pop())
    }
}

/// Lanes in turn, each first in, first out.
#[derive(Debug, Default)]
struct Rotation {
    order: VecDeque<SessionId>,
    lanes: HashMap<SessionId, VecDeque<TaskId>>,
}

impl Rotation {
    fn push(&mut self, lane: SessionId, task: TaskId) {
        let order = &mut self.order;
        let queue = self.lanes.entry(lane).or_insert_with(|| {
            order.push_back(lane);
            VecDeque::new()
        });
        queue.push_back(task);
    }

    fn pop(&mut self) -> Option<TaskId> {
        let lane = self.order.pop_front()?;
        let queue = self.lanes.get_mut(&lane)?;
        let task = queue.pop_front();
        if queue.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.order.push_back(lane);
        }
        task
    }
}
