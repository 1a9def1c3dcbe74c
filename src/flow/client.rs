//! The life of the attic client that we keep, pure: when it is looked for, when
//! it may be used, how long until the next try.
//!
//! ```text
//!            begin: one is there          answered
//!  Absent ───────────► Trying ──────────────────────────► Ready ◄────────┐
//!    ▲   ▲               │ │                               │  ▲          │ the same, a new one,
//!    │   └── not to be ──┘ └── does not answer ──► Broken  │  │          │ or none: the one
//!    │       had: wait        (wait, try again)     │      ▼  └─ Updating┘ before stays in use
//!    └──────────────────────────────────────────────┴── lost
//! ```
//!
//! Nothing here waits for it: who needs it is told when it is usable, and when
//! it is not any more.

use std::time::Duration;

use super::retry::{Backoff, Rng};
use crate::types::Mono;

/// Between tries while there is none. A try may evaluate all of nixpkgs.
const SEARCH: Backoff = Backoff { base: Duration::from_secs(10), cap: Duration::from_secs(15 * 60) };
/// Between looks for a newer one.
const REFRESH: Duration = Duration::from_secs(6 * 3600);
/// A path that may be a newer one is looked at so much later, for the others
/// that come with it.
const SETTLE: Duration = Duration::from_secs(60);

/// What the client looks like from outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientState {
    /// There is none, and none was to be had.
    Absent,
    /// There is none; it is looked for right now.
    Trying,
    /// It may be used.
    Ready,
    /// It may be used; a newer one is looked for right now.
    Updating,
    /// There is one that does not work, and no other.
    Broken,
}

/// How a look for the client ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Found {
    /// It has answered and is in place, or is the one that was there before.
    Usable,
    /// Not to be had without building it.
    Missing,
    /// It is there, and the cache that it is tried on is away.
    Untried,
    /// It is there and does not work.
    Broken,
}

/// What happened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientEvent {
    /// The daemon begins; whether an earlier life has left one.
    Begin {
        /// It has.
        left: bool,
    },
    /// Whether the one that was left answers.
    Checked(bool),
    /// A look ended.
    Looked(Found),
    /// Somebody wants it looked for now.
    Wanted,
    /// A path that may be it has become valid.
    Sighted,
    /// The cache answers again.
    CacheBack,
    /// The one in use does not work any more.
    Lost,
    /// Mono passed.
    Tick,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ClientAction {
    /// See whether the one that was left answers.
    Check,
    /// Have it, without building it, and try it.
    Look,
    /// From now on it may be used, or may not.
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
pub struct ClientLife {
    usable: bool,
    broken: bool,
    work: Work,
    /// Something came up during the look that makes its answer stale.
    again: bool,
    /// The last look found the cache away.
    untried: bool,
    misses: u32,
    due: Option<Mono>,
    rng: Rng,
}

impl ClientLife {
    /// `seed` decides every jitter.
    pub fn new(seed: u64) -> Self {
        Self {
            usable: false,
            broken: false,
            work: Work::Idle,
            again: false,
            untried: false,
            misses: 0,
            due: None,
            rng: Rng::new(seed),
        }
    }

    /// As it stands.
    pub fn state(&self) -> ClientState {
        match (self.usable, self.work, self.broken) {
            (true, Work::Looking, _) => ClientState::Updating,
            (true, Work::Idle | Work::Checking, _) => ClientState::Ready,
            (false, Work::Looking | Work::Checking, _) => ClientState::Trying,
            (false, Work::Idle, true) => ClientState::Broken,
            (false, Work::Idle, false) => ClientState::Absent,
        }
    }

    /// When [`ClientEvent::Tick`] is wanted.
    pub fn due(&self) -> Option<Mono> {
        self.due.filter(|_| self.work == Work::Idle)
    }

    /// Takes what happened; returns what to do, in order. Total.
    pub fn step(&mut self, event: ClientEvent, now: Mono) -> Vec<ClientAction> {
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
            // A look follows.
            (ClientEvent::Wanted | ClientEvent::Sighted | ClientEvent::CacheBack, Work::Checking) => {}
            (ClientEvent::Sighted, Work::Looking) => self.again |= !self.usable,
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
            // Hosts that began together need not ask together.
            REFRESH + Duration::from_millis(self.rng.below(REFRESH.as_secs() * 100))
        } else {
            SEARCH.wait(self.misses, &mut self.rng)
        };
        self.due = Some(now.after(wait));
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
