//! What happens to a newly valid path: to which cache, and whether at all.
//! Pure.

use crate::config::{Filter, Origin as Wanted};
use crate::ledger::PushState;
use crate::store::{Origin, PathInfo};

/// How a newly valid path enters the ledger, before anybody refers to it.
pub(in crate::daemon) fn enters_as(filter: &Filter, upstream: bool, info: &PathInfo) -> PushState {
    let origin = match info.origin() {
        Origin::Built => Wanted::Built,
        Origin::Substituted => Wanted::Substituted,
        Origin::Source => Wanted::Source,
        Origin::Derivation => Wanted::Derivation,
    };
    if !filter.admits(info.path.name(), origin, info.nar_size) {
        PushState::Skipped
    } else if upstream {
        PushState::Upstream
    } else {
        PushState::Pending
    }
}
