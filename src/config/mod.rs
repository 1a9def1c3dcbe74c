//! What the administrator wrote, made into settings that need no second look.
//!
//! Three steps, a file each: `raw` is the shape of the files (all optional,
//! unknown keys refused), `merge` lays them over each other, `validate`
//! turns the result into [`Settings`]: every path absolute, every name legal,
//! every reference to a cache resolved. Whatever is wrong is a
//! [`ConfigError`] with file, line and column before anything is bound,
//! opened or watched.
//!
//! This room imports no other room and reads no environment of its own: the
//! caller passes a look-up, so a test needs no process of its own. It never
//! reads a token, only where one is.

mod caches;
mod changes;
mod endpoint;
mod error;
mod glob;
mod merge;
mod names;
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
pub use names::is_cache_name;
pub use route::{Destination, Forbidden, Route, Subject, UnknownMaker, Who};
pub use settings::{
    Cache, Client, Embedded, Engine, Existing, Filter, Jobs, Nix, Origin, Push, Settings, Target,
};
pub use token::Token;
