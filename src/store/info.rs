//! What the Nix database records about one path.
//!
//! Must not know: how the database is read.

use super::nix_db::Mark;
use crate::types::{NarHash, StorePath};

/// A valid path: one row of the Nix database, and the path's references.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The row id. Each path that becomes valid gets a higher one; none is used
    /// twice.
    pub id: i64,
    /// The path.
    pub path: StorePath,
    /// The hash of its NAR.
    pub nar_hash: NarHash,
    /// The size of its NAR in bytes; 0 if a very old Nix did not record it.
    pub nar_size: u64,
    /// The derivation that built it. It may have been collected since.
    pub deriver: Option<StorePath>,
    /// Whether Nix trusts the path without a signature, as it does with paths that
    /// it built on this host.
    pub ultimate: bool,
    /// The signatures, each as `<key name>:<base64>`.
    pub sigs: Vec<String>,
    /// The content address, if the path has one.
    pub ca: Option<String>,
    /// Its references, sorted. They may include the path itself.
    pub references: Vec<StorePath>,
    /// The row ids of [`Self::references`], in any order.
    pub(crate) reference_ids: Vec<i64>,
    /// When it was registered, in Unix seconds.
    pub registered_at: i64,
    /// Whether the path was made from added files or an added text: its hash part proves
    /// it, the recorded content address says so, or nothing says that it was built.
    pub(super) is_source: bool,
}

/// The kind of a path. How the path came into this store and its signatures make
/// no difference, except between `Built` and `Substituted`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Origin {
    /// The output of a build on this host, also of a fixed-output or
    /// content-addressed derivation.
    Built,
    /// The output of a build that was copied to this host: from a substituter, by an
    /// import, or from a remote builder. The Nix database does not say which.
    Substituted,
    /// Files or a text that this host or another one added to a store: by `./file`,
    /// `builtins.toFile`, a fetcher or `nix-store --add`.
    Source,
    /// A `.drv` file that Nix wrote when it evaluated an expression.
    Derivation,
}

impl PathInfo {
    /// A row without signature, content address and deriver.
    #[cfg(test)]
    pub(crate) fn for_tests(id: i64, path: StorePath, nar_hash: NarHash, registered_at: i64) -> Self {
        Self {
            id,
            path,
            nar_hash,
            nar_size: 120,
            deriver: None,
            ultimate: false,
            sigs: Vec::new(),
            ca: None,
            references: Vec::new(),
            reference_ids: Vec::new(),
            registered_at,
            is_source: false,
        }
    }

    /// Returns the mark of this row, for a later
    /// [`CurrentNixDb::look`](super::CurrentNixDb::look).
    #[must_use]
    pub fn mark(&self) -> Mark {
        Mark { id: self.id, path: self.path.clone(), registered_at: self.registered_at }
    }

    /// Returns the kind of the path. A path with a deriver is the output of a build,
    /// even if its name ends in `.drv` (dynamic derivations). `ultimate` alone does
    /// not prove a build: a local-overlay store sets it for each row that it copies
    /// from its lower store.
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
            reference_ids: vec![],
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
