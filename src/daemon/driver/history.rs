//! Prunes history that is older than the configuration keeps: at the start and once a
//! day, in slices between which the ledger serves others.

use std::time::Duration;

use crate::ledger::Ledger;
use crate::observe::{detail, event};
use crate::types::Wall;

/// Time between two prunings.
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Prunes what is older than `keep`, again and again, without end.
pub(super) async fn prune(ledger: Ledger, keep: Duration) {
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
                    "{} sessions and {} pushes were deleted from the ledger: they are older than history_keep",
                    pruned.sessions,
                    pruned.pushes
                );
            }
            Ok(_) => detail!("no history is old enough to be pruned"),
            Err(error) => {
                event!(HISTORY_FAILED, error = %error, "old history cannot be deleted from the ledger: {error}; the next attempt is tomorrow");
            }
        }
    }
}
