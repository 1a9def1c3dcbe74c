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

    /// The next entry that `valid(task, urgent)` says is not stale; `None` when
    /// there is none. Stale ones are dropped and cost nobody a turn.
    pub(super) fn pop(&mut self, valid: impl Fn(TaskId, bool) -> bool) -> Option<TaskId> {
        let Self { urgent, normal, turn } = self;
        *turn = (*turn + 1) % SHARE;
        let mut urgent = || urgent.pop(|task| valid(task, true));
        let mut normal = || normal.pop(|task| valid(task, false));
        if *turn == 0 { normal().or_else(urgent) } else { urgent().or_else(normal) }
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

    fn pop(&mut self, valid: impl Fn(TaskId) -> bool) -> Option<TaskId> {
        loop {
            let lane = self.order.pop_front()?;
            let Some(queue) = self.lanes.get_mut(&lane) else { continue };
            let task = std::iter::from_fn(|| queue.pop_front()).find(|task| valid(*task));
            if queue.is_empty() {
                self.lanes.remove(&lane);
            } else {
                self.order.push_back(lane);
            }
            if task.is_some() {
                return task;
            }
        }
    }
}
