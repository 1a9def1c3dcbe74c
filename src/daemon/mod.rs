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

mod anchors;
mod begin;
mod driver;
mod history;
mod identity;
mod input;
mod intake;
mod keeper;
mod live;
mod notify;
mod rate;
mod report;
mod requests;
mod rings;
mod rules;
mod seen;
mod settle;
mod tokens;
mod transfer;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

use crate::attribution::{Anchor, Proc, ProcId, Window, Windows, Witness};
use crate::cache::{CacheClient, CacheName, ClientSettings, TokenSource};
use crate::config::{Jobs, Settings, Target, Token};
use crate::control::server::{self, Limits};
use crate::embedded::{self, Running};
use crate::flow::{CacheId, CacheLimits, Flow};
use crate::ledger::{Ledger, Opened, SessionState};
use crate::store::{Doorbell, Journal, Ring, StoreDir};

use driver::{Driver, Ended, Resumed};
use intake::{Bell, Intake};
use keeper::{Keeper, Places};
use live::{Desk, Live};
use notify::Notify;
use rate::Rate;
use rules::Facts;
use tokens::Watched;
use transfer::Transfers;

/// How often the store is looked at without any event.
const SLOW: Duration = Duration::from_secs(30);
/// Inputs that may wait for the driver; who has more to say waits.
const INPUTS: usize = 256;
/// Uploads at a time when the configuration leaves it open.
const AUTO: CacheLimits = CacheLimits { least: 2, most: 16 };
/// How long answers may take to go out at the end.
const GOODBYE: Duration = Duration::from_secs(2);

/// Milliseconds since 1970, for what people and the ledger read.
fn wall_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_millis()).unwrap_or(i64::MAX)
}

/// Runs the daemon until a signal ends it. An error means that it could not
/// begin, or that a part it cannot do without has failed.
pub async fn run(settings: Settings) -> Result<()> {
    for warning in &settings.warnings {
        warn!("{warning}");
    }
    let settings = Arc::new(settings);
    let (signal, stop) = signals()?;
    make_state_dir(&settings.state_dir)?;
    let path = settings.state_dir.join("ledger.sqlite");
    let (ledger, opened) = Ledger::open(&path).with_context(|| format!("the ledger {}", path.display()))?;
    if let Opened::Recovered { set_aside } = &opened {
        warn!(
            set_aside = %set_aside.display(),
            "the ledger was damaged and is set aside; a new one begins from the Nix database and the cache's answers"
        );
    }
    let store_dir = StoreDir::new(&settings.nix.store_dir.to_string_lossy())?;
    let open_journal = || {
        Journal::open(&settings.nix.state_dir, &store_dir)
            .with_context(|| format!("the Nix database below {}", settings.nix.state_dir.display()))
    };
    let (journal, reader) = (open_journal()?, open_journal()?);
    let closing = CancellationToken::new();
    let built_in = start_embedded(&settings, &store_dir, &closing).await?;
    let caches: Vec<String> = settings.caches.keys().cloned().collect();
    let (clients, token_files) = clients(&settings, built_in.as_ref())?;
    let facts = Facts::new(caches.len());
    let (out, inputs) = tokio::sync::mpsc::channel(INPUTS);
    let identity = reader.identity()?;
    let transfers = Transfers {
        clients: clients.into(),
        journal: Arc::new(Mutex::new((reader, identity))),
        state_dir: settings.nix.state_dir.as_path().into(),
        store_dir: store_dir.clone(),
        facts: facts.clone(),
        rate: settings.push.max_rate.map(|rate| Arc::new(Rate::new(rate))),
        sent: Arc::default(),
        out: out.clone(),
    };
    let windows = Arc::new(Mutex::new(Windows::default()));
    let mut desk = Desk::default();
    let resumed = resume(&ledger, &caches, &mut desk, &windows)?;
    let keeper = Keeper::start(Places {
        state_dir: settings.nix.state_dir.clone(),
        store_dir: store_dir.clone(),
        socket: std::env::var_os("NIX_DAEMON_SOCKET_PATH")
            .map_or_else(|| settings.nix.state_dir.join("daemon-socket/socket"), PathBuf::from),
        links: settings.nix.gc_roots.clone(),
    })?;
    let watched = caches.iter().zip(transfers.clients.iter()).zip(token_files);
    let watched =
        watched.map(|((name, client), file)| Watched::new(name.clone(), client.clone(), file)).collect();
    let tokens = tokio::spawn(tokens::watch(watched, out.clone()));
    let history = history::prune(ledger.clone(), settings.history_keep, closing.clone());
    let history = tokio::spawn(history);
    let witness = Witness::start(store_dir.as_path()).context("the thread that watches the store's locks")?;
    let (bell, ear) = Bell::new();
    let doorbell = Doorbell::hang(&store_dir, SLOW, pull(witness.clone(), bell.clone()))?;
    let listener = server::bind(&settings.socket)?;
    let (requests, control) =
        server::start(listener, store_dir.as_str(), Limits::default(), closing.clone())?;
    let intake = Intake {
        journal,
        state_dir: settings.nix.state_dir.clone(),
        own_dir: settings.state_dir.clone(),
        store_dir,
        ledger: ledger.clone(),
        windows: Arc::clone(&windows),
        witness: witness.clone(),
        facts: facts.clone(),
        keeper: keeper.clone(),
        filter: settings.push.filter.clone(),
        caches: caches.clone(),
        default_cache: CacheId(position(&caches, &settings.default_cache).unwrap_or(0)),
        existing: settings.push.existing,
        out,
    };
    let intake = intake::start(intake, ear)?;
    let limits: Vec<_> = caches.iter().map(|_| limits(settings.push.jobs)).collect();
    let mut notify = Notify::new();
    notify.ready();
    info!(
        version = env!("CARGO_PKG_VERSION"),
        caches = caches.join(", "),
        socket = %settings.socket.display(),
        ledger = ?opened,
        "flywheeld is ready"
    );
    let driver = Driver {
        flow: Flow::new(&limits, seed()),
        troubles: caches.iter().map(|_| None).collect(),
        stuck: None,
        keeper: keeper.clone(),
        wares: HashMap::new(),
        cursor: 0,
        bytes_sent: 0,
        began: Instant::now(),
        stopping: None,
        moved: (0, 0),
        own_uid: rustix::process::geteuid().as_raw(),
        settings: Arc::clone(&settings),
        ledger: ledger.clone(),
        caches,
        desk,
        bell,
        windows,
        witness,
        facts,
        transfers,
        doorbell,
        notify,
        resumed,
    };
    let ended = driver.run(inputs, requests, stop).await;
    closing.cancel();
    keeper.stop();
    tokens.abort();
    history.abort();
    if tokio::time::timeout(GOODBYE, control).await.is_err() {
        warn!("some callers did not take their answer in time");
    }
    let _ = std::fs::remove_file(&settings.socket);
    let written = ledger.clone();
    tokio::task::spawn_blocking(move || written.sync()).await??;
    if let Some(running) = built_in {
        let _ = tokio::time::timeout(GOODBYE, running.task).await;
    }
    signal.abort();
    match ended {
        Ended::Drained => info!("stopped: nothing was left under way"),
        Ended::Deadline => warn!("stopped at the deadline: what was under way is taken up at the next start"),
        Ended::Failed(reason) => bail!("{reason}"),
    }
    // The intake ends when the driver's end of its channel is gone.
    drop(intake);
    Ok(())
}

/// SIGTERM or SIGINT: the first begins the end, a second ends at once.
fn signals() -> Result<(tokio::task::JoinHandle<()>, tokio::sync::mpsc::Receiver<()>)> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let (begin, stop) = tokio::sync::mpsc::channel(1);
    let task = tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        let _ = begin.send(()).await;
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        warn!("a second signal: ending at once; what is pending stays in the ledger");
        std::process::exit(1);
    });
    Ok((task, stop))
}

/// What the doorbell's rings are for: locks that come are looked at while they
/// are there, everything else is a reason to look into the journal.
fn pull(witness: Witness, bell: Bell) -> impl Fn(Ring) {
    move |ring| {
        rings::tell(&ring);
        match &ring {
            Ring::LockCreated(base) => return witness.created(base),
            Ring::LockRemoved(base) => witness.removed(base),
            Ring::Overflow | Ring::Remounted => witness.rescan(),
            Ring::Start | Ring::Timer | Ring::WatchLost(_) => {}
        }
        bell.ring();
    }
}

fn make_state_dir(dir: &PathBuf) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(dir)
        .with_context(|| format!("the state directory {} cannot be made; set state_dir", dir.display()))
}

async fn start_embedded(
    settings: &Settings,
    store_dir: &StoreDir,
    closing: &CancellationToken,
) -> Result<Option<Running>> {
    let Some(built_in) = &settings.embedded else { return Ok(None) };
    let running = embedded::start(
        embedded::Settings {
            dir: built_in.dir.clone(),
            listen: built_in.listen,
            caches: built_in.caches.clone(),
            public: built_in.public,
            store_dir: store_dir.as_str().to_owned(),
            max_size: built_in.max_size,
            max_nar_size: built_in.max_nar_size,
            token_dir: settings.state_dir.clone(),
            priority: built_in.priority,
            upstream_cache_key_names: Vec::new(),
        },
        closing.clone(),
    )
    .await
    .context("the built-in cache")?;
    for (name, key) in &running.public_keys {
        info!(cache = name, address = %running.addr, public_key = key, "the built-in cache serves");
    }
    Ok(Some(running))
}

/// A client for each cache, and the file that its token is in.
fn clients(
    settings: &Settings,
    built_in: Option<&Running>,
) -> Result<(Vec<CacheClient>, Vec<Option<PathBuf>>)> {
    let (mut clients, mut files) = (Vec::new(), Vec::new());
    for (name, cache) in &settings.caches {
        let (endpoints, token) = match (&cache.target, built_in) {
            (Target::Embedded, Some(running)) => {
                (vec![format!("http://{}", running.addr)], TokenSource::File(running.push_token_file.clone()))
            }
            (Target::Embedded, None) => {
                bail!("the cache {name} is built in, and the built-in cache does not run")
            }
            (Target::Remote(urls), _) => {
                let token = match &cache.token {
                    Token::File(file) => TokenSource::File(file.clone()),
                    Token::Env(variable) => TokenSource::Env(variable.clone()),
                    Token::None => TokenSource::None,
                };
                (urls.clone(), token)
            }
        };
        files.push(match &token {
            TokenSource::File(file) => Some(file.clone()),
            TokenSource::Env(_) | TokenSource::None => None,
        });
        let mut settings = ClientSettings::new(endpoints, CacheName::parse(&cache.cache)?, token);
        settings.stall_timeout = cache.stall_timeout;
        clients.push(CacheClient::new(settings).with_context(|| format!("the cache {name}"))?);
    }
    Ok((clients, files))
}

fn limits(jobs: Jobs) -> CacheLimits {
    match jobs {
        Jobs::Auto => AUTO,
        Jobs::Fixed(n) => CacheLimits { least: n, most: n },
    }
}

fn position(caches: &[String], name: &str) -> Option<u16> {
    caches.iter().position(|c| c == name).and_then(|n| u16::try_from(n).ok())
}

fn seed() -> u64 {
    let mut bytes = [0; 8];
    match getrandom::fill(&mut bytes) {
        Ok(()) => u64::from_ne_bytes(bytes),
        // Spreading retries over time needs difference, not secrecy.
        Err(_) => wall_ms().unsigned_abs() ^ u64::from(std::process::id()),
    }
}

/// Sessions that an earlier life left open or draining.
fn resume(
    ledger: &Ledger,
    caches: &[String],
    desk: &mut Desk,
    windows: &Mutex<Windows>,
) -> Result<Vec<Resumed>> {
    let mut resumed = Vec::new();
    let same_boot = anchors::is_same_boot(ledger)?;
    for session in ledger.sessions(false)? {
        let draining = session.state != SessionState::Open;
        let cache = position(caches, &session.new.cache);
        let anchor = session.new.anchor_pid.map(|(pid, start)| ProcId { pid, start });
        let alive = anchor.filter(|_| same_boot).and_then(|id| Anchor::of(&Proc::default(), id));
        if !session.new.id.starts_with("push-") {
            let window = Window {
                session: session.row,
                after: session.new.after,
                until: session.until,
                cache,
                anchor: alive.clone().or(anchor.map(gone)),
            };
            windows.lock().unwrap_or_else(std::sync::PoisonError::into_inner).open(window);
        }
        resumed.push(Resumed {
            row: session.row,
            draining,
            pending: ledger.session_pending(session.row)?,
            anchor: anchor.filter(|_| !draining),
            abandoned: !draining && anchor.is_some() && alive.is_none(),
        });
        desk.sessions.insert(
            session.row,
            Live {
                row: session.row,
                id: session.new.id,
                label: session.new.label,
                cache: cache.map(CacheId),
                uid: session.new.uid,
                ci: session.new.ci.as_deref().and_then(|ci| serde_json::from_str(ci).ok()),
                ending: draining.then(Instant::now),
                abandoned: false,
                watch: None,
                warnings: Vec::new(),
                unlooked: false,
            },
        );
    }
    if !resumed.is_empty() {
        info!(sessions = resumed.len(), "sessions go on from before the restart");
    }
    Ok(resumed)
}

/// An anchor that is not there any more: it keeps its session apart from what
/// others make.
fn gone(id: ProcId) -> Anchor {
    Anchor { id, session: None, cgroup: None }
}
