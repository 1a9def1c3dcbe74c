//! Networks between the daemon and its cache: access proxies that want headers, tokens from a
//! program, HTTP proxies, IPv6, servers below a path. The real `flywheeld`, and before the cache a
//! proxy of the test that sees each request.

mod headers;
mod heads;
mod ipv6;
mod prefix;
mod proxies;
mod token_command;

pub use heads::{HeadProxy, refusal};
