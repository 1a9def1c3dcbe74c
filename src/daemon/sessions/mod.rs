//! Sessions of CI jobs: which are open, how one is opened, looked up and restored, the
//! processes they are anchored to, who waits for one, and what is reported of one.
//!
//! Must not know how a path is pushed, nor what is decided about a push.

mod anchors;
mod collection;
mod lookup;
mod opening;
mod report;
mod restore;
mod session;
mod session_id;
mod waiting;

pub(super) use anchors::Watch;
pub(super) use collection::Sessions;
pub(super) use lookup::{Found, Name, lookup};
pub(super) use opening::{OpenParts, OpenRequest, Recorded, open};
pub(super) use report::{Answer, Engines, PATHS_MOST, Reports, Sight, evidence_word, outcome_word};
pub(super) use restore::{Restored, restore};
pub(super) use session::Session;
pub(super) use waiting::{Asked, Caller, Naming, Opener};
