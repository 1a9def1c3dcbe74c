//! What the tests share: real programs on small, private stores.

pub mod attic;
pub mod cache;
pub mod ci;
pub mod container;
pub mod daemon;
pub mod disk;
pub mod documents;
pub mod journald;
pub mod logind;
pub mod multiuser;
pub mod nix;
pub mod terminal;
pub mod users;
