//! The attic client that the daemon keeps, and pushing through it.

mod bootstrap;
mod engine;
mod netrc;
