//! The attic client that the daemon keeps: finding it, its login, its environment,
//! the engine that uploads through it, and the program through which jobs run it.
//!
//! Must not know sessions, nor which paths are pushed when.

mod client;
mod engine;
mod environment;
mod login;
mod wrapper;

pub(super) use client::{Client, start as start_client};
pub(super) use engine::{Engine, Setup as EngineSetup};
pub(super) use environment::workspace;
pub(super) use login::{CacheLogin, Login};
pub(super) use wrapper::write as write_wrapper;
