//! What the ledger records of a push that is settled or has failed. Must not know
//! how it came to that.

use crate::flow::Outcome;
use crate::ledger::{PushState, Settle, Steps};
use crate::types::Wall;

/// The class under which the ledger has an upstream cache's URL in the place of an error.
pub(in crate::daemon) const UPSTREAM: &str = "upstream";

/// The record of a settled push after `attempts` uploads. `upstream`: the URL of the
/// upstream cache that has answered that it has the path.
pub(super) fn settled(outcome: Outcome, upstream: Option<&str>, attempts: u32, steps: Steps) -> Settle {
    let state = match outcome {
        Outcome::Pushed => PushState::Pushed,
        Outcome::Cached => PushState::Cached,
        Outcome::Upstream => PushState::Upstream,
        Outcome::Collected => PushState::Collected,
    };
    let upstream = upstream.filter(|_| outcome == Outcome::Upstream);
    Settle {
        state,
        error_class: upstream.map(|_| UPSTREAM.to_owned()),
        error: upstream.map(str::to_owned),
        attempts,
        steps,
        at: Wall::now().0,
    }
}

/// The record of a push whose path the garbage collector removed while the daemon
/// did not run.
pub(in crate::daemon) fn collected(attempts: u32) -> Settle {
    settled(Outcome::Collected, None, attempts, Steps::default())
}

/// The record of a failed push.
pub(super) fn failed(class: &str, error: String, attempts: u32, steps: Steps) -> Settle {
    Settle {
        state: PushState::Failed,
        error_class: Some(class.to_owned()),
        error: Some(error),
        attempts,
        steps,
        at: Wall::now().0,
    }
}
