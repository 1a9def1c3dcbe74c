//! The driver's turns one by one, for the simulation, in place of [`Driver::run`].

use std::time::Duration;

use tokio::time::Instant;

use super::{Driver, Ended};
use crate::control::server::Incoming;
use crate::daemon::inbox::Input;
use crate::flow::Event;
use crate::types::{CacheId, PushId, StorePath};

/// What a turn of the driver is about.
pub(in crate::daemon) enum Turn {
    /// A report of another room.
    Input(Input),
    /// A caller's request.
    Request(Incoming),
    /// A task of the driver has ended.
    Task,
    /// Something is due.
    Tick,
    /// Progress is reported to the callers that wait.
    Progress,
    /// A signal has it stop.
    Stop,
    /// A signal has it read its configuration again.
    Reload,
}

impl Driver {
    /// What is done before the first turn.
    pub(in crate::daemon) fn start(&mut self) {
        self.begin();
    }

    /// Makes a turn. Returns how the driver ended, once it has.
    pub(in crate::daemon) fn turn(&mut self, turn: Turn) -> Option<Ended> {
        self.before_turn();
        match turn {
            Turn::Input(Input::IntakeEnded(reason)) if !self.stopping.has_begun() => {
                return Some(Ended::Failed(format!("the intake: {reason:?}")));
            }
            Turn::Input(input) => self.take(input),
            Turn::Request(request) => self.serve(request),
            Turn::Task => {
                if self.has_ended_tasks()
                    && let Some(done) = self.ended_task.take()
                {
                    self.done(done);
                }
            }
            Turn::Tick => self.step(Event::Tick),
            Turn::Progress => {
                self.report_progress();
                self.extend();
            }
            Turn::Stop => self.stop(),
            Turn::Reload => self.read_again(None),
        }
        self.after_turn();
        self.at_end()
    }

    /// Whether a task of the driver has ended.
    pub(in crate::daemon) fn has_ended_tasks(&mut self) -> bool {
        while self.ended_task.is_none()
            && let Some(ended) = self.work.try_join_next()
        {
            self.ended_task = ended.ok();
        }
        self.ended_task.is_some()
    }

    /// When the next [`Turn::Tick`] is due at the latest.
    pub(in crate::daemon) fn wakes_at(&self) -> Instant {
        self.wake_at()
    }

    /// Whether [`Turn::Progress`] has anything to report.
    pub(in crate::daemon) fn has_waiters(&self) -> bool {
        self.parts.sessions.has_waiters() || self.stopping.has_begun()
    }

    /// The paths of pushes that are to be in a cache and are not confirmed, in no order.
    pub(in crate::daemon) fn wanted(&self) -> impl Iterator<Item = (PushId, &StorePath)> {
        self.parts.pushes.wanted().filter(|(push, _)| !self.flow.is_failed(*push))
    }

    /// Whether the cache is asked about this push again, which it had.
    pub(in crate::daemon) fn is_confirmed(&self, push: PushId) -> bool {
        self.flow.was_in_cache(push)
    }

    /// The base name of a push's path.
    pub(in crate::daemon) fn base(&self, push: PushId) -> Option<&str> {
        self.parts.pushes.base(push)
    }

    /// The base names of the paths that are being uploaded to this cache.
    pub(in crate::daemon) fn uploading(&self, cache: CacheId) -> Vec<&str> {
        self.flow.uploading(cache).filter_map(|push| self.base(push)).collect()
    }

    /// Whether a push of this path has failed, as far as the decisions know it.
    pub(in crate::daemon) fn has_failed(&self, base: &str) -> bool {
        let mut wanted = self.parts.pushes.wanted();
        wanted.any(|(push, path)| path.base() == base && self.flow.is_failed(push))
    }

    /// Whether the session with this id is not closed.
    pub(in crate::daemon) fn is_live(&self, id: &str) -> bool {
        self.parts.sessions.by_id(id).is_some()
    }

    /// Sessions that are not closed.
    pub(in crate::daemon) fn live_sessions(&self) -> usize {
        self.parts.sessions.len()
    }

    /// Pushes that are neither settled nor failed.
    pub(in crate::daemon) fn unsettled(&self) -> u64 {
        self.pending()
    }

    /// Time between two reports of progress.
    pub(in crate::daemon) const PROGRESS: Duration = super::PROGRESS;
}
