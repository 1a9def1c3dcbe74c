//! The cache client: the Attic API's requests and answers, the endpoint in use, the
//! token, and the error class of each answer.
//!
//! Must not know: sessions, the ledger, Nix's store. It takes plain strings
//! and a stream of bytes, and returns an outcome or a [`CacheError`] whose
//! [`ErrorClass`] says what to do next. It retries only small requests, once.
//!
//! | file | for |
//! |---|---|
//! | `token` | where the token comes from, and keeping it out of sight |
//! | `credentials` | what is sent to trusted hosts: token and extra headers, read again when asked |
//! | `supplied` | the token that a program supplies |
//! | `headers` | extra headers, for access proxies |
//! | `secrets` | all secrets of a cache, and their removal from texts |
//! | `network_settings`, `proxy` | certificates, proxy, HTTP version |
//! | `wire` | the JSON of the API |
//! | `error` | error classes, and what a status or a broken connection means |
//! | `network` | why a connection failed, in plain words |
//! | `endpoint` | addresses: their form, loopback, which redirects are allowed |
//! | `transport` | HTTP clients and their limits |
//! | `body` | the request body with the NAR: exact length, stall detection, early answers |
//! | `discover` | which of several addresses to use |
//! | `client` | the calls |
//! | `read` | whether Nix can read the cache |
//! | `examine` | what each endpoint answers, for `doctor` |
//! | `check` | whether the cache can serve a path, as Nix would fetch it |
//! | `upstream` | whether another binary cache offers a path |
//! | `narinfo` | a narinfo and its signature |
//! | `decode` | decompressing and hashing a served NAR |

mod body;
mod check;
mod client;
mod credentials;
mod decode;
mod discover;
mod endpoint;
mod error;
mod examine;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod headers;
mod narinfo;
mod network;
mod network_settings;
mod proxy;
mod read;
mod secrets;
mod supplied;
mod token;
mod transport;
mod upstream;
mod wire;

#[cfg(test)]
pub(crate) mod tests;

pub use check::{Expected, Fault, FaultKind, Substituter};
pub use client::{CacheClient, ClientSettings};
pub use credentials::Renewed;
pub use discover::Discovered;
pub use error::{CacheError, ErrorClass};
pub use network_settings::{Network, TlsFiles};
pub use supplied::SuppliedToken;
pub use token::{Secret, TokenSource};
pub use upstream::Upstream;
pub use wire::{CacheConfig, UploadInfo, Uploaded};
