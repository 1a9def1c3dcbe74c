//! Who made a path: locks, processes, control groups, hooks; evidence and its
//! strength. Must not know caches, uploads, or any other room: store paths are
//! plain base names here, sessions are numbers.
//!
//! | evidence | says | how strong |
//! |---|---|---|
//! | hook | Nix's post-build hook, run by the builder, named the path | certain |
//! | process | who held the path's lock descends from the session's anchor | strong |
//! | window | it became valid while only this session was open | a guess |
//! | shared | several sessions were open | one of them |
//!
//! (`closure` is the daemon's: what a session names and what that refers to.)
//! [`LockWatcher`] watches the locks, [`Lineage`] follows a holder to the job,
//! [`Anchor`] is where a job begins, [`Windows`] draws the conclusion. What
//! cannot be seen is no evidence, and never an error.

mod anchor;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod lineage;
mod lock_watcher;
mod locks;
mod proc;
mod windows;

#[cfg(test)]
mod tests;

pub use anchor::{Anchor, AnchorError};
pub use lineage::Lineage;
pub use lock_watcher::LockWatcher;
pub use proc::{Proc, ProcId, Stat};
pub use windows::{Evidence, Maker, Owners, Window, Windows};
