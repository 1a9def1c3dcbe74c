//! What the decisions know about one cache: its queues, its limits and its
//! counts.
//!
//! Must not know: what is done next. The step decides that.

use std::collections::{BTreeMap, VecDeque};

use super::breaker::{BreakerState, CircuitBreaker};
use super::concurrency::{ConcurrencyLimit, Round};
use super::fair_queue::FairQueue;
use super::other_hosts::OtherHosts;
use super::push::{ClosureAt, Push};
use crate::types::{Mono, PushId};

/// Most hashes in one query. A real server answers 200 OK to 10,000 hashes and
/// 500 to 40,000.
pub(super) const ASK_MOST: usize = 4_000;

/// Bounds of the number of uploads that run at a time to one cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheLimits {
    /// Lower bound.
    pub(crate) least: u32,
    /// Upper bound.
    pub(crate) most: u32,
}

/// A cache as `status` shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct CacheView {
    /// Whether requests are sent to it.
    pub(crate) state: BreakerState,
    /// Pushes that are neither settled nor failed, uploads included.
    pub(crate) pending: usize,
    /// Uploads that run.
    pub(crate) uploading: u32,
    /// Failed pushes that are known here.
    pub(crate) failed: usize,
    /// Uploads that may run at a time now.
    pub(crate) limit: u32,
}

/// Bytes of large uploads that run at a time, once [`LARGE_LEAST`] of them run.
const LARGE_BYTES: u64 = 64 << 20;
/// Upper bound of the large uploads that run at a time.
const LARGE_MOST: u32 = 16;
/// Large uploads that may run at a time whatever their size, so that one does
/// not leave the connection idle.
const LARGE_LEAST: u32 = 2;

/// The large uploads that run: how many, and their bytes.
#[derive(Debug, Default)]
pub(super) struct LargeUploads {
    pub(super) count: u32,
    bytes: u64,
}

impl LargeUploads {
    /// Returns whether one more large upload may begin.
    pub(super) fn has_room(&self) -> bool {
        self.count < LARGE_LEAST || (self.count < LARGE_MOST && self.bytes < LARGE_BYTES)
    }

    pub(super) fn begin(&mut self, nar_size: u64) {
        self.count += 1;
        self.bytes = self.bytes.saturating_add(nar_size);
    }

    pub(super) fn end(&mut self, nar_size: u64) {
        self.count -= 1;
        self.bytes = self.bytes.saturating_sub(nar_size);
    }
}

/// An upload that runs.
#[derive(Debug, Clone, Copy)]
pub(super) struct Upload {
    /// When it began.
    pub(super) began: Mono,
    /// The concurrency limit's round in which it began.
    pub(super) round: Round,
}

/// One cache.
#[derive(Debug)]
pub(super) struct Cache {
    /// Upper bound of the uploads of any size that run at a time.
    pub(super) most: u32,
    pub(super) breaker: CircuitBreaker,
    pub(super) concurrency: ConcurrencyLimit,
    /// Small uploads that are ready.
    pub(super) queue: FairQueue,
    /// Large uploads that are ready.
    pub(super) large_queue: FairQueue,
    pub(super) large: LargeUploads,
    /// Which hosts seem to build the same paths.
    pub(super) others: OtherHosts,
    /// Whether the next place goes to a large upload, if one is ready.
    pub(super) large_next: bool,
    /// Pushes that the cache has not been asked about.
    pub(super) asks: VecDeque<PushId>,
    /// The urgent ones of these. An entry may be stale: the push has moved on.
    pub(super) urgent_asks: VecDeque<PushId>,
    /// The pushes of the query that is under way.
    pub(super) asking: Option<Vec<PushId>>,
    /// When that query began.
    pub(super) asked_at: Mono,
    /// When the last query began that showed that the cache deletes paths. What was confirmed
    /// before that counts no longer.
    pub(super) trusted_since: Mono,
    /// Pushes whose closure is to be confirmed again. An entry may be out of date.
    pub(super) stale: VecDeque<PushId>,
    /// The pushes of the [`Action::Recheck`](super::Action) that is under way.
    pub(super) rechecking: Option<Vec<PushId>>,
    /// Most hashes in the next query. It is halved after a query whose content
    /// the cache refused, and doubled after one that it answered.
    pub(super) ask_most: usize,
    /// Queries whose content the cache refused since it last answered one.
    pub(super) ask_refusals: u32,
    /// Queries in a row that failed in a way that may pass.
    pub(super) ask_attempt: u32,
    /// No query begins before this time.
    pub(super) ask_rest: Option<Mono>,
    /// Uploads that run, of any size.
    pub(super) uploading: u32,
    /// Their pushes.
    pub(super) running: BTreeMap<PushId, Upload>,
    /// Pushes that are known, failed ones included.
    pub(super) pushes: usize,
    /// Failed pushes that are known.
    pub(super) failed: usize,
    /// Whether no upload may begin, regardless of the breaker.
    pub(super) held: bool,
}

impl Cache {
    /// The moment from which a closure is confirmed; none when it is from before
    /// [`Self::trusted_since`].
    pub(super) fn trusted(&self, closure_at: ClosureAt) -> ClosureAt {
        if closure_at < ClosureAt::at(self.trusted_since) { ClosureAt::UNKNOWN } else { closure_at }
    }

    pub(super) fn new(limits: &CacheLimits) -> Self {
        Self {
            most: limits.most,
            breaker: CircuitBreaker::new(),
            concurrency: ConcurrencyLimit::new(limits.least, limits.most),
            queue: FairQueue::default(),
            large_queue: FairQueue::default(),
            large: LargeUploads::default(),
            others: OtherHosts::default(),
            large_next: false,
            asks: VecDeque::new(),
            urgent_asks: VecDeque::new(),
            asking: None,
            asked_at: Mono(0),
            trusted_since: Mono(0),
            stale: VecDeque::new(),
            rechecking: None,
            ask_most: ASK_MOST,
            ask_refusals: 0,
            ask_attempt: 0,
            ask_rest: None,
            uploading: 0,
            running: BTreeMap::new(),
            pushes: 0,
            failed: 0,
            held: false,
        }
    }

    /// Counts an upload that begins.
    pub(super) fn begin_upload(&mut self, id: PushId, push: &Push, now: Mono) {
        let round = self.concurrency.began(now, self.small_uploading());
        self.uploading += 1;
        self.running.insert(id, Upload { began: now, round });
        if push.is_large() {
            self.large.begin(push.nar_size);
        }
    }

    /// Counts an upload that ended, whatever came of it, and returns what it was.
    pub(super) fn end_upload(&mut self, id: PushId, push: &Push) -> Option<Upload> {
        self.uploading -= 1;
        if push.is_large() {
            self.large.end(push.nar_size);
        }
        self.running.remove(&id)
    }

    /// Returns the number of uploads that the concurrency limit counts.
    pub(super) fn small_uploading(&self) -> u32 {
        self.uploading - self.large.count
    }
}
