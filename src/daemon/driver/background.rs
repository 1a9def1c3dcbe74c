//! What goes on beside the driver all the time: an eye on the tokens and on the
//! netrc file, and forgetting old history. Begun anew when the configuration changes.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

use crate::daemon::caches::netrc::Netrc;
use crate::daemon::caches::servers::Line;
use crate::daemon::caches::token_watch::{self, Watched};
use crate::daemon::inbox::Input;
use crate::ledger::Ledger;

/// A push that ends when this is dropped.
#[derive(Debug)]
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The pushes.
#[derive(Debug, Default)]
pub(in crate::daemon) struct BackgroundTasks {
    tokens: Option<Task>,
    history: Option<Task>,
    netrc: Option<Task>,
    logind: Option<Task>,
}

impl BackgroundTasks {
    /// Looks after the tokens of these, in their order.
    pub(in crate::daemon) fn tokens(&mut self, lines: &[Line], out: Sender<Input>) {
        let watched =
            lines.iter().map(|l| Watched::new(l.name().to_owned(), l.client().clone(), l.token_file.clone()));
        self.tokens = Some(Task(tokio::spawn(token_watch::watch(watched.collect(), out))));
    }

    /// Keeps the file that Nix reads private caches with.
    pub(in crate::daemon) fn netrc(&mut self, netrc: Option<&Netrc>) {
        self.netrc = netrc.map(|netrc| Task(tokio::spawn(netrc.clone().keep())));
    }

    /// Holds the host up while something is pending.
    pub(in crate::daemon) fn logind(&mut self, mind: impl Future<Output = ()> + Send + 'static) {
        self.logind = Some(Task(tokio::spawn(mind)));
    }

    /// Forgets what is older than that.
    pub(in crate::daemon) fn history(&mut self, ledger: Ledger, keep: Duration) {
        let forget = crate::daemon::driver::history::prune(ledger, keep);
        self.history = Some(Task(tokio::spawn(forget)));
    }
}
