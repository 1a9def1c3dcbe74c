//! Paths that somebody named: their whole closure is wanted.

use super::bell::Naming;
use super::hand_over::PlannedPush;
use super::{ITEMS, Intake, IntakeError};
use crate::daemon::inbox::Input;
use crate::daemon::intake::seen::Seen;
use crate::ledger::{Cursor, Evidence, PushState};
use crate::store::PathInfo;
use crate::types::Wall;

/// A confirmation by the cache that is older is asked for again when somebody
/// names the path: caches delete, too.
const TRUST_MS: i64 = 15 * 60 * 1000;

impl Intake {
    /// Takes named paths with their whole closure.
    pub(super) fn name(
        &mut self,
        naming: &Naming,
        cursor: &mut Cursor,
        seen: &mut [Seen],
    ) -> Result<(), IntakeError> {
        if naming.close_window {
            let head = self.nix_db.head()?;
            self.windows().close(naming.session, head);
            self.ledger.session_until(naming.session, head);
            self.look(cursor, seen)?;
        }
        let cache = naming.cache.0;
        let recheck_before = trusted_since(Wall::now().0);
        let roots = self.nix_db.ids(&naming.paths)?;
        let valid: Vec<i64> = roots.iter().filter_map(|id| *id).collect();
        for ids in self.nix_db.closure(&valid, &mut |_| true)?.chunks(ITEMS) {
            let planned = |info: PathInfo| {
                let upstream = self.policy.caches[usize::from(cache)].upstream_keys.have_signed(&info);
                let state = if upstream { PushState::Upstream } else { PushState::Pending };
                let sessions = vec![(naming.session, Evidence::Closure)];
                PlannedPush { info, cache, state, sessions, recheck_before, retry: naming.retry }
            };
            let planned = self.nix_db.infos(ids)?.into_iter().map(planned).collect();
            self.admit(cache, planned, naming.retry)?;
            ids.iter().for_each(|id| seen[usize::from(cache)].insert(*id));
        }
        let invalid = naming.paths.iter().zip(roots).filter(|(_, id)| id.is_none()).map(|(p, _)| p.clone());
        self.tell(Input::Named { token: naming.token, invalid: invalid.collect() })
    }
}

/// Confirmations from before this moment are asked for again. The ledger holds
/// wall-clock times, so one from the future (the clock was put back) would be
/// believed for ever; `ledger` is told the time and distrusts those.
fn trusted_since(now: i64) -> i64 {
    now - TRUST_MS
}
