//! The fault laboratory: the real `flywheeld` on a real, private Nix, a cache
//! apart from it, and between the two a proxy that misbehaves as a test says.
//! A scenario is a file; what they share is in `rig.rs` and `proxy.rs`, which
//! the soak uses as well.

mod collections;
mod http;
mod kills;
mod nginx;
mod proxy;
mod rig;
mod watch_store;

pub use rig::set;
use rig::{COLLECTED, Dice, Rig, has, met, number, until, upload_of};
