//! The attic client that the daemon keeps. A task of its own runs its life cycle,
//! which is decided in [`crate::flow`]: it checks the client of an earlier run, looks
//! for a new one, and publishes the present state. Nobody waits for the task, as
//! fetching a client may take minutes.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;

use super::{Login, workspace};
use crate::attic::{self, Installable, Obtained, Unavailable, Workspace};
use crate::config::Settings;
use crate::daemon::inbox::Input;
use crate::flow::{ClientAction, ClientEvent, ClientLife, ClientState, Found};
use crate::observe::{detail, event};
use crate::types::{Mono, Wall};

/// Messages to the task that may wait; further ones would say the same.
const MESSAGES: usize = 64;

/// How the client came to this host. Kept in a file over restarts.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(in crate::daemon) struct Record {
    program: PathBuf,
    pub(in crate::daemon) version: String,
    /// When this client became usable, in milliseconds since 1970.
    pub(in crate::daemon) since: i64,
    /// Since when there has been a usable client without a gap, likewise.
    pub(in crate::daemon) first: i64,
    /// How long obtaining it took.
    pub(in crate::daemon) took_ms: u64,
    /// How long there was no client before.
    pub(in crate::daemon) waited_ms: u64,
}

/// The present state of the client.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct View {
    /// `None`: the configuration disables the client.
    pub(in crate::daemon) state: Option<ClientState>,
    /// The program, while it is usable.
    pub(in crate::daemon) program: Option<PathBuf>,
    pub(in crate::daemon) record: Option<Record>,
    /// Why there is no client, or why no newer one replaced it.
    pub(in crate::daemon) error: Option<String>,
}

/// A handle of the task. Clones belong to the same task.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Client {
    messages: mpsc::Sender<Message>,
    view: watch::Receiver<View>,
    installable: Option<Installable>,
}

/// A message to the task.
#[derive(Debug)]
enum Message {
    Event(ClientEvent),
    /// The client does not work any more, and why.
    Lost(String),
}

impl Client {
    /// The handle when the configuration disables the client.
    pub(in crate::daemon) fn disabled() -> Self {
        Self { messages: mpsc::channel(1).0, view: watch::channel(View::default()).1, installable: None }
    }

    /// The present state.
    pub(in crate::daemon) fn view(&self) -> View {
        self.view.borrow().clone()
    }

    /// Whether the client is usable.
    pub(in crate::daemon) fn is_usable(&self) -> bool {
        self.view.borrow().program.is_some()
    }

    /// Looks for a client now.
    pub(in crate::daemon) fn look_now(&self) {
        self.send(Message::Event(ClientEvent::Wanted));
    }

    /// Notes that a cache answers again.
    pub(in crate::daemon) fn cache_back(&self) {
        self.send(Message::Event(ClientEvent::CacheBack));
    }

    /// Notes that the client does not work any more.
    pub(in crate::daemon) fn lost(&self, why: String) {
        self.send(Message::Lost(why));
    }

    /// Notes that a store path with this base name has become valid: it may be the
    /// client.
    pub(in crate::daemon) fn sighted(&self, base: &str) {
        if self.installable.as_ref().is_some_and(|installable| installable.may_be(base)) {
            detail!(store_path = base, "a path that may be the attic client has become valid");
            self.send(Message::Event(ClientEvent::Sighted));
        }
    }

    fn send(&self, message: Message) {
        // With a full queue the task looks for the client anyway.
        let _ = self.messages.try_send(message);
    }
}

/// The task's state.
struct Task {
    life: ClientLife,
    workspace: Workspace,
    installable: Installable,
    login: Login,
    /// The number of the cache that a new client is checked with.
    cache: usize,
    began: Instant,
    /// Since when there has been no usable client.
    without: Option<Instant>,
    view: watch::Sender<View>,
    out: mpsc::Sender<Input>,
    done: mpsc::Sender<Done>,
}

/// What came of a check or a search.
enum Done {
    Checked(Result<(PathBuf, String), Unavailable>),
    Looked(Result<Obtained, Unavailable>, Found),
}

/// Starts the task. Aborting it kills the processes that it runs.
pub(in crate::daemon) fn start(
    settings: &Settings,
    login: Login,
    seed: u64,
    out: mpsc::Sender<Input>,
) -> (Client, JoinHandle<()>) {
    if !settings.client.enable {
        return (Client::disabled(), tokio::spawn(std::future::ready(())));
    }
    let workspace = workspace(settings, &login);
    let installable = Installable::parse(&settings.client.installable, &settings.nix.store_dir);
    let (messages, inbox) = mpsc::channel(MESSAGES);
    let (view, seen) = watch::channel(View { state: Some(ClientState::Absent), ..View::default() });
    let (done, results) = mpsc::channel(2);
    let cache = login.caches().iter().position(|c| c.name == settings.default_cache).unwrap_or(0);
    let client = Client { messages, view: seen, installable: Some(installable.clone()) };
    let task = Task {
        life: ClientLife::new(seed, installable.is_fixed()),
        workspace,
        installable,
        login,
        cache,
        began: Instant::now(),
        without: Some(Instant::now()),
        view,
        out,
        done,
    };
    (client, tokio::spawn(task.run(inbox, results)))
}

impl Task {
    async fn run(mut self, mut inbox: mpsc::Receiver<Message>, mut results: mpsc::Receiver<Done>) {
        let left = attic::present(&self.workspace, &self.installable).is_some();
        event!(
            CLIENT_KEPT,
            phase = "1",
            installable = %self.installable,
            "the attic client {} is kept ready{}",
            self.installable,
            if left { ": one is there from before" } else { "" }
        );
        let mut work = tokio::task::JoinSet::new();
        self.step(ClientEvent::Begin { left }, &mut work).await;
        loop {
            let due =
                self.life.due().map(|Mono(ms)| self.began + Duration::from_millis(ms.saturating_add(1)));
            let due = due.unwrap_or_else(|| Instant::now() + Duration::from_secs(3600));
            tokio::select! {
                message = inbox.recv() => match message {
                    None => return,
                    Some(Message::Event(event)) => self.step(event, &mut work).await,
                    Some(Message::Lost(why)) => {
                        event!(CLIENT_LOST, error = why, "the attic client does not work any more: {why}; another one is fetched");
                        self.view.send_modify(|view| view.error = Some(why));
                        self.step(ClientEvent::Lost, &mut work).await;
                    }
                },
                Some(done) = results.recv() => self.done(done, &mut work).await,
                // A task that panicked reported nothing.
                Some(Err(_)) = work.join_next() => {
                    self.step(ClientEvent::Checked(false), &mut work).await;
                    self.step(ClientEvent::Looked(Found::Missing), &mut work).await;
                }
                () = tokio::time::sleep_until(due.into()) => self.step(ClientEvent::Tick, &mut work).await,
            }
        }
    }

    async fn step(&mut self, event: ClientEvent, work: &mut tokio::task::JoinSet<()>) {
        let now = Mono(u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX));
        for action in self.life.step(event, now) {
            match action {
                ClientAction::Check => self.check(work),
                ClientAction::Look => self.look(work),
                ClientAction::Usable(usable) => self.usable(usable).await,
            }
        }
        let state = self.life.state();
        self.view.send_if_modified(|view| view.state.replace(state) != Some(state));
    }

    fn check(&self, work: &mut tokio::task::JoinSet<()>) {
        let (workspace, installable, done) =
            (self.workspace.clone(), self.installable.clone(), self.done.clone());
        let login = self.login.clone();
        work.spawn(async move {
            let result = match attic::present(&workspace, &installable) {
                Some(program) => {
                    logged_in(&login).await;
                    // The search that follows checks it with the cache.
                    attic::check(&workspace, &program, None).await.map(|version| (program, version))
                }
                None => Err(Unavailable::Missing("it is not there any more".to_owned())),
            };
            let _ = done.send(Done::Checked(result)).await;
        });
    }

    fn look(&self, work: &mut tokio::task::JoinSet<()>) {
        let (workspace, installable, done) =
            (self.workspace.clone(), self.installable.clone(), self.done.clone());
        let (login, before) = (self.login.clone(), self.view.borrow().program.clone());
        let cache = self.login.caches()[self.cache].clone();
        work.spawn(async move {
            logged_in(&login).await;
            detail!(phase = "1", "looking for the attic client");
            let mut result =
                attic::obtain(&workspace, &installable, before.as_deref(), &cache.reference()).await;
            let found = match &result {
                Ok(_) => Found::Usable,
                Err(Unavailable::Missing(_)) => Found::Missing,
                Err(Unavailable::Broken(_)) => Found::Broken,
                // It could not reach the cache. Does the cache answer the daemon?
                Err(Unavailable::Unanswered(why)) => match cache.client.discover().await {
                    Ok(_) => Found::Broken,
                    Err(error) => {
                        result = Err(Unavailable::Unanswered(format!("{why}; {error}")));
                        Found::Untried
                    }
                },
            };
            let _ = done.send(Done::Looked(result, found)).await;
        });
    }

    async fn done(&mut self, done: Done, work: &mut tokio::task::JoinSet<()>) {
        match done {
            Done::Checked(Ok((program, version))) => {
                event!(
                    CLIENT_RESUMED,
                    phase = "2a",
                    client = %program.display(),
                    version = version,
                    "the attic client from before the restart works: {}",
                    program.display()
                );
                let record = self.read_record().filter(|record| record.program == program);
                let record =
                    record.unwrap_or_else(|| self.new_record(program.clone(), version, Duration::ZERO));
                self.without = None;
                self.view.send_modify(|view| {
                    view.record = Some(record);
                    view.program = Some(program);
                });
                self.step(ClientEvent::Checked(true), work).await;
            }
            Done::Checked(Err(unavailable)) => {
                event!(CLIENT_STALE, error = %unavailable, "the attic client from before the restart does not work: {unavailable}; another one is fetched");
                self.step(ClientEvent::Checked(false), work).await;
            }
            Done::Looked(result, found) => {
                match result {
                    Ok(obtained) => self.obtained(obtained),
                    Err(unavailable) => self.obtain_failed(&unavailable, found),
                }
                self.step(ClientEvent::Looked(found), work).await;
            }
        }
    }

    fn obtained(&mut self, obtained: Obtained) {
        let Obtained { program, version, same, took } = obtained;
        if same && self.view.borrow().record.is_some() {
            detail!(client = %program.display(), "there is no newer attic client");
            self.view.send_modify(|view| view.error = None);
            return;
        }
        let record = self.new_record(program.clone(), version.clone(), took);
        event!(
            CLIENT_READY,
            phase = "2a",
            client = %program.display(),
            version = version,
            duration_ms = record.took_ms,
            waited_ms = record.waited_ms,
            "the attic client is ready: {}",
            program.display()
        );
        self.without = None;
        self.view.send_modify(|view| {
            *view = View { state: view.state, program: Some(program), record: Some(record), error: None }
        });
    }

    fn obtain_failed(&mut self, unavailable: &Unavailable, found: Found) {
        let reason = unavailable.to_string();
        let before = self.view.borrow().program.clone();
        let news = self.view.borrow().error.as_ref() != Some(&reason);
        match (before, found) {
            (Some(path), _) => {
                event!(
                    CLIENT_NOT_REPLACED,
                    client = %path.display(),
                    error = reason,
                    "there is no newer attic client, and {} stays in use: {reason}",
                    path.display()
                );
            }
            (None, _) if !news => detail!(phase = "2b", error = reason, "still no attic client"),
            (None, Found::Broken) => {
                event!(
                    CLIENT_BROKEN,
                    phase = "2b",
                    error = reason,
                    "the attic client that was fetched does not work: {reason}"
                );
            }
            (None, _) => event!(
                CLIENT_MISSING,
                phase = "2b",
                error = reason,
                "there is no attic client yet: {reason}; flywheeld builds none, and looks again later and when a job has built one"
            ),
        }
        self.view.send_modify(|view| view.error = Some(reason));
    }

    async fn usable(&mut self, usable: bool) {
        if !usable {
            self.without = Some(Instant::now());
            self.view.send_modify(|view| view.program = None);
        }
        let _ = self.out.send(Input::Client).await;
    }

    fn record_file(&self) -> PathBuf {
        self.workspace.state_dir.join("attic-client.json")
    }

    fn read_record(&self) -> Option<Record> {
        serde_json::from_slice(&std::fs::read(self.record_file()).ok()?).ok()
    }

    /// Makes the record of a new client, and writes it to the file.
    fn new_record(&self, program: PathBuf, version: String, took: Duration) -> Record {
        let now = Wall::now().0;
        let first =
            self.view.borrow().record.as_ref().filter(|_| self.without.is_none()).map_or(now, |r| r.first);
        let ms = |d: Duration| u64::try_from(d.as_millis()).unwrap_or(u64::MAX);
        let waited_ms = self.without.map_or(0, |since| ms(since.elapsed()));
        let record = Record { program, version, since: now, first, took_ms: ms(took), waited_ms };
        let written = serde_json::to_vec(&record)
            .map_err(std::io::Error::other)
            .and_then(|json| crate::types::replace_file(&self.record_file(), &json, 0o600, None));
        if let Err(error) = written {
            let file = self.record_file();
            event!(CLIENT_FAULT, file = %file.display(), error = %error, "the record of the attic client cannot be written to {}: {error}", file.display());
        }
        record
    }
}

/// Writes the login. An error is logged.
async fn logged_in(login: &Login) {
    let own = login.clone();
    let refreshed = tokio::task::spawn_blocking(move || own.refresh()).await;
    if let Ok(Err(error)) = refreshed {
        let dir = login.home().dir().display().to_string();
        event!(
            CLIENT_FAULT,
            file = dir,
            error = format!("{error:#}"),
            "the attic client cannot be logged in, because its files in {dir} cannot be written: {error:#}"
        );
    }
}
