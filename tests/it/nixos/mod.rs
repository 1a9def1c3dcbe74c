//! The flake and the NixOS module.

mod flake;
mod module;
