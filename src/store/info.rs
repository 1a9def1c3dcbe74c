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
    /// Its name follows from added files or an added text, or a recorded
    /// content address says so.
    pub(super) is_source: bool,
}

/// What a path is. It depends neither on the way on which the path came nor on
/// its signatures.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// A build on this host, fixed-output and content-addressed ones included.
    Built,
    /// A build that was copied here: from a substituter, by an import, or by a
    /// remote builder. The database does not tell these apart.
    Substituted,
    /// Files or a text that were added to the store: `./file`, `builtins.toFile`,
    /// fetchers, `nix-store --add`; also when another host added them.
    Source,
    /// A `.drv` that Nix wrote from an expression.
    Derivation,
}

impl PathInfo {
    /// The row as a mark, for a later [`CurrentNixDb::look`](super::CurrentNixDb::look).
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { id: self.id, path: self.path.clone(), registered_at: self.registered_at }
    }

    /// Only a build has a deriver, also one whose output's name ends in `.drv`
    /// (dynamic derivations). `ultimate` proves nothing by itself: a
    /// local-overlay store sets it for each row that it copies from below.
    pub fn origin(&self) -> Origin {
        match (self.deriver.is_some(), self.ultimate) {
            (true, true) => Origin::Built,
            (true, false) => Origin::Substituted,
            (false, _) if self.path.is_derivation() => Origin::Derivation,
            (false, _) if self.is_source => Origin::Source,
            (false, true) => Origin::Built,
            (false, false) => Origin::Substituted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins() {
        let info = |name: &str, ultimate, is_source, deriver: bool| PathInfo {
            id: 1,
            path: StorePath::parse(&format!("0njnh3x9rb4hh40rpc0dwc3w75vjl545-{name}")).unwrap(),
            nar_hash: NarHash([0; 32]),
            nar_size: 120,
            deriver: deriver.then(|| StorePath::parse("0njnh3x9rb4hh40rpc0dwc3w75vjl545-x.drv").unwrap()),
            ultimate,
            sigs: vec!["k:s".to_owned()],
            ca: None,
            references: vec![],
            registered_at: 0,
            is_source,
        };
        assert_eq!(info("x", true, false, true).origin(), Origin::Built);
        assert_eq!(info("x", true, true, true).origin(), Origin::Built, "a fixed output");
        assert_eq!(info("x", false, true, true).origin(), Origin::Substituted, "a fixed output, copied");
        assert_eq!(info("x", false, true, false).origin(), Origin::Source);
        assert_eq!(info("x", true, true, false).origin(), Origin::Source, "from a lower store");
        assert_eq!(info("x", false, false, false).origin(), Origin::Substituted);
        assert_eq!(info("x", true, false, false).origin(), Origin::Built);
        assert_eq!(info("x.drv", false, true, false).origin(), Origin::Derivation);
        assert_eq!(info("x.drv", true, false, true).origin(), Origin::Built, "a dynamic derivation's output");
        assert_eq!(info("x.drv", false, false, true).origin(), Origin::Substituted);
    }
}
