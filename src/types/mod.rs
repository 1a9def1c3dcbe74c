//! The words that every room shares: names and hashes as Nix and Attic write
//! them, the numbers of caches, pushes and sessions, clocks, sizes and
//! durations, the URL of a proxy, signs of life, and replacing a file atomically.
//!
//! Must not know: any other room. Every room may name this one.

mod atomic_file;
mod cache_name;
mod clock;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod heartbeat;
mod ids;
mod nar_hash;
pub mod nix32;
mod printable;
mod proxy;
mod realisation;
mod shorten;
mod store_path;
mod units;

pub use atomic_file::{replace_file, sync_dir};
pub use cache_name::{CacheName, InvalidCacheName};
pub use clock::{Mono, Wall, millis};
pub use heartbeat::Heartbeat;
pub use ids::{CacheId, PushId, SessionId};
pub use nar_hash::{HashError, NarHash};
pub(crate) use printable::is_unprintable;
pub use printable::{printable, printable_json};
pub use proxy::{Proxy, ProxyUrl};
pub use realisation::{DrvOutput, Realisation};
pub use shorten::shorten;
pub use store_path::{ParseError, PathHash, StoreDir, StorePath};
pub use units::{ByteSize, Period, UnitError};
