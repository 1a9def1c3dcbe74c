//! What the database says about one path.
//!
//! Must not know: where it was read.

use super::nix_db::Mark;
use crate::types::{NarHash, StorePath};

/// A valid path, as one row of the database and its references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// Row number: grows with every path that becomes valid, never used twice.
    pub id: i64,
    /// The path.
    pub path: StorePath,
    /// Hash of its NAR.
    pub nar_hash: NarHash,
    /// Size of its NAR; 0 where a very old Nix did not write it down.
    pub nar_size: u64,
    /// The derivation that made it; need not exist any more.
    pub deriver: Option<StorePath>,
    /// Built here, so trusted without a signature.
    pub ultimate: bool,
    /// Signatures, `<key name>:<base64>`.
    pub sigs: Vec<String>,
    /// How the path follows from its content, if it does.
    pub ca: Option<String>,
    /// What it refers to, sorted; may include itself.
    pub references: Vec<StorePath>,
    /// When it was registered, Unix seconds.
    pub registered_at: i64,
}

/// Where a path came from, as far as the database tells.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A build on this host, fixed-output ones included.
    Built,
    /// Copied here ready-made: from a substituter, by an import, or by a remote
    /// builder. The database does not tell these apart.
    Substituted,
    /// Added from files or a string: `./file`, `builtins.toFile`, `nix-store --add`.
    Source,
    /// A `.drv`.
    Derivation,
}

impl PathInfo {
    /// The row as a mark, for a later [`CurrentNixDb::look`](super::CurrentNixDb::look).
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { id: self.id, path: self.path.clone(), registered_at: self.registered_at }
    }

    /// Seen on Nix 2.8.0: only local builds are `ultimate`; what was added
    /// locally is content-addressed and has neither deriver nor signature;
    /// what was copied has at least one of the two, or no content address. An
    /// unsigned source that was copied counts as a source, which it is.
    pub fn origin(&self) -> Origin {
        if self.path.is_derivation() {
            Origin::Derivation
        } else if self.ultimate {
            Origin::Built
        } else if self.ca.is_some() && self.deriver.is_none() && self.sigs.is_empty() {
            Origin::Source
        } else {
            Origin::Substituted
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let info = |name: &str, ultimate, ca: bool, deriver: bool, sig: bool| PathInfo {
            id: 1,
            path: StorePath::parse(&format!("0njnh3x9rb4hh40rpc0dwc3w75vjl545-{name}")).unwrap(),
            nar_hash: NarHash([0; 32]),
            nar_size: 120,
            deriver: deriver.then(|| StorePath::parse("0njnh3x9rb4hh40rpc0dwc3w75vjl545-x.drv").unwrap()),
            ultimate,
            sigs: sig.then(|| "k:s".to_owned()).into_iter().collect(),
            ca: ca.then(|| "text:sha256:x".to_owned()),
            references: vec![],
            registered_at: 0,
        };
        assert_eq!(info("x", true, false, true, false).origin(), Origin::Built);
        assert_eq!(info("x", true, true, true, false).origin(), Origin::Built);
        assert_eq!(info("x", false, true, false, false).origin(), Origin::Source);
        assert_eq!(info("x", false, true, false, true).origin(), Origin::Substituted);
        assert_eq!(info("x", false, true, true, false).origin(), Origin::Substituted);
        assert_eq!(info("x", false, false, false, false).origin(), Origin::Substituted);
        assert_eq!(info("x.drv", false, true, false, false).origin(), Origin::Derivation);
        assert_eq!(info("x.drv", true, false, false, false).origin(), Origin::Derivation);
    }
}
