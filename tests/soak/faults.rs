//! The parts of the fault tests that the soak test uses.

#[path = "../it/faults/proxy.rs"]
pub mod proxy;
#[path = "../it/faults/rig.rs"]
mod rig;

pub use rig::{COLLECTED, Dice, Rig, client, set, until};
