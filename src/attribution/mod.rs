//! Finds out which session a path belongs to, from locks, processes, control
//! groups and Nix's post-build hook.
//!
//! Must not know: caches, uploads, or any other room. Store paths are plain base
//! names here, and sessions and caches are numbers.
//!
//! | evidence | meaning | strength |
//! |---|---|---|
//! | hook | Nix's post-build hook, which the builder runs, named the path | certain |
//! | process | the process that held the path's lock descends from the session's anchor | strong |
//! | window | the path became valid while only this session was open | a guess |
//! | shared | the path became valid while several sessions were open | a guess: one of them |
//!
//! The daemon adds `closure`, for the paths that a session names and for their
//! references.
//!
//! [`LockWatcher`] watches the locks of paths, [`Lineage`] follows the holder of
//! a lock to its job, [`Anchor`] is the process that a job's processes descend
//! from, and [`Windows`] decides which sessions own a path. A process that cannot
//! be seen gives no evidence; this is never an error.

mod anchor;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod lineage;
mod lock_watcher;
mod locks;
mod proc;
mod windows;

#[cfg(test)]
pub(crate) mod tests;

pub use anchor::{Anchor, AnchorError};
pub use lineage::Lineage;
pub use lock_watcher::LockWatcher;
pub use proc::{Proc, ProcId, Stat};
pub use windows::{Evidence, Maker, Owners, Window, Windows};
