//! Faults of the network, the cache and the host: the real `flywheeld` on a real, private Nix, a
//! cache outside of the daemon, and between them a proxy that misbehaves as a test tells it. Each
//! file is one kind of fault. `rig.rs` and `proxy.rs` are shared, also with the soak test.

mod collections;
mod http;
mod kills;
mod nginx;
mod no_verdict;
mod proxy;
mod rig;
mod tls;
mod watch_store;

pub use nginx::Nginx;
pub use rig::set;
use rig::{COLLECTED, Dice, Rig, has, met, number, until, upload_of};
