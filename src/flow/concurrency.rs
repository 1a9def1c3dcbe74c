//! How many uploads run at a time: additive increase, multiplicative decrease,
//! after TCP's congestion avoidance (RFC 5681), with a slow start after a pause.

/// The bounds between which the number of uploads moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct ConcurrencyLimit {
    least: u32,
    most: u32,
    /// Now allowed.
    limit: u32,
    /// Below this a success adds one at once; above, a full round does.
    threshold: u32,
    /// Successes since the last increase.
    credit: u32,
}

impl ConcurrencyLimit {
    pub(super) fn new(least: u32, most: u32) -> Self {
        let most = most.max(1);
        let least = least.clamp(1, most);
        Self { least, most, limit: most.min(8).max(least), threshold: most, credit: 0 }
    }

    /// How many may run.
    pub(super) fn limit(&self) -> u32 {
        self.limit
    }

    pub(super) fn succeeded(&mut self) {
        self.credit += 1;
        if self.limit < self.most && (self.limit < self.threshold || self.credit >= self.limit) {
            self.limit += 1;
            self.credit = 0;
        }
    }

    /// The server had trouble: half as many.
    pub(super) fn strained(&mut self) {
        self.threshold = (self.limit / 2).max(self.least);
        self.limit = self.threshold;
        self.credit = 0;
    }

    /// After a pause: start with the least and grow.
    pub(super) fn restart(&mut self) {
        self.limit = self.least;
        self.credit = 0;
    }
}
