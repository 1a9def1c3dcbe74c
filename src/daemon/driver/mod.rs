//! The driver: the only owner of the decisions ([`crate::flow`]). It takes one input or
//! request after another, hands it to the decisions, and has their actions carried out
//! by the other rooms. It does not block: what reads files or waits for a server runs
//! elsewhere and reports back.
//!
//! The driver may know every room; no room knows the driver.

mod attic_client;
mod background;
mod doctor;
mod ending;
mod flushing;
mod history;
mod hooks;
mod intake_link;
mod ledger_lag;
mod opening;
mod outcome;
mod reload;
mod requests;
#[cfg(test)]
mod simulated;
mod status;
mod stopping;
mod verify;
mod waiting;
mod why;

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use tokio::sync::mpsc::{Receiver, Sender};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;

use super::attic::{Client, Login};
use super::blocking::Blocking;
use super::caches::{BuiltIn, Caches, Netrc};
use super::gc_roots::GcRoots;
use super::host::{Notify, Signal, Signals};
use super::inbox::Input;
use super::metrics::Metrics;
use super::push::{Pushes, Transfers};
use super::sessions::{Reports, Restored, Sessions};
use super::verify::Verifier;
use crate::attribution::Proc;
use crate::config::{Settings, Target};
use crate::control::server::Incoming;
use crate::daemon::intake::{Recheck, Work};
use crate::flow::{Action, CacheLimits, Event, Flow, Purpose, SessionEvent};
use crate::ledger::Ledger;
use crate::observe::{detail, event};
use crate::store::StoreWatch;
use crate::types::{CacheId, Heartbeat, Mono, PushId, SessionId};
pub(super) use background::BackgroundTasks;
pub(super) use intake_link::IntakeLink;
pub use reload::Load;
use reload::Reloads;
pub(super) use reload::policy;
#[cfg(test)]
pub(super) use simulated::Turn;
use stopping::Stopping;

/// Time between two progress reports to callers that wait.
const PROGRESS: Duration = Duration::from_millis(500);

/// Reads that `status` requests may have under way at a time. A disk that hangs keeps
/// these threads, and no more.
const STATUS_READS: usize = 4;

/// Examinations for `doctor` that may run at a time. Each asks every cache.
const DIAGNOSES: usize = 4;

/// How the driver ended.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Ended {
    /// It was asked to stop, and nothing was left under way.
    Drained,
    /// It was asked to stop, and the deadline came before everything had ended.
    Deadline,
    /// A part that the daemon cannot do without has failed.
    Failed(String),
}

/// What a task that the driver started elsewhere came to.
enum Done {
    /// The session of a ticket was opened, or could not be.
    Opened(u64, Box<super::sessions::Recorded>),
    /// The caller that started the session of a ticket was answered. `heard`: it knows the
    /// session's id.
    Started { ticket: u64, row: SessionId, heard: bool },
    /// A session that is not live was looked up.
    LookedUp(Box<ending::LookedUp>),
    /// The routes were examined for the sessions that are open. These are closed to further
    /// paths, for these reasons.
    Confined(Vec<(SessionId, String)>),
    /// The configuration was read again.
    Reloaded(Box<Result<reload::Ready, String>>),
    /// It has ended without a result. Whom it was to answer has an answer.
    Lost,
}

/// What the driver is made of.
pub(super) struct Parts {
    pub(super) settings: Arc<Settings>,
    pub(super) load: Load,
    pub(super) built_in: Option<BuiltIn>,
    pub(super) caches: Caches,
    /// The limits on uploads at a time, by the number of the cache.
    pub(super) limits: Vec<CacheLimits>,
    /// For random delays.
    pub(super) seed: u64,
    /// The beginning of the clock that the decisions use.
    pub(super) began: Instant,
    pub(super) pushes: Pushes,
    pub(super) transfers: Transfers,
    pub(super) sessions: Sessions,
    pub(super) restored: Vec<Restored>,
    /// Where work runs that may block.
    pub(super) blocking: Blocking,
    /// Where processes are looked up.
    pub(super) proc: Proc,
    pub(super) reports: Reports,
    pub(super) ledger: Ledger,
    pub(super) gc_roots: GcRoots,
    pub(super) intake: IntakeLink,
    pub(super) store_watch: Arc<StoreWatch>,
    pub(super) notify: Notify,
    /// Whether pushes are pending, for logind.
    pub(super) pending: watch::Sender<bool>,
    /// Counts the driver's turns.
    pub(super) heartbeat: Heartbeat,
    pub(super) background: BackgroundTasks,
    pub(super) metrics: Metrics,
    pub(super) client: Client,
    pub(super) login: Login,
    pub(super) netrc: Option<Netrc>,
    /// The driver's own inbox.
    pub(super) out: Sender<Input>,
}

/// The driver's state.
pub(super) struct Driver {
    parts: Parts,
    flow: Flow,
    reloads: Reloads,
    stopping: Stopping,
    work: JoinSet<Done>,
    /// A task that has ended, and whose turn has not come.
    #[cfg(test)]
    ended_task: Option<Done>,
    /// Uploads are held because the ledger is behind.
    ledger_behind: bool,
    /// Reads of `status` that may wait for the ledger or the Nix database at a time.
    status_reads: Arc<Semaphore>,
    /// Examinations for `doctor` that may run at a time.
    diagnoses: Arc<Semaphore>,
    verifier: Verifier,
    began: Instant,
}

/// The moment on the decisions' clock, which began at `began`.
fn mono(began: Instant, at: Instant) -> Mono {
    Mono(u64::try_from(at.saturating_duration_since(began).as_millis()).unwrap_or(u64::MAX))
}

impl Driver {
    pub(super) fn new(parts: Parts) -> Self {
        Self {
            flow: Flow::new(&parts.limits, parts.seed).with_recheck_after(parts.settings.push.recheck_after),
            reloads: Reloads::default(),
            stopping: Stopping::default(),
            work: JoinSet::new(),
            #[cfg(test)]
            ended_task: None,
            ledger_behind: false,
            status_reads: Arc::new(Semaphore::new(STATUS_READS)),
            diagnoses: Arc::new(Semaphore::new(DIAGNOSES)),
            verifier: Verifier::default(),
            began: parts.began,
            parts,
        }
    }

    /// Works until a signal stops it and what is under way has ended.
    pub(super) async fn run(
        mut self,
        mut inputs: Receiver<Input>,
        mut requests: Receiver<Incoming>,
        signals: &mut Signals,
    ) -> Ended {
        let mut progress = tokio::time::interval(PROGRESS);
        progress.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut requests_open = true;
        self.begin();
        loop {
            if let Some(ended) = self.at_end() {
                return ended;
            }
            self.before_turn();
            let wake = self.wake_at();
            let running = !self.stopping.has_begun();
            tokio::select! {
                input = inputs.recv() => match input {
                    Some(Input::IntakeEnded(reason)) if running => {
                        let reason = reason.unwrap_or_else(|| "it ended".to_owned());
                        return Ended::Failed(format!("the intake: {reason}"));
                    }
                    Some(input) => self.take(input),
                    None => return Ended::Failed("no room is left that reports to the driver".to_owned()),
                },
                request = requests.recv(), if requests_open => match request {
                    Some(request) => self.serve(request),
                    None => requests_open = false,
                },
                Some(done) = self.work.join_next() => match done {
                    Ok(done) => self.done(done),
                    Err(error) => detail!(error = %error, "a task of the driver failed"),
                },
                signal = signals.next(), if running => match signal {
                    Signal::Stop => self.stop(),
                    Signal::Reload => self.read_again(None),
                },
                _ = progress.tick(), if self.parts.sessions.has_waiters() || !running => {
                    self.report_progress();
                    self.extend();
                }
                () = tokio::time::sleep_until(wake) => self.step(Event::Tick),
            }
            self.after_turn();
        }
    }

    /// What is done before the first turn.
    fn begin(&mut self) {
        // Each cache is probed once at the start: its upstream keys should be known
        // before the first upload, and so should an outage.
        for cache in self.parts.caches.iter() {
            self.parts.transfers.probe(cache.target());
        }
        self.update_holds();
    }

    /// What is done before each turn.
    fn before_turn(&self) {
        self.parts.heartbeat.beat();
        self.parts.intake.attend(self.parts.sessions.any_open(), !self.parts.settings.routes.is_empty());
    }

    /// What is done after each turn.
    fn after_turn(&mut self) {
        self.follow_ledger();
        let pending = self.holds_host();
        self.parts.pending.send_if_modified(|before| std::mem::replace(before, pending) != pending);
        if self.parts.notify.is_due() {
            let line = self.status_line();
            self.parts.notify.status(line);
        }
    }

    fn now(&self) -> Mono {
        mono(self.began, Instant::now())
    }

    /// When something is due next: a decision, a caller's deadline, or the end.
    fn wake_at(&self) -> Instant {
        let at = |Mono(ms)| self.began + Duration::from_millis(ms.saturating_add(1));
        let far = Instant::now() + Duration::from_secs(3600);
        let sessions = &self.parts.sessions;
        let running = !self.stopping.has_begun();
        let due = [
            self.flow.next_deadline().map(at),
            sessions.next_deadline().map(at),
            self.stopping.deadline(),
            self.ledger_due(),
            self.parts.pushes.next_log(),
            sessions.next_due().map(at).filter(|_| running),
            sessions.retry_at().filter(|_| running),
        ];
        due.into_iter().flatten().min().unwrap_or(far)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Found { cache, mut pushes, paths, reasons, retry, report } => {
                self.parts.pushes.correct(cache, report, &mut pushes, &paths);
                let of = |purpose| pushes.iter().filter(move |p| p.purpose == purpose).map(|p| p.id);
                let wanted: Vec<PushId> = of(Purpose::Wanted).collect();
                let rechecks = of(Purpose::Recheck).chain(of(Purpose::Upstream)).collect();
                self.parts.pushes.add(cache, paths, reasons, &wanted, &rechecks);
                self.step(Event::Admit { cache, pushes });
                if retry {
                    // Admitting a failed push that is known only adds who waits for it.
                    self.step(Event::Retry(Some(wanted)));
                }
            }
            Input::Stuck(why) => self.parts.intake.set_stuck(why),
            Input::TokenChanged(cache) => self.step(Event::ProbeNow(cache)),
            Input::BuiltInPort => self.probe_built_in(),
            Input::Named { token, invalid } => self.named(token, &invalid),
            Input::Cursor(cursor) => self.parts.intake.set_cursor(cursor),
            Input::Rechecked { cache, collected } => {
                collected.into_iter().for_each(|push| self.step(Event::Collected(push)));
                self.step(Event::Rechecked(cache));
            }
            Input::Restored => self.restored(),
            Input::Host(event) => self.host(event),
            Input::AnchorGone(row) => self.session_step(row, SessionEvent::AnchorGone),
            Input::IntakeEnded(_) | Input::Beat => {}
            Input::Asked { cache, pushes, result, took } => self.asked(cache, pushes, result, took),
            Input::Uploaded { push, result, took } => self.uploaded(push, result, took),
            Input::Probed(cache, result) => self.probed(cache, result),
            Input::Client => self.update_holds(),
            Input::Metrics(reply) => self.metrics_page(move |page| drop(reply.send(page))),
        }
    }

    /// Probes the caches that the built-in cache holds.
    fn probe_built_in(&mut self) {
        let configured = &self.parts.settings.caches;
        let built_in =
            |name: &str| configured.get(name).is_some_and(|cache| cache.target == Target::Embedded);
        let caches = self.parts.caches.iter().filter(|cache| built_in(cache.name()));
        for cache in caches.map(super::caches::Cache::id).collect::<Vec<_>>() {
            self.step(Event::ProbeNow(cache));
        }
    }

    /// Does work that may block elsewhere. It ends in [`Self::done`], with `lost` if it ends
    /// without a result.
    fn elsewhere(&mut self, work: impl FnOnce() -> Done + Send + 'static, lost: Done) {
        let result = self.parts.blocking.run(work);
        self.work.spawn(async move {
            result.await.unwrap_or_else(|error| {
                detail!(error = %error, "a task of the driver failed");
                lost
            })
        });
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Opened(ticket, recorded) => self.opened(ticket, *recorded),
            Done::Started { ticket, row, heard } => self.started(ticket, row, heard),
            Done::Lost => {}
            Done::LookedUp(looked_up) => self.looked_up(*looked_up),
            Done::Confined(forbidden) => self.confined(forbidden),
            Done::Reloaded(ready) => self.reloaded(*ready),
        }
    }

    /// The name of a cache in the configuration.
    fn name(&self, cache: CacheId) -> &str {
        self.parts.caches[cache].name()
    }

    /// Hands an event to the decisions and has their actions carried out.
    fn step(&mut self, event: Event) {
        let now = self.now();
        if matches!(event, Event::Tick) {
            self.parts.pushes.log_due(Instant::now());
            self.answer_late_callers();
            if !self.stopping.has_begun() {
                self.due_sessions();
                self.send_namings();
            }
        }
        for action in self.flow.step(event, now) {
            self.act(action);
        }
        self.parts.intake.set_known(self.flow.known());
    }

    fn act(&mut self, action: Action) {
        let Parts { caches, pushes, transfers, metrics, .. } = &mut self.parts;
        match action {
            Action::Ask(cache, asked) => transfers.ask(caches[cache].target(), pushes.paths(asked)),
            Action::Upload(cache, push, attempt) => {
                metrics.begins(caches[cache].name(), attempt);
                if let Some(path) = pushes.begin(push, attempt) {
                    caches[cache].upload(transfers, push, path, self.flow.no_verdicts(push));
                }
            }
            Action::Probe(cache) => transfers.probe(caches[cache].target()),
            Action::Recheck(cache, asked) => {
                let recheck = Recheck { cache, pushes: pushes.paths(asked) };
                if !self.parts.intake.ask(Work::Recheck(recheck)) {
                    self.step(Event::Rechecked(cache));
                }
            }
            Action::Confirmed(push, at) => pushes.confirmed(push, at),
            Action::Wanted(unconfirmed) => pushes.unconfirm(&unconfirmed),
            Action::Distrust(cache, before) => {
                event!(
                    CACHE_DELETED,
                    cache = caches[cache].name(),
                    "cache {} has deleted paths that it had: it is asked again for everything that it had confirmed",
                    caches[cache].name()
                );
                pushes.distrust(cache, before);
            }
            Action::Settled(push, outcome) => self.settled(push, outcome),
            Action::Failed(push, cause) => self.failed(push, cause),
            Action::Forgotten(push) => pushes.forget(push),
            Action::Reopened(push) => pushes.reopen(push),
            Action::Quiet(group) => self.quiet(group),
            Action::Breaker(cache, state) => self.breaker(cache, state),
        }
    }
}
