//! Sessions of CI jobs: opening and closing them, the processes they are
//! anchored to, who waits for one, and what is reported of one.
//!
//! Must not know how a path is pushed.

pub(in crate::daemon) mod anchors;
pub(in crate::daemon) mod closing;
pub(in crate::daemon) mod identity;
pub(in crate::daemon) mod opening;
pub(in crate::daemon) mod report;
pub(in crate::daemon) mod resume;
pub(in crate::daemon) mod session;
pub(in crate::daemon) mod waiters;
