//! What goes on beside the driver all the time: an eye on the tokens and on the
//! netrc file, and forgetting old history. Begun anew when the configuration changes.

use std::time::Duration;

use tokio::sync::mpsc::Sender;
use tokio::task::JoinHandle;

use super::input::Input;
use super::netrc::Netrc;
use super::servers::Line;
use super::tokens::{self, Watched};
use crate::ledger::Ledger;

/// A push that ends when this is dropped.
#[derive(Debug)]
struct Chore(JoinHandle<()>);

impl Drop for Chore {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// The pushes.
#[derive(Debug, Default)]
pub(super) struct Chores {
    tokens: Option<Chore>,
    history: Option<Chore>,
    netrc: Option<Chore>,
    logind: Option<Chore>,
}

impl Chores {
    /// Looks after the tokens of these, in their order.
    pub(super) fn tokens(&mut self, lines: &[Line], out: Sender<Input>) {
        let watched =
            lines.iter().map(|l| Watched::new(l.name().to_owned(), l.client().clone(), l.token_file.clone()));
        self.tokens = Some(Chore(tokio::spawn(tokens::watch(watched.collect(), out))));
    }

    /// Keeps the file that Nix reads private caches with.
    pub(super) fn netrc(&mut self, netrc: Option<&Netrc>) {
        self.netrc = netrc.map(|netrc| Chore(tokio::spawn(netrc.clone().keep())));
    }

    /// Holds the host up while something is pending.
    pub(super) fn logind(&mut self, mind: impl Future<Output = ()> + Send + 'static) {
        self.logind = Some(Chore(tokio::spawn(mind)));
    }

    /// Forgets what is older than that.
    pub(super) fn history(&mut self, ledger: Ledger, keep: Duration) {
        let forget = super::history::prune(ledger, keep);
        self.history = Some(Chore(tokio::spawn(forget)));
    }
}
