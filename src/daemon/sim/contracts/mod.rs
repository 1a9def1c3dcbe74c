//! Contracts: the same table of steps runs over what the simulation replaces and over what
//! replaces it, and both must do the same. The ledger, blocking work, GC roots, the lock
//! watcher, `/proc` and the name service have theirs beside their own tests.

mod cache;
mod nix_db;
