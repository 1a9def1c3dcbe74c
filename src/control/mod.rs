//! The control socket: the requests of jobs and operators, the daemon's replies,
//! and how both travel. Must not know how pushing works, nor any room but `types`
//! and `observe`.
//!
//! On a connection, flywheelctl sends its hello (program version, protocol number)
//! and the daemon answers with its own. Then requests follow one after the other;
//! each is answered by any number of [`messages::Reply::Progress`] and exactly one
//! other reply. The caller's identity comes from the kernel ([`server::Peer`]),
//! never from the request.

pub mod codec;
mod connection_limit;
pub mod dial;
#[cfg(any(fuzzing, test))]
pub(crate) mod fuzz;
mod known_users;
mod limits;
mod listen;
pub mod messages;
mod responder;
pub mod server;
mod truncate;

#[cfg(test)]
mod tests;
