//! The driver: the one task that owns the decisions. It takes what happened,
//! steps `flow`, and has the actions carried out. It never blocks: what reads
//! files or waits for a server runs elsewhere and reports back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tracing::{debug, error, info, warn};

use super::input::{Input, Sent};
use super::intake::Bell;
use super::keeper::Keeper;
use super::live::{Asked, Caller, Desk, Waiter};
use super::notify::Notify;
use super::rules::Facts;
use super::settle;
use super::transfer::Transfers;
use crate::attribution::{ProcId, Windows, Witness};
use crate::config::Settings;
use crate::control::messages::Progress;
use crate::control::server::Incoming;
use crate::flow::{
    Action, CacheId, Cause, Event, Failure, Flow, GateState, Outcome, SessionId, TaskId, Time,
};
use crate::ledger::{Ledger, SessionState};
use crate::store::{Doorbell, StorePath};

/// How much time systemd is asked for at once while a drain moves, and what is
/// needed after the deadline to write everything down.
const EXTENSION: Duration = Duration::from_secs(30);
const MARGIN: Duration = Duration::from_secs(10);

/// What a task stands for, and how its last try went.
#[derive(Debug)]
pub(super) struct Ware {
    pub(super) path: StorePath,
    pub(super) cache: CacheId,
    pub(super) attempts: u32,
    /// Class and text of the last failure.
    pub(super) error: Option<(String, String)>,
}

/// A session of an earlier life.
#[derive(Debug)]
pub(super) struct Resumed {
    pub(super) row: SessionId,
    pub(super) draining: bool,
    pub(super) pending: Vec<TaskId>,
    /// To be watched.
    pub(super) anchor: Option<ProcId>,
    /// Its anchor ended while nobody watched.
    pub(super) abandoned: bool,
}

/// How the driver came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was told to, and nothing was left under way.
    Drained,
    /// It was told to, and the deadline came first.
    Deadline,
    /// Something that it cannot do without has failed.
    Failed(String),
}

/// The driver's state.
pub(super) struct Driver {
    pub(super) settings: Arc<Settings>,
    /// The caches' names in the configuration, by number.
    pub(super) caches: Vec<String>,
    pub(super) flow: Flow,
    pub(super) wares: HashMap<TaskId, Ware>,
    pub(super) desk: Desk,
    pub(super) ledger: Ledger,
    pub(super) bell: Bell,
    pub(super) windows: Arc<Mutex<Windows>>,
    pub(super) witness: Witness,
    pub(super) facts: Facts,
    pub(super) transfers: Transfers,
    pub(super) doorbell: Doorbell,
    pub(super) notify: Notify,
    /// The last thing each cache said that was not good.
    pub(super) troubles: Vec<Option<String>>,
    /// Why the intake cannot go on for the moment.
    pub(super) stuck: Option<String>,
    pub(super) keeper: Keeper,
    pub(super) cursor: i64,
    pub(super) bytes_sent: u64,
    pub(super) began: Instant,
    pub(super) stopping: Option<Instant>,
    /// What had moved when systemd was last asked for more time.
    pub(super) moved: (u64, u32),
    pub(super) own_uid: u32,
    /// Sessions of an earlier life, until what they wait for is known again.
    pub(super) resumed: Vec<Resumed>,
}

impl Driver {
    /// Works until `stop` says so and what is under way has ended.
    pub(super) async fn run(
        mut self,
        mut inputs: Receiver<Input>,
        mut requests: Receiver<Incoming>,
        mut stop: tokio::sync::mpsc::Receiver<()>,
    ) -> Ended {
        let mut pulse = tokio::time::interval(Duration::from_millis(500));
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut requests_open = true;
        // Each cache is looked at once in the beginning: what it says of itself
        // is known before the first path, and so is its absence.
        for number in 0..u16::try_from(self.caches.len()).unwrap_or(u16::MAX) {
            self.transfers.probe(CacheId(number));
        }
        loop {
            if let Some(ended) = self.at_end() {
                return ended;
            }
            let wake = self.wake_at();
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(Input::IntakeEnded(reason)) if self.stopping.is_none() => {
                        return Ended::Failed(format!("the intake: {}", reason.unwrap_or_else(|| "it ended".to_owned())));
                    }
                    Some(input) => self.take(input),
                    None => return Ended::Failed("nobody is left to tell the driver anything".to_owned()),
                },
                request = requests.recv(), if requests_open => match request {
                    Some(request) => self.serve(request),
                    None => requests_open = false,
                },
                Some(()) = stop.recv(), if self.stopping.is_none() => self.stop(),
                _ = pulse.tick(), if !self.desk.waiters.is_empty() || self.stopping.is_some() => {
                    self.report_progress();
                    self.extend();
                }
                () = tokio::time::sleep_until(wake.into()) => self.step(Event::Tick),
            }
            if self.notify.is_due() {
                let line = self.status_line();
                self.notify.status(line);
            }
        }
    }

    fn now(&self) -> Time {
        Time(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn wake_at(&self) -> Instant {
        let flow = self
            .flow
            .next_deadline()
            .map(|Time(ms)| self.began + Duration::from_millis(ms.saturating_add(1)));
        let naming = self.desk.namings.values().filter_map(|n| Some(n.caller.as_ref()?.deadline));
        let waiter = self.desk.waiters.iter().map(|w| w.deadline).chain(naming).min();
        let far = Instant::now() + Duration::from_secs(3600);
        [flow, waiter, self.stopping].into_iter().flatten().min().unwrap_or(far)
    }

    fn at_end(&mut self) -> Option<Ended> {
        let deadline = self.stopping?;
        let ended = if self.flow.in_flight() == 0 {
            Ended::Drained
        } else if deadline <= Instant::now() {
            Ended::Deadline
        } else {
            return None;
        };
        for waiter in std::mem::take(&mut self.desk.waiters) {
            self.answer(waiter.asked, waiter.responder, waiter.since, true);
        }
        Some(ended)
    }

    /// Stops intake and dispatch; what runs may end until the deadline.
    fn stop(&mut self) {
        self.stopping = Some(Instant::now() + self.settings.drain_timeout);
        self.notify.stopping();
        info!(
            uploading = self.flow.in_flight(),
            "stopping: what is being uploaded may end, the rest stays in the ledger"
        );
        self.bell.stop();
        self.step(Event::Stop);
        // What is under way may be all that some wait for; the others are told
        // now how much is left.
        let in_flight = self.flow.in_flight();
        let (soon, never): (Vec<Waiter>, Vec<Waiter>) = std::mem::take(&mut self.desk.waiters)
            .into_iter()
            .partition(|w| self.flow.unsettled(w.group) <= in_flight);
        self.desk.waiters = soon;
        for waiter in never {
            self.answer(waiter.asked, waiter.responder, waiter.since, true);
        }
        let unnamed: Vec<_> = self.desk.namings.values_mut().filter_map(|n| n.caller.take()).collect();
        for caller in unnamed {
            self.answer_unlooked(caller);
        }
        self.extend();
    }

    /// Asks systemd for as long as the end takes, while something moves; see
    /// EXTEND_TIMEOUT_USEC in sd_notify(3).
    fn extend(&mut self) {
        let Some(deadline) = self.stopping else { return };
        let moved = (self.transfers.sent(), self.flow.in_flight());
        if moved != self.moved {
            self.moved = moved;
            let rest = deadline.saturating_duration_since(Instant::now());
            self.notify.extend(rest.min(EXTENSION) + MARGIN);
        }
    }

    /// A caller whose paths could not even be looked at in its time.
    fn answer_unlooked(&mut self, caller: Caller) {
        let why = self.stuck.clone().unwrap_or_else(|| "it is being read".to_owned());
        let text =
            format!("the store could not be looked through in time ({why}): there may be more to push");
        if let Asked::End(row) | Asked::Push(row) = caller.asked
            && let Some(live) = self.desk.sessions.get_mut(&row)
        {
            live.warnings.push(text);
            live.unlooked = true;
        }
        self.answer(caller.asked, caller.responder, caller.since, true);
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Found { cache, tasks, paths, reasons, retry } => {
                let active: Vec<TaskId> = tasks.iter().filter(|t| !t.parked).map(|t| t.id).collect();
                for (id, path) in paths {
                    self.wares.entry(id).or_insert(Ware { path, cache, attempts: 0, error: None });
                }
                for (id, class, text) in reasons {
                    if let Some(ware) = self.wares.get_mut(&id) {
                        ware.error = Some((class, text));
                    }
                }
                let paths = active.iter().filter_map(|id| Some(self.wares.get(id)?.path.clone())).collect();
                self.keeper.keep(cache.0, paths);
                self.step(Event::Admit { cache, tasks });
                if retry {
                    // One that was given up is known already, and admitting it
                    // again says only who waits for it.
                    self.step(Event::Retry(Some(active)));
                }
            }
            Input::Stuck(why) => self.stuck = why,
            Input::TokenChanged(cache) => self.step(Event::Nudge(cache)),
            Input::Named { token, invalid } => self.named(token, &invalid),
            Input::Cursor(cursor) => self.cursor = cursor,
            Input::Restored => self.resume(),
            Input::Opened(opening) => self.opened(*opening),
            Input::AnchorGone(row) => self.abandon(row),
            Input::Rejoined(rejoining) => self.rejoined(*rejoining),
            Input::IntakeEnded(_) => {}
            Input::Asked { cache, tasks, result } => self.asked(cache, tasks, result),
            Input::Uploaded { task, result, took_ms } => self.uploaded(task, result, took_ms),
            Input::Probed(cache, result) => {
                let ours = self.transfers.store_dir.as_str();
                let result = match result {
                    Ok(found) => {
                        let keys = found.config.upstream_cache_key_names.unwrap_or_default();
                        self.facts.set_upstream(cache.0, keys);
                        debug!(cache = self.name(cache), endpoint = found.endpoint, "the cache answers");
                        if let Some(theirs) = found.config.store_dir.filter(|dir| dir != ours) {
                            warn!(
                                cache = self.name(cache),
                                theirs,
                                ours,
                                "the cache is for another store directory: Nix cannot use what is pushed from here"
                            );
                        }
                        Ok(())
                    }
                    Err(error) => {
                        self.trouble(cache, &error.to_string());
                        Err(settle::failure(&error))
                    }
                };
                self.step(Event::Probed(cache, result));
            }
        }
    }

    fn asked(
        &mut self,
        cache: CacheId,
        tasks: Vec<TaskId>,
        result: Result<Vec<TaskId>, crate::cache::CacheError>,
    ) {
        match result {
            Ok(missing) => {
                let absent: std::collections::HashSet<_> = missing.iter().copied().collect();
                let present = tasks.into_iter().filter(|t| !absent.contains(t)).collect();
                self.step(Event::Asked { cache, present, missing });
            }
            Err(error) => {
                self.trouble(cache, &error.to_string());
                let class = error.class.as_str().to_owned();
                for task in &tasks {
                    if let Some(ware) = self.wares.get_mut(task) {
                        ware.error = Some((class.clone(), error.to_string()));
                    }
                }
                self.step(Event::AskFailed { cache, tasks, failure: settle::failure(&error) });
            }
        }
    }

    fn uploaded(&mut self, task: TaskId, result: Sent, took_ms: u64) {
        let Some(ware) = self.wares.get_mut(&task) else { return };
        let path = ware.path.clone();
        let cache = ware.cache;
        let event = match result {
            Sent::Done(uploaded, size) => {
                self.bytes_sent = self.bytes_sent.saturating_add(size);
                debug!(
                    path = %path, cache = self.caches[usize::from(cache.0)], nar_size = size, took_ms,
                    deduplicated = uploaded.deduplicated, "pushed"
                );
                Event::Uploaded(task)
            }
            Sent::Upstream => Event::InUpstream(task),
            Sent::Collected => Event::Collected(task),
            Sent::Unreadable(reason) => {
                // About the database, not about this path: it waits its turn again.
                warn!(path = %path, reason, attempt = ware.attempts, "the Nix database cannot be read; trying again");
                Event::UploadFailed(task, Failure::Store)
            }
            Sent::Failed(error) => {
                let text = error.to_string();
                warn!(
                    path = %path, cache = self.caches[usize::from(cache.0)], attempt = ware.attempts,
                    class = error.class.as_str(), error = text, "an upload failed"
                );
                ware.error = Some((error.class.as_str().to_owned(), text.clone()));
                let failure = settle::failure(&error);
                self.trouble(cache, &text);
                Event::UploadFailed(task, failure)
            }
        };
        self.step(event);
    }

    pub(super) fn name(&self, cache: CacheId) -> &str {
        &self.caches[usize::from(cache.0)]
    }

    fn trouble(&mut self, cache: CacheId, text: &str) {
        self.troubles[usize::from(cache.0)] = Some(text.to_owned());
    }

    /// Steps the decisions and has done what they say.
    pub(super) fn step(&mut self, event: Event) {
        let now = self.now();
        if matches!(event, Event::Tick) {
            self.let_go_of_waiters();
        }
        for action in self.flow.step(event, now) {
            self.act(action);
        }
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Ask(cache, tasks) => {
                let tasks =
                    tasks.into_iter().filter_map(|t| Some((t, self.wares.get(&t)?.path.clone()))).collect();
                self.transfers.ask(cache, tasks);
            }
            Action::Upload(cache, task, attempt) => {
                if let Some(ware) = self.wares.get_mut(&task) {
                    ware.attempts = attempt;
                    self.ledger.uploading(task, attempt);
                    self.transfers.upload(cache, task, ware.path.clone());
                }
            }
            Action::Probe(cache) => self.transfers.probe(cache),
            Action::Settled(task, outcome) => {
                let Some(ware) = self.wares.remove(&task) else { return };
                if outcome == Outcome::Collected {
                    info!(path = %ware.path, "skipped: collected from the store before it was pushed");
                }
                self.ledger.settle(task, settle::settled(outcome, 0, ware.attempts));
                self.keeper.release(ware.cache.0, ware.path);
            }
            Action::Parked(task, cause) => self.parked(task, cause),
            Action::Reopened(task) => {
                self.ledger.reopen(&[task]);
                if let Some(ware) = self.wares.get(&task) {
                    self.keeper.keep(ware.cache.0, vec![ware.path.clone()]);
                }
            }
            Action::Quiet(group) => self.quiet(group),
            Action::Gate(cache, state) => self.gate(cache, state),
        }
    }

    fn parked(&mut self, task: TaskId, cause: Cause) {
        let reference = match cause {
            Cause::Reference(reference) => self.wares.get(&reference).map(|w| w.path.to_string()),
            Cause::Failed(_) | Cause::Earlier => None,
        };
        let Some(ware) = self.wares.get_mut(&task) else { return };
        if let Cause::Reference(_) = cause {
            let reference = reference.unwrap_or_default();
            ware.error =
                Some(("reference".to_owned(), format!("its reference {reference} could not be pushed")));
        }
        if let (Cause::Failed(Failure::Mismatch), Some((_, text))) = (cause, &mut ware.error) {
            let full = self.transfers.store_dir.full(&ware.path);
            *text = format!(
                "the local store is damaged: {full} is no longer what Nix registered, read twice; \
                 `nix-store --verify-path {full}` shows it, `nix-store --repair-path {full}` may mend it ({text})"
            );
        }
        let unknown = || ("unknown".to_owned(), "no reason was recorded".to_owned());
        let (class, text) = ware.error.clone().unwrap_or_else(unknown);
        error!(path = %ware.path, cache = self.caches[usize::from(ware.cache.0)], class, error = text, "not pushed");
        self.ledger.settle(task, settle::parked(&class, text, ware.attempts));
        self.keeper.park(ware.cache.0, ware.path.clone());
    }

    fn gate(&mut self, cache: CacheId, state: GateState) {
        let reason = self.troubles[usize::from(cache.0)].clone().unwrap_or_default();
        let name = self.caches[usize::from(cache.0)].clone();
        match state {
            GateState::Online => {
                self.troubles[usize::from(cache.0)] = None;
                info!(cache = name, "the cache is back: uploads go on");
            }
            GateState::Offline => {
                warn!(cache = name, reason, "the cache does not answer: paths wait, nothing is lost");
            }
            GateState::Refused => {
                warn!(cache = name, reason, "the cache refuses the token: paths wait until it is renewed");
            }
        }
    }

    /// The tasks of an earlier life are known again: its sessions wait for theirs.
    fn resume(&mut self) {
        for Resumed { row, draining, pending, anchor, abandoned } in std::mem::take(&mut self.resumed) {
            self.step(Event::Want(row, pending));
            if abandoned {
                self.abandon(row);
            } else if draining {
                self.step(Event::Flush(row));
            } else if let (Some(live), Some(anchor)) = (self.desk.sessions.get_mut(&row), anchor) {
                live.watch = Some(super::anchors::watch(row, anchor, self.transfers.out.clone()));
            }
        }
    }

    /// A group that somebody waits for has nothing unsettled left.
    fn quiet(&mut self, group: SessionId) {
        if self.desk.namings.values().any(|n| n.row == group) {
            // More has been named meanwhile; it is flushed again when that is known.
            return;
        }
        let (ready, rest): (Vec<Waiter>, Vec<Waiter>) =
            std::mem::take(&mut self.desk.waiters).into_iter().partition(|w| w.group == group);
        self.desk.waiters = rest;
        let warnings: Vec<_> = ready.iter().map(|w| self.warnings(w.asked)).collect();
        self.close(group);
        for (waiter, warnings) in ready.into_iter().zip(warnings) {
            self.answer_warning(waiter.asked, waiter.responder, waiter.since, false, warnings);
        }
    }

    /// A session has settled: it is closed, once.
    pub(super) fn close(&mut self, row: SessionId) {
        self.step(Event::Forget(row));
        let Some(session) = self.desk.sessions.remove(&row) else { return };
        let flush_ms = session.ending.map(|t| u64::try_from(t.elapsed().as_millis()).unwrap_or(u64::MAX));
        let state = if session.abandoned { SessionState::Abandoned } else { SessionState::Closed };
        self.ledger.session_state(row, state, super::wall_ms(), flush_ms);
        self.windows().forget(row);
        self.log_summary(row, session.id, session.label);
    }

    /// Waiters whose deadline has come are told how far it is.
    fn let_go_of_waiters(&mut self) {
        let now = Instant::now();
        let (late, rest): (Vec<Waiter>, Vec<Waiter>) =
            std::mem::take(&mut self.desk.waiters).into_iter().partition(|w| w.deadline <= now);
        self.desk.waiters = rest;
        for waiter in late {
            self.answer(waiter.asked, waiter.responder, waiter.since, true);
        }
        let late = self.desk.namings.values_mut();
        let late: Vec<_> = late.filter_map(|n| n.caller.take_if(|caller| caller.deadline <= now)).collect();
        for caller in late {
            self.answer_unlooked(caller);
        }
    }

    pub(super) fn report_progress(&mut self) {
        self.desk.waiters.retain(|w| !w.responder.is_gone());
        let uploading = self.flow.in_flight();
        for waiter in &mut self.desk.waiters {
            let left = u64::from(self.flow.unsettled(waiter.group));
            waiter.total = waiter.total.max(left);
            let session = match &waiter.asked {
                Asked::End(row) => self.desk.sessions.get(row).map(|s| s.id.clone()),
                Asked::Push(_) | Asked::Flush => None,
            };
            waiter.responder.progress(Progress {
                settled: waiter.total - left,
                total: waiter.total,
                uploading,
                bytes_sent: self.bytes_sent,
                note: None,
                session,
            });
        }
    }
}
