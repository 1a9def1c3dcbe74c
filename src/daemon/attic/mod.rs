//! The attic client that the daemon keeps: looking for it, its login, its
//! environment, the engine that uploads through it, and the program for jobs.
//!
//! Must not know sessions, nor which paths are pushed when.

pub(in crate::daemon) mod client;
pub(in crate::daemon) mod engine;
pub(in crate::daemon) mod environment;
pub(in crate::daemon) mod login;
pub(in crate::daemon) mod wrapper;
