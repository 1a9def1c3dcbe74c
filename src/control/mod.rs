//! The control socket: what jobs and operators may ask the daemon, and how the
//! question travels. Must not know how pushing works, nor any other room.
//!
//! A conversation: the client says hello (program, protocol number), the
//! server answers with its own hello, then requests follow one after the
//! other, each answered by any number of [`messages::Reply::Progress`] and
//! exactly one other reply. Who is asking is taken from the kernel
//! ([`server::Peer`]), never from what the client says.

mod bound;
pub mod codec;
pub mod dial;
mod listen;
pub mod messages;
mod responder;
pub mod server;
mod slots;

#[cfg(test)]
mod tests;
