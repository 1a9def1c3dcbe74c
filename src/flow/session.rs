//! A group of tasks that somebody waits for.

use super::event::TaskId;

/// What a group still waits for.
#[derive(Debug, Default)]
pub(super) struct Group {
    /// Tasks of it that are neither settled nor parked.
    pub(super) unsettled: u32,
    /// Somebody waits: its tasks go first, and the last one is announced.
    pub(super) flushing: bool,
    /// Its tasks, some of them settled; see [`Group::remember`].
    tasks: Vec<TaskId>,
}

impl Group {
    /// Adds an unsettled task. Settled ones are dropped now and then, so that
    /// the list stays within twice of what is unsettled.
    pub(super) fn remember(&mut self, task: TaskId, unsettled: impl Fn(TaskId) -> bool) {
        if self.tasks.len() > 64 && self.tasks.len() > 2 * self.unsettled as usize {
            self.tasks.retain(|&t| unsettled(t));
        }
        self.tasks.push(task);
        self.unsettled += 1;
    }

    /// Its tasks, settled ones among them.
    pub(super) fn tasks(&self) -> Vec<TaskId> {
        self.tasks.clone()
    }
}
