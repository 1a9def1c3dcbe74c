//! What the driver does while the ledger is slow: it begins no upload, because each one
//! adds changes to the ledger's queue.

use std::time::Duration;

use tokio::time::Instant;

use super::Driver;
use crate::observe::detail;

/// Changes and calls in the ledger's queue above which no upload begins.
const BEHIND: usize = 4096;
/// Changes and calls in the queue from which on uploads begin again.
const CAUGHT_UP: usize = 256;
/// Time between two looks at the queue while uploads are held.
const LOOK: Duration = Duration::from_millis(100);

impl Driver {
    /// Holds the uploads to all caches while the ledger is behind.
    pub(super) fn follow_ledger(&mut self) {
        let queued = self.parts.ledger.queued();
        let behind = queued > if self.ledger_behind { CAUGHT_UP } else { BEHIND };
        if behind != self.ledger_behind {
            self.ledger_behind = behind;
            detail!(queued = queued, behind = behind, "uploads wait while the ledger is behind");
            self.update_holds();
        }
    }

    /// When to look at the queue again.
    pub(super) fn ledger_due(&self) -> Option<Instant> {
        self.ledger_behind.then(|| Instant::now() + LOOK)
    }
}
