//! What a cache knows: the Attic API's requests and answers, where the server
//! is, which token opens it, and what each of its answers means for the path
//! at hand.
//!
//! Must not know: sessions, the ledger, Nix's store. It takes plain strings
//! and a stream of bytes, and gives back an outcome or a [`CacheError`] whose
//! [`ErrorClass`] says what to do next; it retries nothing that costs more
//! than one small request.
//!
//! | file | for |
//! |---|---|
//! | `name` | names a cache can have |
//! | `token` | where the token comes from, and keeping it out of sight |
//! | `wire` | the JSON of the API |
//! | `error` | error classes, and what a status or a broken connection means |
//! | `endpoint` | addresses: form, loopback, what may follow what |
//! | `transport` | HTTP clients and their limits |
//! | `body` | the NAR on its way: exact length, stall watch, early answers |
//! | `discover` | which of several addresses to use |
//! | `client` | the calls |
//! | `read` | whether Nix could read it |

mod body;
mod client;
mod discover;
mod endpoint;
mod error;
mod read;
mod token;
mod transport;
mod wire;

#[cfg(test)]
mod tests;

pub use client::{CacheClient, ClientSettings};
pub use discover::Discovered;
pub use error::{CacheError, ErrorClass};

pub use token::{Secret, TokenSource};
pub use wire::{CacheConfig, UploadInfo, Uploaded};
