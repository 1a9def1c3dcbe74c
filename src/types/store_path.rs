//! Store paths and the store directory: which texts are one, by the rules of
//! Nix (`src/libstore/path.cc`).
//!
//! Must not know: whether a path exists or is valid; only the Nix database does.
//!
//! A name such as `…-Cargo.lock` or `…-queue.check` is a store path, because
//! real stores have valid paths of these names. A name in the store *directory*
//! that ends so is usually a lock file or another leftover, so a directory
//! entry is only a hint to ask the Nix database.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::nix32;

/// Characters of the hash part.
const HASH_LEN: usize = 32;
/// Longest name that Nix accepts, without hash part and dash.
const NAME_MAX: usize = 211;

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
}

/// The store directory, as in `/nix/store`, and the directory in which its files are:
/// the same one, except in a store below a root (Nix's `--store /srv/ci`), whose paths
/// are named `/nix/store/…` and are in `/srv/ci/nix/store`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct StoreDir {
    name: Arc<str>,
    files: Arc<Path>,
}

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
        if !normal {
            return Err(ParseError::StoreDir(dir.to_owned()));
        }
        Ok(Self { name: trimmed.into(), files: Path::new(trimmed).into() })
    }

    /// The same store directory with its files in `<root>/nix/store`, where Nix has them
    /// whatever the store directory is.
    #[must_use]
    pub fn below(self, root: &Path) -> Self {
        Self { files: root.join("nix/store").into(), ..self }
    }

    /// The store directory's name, which the names of its paths begin with.
    pub fn as_str(&self) -> &str {
        &self.name
    }

    /// The directory in which the files are.
    pub fn as_path(&self) -> &Path {
        &self.files
    }

    /// The file or directory of a store path.
    pub fn file(&self, path: &StorePath) -> PathBuf {
        self.files.join(path.base())
    }

    /// Exactly `DIR/BASE`.
    pub fn parse(&self, full: &str) -> Result<StorePath, ParseError> {
        let base = full.strip_prefix(&*self.name).and_then(|rest| rest.strip_prefix('/'));
        match base {
            Some(base) if !base.contains('/') => StorePath::parse(base),
            _ => Err(self.outside(full)),
        }
    }

    /// `DIR/BASE`.
    pub fn full(&self, path: &StorePath) -> String {
        format!("{}/{}", self.name, path.0)
    }

    fn outside(&self, path: &str) -> ParseError {
        ParseError::NotInStore { path: path.to_owned(), store_dir: self.name.to_string() }
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
        let hashed = bytes.get(HASH_LEN) == Some(&b'-')
            && bytes[..HASH_LEN].iter().all(|&b| nix32::value(b).is_some());
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
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_' | '?' | '=');
        if let Some(bad) = name.chars().find(|&c| !allowed(c)) {
            return Err(ParseError::Character { base: base.to_owned(), bad });
        }
        if matches!(name.split('-').next(), Some("." | "..")) {
            return err(ParseError::Dots);
        }
        Ok(Self(base.into()))
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

/// The 32 characters that the base name of a store path begins with. It is kept
/// inline, because a request may bring 40,000 of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PathHash([u8; HASH_LEN]);

impl PathHash {
    /// Reads 32 digits of Nix's base 32. The error says which rule is broken.
    pub fn parse(text: &str) -> Result<Self, &'static str> {
        let bytes: [u8; HASH_LEN] = text.as_bytes().try_into().map_err(|_| "Hash is of invalid length")?;
        if bytes.iter().all(|&b| nix32::value(b).is_some()) {
            Ok(Self(bytes))
        } else {
            Err("Hash contains invalid characters")
        }
    }

    /// The 32 characters.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for PathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for PathHash {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(from)?;
        // In the words of Attic's server, which clients may compare.
        let invalid = |why| {
            let text: String = text.chars().take(64).collect();
            serde::de::Error::custom(format!("Invalid store path hash \"{text}\": {why}"))
        };
        Self::parse(&text).map_err(invalid)
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
#[path = "store_path_tests.rs"]
mod tests;
