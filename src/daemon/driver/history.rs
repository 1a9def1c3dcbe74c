//! Forgets what is older than the configuration wants to remember: at start and
//! once a day, in slices that leave the ledger to others in between.

use std::time::Duration;

use crate::ledger::Ledger;
use crate::observe::{detail, event};
use crate::types::Wall;

const DAY: Duration = Duration::from_secs(24 * 3600);

/// Without end.
pub(in crate::daemon) async fn prune(ledger: Ledger, keep: Duration) {
    let mut timer = tokio::time::interval(DAY);
    loop {
        timer.tick().await;
        let before = Wall::now().0 - i64::try_from(keep.as_millis()).unwrap_or(i64::MAX / 2);
        match ledger.call(move |ledger| ledger.prune(before)).await {
            Ok(pruned) if pruned.sessions + pruned.pushes > 0 => {
                event!(
                    HISTORY_PRUNED,
                    sessions = pruned.sessions,
                    paths = pruned.pushes,
                    "old history is forgotten"
                );
            }
            Ok(_) => detail!("no history is old enough to be forgotten"),
            Err(error) => {
                event!(HISTORY_FAILED, error = %error, "old history cannot be forgotten; it is tried again tomorrow");
            }
        }
    }
}
