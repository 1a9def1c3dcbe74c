//! What the tests share: real parts, made small and private.

pub mod attic;
pub mod cache;
pub mod ci;
pub mod container;
pub mod daemon;
pub mod disk;
pub mod journald;
pub mod logind;
pub mod multiuser;
pub mod nix;
pub mod users;
