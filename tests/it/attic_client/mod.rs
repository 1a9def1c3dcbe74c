//! The attic client that the daemon keeps, and pushing through it.

mod engine;
mod life;
mod reading;
