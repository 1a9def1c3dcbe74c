//! What the tests share: real parts, made small and private.

pub mod nix;
