//! The daemon: which parts run, who reports to whom, and in which order the parts are
//! started and stopped.
//!
//! ```text
//!  store watch ──wake──► intake (thread) ──Found, Named──► driver ──► transfers ──► caches
//!                           │ admit                          │ ▲          │
//!                           ▼                                │ └──────────┘ Asked, Uploaded
//!                        ledger (thread) ◄──settle───────────┘
//!  control server ──Incoming─────────────────────────────────► driver
//! ```
//!
//! Each folder is a room. A room names only rooms above it in this table, and reports
//! to the driver through [`inbox`], whose types belong to the driver:
//!
//! | room | knows | must not know |
//! |---|---|---|
//! | [`blocking`] | where work runs that may block | any room |
//! | [`inbox`] | what can be reported to the driver | any room |
//! | [`host`] | systemd, logind, signals, the first process of a container, the lock of the state directory | caches, sessions, pushes |
//! | [`metrics`] | what is counted and timed, and the page that Prometheus scrapes | how anything is decided |
//! | [`gc_roots`] | which paths Nix must not collect yet | why a path is pending |
//! | [`push`] | questions, uploads, probes, and how the ledger records them | sessions |
//! | [`attic`] | the attic client that the daemon keeps | sessions |
//! | [`caches`] | each cache: connection, upstream keys, engine, counts; tokens, netrc | sessions |
//! | [`verify`] | whether caches can serve paths | who asked, sessions |
//! | [`intake`] | new rows of the Nix database: whose they are and where they go | how a path is uploaded |
//! | [`sessions`] | sessions, anchors, callers that wait, reports | how a path is pushed |
//! | [`driver`] | the decisions, as their only owner; it names every room | – |
//!
//! `start` starts the parts in order: a part takes what it needs from parts that run
//! already. A part that the daemon cannot do without ends the daemon with a failure
//! when it ends by itself; systemd starts the daemon again, and the ledger knows what
//! was pending.

mod attic;
mod blocking;
mod caches;
mod driver;
mod gc_roots;
mod host;
mod inbox;
mod intake;
mod metrics;
mod push;
mod sessions;
#[cfg(test)]
mod sim;
mod start;
mod verify;

use std::sync::Arc;

use anyhow::{Result, bail};

/// Runs as the process between the daemon and a program that it runs, if the arguments
/// say so.
pub use crate::attic::supervise;
use crate::config::Settings;
/// The sockets that systemd passes under socket activation.
pub use crate::control::server::{Passed, passed};
use crate::observe::event;
#[cfg(any(fuzzing, test))]
pub(crate) use caches::fuzz_netrc;
use driver::Ended;
pub use driver::Load;
use host::Signals;
/// Runs as the first process of a container, if this process is one.
pub use host::as_first_process;
pub use intake::unknown_names;
use start::{AtticClient, CacheSet, Ground, IntakeThread, Protection, SavedSessions, Socket, Started};

/// Runs the daemon until a signal ends it. An error means that it could not start, or
/// that a part it cannot do without has failed.
///
/// `load` reads the configuration again for a reload. `passed` are the sockets that
/// systemd listens on for the daemon; the daemon makes those that are not passed.
pub async fn run(settings: Settings, load: Load, passed: Passed) -> Result<()> {
    for warning in &settings.warnings {
        event!(CONFIG_WARNING, "{warning}");
    }
    let settings = Arc::new(settings);
    let (out, inputs) = start::inbox();

    let mut signals = Signals::listen()?;
    let ground = Ground::open(&settings)?;
    let mut caches = CacheSet::start(&settings, &ground, passed.cache, out.clone()).await?;
    let mut sessions = SavedSessions::read(&ground, &caches)?;
    let protection = Protection::start(&settings, &ground)?;
    let (socket, requests) = Socket::open(&settings, &ground, passed.control)?;
    let client = AtticClient::start(&settings, &mut caches, out.clone());
    let intake =
        IntakeThread::start(&settings, &ground, &caches, &mut sessions, &protection, &client, out.clone())?;
    let built_in = caches.take_built_in();
    let driver = Started { ground: &ground, protection: &protection, client: &client, socket: &socket }
        .driver(settings, load, caches, sessions, &intake, out)?;

    let ended = driver.run(inputs, requests, &mut signals).await;

    client.stop();
    socket.close().await;
    let intake_ended = intake.join().await;
    protection.stop();
    let written = ground.write_ledger().await;
    start::stop_built_in(built_in).await;
    ground.release(intake_ended);
    written?;
    report(ended)
}

/// Logs how the daemon ended. An error when a part has failed.
fn report(ended: Ended) -> Result<()> {
    match ended {
        Ended::Drained => event!(STOPPED, "stopped: no upload was interrupted"),
        Ended::Deadline => {
            event!(
                STOPPED_EARLY,
                "stopped at the deadline of drain_timeout: interrupted uploads begin again at the next start"
            );
        }
        Ended::Failed(reason) => bail!("{reason}"),
    }
    Ok(())
}
