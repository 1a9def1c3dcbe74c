//! The caches of the configuration: what the daemon keeps of each, how each is
//! reached, the built-in cache, the watch on tokens, the programs that give tokens, and
//! the netrc file for Nix.
//!
//! Must not know sessions, nor which paths are pushed when.

mod built_in;
mod cache;
mod collection;
mod connection;
mod examine;
mod netrc;
mod token_command;
mod token_watch;

pub(super) use built_in::{BuiltIn, start as start_built_in};
pub(super) use cache::{Cache, EngineParts};
pub(super) use collection::Caches;
pub(super) use connection::{Connection, limits};
pub(super) use examine::Examination;
#[cfg(any(fuzzing, test))]
pub(crate) use netrc::fuzz as fuzz_netrc;
pub(super) use netrc::{Netrc, pull_token};
pub(super) use token_command::TokenCommand;
pub(super) use token_watch::{Watched, watch as watch_tokens};
