//! The driver: the one push that owns the decisions. It takes what happened,
//! steps `flow`, and has the actions carried out. It never blocks: what reads
//! files or waits for a server runs elsewhere and reports back.

pub(in crate::daemon) mod background;
mod history;
mod hooks;
pub(in crate::daemon) mod readers;
pub(in crate::daemon) mod reload;
pub(in crate::daemon) mod requests;
mod stopping;

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;

use crate::attribution::{LockWatcher, Windows};
use crate::config::Settings;
use crate::control::messages::PathCounts;
use crate::control::server::Incoming;
use crate::daemon::caches::servers::{BuiltIn, Line};
use crate::daemon::driver::background::BackgroundTasks;
use crate::daemon::driver::reload::{Load, Reloads};
use crate::daemon::gc_roots::GcRoots;
use crate::daemon::host::notify::Notify;
use crate::daemon::inbox::Input;
use crate::daemon::intake::{Bell, NewPolicy};
use crate::daemon::push::settle;
use crate::daemon::push::transfer::Transfers;
use crate::daemon::push::upstream_keys::UpstreamKeys;
use crate::daemon::sessions::resume::Resumed;
use crate::daemon::sessions::session::Sessions;
use crate::flow::{Action, Event, Flow, Outcome};
use crate::ledger::Ledger;
use crate::observe::event;
use crate::store::StoreWatch;
use crate::types::Heartbeat;
use crate::types::{CacheId, Mono, PushId, StorePath};

/// What a push stands for, and how its last try went.
#[derive(Debug)]
pub(in crate::daemon) struct Ware {
    pub(in crate::daemon) path: StorePath,
    pub(in crate::daemon) cache: CacheId,
    pub(in crate::daemon) attempts: u32,
    /// Class and text of the last failure; thousands may share one.
    pub(in crate::daemon) error: Option<Arc<(String, String)>>,
}

/// How the driver came to its end.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::daemon) enum Ended {
    /// It was told to, and nothing was left under way.
    Drained,
    /// It was told to, and the deadline came first.
    Deadline,
    /// Something that it cannot do without has failed.
    Failed(String),
}

/// The driver's state.
pub(in crate::daemon) struct Driver {
    /// What is in use; the only place that knows. See [`super::reload`].
    pub(in crate::daemon) settings: Arc<Settings>,
    pub(in crate::daemon) load: Load,
    pub(in crate::daemon) reloads: Reloads,
    pub(in crate::daemon) built_in: Option<BuiltIn>,
    /// The ways to the caches, by number.
    pub(in crate::daemon) lines: Vec<Line>,
    pub(in crate::daemon) new_policy: NewPolicy,
    pub(in crate::daemon) background: BackgroundTasks,
    /// The caches' names in the configuration, by number.
    pub(in crate::daemon) caches: Vec<String>,
    pub(in crate::daemon) flow: Flow,
    pub(in crate::daemon) wares: HashMap<PushId, Ware>,
    pub(in crate::daemon) sessions: Sessions,
    pub(in crate::daemon) ledger: Ledger,
    pub(in crate::daemon) bell: Bell,
    pub(in crate::daemon) windows: Arc<Mutex<Windows>>,
    pub(in crate::daemon) lock_watcher: LockWatcher,
    pub(in crate::daemon) upstream_keys: UpstreamKeys,
    pub(in crate::daemon) transfers: Transfers,
    pub(in crate::daemon) store_watch: StoreWatch,
    pub(in crate::daemon) notify: Notify,
    /// Whether the host is to wait before it goes down.
    pub(in crate::daemon) pending: watch::Sender<bool>,
    /// The host goes to sleep: nothing new is begun.
    pub(in crate::daemon) asleep: bool,
    /// Moves with every turn.
    pub(in crate::daemon) pulse: Heartbeat,
    /// The last thing each cache said that was not good.
    pub(in crate::daemon) troubles: Vec<Option<String>>,
    /// Why the intake cannot go on for the moment.
    pub(in crate::daemon) stuck: Option<String>,
    /// How many pushes `flow` knows, for the intake.
    pub(in crate::daemon) known: Arc<AtomicUsize>,
    pub(in crate::daemon) gc_roots: GcRoots,
    pub(in crate::daemon) cursor: i64,
    /// What became of paths so far, by cache.
    pub(in crate::daemon) counts: Vec<PathCounts>,
    pub(in crate::daemon) began: Instant,
    pub(in crate::daemon) stopping: Option<Instant>,
    /// What had moved when systemd was last asked for more time.
    pub(in crate::daemon) moved: (u64, u32),
    pub(in crate::daemon) own_uid: u32,
    /// Sessions of an earlier life, until what they wait for is known again.
    pub(in crate::daemon) resumed: Vec<Resumed>,
    /// The attic client that is kept.
    pub(in crate::daemon) client: crate::daemon::attic::client::Handle,
    pub(in crate::daemon) login: crate::daemon::attic::login::Login,
    /// The file that Nix reads private caches with.
    pub(in crate::daemon) netrc: Option<crate::daemon::caches::netrc::Netrc>,
    /// What carries out the uploads of caches that do not take them from us.
    pub(in crate::daemon) engines: Vec<Option<crate::daemon::attic::engine::Engine>>,
}

impl Driver {
    /// Works until `stop` says so and what is under way has ended.
    pub(in crate::daemon) async fn run(
        mut self,
        mut inputs: Receiver<Input>,
        mut requests: Receiver<Incoming>,
        mut stop: tokio::sync::mpsc::Receiver<()>,
        mut hangup: tokio::signal::unix::Signal,
    ) -> Ended {
        let mut pulse = tokio::time::interval(Duration::from_millis(500));
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let mut requests_open = true;
        // Each cache is looked at once in the beginning: what it says of itself
        // is known before the first path, and so is its absence.
        for number in 0..u16::try_from(self.caches.len()).unwrap_or(u16::MAX) {
            self.transfers.probe(CacheId(number));
        }
        self.client_usable(self.client.is_usable());
        loop {
            if let Some(ended) = self.at_end() {
                return ended;
            }
            self.pulse.beat();
            let open = self.sessions.sessions.values().any(|s| s.ending.is_none());
            self.lock_watcher.attend(open, !self.settings.routes.is_empty());
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
                Some(()) = hangup.recv(), if self.stopping.is_none() => self.read_again(None),
                _ = pulse.tick(), if !self.sessions.waiters.is_empty() || self.stopping.is_some() => {
                    self.report_progress();
                    self.extend();
                }
                () = tokio::time::sleep_until(wake.into()) => self.step(Event::Tick),
            }
            let pending = self.holds_host();
            self.pending.send_if_modified(|before| std::mem::replace(before, pending) != pending);
            if self.notify.is_due() {
                let line = self.status_line();
                self.notify.status(line);
            }
        }
    }

    fn now(&self) -> Mono {
        Mono(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn wake_at(&self) -> Instant {
        let flow = self
            .flow
            .next_deadline()
            .map(|Mono(ms)| self.began + Duration::from_millis(ms.saturating_add(1)));
        let naming = self.sessions.namings.values().filter_map(|n| Some(n.caller.as_ref()?.deadline));
        let waiter = self.sessions.waiters.iter().map(|w| w.deadline).chain(naming).min();
        let far = Instant::now() + Duration::from_secs(3600);
        [flow, waiter, self.stopping].into_iter().flatten().min().unwrap_or(far)
    }

    fn take(&mut self, input: Input) {
        match input {
            Input::Found { cache, pushes, paths, reasons, retry } => {
                let active: Vec<PushId> = pushes.iter().filter(|t| !t.failed).map(|t| t.id).collect();
                for (id, path) in paths {
                    self.wares.entry(id).or_insert(Ware { path, cache, attempts: 0, error: None });
                }
                for (id, class, text) in reasons {
                    if let Some(ware) = self.wares.get_mut(&id) {
                        ware.error = Some(Arc::new((class, text)));
                    }
                }
                let paths = active.iter().filter_map(|id| Some(self.wares.get(id)?.path.clone())).collect();
                self.gc_roots.keep(cache.0, paths);
                self.step(Event::Admit { cache, pushes });
                if retry {
                    // One that was given up is known already, and admitting it
                    // again says only who waits for it.
                    self.step(Event::Retry(Some(active)));
                }
            }
            Input::Stuck(why) => self.stuck = why,
            Input::TokenChanged(cache) => self.step(Event::ProbeNow(cache)),
            Input::Named { token, invalid } => self.named(token, &invalid),
            Input::Cursor(cursor) => self.cursor = cursor,
            Input::Restored => self.resume(),
            Input::Host(host) => self.host(host),
            Input::Reloaded(reloaded) => self.reloaded(*reloaded),
            Input::Opened(opening) => self.opened(*opening),
            Input::AnchorGone(row) => self.abandon(row),
            Input::Rejoined(rejoining) => self.rejoined(*rejoining),
            Input::IntakeEnded(_) | Input::Beat => {}
            Input::Asked { cache, pushes, result, took } => self.asked(cache, pushes, result, took),
            Input::Uploaded { push, result, took } => self.uploaded(push, result, took),
            Input::Probed(cache, result) => self.probed(cache, result),
            Input::Client(usable) => self.client_usable(usable),
        }
    }

    pub(in crate::daemon) fn name(&self, cache: CacheId) -> &str {
        &self.caches[usize::from(cache.0)]
    }

    /// Steps the decisions and has done what they say.
    pub(in crate::daemon) fn step(&mut self, event: Event) {
        let now = self.now();
        if matches!(event, Event::Tick) {
            self.let_go_of_waiters();
        }
        for action in self.flow.step(event, now) {
            self.act(action);
        }
        self.known.store(self.flow.known(), Ordering::Relaxed);
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Ask(cache, pushes) => {
                let pushes =
                    pushes.into_iter().filter_map(|t| Some((t, self.wares.get(&t)?.path.clone()))).collect();
                self.transfers.ask(cache, pushes);
            }
            Action::Upload(cache, push, attempt) => {
                if let Some(ware) = self.wares.get_mut(&push) {
                    ware.attempts = attempt;
                    self.ledger.uploading(push, attempt);
                    match &self.engines[usize::from(cache.0)] {
                        Some(engine) => engine.upload(push, ware.path.clone()),
                        None => self.transfers.upload(cache, push, ware.path.clone()),
                    }
                }
            }
            Action::Probe(cache) => self.transfers.probe(cache),
            Action::Settled(push, outcome) => {
                let Some(ware) = self.wares.remove(&push) else { return };
                if outcome == Outcome::Collected {
                    event!(
                        PATH_COLLECTED,
                        cache = self.name(ware.cache),
                        store_path = self.transfers.store_dir.full(&ware.path),
                        "skipped: collected from the store before it was pushed"
                    );
                }
                let counts = &mut self.counts[usize::from(ware.cache.0)];
                *match outcome {
                    Outcome::Pushed => &mut counts.pushed,
                    Outcome::Cached => &mut counts.already_cached,
                    Outcome::Upstream => &mut counts.upstream,
                    Outcome::Collected => &mut counts.collected,
                } += 1;
                self.ledger.settle(push, settle::settled(outcome, ware.attempts));
                self.gc_roots.release(ware.cache.0, ware.path);
            }
            Action::Failed(push, cause) => self.parked(push, cause),
            Action::Forgotten(push) => drop(self.wares.remove(&push)),
            Action::Reopened(push) => {
                self.ledger.reopen(&[push]);
                if let Some(ware) = self.wares.get(&push) {
                    self.gc_roots.keep(ware.cache.0, vec![ware.path.clone()]);
                }
            }
            Action::Quiet(group) => self.quiet(group),
            Action::Breaker(cache, state) => self.gate(cache, state),
        }
    }
}
