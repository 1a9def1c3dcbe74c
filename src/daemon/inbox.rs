//! The driver's inbox: everything that other rooms report to it.
//!
//! The types in this file belong to the receiver. A room that reports something
//! names them; they name no room of the daemon.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::cache::{CacheError, Discovered, Uploaded};
use crate::flow::NewPush;
use crate::types::{CacheId, PushId, SessionId, StorePath};

/// One thing that happened.
#[derive(Debug)]
pub(super) enum Input {
    /// Pushes that are not settled. They are in the ledger already.
    Found {
        /// The cache that they go to.
        cache: CacheId,
        /// The pushes, references before referrers.
        pushes: Vec<NewPush>,
        /// What each push stands for.
        paths: Vec<FoundPath>,
        /// The error class and text of those that failed earlier.
        reasons: Vec<(PushId, String, String)>,
        /// Failed pushes among them are tried again.
        retry: bool,
        /// The number of the report, by which the driver knows which of them have settled since
        /// the intake read them.
        report: u64,
    },
    /// The intake cannot go on for the moment, and why; `None` when it can again.
    Stuck(Option<String>),
    /// The rows of the Nix database up to this id are taken in.
    Cursor(i64),
    /// The intake has reported everything that the last run left unsettled.
    Restored,
    /// The intake has finished a naming.
    Named {
        /// The token that the naming carried.
        token: u64,
        /// Named paths that are not valid in the store.
        invalid: Vec<StorePath>,
    },
    /// The closures of pushes were read again; these pushes' paths are not valid any more.
    Rechecked {
        /// The cache that they go to.
        cache: CacheId,
        /// The pushes.
        collected: Vec<PushId>,
    },
    /// The intake has ended. A reason means that it failed.
    IntakeEnded(Option<String>),
    /// logind announced a change of the host's state.
    Host(HostEvent),
    /// The watchdog wants the driver to take a turn.
    Beat,
    /// The process that a session is anchored to has ended.
    AnchorGone(SessionId),
    /// A cache has another token now.
    TokenChanged(CacheId),
    /// The built-in cache cannot listen on its address, or listens on it now.
    BuiltInPort,
    /// A question to a cache was answered, or failed.
    Asked {
        /// The cache that was asked.
        cache: CacheId,
        /// The pushes that were asked about.
        pushes: Vec<PushId>,
        /// The pushes whose paths the cache does not have.
        result: Result<Vec<PushId>, CacheError>,
        /// How long the cache took to answer.
        took: Duration,
    },
    /// An upload ended.
    Uploaded {
        /// The push that it was a try of.
        push: PushId,
        /// How it ended.
        result: UploadEnd,
        /// How long it took.
        took: Duration,
    },
    /// A probe of a cache ended.
    Probed(CacheId, Result<Discovered, CacheError>),
    /// The attic client became usable, or stopped being usable.
    Client,
    /// Somebody wants the page of metrics.
    Metrics(tokio::sync::oneshot::Sender<String>),
}

/// A row of the Nix database. When the database went back, or is another one, its numbers
/// stand for other paths: that begins a new generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct DbRow {
    pub(super) generation: u32,
    pub(super) id: i64,
}

/// What a push stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FoundPath {
    pub(super) push: PushId,
    pub(super) row: DbRow,
    pub(super) path: StorePath,
    /// When it was taken in, in ms since 1970; 0 if it is not known.
    pub(super) seen_at: i64,
    /// The size of its NAR, in bytes.
    pub(super) nar_size: u64,
    /// The ledger has it as pending since the intake has it: it cannot have settled after that.
    pub(super) is_new: bool,
}

/// The answer of an upstream cache that it has a path.
#[derive(Debug, Clone)]
pub(super) struct UpstreamAnswer {
    /// Its URL.
    pub(super) upstream: Arc<str>,
    /// When it was asked.
    pub(super) asked_at: Instant,
}

/// How an upload ended.
#[derive(Debug)]
pub(super) enum UploadEnd {
    /// The cache confirmed the path. The number is the NAR's size in bytes.
    Confirmed(Uploaded, u64),
    /// An upstream cache has the path, so it was not sent: by the path's signature, or by
    /// this answer of it.
    InUpstream(Option<UpstreamAnswer>),
    /// The path came into the cache from elsewhere while it was being sent.
    Arrived,
    /// The path is not valid any more.
    Collected,
    /// The Nix database could not be read.
    Unreadable(String),
    /// The attic client did not do its work.
    Engine(String),
    /// The request to the cache failed. The number is the NAR's size in bytes.
    Failed(CacheError, u64),
}

/// What logind announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum HostEvent {
    /// The host is about to shut down and waits for the inhibitor this long at most.
    ShuttingDown(Duration),
    /// The host is about to sleep and waits for the inhibitor this long at most.
    Sleeping(Duration),
    /// The host has woken up, or its shutdown or sleep was cancelled.
    Running,
}
