//! Names of store paths: what is one, what only looks like one.
//!
//! Must not know: whether a path exists or is valid; that is the journal's.
//!
//! Two questions are kept apart. [`StorePath::parse`] asks what Nix asks of a
//! store path's name (Nix, `libstore/path.cc`); names such as
//! `…-Cargo.lock` or `…-queue.check` pass, because such paths are valid in
//! real stores. [`StorePath::from_entry`] is for names met in the store
//! *directory*, where the same endings are nearly always what Nix leaves lying
//! about, and refuses those with the reason.

use std::fmt;
use std::path::{Component, Path};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Characters of the hash part.
const HASH_LEN: usize = 32;
/// Longest name that Nix accepts, without hash part and dash.
const NAME_MAX: usize = 211;
/// Nix's base 32: digits and letters without e, o, t, u.
const NIX32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// Why something is not a store path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    /// A store directory that cannot be one.
    #[error(
        "`{0}` is not a store directory: expected an absolute path without `.` and `..`, like /nix/store"
    )]
    StoreDir(String),
    /// Outside of the store directory.
    #[error("`{path}` is not below the store directory {store_dir}")]
    NotInStore {
        /// What was given.
        path: String,
        /// Where it should have been.
        store_dir: String,
    },
    /// `.links`, where Nix keeps the hard links of optimised files.
    #[error("`.links` is Nix's own directory, not a store path")]
    Links,
    /// A name of Nix's temporary files, such as `.tmp-…`.
    #[error("`{0}` is a temporary name, not a store path")]
    Temporary(String),
    /// Not 32 characters of Nix's base 32 and a dash.
    #[error("`{0}` does not start with the 32 characters of a store hash and a dash")]
    Hash(String),
    /// Nothing after the dash.
    #[error("`{0}` has an empty name")]
    EmptyName(String),
    /// A name above 211 characters.
    #[error("the name of `{0}` is longer than {NAME_MAX} characters")]
    TooLong(String),
    /// A character that Nix does not allow.
    #[error("the name of `{base}` has the character {bad:?}; Nix allows letters, digits and + - . _ ? =")]
    Character {
        /// The whole base name.
        base: String,
        /// The first character that is not allowed.
        bad: char,
    },
    /// `.` or `..`, alone or before a dash.
    #[error("the name of `{0}` could be taken for a relative path")]
    Dots(String),
    /// A lock file: `<store path>.lock`. Only for directory entries.
    #[error("`{0}` is a lock file")]
    Lock(String),
    /// The lock of an output whose path is not known before it is built, its
    /// `.lock` taken off: `<drv>.drv.<output>`. Only for directory entries.
    #[error("`{0}` names an output of a derivation, not a path")]
    DerivationOutput(String),
    /// A sandbox's root directory: `<drv>.chroot`. Only for directory entries.
    #[error("`{0}` is a build's sandbox")]
    Chroot(String),
    /// The second result of `nix-build --check`. Only for directory entries.
    #[error("`{0}` is the result of a repeated build")]
    Check(String),
}

/// The store directory, as in `/nix/store`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoreDir(Arc<str>);

impl StoreDir {
    /// An absolute path; slashes at the end are taken off, as Nix does.
    pub fn new(dir: &str) -> Result<Self, ParseError> {
        let trimmed = dir.trim_end_matches('/');
        // Compared as text: `Path` would quietly forgive `/a//b` and `/a/./b`,
        // which never match what is written in the database.
        let normal = trimmed.len() > 1
            && trimmed.starts_with('/')
            && !trimmed.contains('\0')
            && trimmed[1..].split('/').all(|part| !matches!(part, "" | "." | ".."));
        if normal { Ok(Self(trimmed.into())) } else { Err(ParseError::StoreDir(dir.to_owned())) }
    }

    /// As text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// As a path.
    pub fn as_path(&self) -> &Path {
        Path::new(&*self.0)
    }

    /// Exactly `DIR/BASE`.
    pub fn parse(&self, full: &str) -> Result<StorePath, ParseError> {
        let base = full.strip_prefix(&*self.0).and_then(|rest| rest.strip_prefix('/'));
        match base {
            Some(base) if !base.contains('/') => StorePath::parse(base),
            _ => Err(self.outside(full)),
        }
    }

    /// The store path that `path` is, or is below of. Symlinks are not
    /// followed and `..` is refused: resolve such paths first.
    pub fn containing(&self, path: &Path) -> Result<StorePath, ParseError> {
        let below = path.strip_prefix(self.as_path());
        let mut parts = below.map_err(|_| self.outside(&path.to_string_lossy()))?.components();
        let (Some(Component::Normal(base)), true) =
            (parts.next(), parts.all(|part| matches!(part, Component::Normal(_))))
        else {
            return Err(self.outside(&path.to_string_lossy()));
        };
        StorePath::parse(&base.to_string_lossy())
    }

    /// `DIR/BASE`.
    pub fn full(&self, path: &StorePath) -> String {
        format!("{}/{}", self.0, path.0)
    }

    fn outside(&self, path: &str) -> ParseError {
        ParseError::NotInStore { path: path.to_owned(), store_dir: self.0.to_string() }
    }
}

/// A store path's base name, `<hash>-<name>`. Cheap to clone: a closure of
/// fifty thousand paths names each of them many times.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StorePath(Arc<str>);

impl StorePath {
    /// What Nix accepts as the base name of a store path.
    pub fn parse(base: &str) -> Result<Self, ParseError> {
        let err = |make: fn(String) -> ParseError| Err(make(base.to_owned()));
        let bytes = base.as_bytes();
        let hashed =
            bytes.get(HASH_LEN) == Some(&b'-') && bytes[..HASH_LEN].iter().all(|b| NIX32.contains(b));
        if !hashed {
            return match base {
                ".links" => Err(ParseError::Links),
                _ if base.starts_with(".tmp-") || base.starts_with("tmp-") => err(ParseError::Temporary),
                _ => err(ParseError::Hash),
            };
        }
        let name = &base[HASH_LEN + 1..];
        if name.is_empty() {
            return err(ParseError::EmptyName);
        }
        if name.len() > NAME_MAX {
            return err(ParseError::TooLong);
        }
        let allowed = |c: char| c.is_ascii_alphanumeric() || "+-._?=".contains(c);
        if let Some(bad) = name.chars().find(|&c| !allowed(c)) {
            return Err(ParseError::Character { base: base.to_owned(), bad });
        }
        if matches!(name.split('-').next(), Some("." | "..")) {
            return err(ParseError::Dots);
        }
        Ok(Self(base.into()))
    }

    /// For names met in the store directory: also refuses what Nix puts beside
    /// its paths. A refused name can still be a valid path (`…-Cargo.lock`), so
    /// this only serves for hints.
    pub fn from_entry(name: &str) -> Result<Self, ParseError> {
        let path = Self::parse(name)?;
        let err = |make: fn(String) -> ParseError| Err(make(name.to_owned()));
        match path.name() {
            n if n.ends_with(".lock") => err(ParseError::Lock),
            n if n.ends_with(".chroot") => err(ParseError::Chroot),
            n if n.ends_with(".check") => err(ParseError::Check),
            n if n.rfind(".drv.").is_some_and(|at| !n[at + 5..].contains('.')) => {
                err(ParseError::DerivationOutput)
            }
            _ => Ok(path),
        }
    }

    /// `<hash>-<name>`.
    pub fn base(&self) -> &str {
        &self.0
    }

    /// The 32 characters of the hash.
    pub fn hash_part(&self) -> &str {
        &self.0[..HASH_LEN]
    }

    /// What follows the hash and its dash.
    pub fn name(&self) -> &str {
        &self.0[HASH_LEN + 1..]
    }

    /// Whether this is a `.drv`.
    pub fn is_derivation(&self) -> bool {
        self.0.ends_with(".drv")
    }
}

impl fmt::Display for StorePath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for StorePath {
    type Err = ParseError;
    fn from_str(base: &str) -> Result<Self, ParseError> {
        Self::parse(base)
    }
}

impl Serialize for StorePath {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        to.serialize_str(&self.0)
    }
}

impl<'de> Deserialize<'de> for StorePath {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let base = std::borrow::Cow::<'de, str>::deserialize(from)?;
        Self::parse(&base).map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
#[path = "path_tests.rs"]
mod tests;
