//! Assembly: what runs, who talks to whom, and in which order it begins and ends.
//!
//! ```text
//!  doorbell ──ring──► intake (thread) ──Found, Named──► driver ──► transfers ──► caches
//!                        │ admit                          │ ▲          │
//!                        ▼                                │ └──────────┘ Asked, Uploaded
//!                     ledger (thread) ◄──settle───────────┘
//!  control server ──Incoming──────────────────────────────► driver
//! ```
//!
//! The driver alone owns the decisions. Begin: ledger, Nix database, built-in
//! cache, socket, intake, then READY. End: no new work, running uploads to the
//! deadline, answers to who waits, ledger written, built-in cache closed.
//! A part that the daemon cannot do without and that ends on its own ends the
//! daemon with a failure; systemd starts it again, and the ledger knows the rest.

mod attic;
mod caches;
mod driver;
mod gc_roots;
mod host;
mod inbox;
mod intake;
mod push;
mod sessions;

use std::collections::HashMap;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;

/// Being the process between the daemon and a program that it runs.
pub use crate::attic::supervise;
use crate::attribution::{LockWatcher, Windows};
use crate::config::{Existing, Settings};
use crate::control::messages::PathCounts;
use crate::control::server::{self, Limits};
use crate::flow::Flow;
use crate::ledger::Ledger;
use crate::observe::event;
use crate::store::{NixDb, NixDbError, StoreWatch};

use crate::types::{CacheId, StoreDir};
use crate::types::{Heartbeat, Wall};
use caches::servers::{BuiltIn, Line};
use driver::background::BackgroundTasks;
use driver::reload::Reloads;
use driver::{Driver, Ended};
use gc_roots::{GcRoots, Places};
use host::notify::Notify;
use host::parts::Part;
use intake::{Bell, Intake, NewPolicy, PushPolicy};
use push::rate::Rate;
use push::transfer::Transfers;
use push::upstream_keys::UpstreamKeys;
use sessions::session::Sessions;

/// How often the Nix database is tried at the start while somebody keeps it
/// locked, each time for some seconds: a collection may, and ends.
const OPENINGS: u32 = 10;
/// Inputs that may wait for the driver; who has more to say waits. One of the
/// intake's may be a hundred kilobytes.
const INPUTS: usize = 16;
/// How long answers may take to go out at the end.
const GOODBYE: Duration = Duration::from_secs(2);

pub use crate::control::server::passed;
pub use driver::reload::Load;

/// Runs the daemon until a signal ends it. An error means that it could not
/// begin, or that a part it cannot do without has failed.
///
/// `load` reads the configuration again when it is to be reloaded.
/// `passed`: the socket that systemd listens on for it; else one is made.
pub async fn run(settings: Settings, load: Load, passed: Option<UnixListener>) -> Result<()> {
    for warning in &settings.warnings {
        event!(CONFIG_WARNING, "{warning}");
    }
    let settings = Arc::new(settings);
    let (signal, stop) = host::signals::signals()?;
    let hangup = host::signals::hangup()?;
    make_dir(&settings.state_dir, "state_dir")?;
    let lock = host::state_dir_lock::take(&settings.state_dir)?;
    let path = settings.state_dir.join("ledger.sqlite");
    let (ledger, opened) = Ledger::open(&path).with_context(|| format!("the ledger {}", path.display()))?;
    let store_dir = StoreDir::new(&settings.nix.store_dir.to_string_lossy())?;
    let open_nix_db = || {
        let mut opened = NixDb::open(&settings.nix.state_dir, &store_dir);
        for _ in 1..OPENINGS {
            if !matches!(opened, Err(NixDbError::Busy)) {
                break;
            }
            opened = NixDb::open(&settings.nix.state_dir, &store_dir);
        }
        opened.with_context(|| format!("the Nix database below {}", settings.nix.state_dir.display()))
    };
    let (nix_db, reader) = (open_nix_db()?, open_nix_db()?);
    let closing = CancellationToken::new();
    let built_in = caches::servers::start_embedded(&settings, &store_dir, &closing).await?;
    let caches: Vec<String> = settings.caches.keys().cloned().collect();
    let known = built_in.as_ref().map(BuiltIn::of);
    let lines: Result<Vec<Line>> =
        settings.caches.iter().map(|(name, cache)| Line::new(name, cache, known.as_ref())).collect();
    let lines = lines?;
    let login = attic::login::Login::new(&settings, lines.iter().map(|line| line.served.clone()).collect());
    let upstream_keys = UpstreamKeys::new(caches.len());
    let (out, inputs) = tokio::sync::mpsc::channel(INPUTS);
    let identity = reader.identity()?;
    let transfers = Transfers {
        clients: lines.iter().map(|line| line.client().clone()).collect(),
        nix_db: Arc::new(Mutex::new((reader, identity))),
        state_dir: settings.nix.state_dir.as_path().into(),
        store_dir: store_dir.clone(),
        upstream_keys: upstream_keys.clone(),
        rate: settings.push.max_rate.map(|rate| Arc::new(Rate::new(rate))),
        sent: Arc::default(),
        out: out.clone(),
    };
    let windows = Arc::new(Mutex::new(Windows::default()));
    let mut sessions = Sessions::default();
    let resumed = sessions::resume::resume(&ledger, &caches, &mut sessions, &windows)?;
    let gc_roots = GcRoots::start(Places {
        state_dir: settings.nix.state_dir.clone(),
        store_dir: store_dir.clone(),
        socket: std::env::var_os("NIX_DAEMON_SOCKET_PATH")
            .map_or_else(|| settings.nix.state_dir.join("daemon-socket/socket"), PathBuf::from),
        links: settings.nix.gc_roots.clone(),
    })?;
    let mut background = BackgroundTasks::default();
    background.tokens(&lines, out.clone());
    background.history(ledger.clone(), settings.history_keep);
    let new_policy = NewPolicy::default();
    let lock_watcher =
        LockWatcher::start(store_dir.as_path()).context("the thread that watches the store's locks")?;
    let (bell, ear) = Bell::new();
    let store_watch = StoreWatch::start(
        &store_dir,
        settings.nix.poll,
        intake::rings::pull(lock_watcher.clone(), bell.clone()),
    )?;
    let ours = passed.is_none();
    let (listener, address) = match passed {
        Some(listener) => {
            let address = listener.local_addr()?.as_pathname().map(PathBuf::from);
            (listener, address.unwrap_or_default())
        }
        None => (server::bind(&settings.socket)?, settings.socket.clone()),
    };
    let beat = Heartbeat::default();
    let (requests, control) =
        server::start(listener, store_dir.as_str(), Limits::default(), closing.clone(), beat.clone())?;
    make_dir(&settings.runtime_dir, "RUNTIME_DIRECTORY")?;
    attic::wrapper::write(&settings);
    let netrc = caches::servers::netrc(&settings, known.as_ref(), &lines);
    background.netrc(netrc.as_ref());
    let (client, keeping) = attic::client::start(&settings, login.clone(), seed(), out.clone());
    let (pulse, intake_pulse) = (Heartbeat::default(), Heartbeat::default());
    let paths_known = Arc::new(AtomicUsize::new(0));
    let intake = Intake {
        nix_db,
        client: client.clone(),
        state_dir: settings.nix.state_dir.clone(),
        own_dir: settings.state_dir.clone(),
        store_dir,
        ledger: ledger.clone(),
        windows: Arc::clone(&windows),
        lock_watcher: lock_watcher.clone(),
        upstream_keys: upstream_keys.clone(),
        gc_roots: gc_roots.clone(),
        policy: PushPolicy {
            filter: settings.push.filter.clone(),
            caches: caches.clone(),
            default_cache: CacheId(position(&caches, &settings.default_cache).unwrap_or(0)),
            strangers: intake::routes::Strangers::new(Arc::clone(&settings), caches.clone()),
        },
        new_policy: Arc::clone(&new_policy),
        existing: settings.push.existing != Existing::No,
        out: out.clone(),
        pulse: intake_pulse.clone(),
        known: Arc::clone(&paths_known),
    };
    let intake = intake::start(intake, ear)?;
    let engine = |(number, line): (u16, &Line)| {
        caches::servers::engine(CacheId(number), &settings, &transfers, &client, &login, &line.served)
    };
    let (engines, limits): (Vec<_>, Vec<_>) = (0..).zip(&lines).map(engine).unzip();
    let (pending, seen) = tokio::sync::watch::channel(false);
    background.logind(host::logind::mind(seen, out.clone()));
    let mut notify = Notify::new();
    notify.watch(parts(&bell, intake_pulse, out, pulse.clone(), beat));
    notify.ready();
    event!(
        READY,
        version = env!("CARGO_PKG_VERSION"),
        caches = caches.join(", "),
        socket = %address.display(),
        activated = !ours,
        ledger = ?opened,
        "flywheeld is ready"
    );
    let driver = Driver {
        flow: Flow::new(&limits, seed()),
        troubles: caches.iter().map(|_| None).collect(),
        known: paths_known,
        stuck: None,
        gc_roots: gc_roots.clone(),
        wares: HashMap::new(),
        cursor: 0,
        counts: caches.iter().map(|_| PathCounts::default()).collect(),
        began: Instant::now(),
        stopping: None,
        moved: (0, 0),
        own_uid: rustix::process::geteuid().as_raw(),
        settings,
        load,
        reloads: Reloads::default(),
        built_in: known,
        lines,
        new_policy,
        background,
        ledger: ledger.clone(),
        caches,
        sessions,
        bell,
        windows,
        lock_watcher,
        upstream_keys,
        transfers,
        store_watch,
        notify,
        pulse,
        pending,
        asleep: false,
        resumed,
        client,
        login,
        engines,
        netrc,
    };
    let ended = driver.run(inputs, requests, stop, hangup).await;
    closing.cancel();
    gc_roots.stop();
    // And with it what it runs.
    keeping.abort();
    if tokio::time::timeout(GOODBYE, control).await.is_err() {
        event!(CALLERS_LEFT, "some callers did not take their answer in time");
    }
    if ours {
        let _ = std::fs::remove_file(&address);
    }
    let written = ledger.clone();
    match tokio::task::spawn_blocking(move || written.sync()).await? {
        // The ledger tells, and the next start makes up for it: no reason to have failed.
        Err(error) if error.is_storage() => {}
        written => written?,
    }
    if let Some(running) = built_in {
        let _ = tokio::time::timeout(GOODBYE, running.task).await;
    }
    signal.abort();
    match ended {
        Ended::Drained => event!(STOPPED, "stopped: nothing was left under way"),
        Ended::Deadline => {
            event!(
                STOPPED_EARLY,
                "stopped at the deadline: what was under way is taken up at the next start"
            );
        }
        Ended::Failed(reason) => bail!("{reason}"),
    }
    drop(lock);
    // The intake ends when the driver's end of its channel is gone.
    drop(intake);
    Ok(())
}

/// What must move for the watchdog, and how each is asked to.
fn parts(
    bell: &Bell,
    intake: Heartbeat,
    out: tokio::sync::mpsc::Sender<inbox::Input>,
    driver: Heartbeat,
    socket: Heartbeat,
) -> Vec<Part> {
    let (bell, asked) = (bell.clone(), socket.clone());
    vec![
        Part::new(host::watchdog::INTAKE, move || bell.ring(), move || intake.count()),
        // With a full queue there is enough to move by.
        Part::new("driver", move || drop(out.try_send(inbox::Input::Beat)), move || driver.count()),
        Part::new("socket", move || asked.ask(), move || socket.count()),
    ]
}

/// A directory of ours, for nobody else, unless somebody has made it already.
fn make_dir(dir: &PathBuf, set_by: &str) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("the directory {} cannot be made; set {set_by}", dir.display()))
}

fn position(caches: &[String], name: &str) -> Option<u16> {
    caches.iter().position(|c| c == name).and_then(|n| u16::try_from(n).ok())
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // Spreading retries over time needs difference, not secrecy.
        Err(_) => Wall::now().0.unsigned_abs() ^ u64::from(std::process::id()),
    }
}
