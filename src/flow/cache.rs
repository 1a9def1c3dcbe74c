//! One cache: what waits for it, and how much of that may be under way. Must
//! not know what happens next: that is the step's.

use std::collections::VecDeque;

use super::breaker::{BreakerState, CircuitBreaker};
use super::concurrency::ConcurrencyLimit;
use super::fair_queue::FairQueue;
use crate::types::{Mono, PushId};

/// Hashes in one query. A real server answers 500 to 40,000 and 200 to 10,000.
pub(super) const ASK_MOST: usize = 4_000;

/// Uploads at a time to one cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheLimits {
    /// Never fewer.
    pub least: u32,
    /// Never more.
    pub most: u32,
}

/// A cache as status shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CacheView {
    /// Open, away or refusing.
    pub state: BreakerState,
    /// Neither settled nor failed, uploads included.
    pub pending: usize,
    /// Being uploaded.
    pub uploading: u32,
    /// Given up for now, and not forgotten.
    pub failed: usize,
    /// Uploads allowed at a time now.
    pub limit: u32,
}

/// Large uploads that run at a time: enough of them to fill a line, and no more
/// bytes than this at once as soon as two run.
const LARGE_BYTES: u64 = 64 << 20;
const LARGE_MOST: u32 = 16;
const LARGE_LEAST: u32 = 2;

/// The large uploads that run.
#[derive(Debug, Default)]
pub(super) struct LargeUploads {
    pub(super) count: u32,
    bytes: u64,
}

impl LargeUploads {
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

#[derive(Debug)]
pub(super) struct Cache {
    /// Uploads of any size that may run at a time.
    pub(super) most: u32,
    pub(super) breaker: CircuitBreaker,
    pub(super) concurrency: ConcurrencyLimit,
    /// Small uploads that may begin.
    pub(super) queue: FairQueue,
    /// Large uploads that may begin.
    pub(super) large_queue: FairQueue,
    pub(super) large: LargeUploads,
    /// The next place goes to a large upload, if there is one.
    pub(super) large_next: bool,
    pub(super) asks: VecDeque<PushId>,
    pub(super) urgent_asks: VecDeque<PushId>,
    /// The query that is under way.
    pub(super) asking: Option<Vec<PushId>>,
    /// Hashes in the next query: fewer after one that was refused as such.
    pub(super) ask_most: usize,
    /// Queries refused as such since the last good one.
    pub(super) ask_refusals: u32,
    pub(super) ask_attempt: u32,
    pub(super) ask_rest: Option<Mono>,
    pub(super) uploading: u32,
    pub(super) pushes: usize,
    pub(super) failed: usize,
    /// Nothing is uploaded for the moment, whatever the breaker says.
    pub(super) held: bool,
}

impl Cache {
    pub(super) fn new(limits: &CacheLimits) -> Self {
        Self {
            most: limits.most,
            breaker: CircuitBreaker::new(),
            concurrency: ConcurrencyLimit::new(limits.least, limits.most),
            queue: FairQueue::default(),
            large_queue: FairQueue::default(),
            large: LargeUploads::default(),
            large_next: false,
            asks: VecDeque::new(),
            urgent_asks: VecDeque::new(),
            asking: None,
            ask_most: ASK_MOST,
            ask_refusals: 0,
            ask_attempt: 0,
            ask_rest: None,
            uploading: 0,
            pushes: 0,
            failed: 0,
            held: false,
        }
    }

    /// Uploads that the concurrency limit counts.
    pub(super) fn small_uploading(&self) -> u32 {
        self.uploading - self.large.count
    }
}
