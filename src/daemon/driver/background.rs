//! Background tasks of the driver: watching and renewing the tokens, keeping the netrc file, holding
//! the host's shutdown, pruning history, serving metrics. They are started again when the configuration
//! changes. Must not know what they report.

use std::net::SocketAddr;
use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

use super::history;
use crate::daemon::caches::{Caches, Netrc, TokenCommand, Watched, watch_tokens};
use crate::daemon::inbox::Input;
use crate::daemon::metrics::{self, Metrics};
use crate::ledger::Ledger;

/// A task that is aborted when this is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Task {
    fn start(future: impl Future<Output = ()> + Send + 'static) -> Self {
        Self(tokio::spawn(future))
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The tasks. Starting one ends its predecessor.
#[derive(Debug, Default)]
pub(in crate::daemon) struct BackgroundTasks {
    tokens: Option<Task>,
    token_commands: Vec<Task>,
    history: Option<Task>,
    netrc: Option<Task>,
    logind: Option<Task>,
    metrics: Option<Task>,
}

impl BackgroundTasks {
    /// Watches the tokens of these caches, and runs the programs that give tokens.
    pub(in crate::daemon) fn tokens(&mut self, caches: &Caches, out: Sender<Input>) {
        // The tasks before end first, so that a program does not run twice.
        self.token_commands.clear();
        let commands = caches.iter().filter_map(TokenCommand::of);
        self.token_commands = commands.map(|command| Task::start(command.keep(out.clone()))).collect();
        self.tokens = Some(Task::start(watch_tokens(caches.iter().map(Watched::of).collect(), out)));
    }

    /// Keeps the netrc file, if there is one.
    pub(in crate::daemon) fn netrc(&mut self, netrc: Option<&Netrc>) {
        self.netrc = netrc.map(|netrc| Task::start(netrc.clone().keep()));
    }

    /// Delays the host's shutdown, as `inhibit` does.
    pub(in crate::daemon) fn logind(&mut self, inhibit: impl Future<Output = ()> + Send + 'static) {
        self.logind = Some(Task::start(inhibit));
    }

    /// Serves the page of metrics at this address, if there is one.
    pub(in crate::daemon) fn metrics(
        &mut self,
        listen: Option<SocketAddr>,
        metrics: &Metrics,
        out: Sender<Input>,
    ) {
        // The port is free again before the next task wants it.
        self.metrics = None;
        metrics.set_trouble(None);
        self.metrics = listen.map(|listen| Task::start(metrics::serve(listen, metrics.clone(), out)));
    }

    /// Prunes history that is older than `keep`.
    pub(in crate::daemon) fn history(&mut self, ledger: Ledger, keep: Duration) {
        self.history = Some(Task::start(history::prune(ledger, keep)));
    }
}
