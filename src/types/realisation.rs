//! Realisations: which path an output of a content-addressed derivation came to be.

use super::StorePath;

/// The output of a derivation, as Nix's database and substituters name it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum DrvOutput {
    /// Up to Nix 2.34: `sha256:<hash>!<output>`, where the hash is of the derivation with
    /// its inputs.
    Hashed(String),
    /// From Nix 2.35 on: the derivation and the output.
    Named(StorePath, String),
}

/// Which path an output came to be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Realisation {
    /// The output.
    pub output: DrvOutput,
    /// The path.
    pub path: StorePath,
    /// The realisations that this one was built from, which Nix up to 2.33 records:
    /// their outputs as in [`DrvOutput::Hashed`], and their paths.
    pub dependencies: Vec<(String, StorePath)>,
    /// The signatures, each as `<key name>:<base64>`.
    pub sigs: Vec<String>,
}
