//! The driver's side of pushes: questions to a cache, uploads and probes, what
//! came of them, and how that is recorded.
//!
//! Must not know sessions, nor why a path is pushed.

pub(in crate::daemon) mod outcome;
pub(in crate::daemon) mod rate;
pub(in crate::daemon) mod settle;
pub(in crate::daemon) mod transfer;
pub(in crate::daemon) mod upstream_keys;
