//! Starts and stops the parts of the daemon. Each part is started from parts that run
//! already, so a wrong order does not compile. Must not know what the parts do.

use std::fs::DirBuilder;
use std::net::TcpListener;
use std::os::unix::fs::DirBuilderExt as _;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::time::Instant;

use anyhow::{Context, Result};
use tokio::sync::mpsc::{Receiver, Sender, channel};
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::attic::{self, Client, Login};
use super::blocking::Blocking;
use super::caches::{self, BuiltIn, Cache, Caches, Connection, EngineParts, Netrc};
use super::driver::{BackgroundTasks, Driver, IntakeLink, Load, Parts, policy};
use super::gc_roots::{Bounds, GcRoots, Places};
use super::host::{self, Notify, Part, StateDirLock};
use super::inbox::Input;
use super::intake::{
    self, Baseline, Intake, IntakeHandle, NewPolicy, People, RealisationCopy, Routes, UndecidedPaths,
    WorkQueue,
};
use super::metrics::Metrics;
use super::push::{Pushes, Settlements, StoreReader, Transfers};
use super::sessions::{self, Reports, Restored, Sessions};
use crate::attribution::{LockWatcher, Proc, Windows};
use crate::config::Settings;
use crate::control::server::{self, Incoming, Limits};
use crate::embedded::Running;
use crate::flow::CacheLimits;
use crate::ledger::{Ledger, Opened};
use crate::observe::{detail, event};
use crate::store::{CurrentNixDb, LowerStore, StoreWatch};
use crate::types::{Heartbeat, StoreDir, Wall};

/// Inputs that may wait for the driver; a room with another one waits. One of the
/// intake's may take a hundred kilobytes.
const INPUTS: usize = 16;
/// How long answers may take to be sent at the end.
const FAREWELL: Duration = Duration::from_secs(2);
/// How long the intake may take to end. A locked Nix database delays it for some
/// seconds.
const INTAKE_END: Duration = Duration::from_secs(10);

/// The driver's inbox.
pub(super) fn inbox() -> (Sender<Input>, Receiver<Input>) {
    channel(INPUTS)
}

/// What every other part stands on: the locked state directory, the ledger, and the
/// store directory.
pub(super) struct Ground {
    lock: StateDirLock,
    ledger: Ledger,
    opened: Opened,
    store_dir: StoreDir,
}

impl Ground {
    pub(super) fn open(settings: &Settings) -> Result<Self> {
        make_dir(&settings.state_dir, "state_dir")?;
        make_dir(&settings.runtime_dir, "RUNTIME_DIRECTORY")?;
        let lock = StateDirLock::take(&settings.state_dir)?;
        let path = settings.state_dir.join("ledger.sqlite");
        let (ledger, opened) =
            Ledger::open(&path).with_context(|| format!("the ledger {}", path.display()))?;
        let store_dir = settings.nix.store()?;
        Ok(Self { lock, ledger, opened, store_dir })
    }

    /// The Nix database, which need not exist yet.
    fn nix_db(&self, settings: &Settings) -> CurrentNixDb {
        CurrentNixDb::new(&settings.nix.state_dir, &self.store_dir, &daemon_socket(settings))
    }

    /// Writes everything that is queued to the ledger. A full or broken disk is no
    /// error here: the ledger has logged it, and the next start makes up for it.
    pub(super) async fn write_ledger(&self) -> Result<()> {
        let ledger = self.ledger.clone();
        match spawn_blocking(move || ledger.sync()).await? {
            Err(error) if error.is_storage() => Ok(()),
            written => Ok(written?),
        }
    }

    /// Lets another daemon take the state directory. While the intake still works,
    /// the lock is kept until the process ends.
    pub(super) fn release(self, intake_ended: bool) {
        if !intake_ended {
            std::mem::forget(self.lock);
        }
    }
}

/// The caches, with what uploads to them.
pub(super) struct CacheSet {
    caches: Caches,
    limits: Vec<CacheLimits>,
    transfers: Transfers,
    built_in: Option<BuiltIn>,
    running: Option<RunningCache>,
}

/// The built-in cache while it runs.
pub(super) struct RunningCache {
    running: Running,
    closing: CancellationToken,
}

impl CacheSet {
    /// `passed` is the socket that systemd listens on for the built-in cache.
    pub(super) async fn start(
        settings: &Settings,
        ground: &Ground,
        passed: Option<TcpListener>,
        out: Sender<Input>,
    ) -> Result<Self> {
        let store = StoreReader::new(ground.nix_db(settings), ground.store_dir.clone(), Blocking::default());
        let closing = CancellationToken::new();
        let running =
            caches::start_built_in(settings, &ground.store_dir, passed, &closing, out.clone()).await?;
        let built_in = running.as_ref().map(BuiltIn::of);
        let caches = Caches::new(Connection::all(settings, built_in.as_ref())?);
        let transfers = Transfers::new(store, settings.push.max_rate, out);
        let running = running.map(|running| RunningCache { running, closing });
        Ok(Self { caches, limits: Vec::new(), transfers, built_in, running })
    }

    pub(super) fn take_built_in(&mut self) -> Option<RunningCache> {
        self.running.take()
    }
}

/// Stops the built-in cache, after the last upload to it.
pub(super) async fn stop_built_in(running: Option<RunningCache>) {
    if let Some(RunningCache { running, closing }) = running {
        closing.cancel();
        let _ = timeout(FAREWELL, running.task).await;
    }
}

/// The sessions of the last run of the daemon.
pub(super) struct SavedSessions {
    sessions: Sessions,
    restored: Vec<Restored>,
    windows: Arc<Mutex<Windows>>,
}

impl SavedSessions {
    pub(super) fn read(ground: &Ground, caches: &CacheSet) -> Result<Self> {
        let windows = Arc::new(Mutex::new(Windows::default()));
        let mut sessions = Sessions::default();
        let id = |name: &str| caches.caches.id(name);
        let restored = sessions::restore(&ground.ledger, id, &mut sessions, &windows, &Proc::default())?;
        Ok(Self { sessions, restored, windows })
    }

    /// Closes the sessions to further paths whose caches the routes do not allow any more.
    /// To be called before the intake begins. Waits for the name service.
    fn confine(&mut self, ground: &Ground, routes: &Routes) {
        let asked = self.sessions.unconfined().filter_map(|(session, cache)| {
            let person = (session.uid, session.gid);
            Some((session.row, routes.may_continue(person, session.label.as_deref(), cache).err()?))
        });
        for (row, why) in asked.collect::<Vec<_>>() {
            if let Some(session) = self.sessions.get_mut(row) {
                session.confine(&ground.ledger, why);
                self.windows.lock().unwrap_or_else(PoisonError::into_inner).forget(row);
            }
        }
    }
}

/// The protection of pending paths from Nix's garbage collector.
pub(super) struct Protection(GcRoots);

impl Protection {
    pub(super) fn start(settings: &Settings, ground: &Ground) -> Result<Self> {
        let places = Places {
            state_dir: settings.nix.state_dir.clone(),
            store_dir: ground.store_dir.clone(),
            socket: daemon_socket(settings),
            links: settings.nix.gc_roots.clone(),
        };
        Ok(Self(GcRoots::start(places, Bounds::of(&settings.nix))?))
    }

    /// Ends the temporary roots. Roots that outlive the process stay.
    pub(super) fn stop(self) {
        self.0.stop();
    }
}

/// The control socket.
pub(super) struct Socket {
    address: PathBuf,
    /// systemd made the socket.
    activated: bool,
    closing: CancellationToken,
    server: tokio::task::JoinHandle<()>,
    heartbeat: Heartbeat,
}

impl Socket {
    pub(super) fn open(
        settings: &Settings,
        ground: &Ground,
        passed: Option<UnixListener>,
    ) -> Result<(Self, Receiver<Incoming>)> {
        let activated = passed.is_some();
        let (listener, address) = match passed {
            Some(listener) => {
                let address = listener.local_addr()?.as_pathname().map(PathBuf::from);
                (listener, address.unwrap_or_default())
            }
            None => (server::bind(&settings.socket)?, settings.socket.clone()),
        };
        let (closing, heartbeat) = (CancellationToken::new(), Heartbeat::default());
        let store_dir = &ground.store_dir;
        let (requests, server) =
            server::start(listener, store_dir, Limits::default(), closing.clone(), heartbeat.clone())?;
        Ok((Self { address, activated, closing, server, heartbeat }, requests))
    }

    /// Logs that the daemon is ready.
    fn announce(&self, ground: &Ground, caches: &Caches) {
        event!(
            READY,
            version = env!("CARGO_PKG_VERSION"),
            caches = caches.names().join(", "),
            socket = %self.address.display(),
            activated = self.activated,
            ledger = %ground.opened,
            "flywheeld {} is ready at {}; caches: {}",
            env!("CARGO_PKG_VERSION"),
            self.address.display(),
            caches.names().join(", ")
        );
    }

    /// Closes the socket when the last answers are sent.
    pub(super) async fn close(self) {
        self.closing.cancel();
        if timeout(FAREWELL, self.server).await.is_err() {
            event!(
                CALLERS_LEFT,
                "some callers did not read their reply before flywheeld stopped; they ask again when it runs again"
            );
        }
        if !self.activated {
            let _ = std::fs::remove_file(&self.address);
        }
    }
}

/// The attic client that the daemon keeps, and its login.
pub(super) struct AtticClient {
    client: Client,
    login: Login,
    task: tokio::task::JoinHandle<()>,
}

impl AtticClient {
    /// Starts the task that keeps the client, and the engines that upload through it.
    pub(super) fn start(settings: &Settings, caches: &mut CacheSet, out: Sender<Input>) -> Self {
        attic::write_wrapper(settings);
        let login = Login::new(settings);
        login.set(caches.caches.logins());
        let (client, task) = attic::start_client(settings, login.clone(), seed(), out);
        let parts = EngineParts { settings, transfers: &caches.transfers, client: &client, login: &login };
        caches.limits = caches.caches.start_engines(0, &parts);
        Self { client, login, task }
    }

    /// Ends the task, and the processes that it runs.
    pub(super) fn stop(self) {
        self.task.abort();
    }
}

/// The intake on its thread, and the watches that wake it.
pub(super) struct IntakeThread {
    thread: JoinHandle<()>,
    handle: IntakeHandle,
    new_policy: NewPolicy,
    lock_watcher: LockWatcher,
    people: People,
    /// Rung after an answer of the name service.
    on_answer: Arc<IntakeHandle>,
    known: Arc<AtomicUsize>,
    heartbeat: Heartbeat,
    store_watch: Arc<StoreWatch>,
    settlements: Settlements,
    /// The beginning of the clock that decisions and confirmations use.
    began: Instant,
}

impl IntakeThread {
    pub(super) fn start(
        settings: &Arc<Settings>,
        ground: &Ground,
        caches: &CacheSet,
        sessions: &mut SavedSessions,
        protection: &Protection,
        client: &AtticClient,
        out: Sender<Input>,
    ) -> Result<Self> {
        let store_dir = ground.store_dir.clone();
        let lock_watcher =
            LockWatcher::start(store_dir.as_path()).context("the thread that watches the store's locks")?;
        let (handle, queue): (IntakeHandle, WorkQueue) = IntakeHandle::new();
        let on_event = intake::on_watch_event(lock_watcher.clone(), handle.clone());
        let store_watch = StoreWatch::start(&store_dir, settings.nix.poll, on_event)?;
        // Weak: the intake has the people, and must not keep its own queue open.
        let on_answer = Arc::new(handle.clone());
        let answered = Arc::downgrade(&on_answer);
        let people = People::of(settings, move || {
            if let Some(handle) = answered.upgrade() {
                handle.wake();
            }
        });
        let policy = policy(settings, &caches.caches, &people);
        sessions.confine(ground, &policy.routes);
        let (new_policy, heartbeat) = (NewPolicy::default(), Heartbeat::default());
        let known = Arc::new(AtomicUsize::new(0));
        let (settlements, began) = (Settlements::default(), Instant::now());
        let intake = Intake {
            nix_db: ground.nix_db(settings),
            store: caches.transfers.store().clone(),
            client: client.client.clone(),
            baseline: Baseline::read(&settings.state_dir),
            store_dir,
            ledger: ground.ledger.clone(),
            windows: Arc::clone(&sessions.windows),
            lock_watcher: lock_watcher.clone(),
            gc_roots: protection.0.clone(),
            policy,
            new_policy: Arc::clone(&new_policy),
            undecided: UndecidedPaths::default(),
            existing: settings.push.existing,
            marks: Vec::new(),
            read_before: None,
            was_absent: false,
            out,
            pulse: heartbeat.clone(),
            known: Arc::clone(&known),
            lower: settings
                .nix
                .lower_state_dir
                .as_ref()
                .map(|lower| LowerStore::new(lower, &ground.store_dir, &daemon_socket(settings))),
            realisations: caches
                .running
                .as_ref()
                .map(|it| RealisationCopy::to(it.running.realisations.clone())),
            confirmed: Vec::new(),
            recheck_after: settings.push.recheck_after,
            settlements: settlements.clone(),
            began,
            generation: 0,
        };
        let thread = intake::start(intake, queue)?;
        let store_watch = Arc::new(store_watch);
        Ok(Self {
            thread,
            handle,
            new_policy,
            lock_watcher,
            people,
            on_answer,
            known,
            heartbeat,
            store_watch,
            settlements,
            began,
        })
    }

    /// Waits until the thread has ended, which it does when the driver has. Returns
    /// whether it has ended in time.
    pub(super) async fn join(self) -> bool {
        let Self { thread, handle, on_answer, store_watch, .. } = self;
        handle.stop();
        drop((handle, on_answer, store_watch));
        let ended = timeout(INTAKE_END, spawn_blocking(move || thread.join())).await.is_ok();
        if !ended {
            detail!(
                "the intake has not ended in time: the state directory stays locked until the process ends"
            );
        }
        ended
    }
}

/// The parts that run already when the driver is made.
pub(super) struct Started<'a> {
    pub(super) ground: &'a Ground,
    pub(super) protection: &'a Protection,
    pub(super) client: &'a AtticClient,
    pub(super) socket: &'a Socket,
}

impl Started<'_> {
    /// Makes the driver, starts the background tasks, and reports that the daemon is
    /// ready.
    pub(super) fn driver(
        self,
        settings: Arc<Settings>,
        load: Load,
        caches: CacheSet,
        sessions: SavedSessions,
        intake: &IntakeThread,
        out: Sender<Input>,
    ) -> Result<Driver> {
        let Self { ground, protection, client, socket } = self;
        let CacheSet { caches, limits, transfers, built_in, .. } = caches;
        let SavedSessions { sessions, restored, windows } = sessions;
        let ledger = ground.ledger.clone();
        let netrc = Netrc::of(&settings, built_in.as_ref(), &caches);
        let metrics = Metrics::new(caches.iter().map(Cache::name)).context("the metrics")?;
        let (pending, pending_seen) = tokio::sync::watch::channel(false);
        let mut background = BackgroundTasks::default();
        background.tokens(&caches, out.clone());
        background.netrc(netrc.as_ref());
        background.history(ledger.clone(), settings.history_keep);
        background.metrics(settings.metrics, &metrics, out.clone());
        background.logind(host::inhibit_while_pending(pending_seen, out.clone()));
        let heartbeat = Heartbeat::default();
        let mut notify = Notify::new();
        notify.watch(watched(intake, socket, heartbeat.clone(), out.clone()));
        notify.ready();
        socket.announce(ground, &caches);
        let (store_dir, store) = (ground.store_dir.clone(), transfers.store().clone());
        let own_uid = rustix::process::geteuid().as_raw();
        Ok(Driver::new(Parts {
            settings,
            load,
            built_in,
            caches,
            limits,
            seed: seed(),
            pushes: Pushes::new(
                ledger.clone(),
                protection.0.clone(),
                store_dir.clone(),
                intake.settlements.clone(),
            ),
            began: intake.began,
            transfers,
            sessions,
            restored,
            blocking: Blocking::default(),
            proc: Proc::default(),
            reports: Reports::new(ledger.clone(), store, own_uid, intake.people.clone(), Blocking::default()),
            ledger,
            gc_roots: protection.0.clone(),
            intake: IntakeLink::new(
                intake.handle.clone(),
                Arc::clone(&intake.new_policy),
                windows,
                intake.lock_watcher.clone(),
                intake.people.clone(),
                Arc::clone(&intake.known),
            ),
            store_watch: Arc::clone(&intake.store_watch),
            notify,
            pending,
            heartbeat,
            background,
            client: client.client.clone(),
            login: client.login.clone(),
            netrc,
            metrics,
            out,
        }))
    }
}

/// The parts that the watchdog observes.
fn watched(intake: &IntakeThread, socket: &Socket, driver: Heartbeat, out: Sender<Input>) -> Vec<Part> {
    let (handle, turns) = (intake.handle.clone(), intake.heartbeat.clone());
    let (asked, served) = (socket.heartbeat.clone(), socket.heartbeat.clone());
    vec![
        Part::new(host::INTAKE, move || handle.wake(), move || turns.count()),
        // With a full inbox the driver has turns to take anyway.
        Part::new("driver", move || drop(out.try_send(Input::Beat)), move || driver.count()),
        Part::new("socket", move || asked.ask(), move || served.count()),
    ]
}

/// Where the nix-daemon of the store listens. The variable is about the host's store,
/// which is another one than a store below a root.
fn daemon_socket(settings: &Settings) -> PathBuf {
    let default = || settings.nix.state_dir.join("daemon-socket/socket");
    let named = std::env::var_os("NIX_DAEMON_SOCKET_PATH").filter(|_| settings.nix.root.is_none());
    named.map_or_else(default, PathBuf::from)
}

/// Makes a directory that only the daemon's user can enter, unless it exists. `set_by`
/// is the setting that names it.
fn make_dir(dir: &Path, set_by: &str) -> Result<()> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("the directory {} cannot be made; set {set_by}", dir.display()))
}

/// A seed for random delays. They need variety, not secrecy.
fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        Err(_) => Wall::now().0.unsigned_abs() ^ u64::from(std::process::id()),
    }
}
