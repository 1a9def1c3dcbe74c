//! Decides whether a newly valid path is pushed. Pure.

use crate::config::{Filter, Origin as Wanted};
use crate::ledger::PushState;
use crate::store::{Origin, PathInfo};

/// Returns the state in which a newly valid path enters the ledger. A referrer or a
/// session that names the path may change that later. `substitutable`: whether Nix takes
/// the path from a substituter; asked only if the filter is about that.
pub(in crate::daemon) fn enters_as(
    filter: &Filter,
    upstream: bool,
    info: &PathInfo,
    substitutable: impl FnOnce() -> bool,
) -> PushState {
    let left_out = left_out_by(filter, info).is_some();
    if left_out || filter.substitutable_only && !substitutable() {
        PushState::Skipped
    } else if upstream {
        PushState::Upstream
    } else {
        PushState::Pending
    }
}

/// Returns the key of the filter that leaves the path out, other than `substitutable_only`.
pub(in crate::daemon) fn left_out_by(filter: &Filter, info: &PathInfo) -> Option<&'static str> {
    let origin = match info.origin() {
        Origin::Built => Wanted::Built,
        Origin::Substituted => Wanted::Substituted,
        Origin::Source => Wanted::Source,
        Origin::Derivation => Wanted::Derivation,
    };
    filter.leaves_out(info.path.name(), origin, info.nar_size)
}
