//! The configuration: from files to checked settings.
//!
//! Three steps, a file each: `raw` reads the files (every key is optional, unknown
//! keys are refused), `merge` combines them, `validate` makes [`Settings`] of them,
//! in which every path is absolute, every name valid and every reference to a cache
//! known. An error is a [`ConfigError`] with file, line and column; it comes before
//! the daemon binds, opens or watches anything.
//!
//! Must not know any room but `types`. The caller passes the environment as a
//! closure. Tokens are not read, only their places.

mod caches;
mod changes;
mod endpoint;
mod error;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod glob;
mod merge;
mod names;
mod network;
mod raw;
mod route;
mod settings;
mod token;
mod validate;

#[cfg(test)]
mod tests;

pub use changes::Change;
pub use error::{ConfigError, Place};
pub use glob::Glob;
pub(crate) use route::numbers;
pub use route::{Destination, Forbidden, Route, Subject, Undecided, UnknownMaker, Who};
pub use settings::{
    Cache, Client, Embedded, Engine, Existing, Filter, Jobs, Network, Nix, Origin, Proxy, ProxyUrl, Push,
    Settings, Target, Tls,
};
pub use token::{Token, TokenCommand};
