//! The life of the attic client that the daemon keeps, pure: when the daemon
//! looks for it, when it may be used, and how long the next attempt waits.
//!
//! ```text
//!            a look begins              usable                  a look begins
//!  Absent ─────────────────► Trying ─────────────► Ready ────────────────────────► Updating
//!    ▲                       │ │  ▲                  │ ▲                             │ │
//!    └── none available ─────┘ │  │                  │ └── ended, with any result ───┘ │
//!                does not work │  │ a look begins    │                                 │
//!                              ▼  │                  │ lost                            │ lost
//!                             Broken                 └──► Trying                       └──► Trying
//! ```
//!
//! A look begins when the wait is over, when somebody asks for it, and when a
//! path that may be a client appears or the cache is back while none is usable.
//! A client that an earlier run left is checked first; that shows as `Trying`.
//!
//! Nothing here waits for the client. [`ClientAction::Usable`] says when it
//! may be used and when it no longer may.

use std::time::Duration;

use super::retry::{Backoff, Rng};
use crate::types::Mono;

/// Wait between attempts while there is no client. An attempt may evaluate all of
/// nixpkgs.
const SEARCH: Backoff = Backoff { base: Duration::from_secs(10), cap: Duration::from_secs(15 * 60) };
/// Wait between looks for a newer client.
const REFRESH: Duration = Duration::from_secs(6 * 3600);
/// Wait after a store path appeared that may be a newer client, so that the
/// paths that come with it are there as well.
const SETTLE: Duration = Duration::from_secs(60);

/// The client's state as `client status` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientState {
    /// There is no client, and the last look found none.
    Absent,
    /// There is no usable client, and a look or a check is under way.
    Trying,
    /// It may be used.
    Ready,
    /// It may be used, and a look for a newer one is under way.
    Updating,
    /// The only client found does not work.
    Broken,
}

/// The result of a look for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Found {
    /// A client that answers is installed. It may be the one from before.
    Usable,
    /// There is none that can be had without building it.
    Missing,
    /// It is there, but the cache that it is tested against is away.
    Untried,
    /// It is there but does not work.
    Broken,
}

/// An event in the client's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientEvent {
    /// The daemon starts.
    Begin {
        /// Whether an earlier run of the daemon left a client.
        left: bool,
    },
    /// A check of the client that was left ended: whether it answers.
    Checked(bool),
    /// A look ended.
    Looked(Found),
    /// Somebody asks for a look now.
    Wanted,
    /// A store path that may be a client became valid.
    Sighted,
    /// The cache answers again.
    CacheBack,
    /// The client in use stopped working.
    Lost,
    /// Time passed.
    Tick,
}

/// What the caller does for the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ClientAction {
    /// Check whether the client that was left answers.
    Check,
    /// Fetch a client without building it, and test it.
    Look,
    /// Whether the client may be used from now on.
    Usable(bool),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Work {
    Idle,
    Checking,
    Looking,
}

/// The decisions about one client.
#[derive(Debug)]
pub(crate) struct ClientLife {
    usable: bool,
    broken: bool,
    work: Work,
    /// Something happened during the look that makes its result stale.
    again: bool,
    /// The last look ended with [`Found::Untried`].
    untried: bool,
    /// Looks in a row that found no usable client.
    misses: u32,
    due: Option<Mono>,
    /// The configuration names one client for ever, so there is no newer one.
    fixed: bool,
    rng: Rng,
}

impl ClientLife {
    /// Starts without a client. `seed` decides every jitter. `fixed`: the configuration names one client for
    /// ever, so none is looked for while that one is usable.
    pub(crate) fn new(seed: u64, fixed: bool) -> Self {
        Self {
            usable: false,
            broken: false,
            work: Work::Idle,
            again: false,
            untried: false,
            misses: 0,
            due: None,
            fixed,
            rng: Rng::new(seed),
        }
    }

    /// Returns the state to show.
    pub(crate) fn state(&self) -> ClientState {
        match (self.usable, self.work, self.broken) {
            (true, Work::Looking, _) => ClientState::Updating,
            (true, Work::Idle | Work::Checking, _) => ClientState::Ready,
            (false, Work::Looking | Work::Checking, _) => ClientState::Trying,
            (false, Work::Idle, true) => ClientState::Broken,
            (false, Work::Idle, false) => ClientState::Absent,
        }
    }

    /// Returns when the next [`ClientEvent::Tick`] is due.
    pub(crate) fn due(&self) -> Option<Mono> {
        self.due.filter(|_| self.work == Work::Idle)
    }

    /// Handles an event and returns the actions in order. Total: an event that
    /// does not fit the state changes nothing.
    pub(crate) fn step(&mut self, event: ClientEvent, now: Mono) -> Vec<ClientAction> {
        let mut out = Vec::new();
        match (event, self.work) {
            (ClientEvent::Begin { left: true }, Work::Idle) => {
                self.work = Work::Checking;
                out.push(ClientAction::Check);
            }
            (ClientEvent::Begin { left: false } | ClientEvent::Wanted, Work::Idle) => self.look(&mut out),
            (ClientEvent::Begin { .. }, Work::Checking | Work::Looking) => {}
            (ClientEvent::Checked(good), Work::Checking) => {
                self.work = Work::Idle;
                if good {
                    self.set(true, &mut out);
                }
                self.look(&mut out);
            }
            (ClientEvent::Checked(_), Work::Idle | Work::Looking) => {}
            (ClientEvent::Looked(found), Work::Looking) => self.looked(found, now, &mut out),
            (ClientEvent::Looked(_), Work::Idle | Work::Checking) => {}
            (ClientEvent::Wanted, Work::Looking) => self.again = true,
            // A look follows the check anyway.
            (ClientEvent::Wanted | ClientEvent::Sighted | ClientEvent::CacheBack, Work::Checking) => {}
            (ClientEvent::Sighted, Work::Looking) => self.again |= !self.usable,
            (ClientEvent::Sighted, Work::Idle) if self.usable && self.fixed => {}
            (ClientEvent::Sighted, Work::Idle) if self.usable => {
                let soon = now.after(SETTLE);
                self.due = Some(self.due.map_or(soon, |due| due.min(soon)));
            }
            (ClientEvent::Sighted, Work::Idle) => self.look(&mut out),
            (ClientEvent::CacheBack, Work::Looking) => self.again |= !self.usable,
            (ClientEvent::CacheBack, Work::Idle) if self.usable && !self.untried => {}
            (ClientEvent::CacheBack, Work::Idle) => self.look(&mut out),
            (ClientEvent::Lost, Work::Idle) => {
                self.set(false, &mut out);
                self.look(&mut out);
            }
            (ClientEvent::Lost, Work::Checking | Work::Looking) => {
                self.set(false, &mut out);
                self.again = true;
            }
            (ClientEvent::Tick, Work::Idle) if self.due.is_some_and(|due| due <= now) => self.look(&mut out),
            (ClientEvent::Tick, Work::Idle | Work::Checking | Work::Looking) => {}
        }
        out
    }

    fn looked(&mut self, found: Found, now: Mono, out: &mut Vec<ClientAction>) {
        self.work = Work::Idle;
        self.untried = found == Found::Untried;
        let again = std::mem::take(&mut self.again);
        if found == Found::Usable {
            self.misses = 0;
            self.broken = false;
            self.set(true, out);
        } else {
            self.misses = self.misses.saturating_add(1);
            self.broken = found == Found::Broken;
        }
        let wait = if self.usable {
            // Hosts that started together spread their looks over time.
            REFRESH + Duration::from_millis(self.rng.below(REFRESH.as_secs() * 100))
        } else {
            SEARCH.wait(self.misses, &mut self.rng)
        };
        let is_done = self.fixed && found == Found::Usable;
        self.due = (!is_done).then(|| now.after(wait));
        if again {
            self.look(out);
        }
    }

    fn look(&mut self, out: &mut Vec<ClientAction>) {
        self.work = Work::Looking;
        self.due = None;
        self.again = false;
        out.push(ClientAction::Look);
    }

    fn set(&mut self, usable: bool, out: &mut Vec<ClientAction>) {
        if self.usable != usable {
            self.usable = usable;
            out.push(ClientAction::Usable(usable));
        }
    }
}
