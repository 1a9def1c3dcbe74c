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
    let origin = match info.origin() {
        Origin::Built => Wanted::Built,
        Origin::Substituted => Wanted::Substituted,
        Origin::Source => Wanted::Source,
        Origin::Derivation => Wanted::Derivation,
    };
    let admitted = filter.admits(info.path.name(), origin, info.nar_size);
    if !admitted || filter.substitutable_only && !substitutable() {
        PushState::Skipped
    } else if upstream {
        PushState::Upstream
    } else {
        PushState::Pending
    }
}
