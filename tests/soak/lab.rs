//! The laboratory's rooms without its scenarios.

#[path = "../it/lab/proxy.rs"]
pub mod proxy;
#[path = "../it/lab/rig.rs"]
mod rig;

pub use rig::{COLLECTED, Dice, Rig, client, set, until};
