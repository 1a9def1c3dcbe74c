//! A group of tasks that somebody waits for.

use std::collections::BTreeSet;

use super::event::TaskId;

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
