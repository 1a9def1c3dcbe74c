//! One life of the daemon: its parts, put together as [`crate::daemon::start`] does it,
//! without threads, sockets and files of the machine.

use std::path::Path;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};

use tokio::sync::mpsc::{Receiver, channel};
use tokio::time::Instant;

use super::configuration;
use crate::attribution::{LockWatcher, Proc, Windows};
use crate::daemon::attic::{Client, Login};
use crate::daemon::blocking::Queue;
use crate::daemon::caches::{Caches, Connection, EngineParts};
use crate::daemon::driver::{BackgroundTasks, Driver, IntakeLink, Parts, policy};
use crate::daemon::gc_roots::{Bounds, GcRoots, Places};
use crate::daemon::host::Notify;
use crate::daemon::inbox::Input;
use crate::daemon::intake::{
    Baseline, Intake, IntakeHandle, NewPolicy, People, SimulatedIntake, UndecidedPaths,
};
use crate::daemon::push::{Board, Pushes, Settlements, StoreReader, Transfers};
use crate::daemon::sessions::{self, Reports, Sessions};
use crate::ledger::{Disk, Ledger};
use crate::store::{CurrentNixDb, StoreWatch};
use crate::types::{Heartbeat, StoreDir};

/// The daemon while it runs.
pub(super) struct Life {
    pub(super) disk: Disk,
    /// The blocking work that is not done.
    pub(super) work: Queue,
    pub(super) driver: Driver,
    pub(super) intake: Option<SimulatedIntake>,
    pub(super) gc_roots: GcRoots,
    pub(super) inputs: Receiver<Input>,
    pub(super) handle: IntakeHandle,
    pub(super) lock_watcher: LockWatcher,
    pub(super) board: Board,
    /// When it began, in simulated milliseconds.
    pub(super) began: u64,
    pub(super) stopping: bool,
}

/// Inputs that may wait for the driver. The intake must never find its inbox full,
/// because nobody would empty it during its turn.
const INPUTS: usize = 1 << 16;

impl Life {
    /// Starts the daemon. `left`: the connection to the ledger of an earlier life, which this one
    /// goes on with.
    pub(super) fn start(
        dir: &Path,
        store_dir: &StoreDir,
        proc: &Proc,
        left: Option<rusqlite::Connection>,
        seed: u64,
        now: u64,
    ) -> Self {
        let (out, inputs) = channel(INPUTS);
        let settings = &Arc::new(configuration::load(dir).unwrap());
        let file = dir.join("state/ledger.sqlite");
        let (ledger, disk) = match left {
            Some(left) => Ledger::continue_simulated(&file, left),
            None => {
                let (ledger, disk, _) = Ledger::open_simulated(&file).unwrap();
                (ledger, disk)
            }
        };
        let nix_db = || CurrentNixDb::new(&dir.join("nix"), store_dir, &dir.join("no-socket"));
        let mut caches = Caches::new(Connection::all(settings, None).unwrap());
        let board = Board::default();
        for id in caches.ids() {
            caches[id].simulate(&board);
        }
        let work = Queue::default();
        let blocking = work.blocking();
        let store = StoreReader::new(nix_db(), store_dir.clone(), blocking.clone());
        let transfers = Transfers::new(store.clone(), None, out.clone());
        let windows = Arc::new(Mutex::new(Windows::default()));
        let mut live = Sessions::default();
        let restored = sessions::restore(&ledger, |name| caches.id(name), &mut live, &windows, proc).unwrap();
        let places = Places {
            state_dir: dir.join("nix"),
            store_dir: store_dir.clone(),
            socket: dir.join("no-socket"),
            links: dir.join("gcroots"),
        };
        let gc_roots = GcRoots::simulated(places, Bounds { protect_max: None, min_free: 0 });
        let (client, login) = (Client::disabled(), Login::new(settings));
        let limits = caches.start_engines(
            0,
            &EngineParts { settings, transfers: &transfers, client: &client, login: &login },
        );
        let lock_watcher = LockWatcher::simulated(store_dir.as_path()).unwrap();
        let (handle, queue) = IntakeHandle::new();
        let people = People::simulated(&super::jobs::UIDS);
        let (new_policy, settlements) = (NewPolicy::default(), Settlements::default());
        let (known, began) = (Arc::new(AtomicUsize::new(0)), Instant::now());
        let intake = Intake {
            nix_db: nix_db(),
            store: transfers.store().clone(),
            baseline: Baseline::read(&dir.join("state")),
            store_dir: store_dir.clone(),
            ledger: ledger.clone(),
            windows: Arc::clone(&windows),
            lock_watcher: lock_watcher.clone(),
            gc_roots: gc_roots.clone(),
            policy: policy(settings, &caches, &people),
            new_policy: Arc::clone(&new_policy),
            undecided: UndecidedPaths::default(),
            client: client.clone(),
            existing: settings.push.existing,
            out: out.clone(),
            pulse: Heartbeat::default(),
            confirmed: Vec::new(),
            marks: Vec::new(),
            read_before: None,
            was_absent: false,
            recheck_after: settings.push.recheck_after,
            settlements: settlements.clone(),
            began,
            lower: None,
            realisations: None,
            generation: 0,
            known: Arc::clone(&known),
        };
        let intake = SimulatedIntake::new(intake, queue);
        let names = caches.names();
        let load_from = dir.to_owned();
        let mut driver = Driver::new(Parts {
            settings: Arc::clone(settings),
            load: Arc::new(move || configuration::load(&load_from)),
            built_in: None,
            caches,
            limits,
            seed,
            began,
            pushes: Pushes::new(ledger.clone(), gc_roots.clone(), store_dir.clone(), settlements),
            transfers,
            sessions: live,
            restored,
            blocking: blocking.clone(),
            proc: proc.clone(),
            reports: Reports::new(ledger.clone(), store, 0, people.clone(), blocking.clone()),
            ledger,
            gc_roots: gc_roots.clone(),
            intake: IntakeLink::new(handle.clone(), new_policy, windows, lock_watcher.clone(), people, known),
            store_watch: Arc::new(StoreWatch::simulated()),
            notify: Notify::new(),
            pending: tokio::sync::watch::channel(false).0,
            heartbeat: Heartbeat::default(),
            background: BackgroundTasks::default(),
            client,
            login,
            netrc: None,
            metrics: crate::daemon::metrics::Metrics::new(names.iter().map(String::as_str)).unwrap(),
            out,
        });
        driver.start();
        Self {
            disk,
            work,
            driver,
            intake: Some(intake),
            gc_roots,
            inputs,
            handle,
            lock_watcher,
            board,
            began: now,
            stopping: false,
        }
    }

    /// Ends the process as `kill -9` does. Returns its connection to the ledger.
    pub(super) fn kill(self) -> Option<rusqlite::Connection> {
        self.work.kill();
        self.gc_roots.kill();
        self.disk.kill()
    }
}
