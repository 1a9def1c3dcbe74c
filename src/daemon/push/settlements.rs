//! What the intake learns of pushes that are no longer with the driver, and what the driver
//! learns of those that the intake has read before they settled. A board and not a channel,
//! since neither side may wait for the other. An entry stays until the intake has taken it and
//! the driver has handled every report that the intake had read before. Must not know what
//! either side does with it.

use std::collections::{HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::daemon::inbox::DbRow;
use crate::flow::Outcome;
use crate::types::{CacheId, Mono, PushId};

/// One entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::daemon) enum Settlement {
    /// A push is settled or forgotten. If it is settled, the ledger has been sent that before
    /// this is posted.
    Settled {
        push: PushId,
        cache: CacheId,
        /// The row of the Nix database.
        row: DbRow,
        /// `None`: it has failed and was forgotten.
        outcome: Option<Outcome>,
        /// When the question or upload began that showed the cache to have the whole
        /// closure, if one did.
        confirmed: Option<Mono>,
    },
    /// The cache has deleted paths that it had: what it confirmed before this time counts no
    /// longer.
    Distrust(CacheId, Mono),
}

/// The board. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub(in crate::daemon) struct Settlements(Arc<Mutex<Board>>);

#[derive(Debug, Default)]
struct Board {
    /// What the intake has not taken, oldest first.
    waiting: Vec<Settlement>,
    /// How often it has taken what waited.
    taken: u64,
    /// Reports of the intake that the driver has not handled.
    reports: usize,
    /// What the intake has taken while there were such reports: they may be of what it had
    /// read before. With the number of the taking, oldest first.
    passing: Vec<(u64, PushId, Outcome)>,
}

impl Settlements {
    fn board(&self) -> MutexGuard<'_, Board> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(in crate::daemon) fn post(&self, settlement: Settlement) {
        self.board().waiting.push(settlement);
    }

    /// Takes all entries, oldest first. What the intake reads in the ledger from now on has them.
    pub(in crate::daemon) fn take(&self) -> Vec<Settlement> {
        let mut board = self.board();
        let waiting = std::mem::take(&mut board.waiting);
        board.taken += 1;
        let taken = board.taken;
        if board.reports == 0 {
            board.passing.clear();
        } else {
            board.passing.extend(waiting.iter().filter_map(settled).map(|(push, to)| (taken, push, to)));
        }
        waiting
    }

    /// Notes that the intake is about to report pushes, as it has read them since it last
    /// took entries. Returns the number for [`Self::since`].
    pub(in crate::daemon) fn report(&self) -> u64 {
        let mut board = self.board();
        board.reports += 1;
        board.taken
    }

    /// Notes that the driver handles a report, and returns which of these pushes may have
    /// settled since it was read, and how. To be called once for each report, in their order.
    pub(in crate::daemon) fn since(&self, report: u64, pushes: &HashSet<PushId>) -> HashMap<PushId, Outcome> {
        let mut board = self.board();
        board.reports = board.reports.saturating_sub(1);
        board.passing.retain(|(taken, ..)| *taken > report);
        if pushes.is_empty() {
            return HashMap::new();
        }
        let passing = board.passing.iter().map(|(_, push, to)| (*push, *to));
        passing
            .chain(board.waiting.iter().filter_map(settled))
            .filter(|(push, _)| pushes.contains(push))
            .collect()
    }
}

/// The push that an entry says to be settled, and how.
fn settled(settlement: &Settlement) -> Option<(PushId, Outcome)> {
    match settlement {
        Settlement::Settled { push, outcome, .. } => Some((*push, (*outcome)?)),
        Settlement::Distrust(..) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settle(push: PushId, outcome: Outcome) -> Settlement {
        let row = DbRow { generation: 0, id: push };
        Settlement::Settled { push, cache: CacheId(0), row, outcome: Some(outcome), confirmed: None }
    }

    /// What is on the board, for a report of all pushes up to 9.
    fn since(board: &Settlements, report: u64) -> Vec<(PushId, Outcome)> {
        let mut found: Vec<_> = board.since(report, &(0..10).collect()).into_iter().collect();
        found.sort_unstable_by_key(|(push, _)| *push);
        found
    }

    #[test]
    fn what_settles_after_the_intake_has_looked_is_known_when_its_report_is_handled() {
        let board = Settlements::default();
        board.post(settle(1, Outcome::Pushed));
        board.take();
        let report = board.report();
        board.post(settle(2, Outcome::Pushed));
        board.post(settle(3, Outcome::Collected));
        let later = board.report();
        assert_eq!(since(&board, report), [(2, Outcome::Pushed), (3, Outcome::Collected)]);
        // Also when the intake has learned of it meanwhile, and goes on.
        board.take();
        board.post(settle(2, Outcome::Cached));
        let next = board.report();
        board.take();
        assert_eq!(since(&board, later), [(2, Outcome::Cached), (3, Outcome::Collected)]);
        // The next report is of what was read after two of them.
        assert_eq!(since(&board, next), [(2, Outcome::Cached)]);
    }

    #[test]
    fn nothing_is_kept_that_no_report_needs() {
        let board = Settlements::default();
        for push in 0..5 {
            board.take();
            let report = board.report();
            board.post(settle(push, Outcome::Pushed));
            assert_eq!(since(&board, report), [(push, Outcome::Pushed)]);
        }
        assert_eq!(board.take().len(), 1);
        assert!(board.board().passing.is_empty() && board.board().waiting.is_empty());
        let report = board.report();
        board.post(settle(7, Outcome::Pushed));
        board.take();
        assert_eq!(board.board().passing.len(), 1);
        board.since(report, &HashSet::new());
        board.take();
        assert!(board.board().passing.is_empty());
    }
}
