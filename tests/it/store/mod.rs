//! The store room against a real Nix.

mod closure;
mod locks;
mod nar;
mod nix_db;
mod origins;
mod reading;
mod root_files;
mod watch;
