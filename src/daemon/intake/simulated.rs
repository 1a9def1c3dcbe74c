//! The intake's turns one by one, for the simulation, in place of its thread.

use std::sync::atomic::Ordering;
use std::time::Duration;

use tokio::time::Instant;

use super::{Intake, IntakeError, Progress, Work, WorkQueue};

/// The intake without its thread.
pub(in crate::daemon) struct SimulatedIntake {
    intake: Intake,
    progress: Progress,
    queue: WorkQueue,
    /// Work that was taken from the queue and not yet done.
    next: Option<Work>,
    /// When the next turn is due without work.
    due: Option<Instant>,
}

impl SimulatedIntake {
    pub(in crate::daemon) fn new(mut intake: Intake, queue: WorkQueue) -> Self {
        let first = intake.first_cursor().ok();
        let progress = intake.begin(first);
        Self { intake, progress, queue, next: None, due: Some(Instant::now()) }
    }

    /// When a turn is due. None: when there is work.
    pub(in crate::daemon) fn due(&mut self) -> Option<Instant> {
        if self.next.is_none() {
            self.next = self.queue.work.try_recv().ok();
        }
        if self.next.is_some() { Some(Instant::now()) } else { self.due }
    }

    /// Makes a turn. Returns whether it goes on.
    pub(in crate::daemon) fn turn(&mut self) -> Result<bool, IntakeError> {
        if let Some(work) = self.next.take()
            && !self.progress.take(work)
        {
            return Ok(false);
        }
        self.queue.woken.store(false, Ordering::Release);
        let rest: Option<Duration> = self.intake.turn(&mut self.progress)?;
        self.due = rest.map(|rest| Instant::now() + rest);
        Ok(true)
    }
}
