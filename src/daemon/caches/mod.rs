//! The caches of the configuration: a client for each, the built-in cache, a
//! watch on their tokens, and the netrc file that Nix reads them with.
//!
//! Must not know sessions, nor which paths are pushed when.

pub(in crate::daemon) mod netrc;
pub(in crate::daemon) mod servers;
pub(in crate::daemon) mod token_watch;
