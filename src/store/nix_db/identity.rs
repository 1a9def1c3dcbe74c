//! Which file the Nix database is, and which rows prove that its content is the
//! one that was read before.

use std::fmt;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::time::UNIX_EPOCH;

use super::connection::permission;
use super::error::NixDbError;
use crate::types::StorePath;

/// Identifies the database file; a new file has a new identity. The identity
/// survives reboots, so it does not contain the device number, which may change.
/// The time of birth distinguishes two files that were given the same inode.
///
/// A file whose content was put back in place keeps its identity; a [`Mark`]
/// detects that.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DbIdentity {
    inode: u64,
    /// Nanoseconds since 1970; 0 where the file system does not record it.
    born: u128,
}

impl fmt::Display for DbIdentity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.inode, self.born)
    }
}

impl std::str::FromStr for DbIdentity {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parsed = text.split_once(':').and_then(|(inode, born)| inode.parse().ok().zip(born.parse().ok()));
        let (inode, born) = parsed.ok_or_else(|| format!("`{text}` is not the identity of a database"))?;
        Ok(Self { inode, born })
    }
}

/// A row as it was read once. When the same id holds another path or time
/// later, the database went back or has another content. A row that is absent
/// later was collected and proves nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mark {
    /// `ValidPaths.id`.
    pub id: i64,
    /// The path of the row.
    pub path: StorePath,
    /// `ValidPaths.registrationTime`, in Unix seconds.
    pub registered_at: i64,
}

/// Device and identity of the file that the path leads to now.
pub(super) fn file_at(path: &Path) -> Result<(u64, DbIdentity), NixDbError> {
    let meta = std::fs::metadata(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => NixDbError::Missing(path.to_owned()),
        std::io::ErrorKind::PermissionDenied => permission(path, "this user may not search its directory"),
        _ => NixDbError::Io { path: path.to_owned(), error },
    })?;
    let born =
        meta.created().ok().and_then(|t| t.duration_since(UNIX_EPOCH).ok()).map_or(0, |d| d.as_nanos());
    Ok((meta.dev(), DbIdentity { inode: meta.ino(), born }))
}
