//! What the tests share: real parts, made small and private.

pub mod cache;
pub mod daemon;
pub mod nix;
