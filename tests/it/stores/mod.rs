//! Stores that are not the host's own `/nix/store`, and kinds of paths, with real Nix.

mod below_a_root;
mod overlay;
mod realisations;
mod substitutable;
mod upstream;
