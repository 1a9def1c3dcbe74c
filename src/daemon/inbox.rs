//! Everything that reaches the driver from the other parts of the daemon.

use std::time::Duration;

use crate::cache::{CacheError, Discovered, Uploaded};
use crate::flow::NewPush;
use crate::types::{CacheId, PushId, StorePath};

/// One thing that happened.
#[derive(Debug)]
pub(in crate::daemon) enum Input {
    /// Unsettled items, written in the ledger already.
    Found {
        /// The cache they are for.
        cache: CacheId,
        /// References before referrers.
        pushes: Vec<NewPush>,
        /// What each stands for.
        paths: Vec<(PushId, StorePath)>,
        /// Why those that are parked are.
        reasons: Vec<(PushId, String, String)>,
        /// Parked ones among them are to be tried again.
        retry: bool,
    },
    /// The intake cannot go on for the moment, and why; or it can again.
    Stuck(Option<String>),
    /// Configuration and tokens were read again.
    Reloaded(Box<crate::daemon::driver::reload::Reloaded>),
    /// What logind says of the host.
    Host(crate::daemon::host::logind::Host),
    /// The watchdog wants to see the driver move.
    Beat,
    /// A cache's token is another one now.
    TokenChanged(CacheId),
    /// A [`crate::daemon::intake::Naming`] is done with.
    Named {
        /// Its token.
        token: u64,
        /// Named paths that are not valid.
        invalid: Vec<StorePath>,
    },
    /// A session was written down, or could not be.
    Opened(Box<crate::daemon::sessions::opening::Opening>),
    /// The process that a session is anchored to has ended.
    AnchorGone(crate::ledger::SessionRow),
    /// A session that was given up is ended by its job after all.
    Rejoined(Box<crate::daemon::sessions::closing::Rejoining>),
    /// Rows up to this one are taken in.
    Cursor(i64),
    /// What an earlier life left has been told.
    Restored,
    /// The intake has ended; with a reason, when that is a fault.
    IntakeEnded(Option<String>),
    /// A cache answered which of these it lacks.
    Asked {
        /// Which cache.
        cache: CacheId,
        /// What was asked for.
        pushes: Vec<PushId>,
        /// The missing ones.
        result: Result<Vec<PushId>, CacheError>,
        /// Until the answer was read.
        took: Duration,
    },
    /// An upload came to an end.
    Uploaded {
        /// Which.
        push: PushId,
        /// How.
        result: Sent,
        /// From its begin to the answer.
        took: Duration,
    },
    /// The attic client may be used from now on, or may not.
    Client(bool),
    /// A probe came to an end.
    Probed(CacheId, Result<Discovered, CacheError>),
}

/// How an upload ended.
#[derive(Debug)]
pub(in crate::daemon) enum Sent {
    /// The cache has it; the NAR's size in bytes.
    Done(Uploaded, u64),
    /// Signed by a key of an upstream cache.
    Upstream,
    /// Not valid any more.
    Collected,
    /// The store's database could not be read.
    Unreadable(String),
    /// What carries uploads out could not do its work.
    Engine(String),
    /// The cache, or the way to it; the NAR's size in bytes.
    Failed(CacheError, u64),
}
