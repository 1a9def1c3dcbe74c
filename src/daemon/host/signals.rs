//! Signals: SIGTERM and SIGINT stop the daemon, SIGHUP makes it read its
//! configuration again.

use anyhow::Result;
use tokio::signal::unix::{self, SignalKind};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::observe::event;

/// What a signal asks the daemon to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Signal {
    /// SIGTERM or SIGINT: stop. Reported once.
    Stop,
    /// SIGHUP: read the configuration again.
    Reload,
}

/// The handlers of the signals. They stay installed until this is dropped.
#[derive(Debug)]
pub(in crate::daemon) struct Signals {
    stop: mpsc::Receiver<()>,
    hangup: unix::Signal,
    task: JoinHandle<()>,
}

impl Signals {
    /// Installs the handlers. A second SIGTERM or SIGINT ends the process at
    /// once, with exit status 1.
    pub(in crate::daemon) fn listen() -> Result<Self> {
        let hangup = unix::signal(SignalKind::hangup())?;
        let mut term = unix::signal(SignalKind::terminate())?;
        let mut int = unix::signal(SignalKind::interrupt())?;
        let (first, stop) = mpsc::channel(1);
        let task = tokio::spawn(async move {
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
            let _ = first.send(()).await;
            tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
            event!(SECOND_SIGNAL, "a second signal: ending at once; pending paths stay in the ledger");
            std::process::exit(1);
        });
        Ok(Self { stop, hangup, task })
    }

    /// Waits for the next signal. Loses none when it is cancelled.
    pub(in crate::daemon) async fn next(&mut self) -> Signal {
        tokio::select! {
            Some(()) = self.stop.recv() => Signal::Stop,
            Some(()) = self.hangup.recv() => Signal::Reload,
            else => std::future::pending().await,
        }
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        self.task.abort();
    }
}
