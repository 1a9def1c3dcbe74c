//! The JSON of the Attic API, version 1 (Attic's `attic/src/api/v1/`), and the
//! checks that the server leaves to its clients. Must not know how it travels.

use serde::{Deserialize, Serialize};

use super::error::{CacheError, ErrorClass};
use crate::types::CacheName;

/// A cache's configuration, as far as we use it. Every field may be missing;
/// fields we do not know are left alone, newer servers have more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheConfig {
    /// Where Nix fetches from.
    pub substituter_endpoint: Option<String>,
    /// Where API requests should go.
    pub api_endpoint: Option<String>,
    /// `name:base64`, as Nix's `trusted-public-keys` takes it.
    pub public_key: Option<String>,
    /// Whether reading needs no token.
    pub is_public: Option<bool>,
    /// The store directory of the paths in the cache. The caller compares it with its own.
    pub store_dir: Option<String>,
    /// Nix's `priority`: lower is asked first.
    pub priority: Option<i32>,
    /// Paths signed by these keys need not be uploaded.
    pub upstream_cache_key_names: Option<Vec<String>>,
}

/// What is uploaded along with a NAR. Field names and order are the server's.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadInfo {
    /// The cache, the same as the client's.
    pub cache: CacheName,
    /// The 32 characters that begin the path's base name.
    pub store_path_hash: String,
    /// The full path.
    pub store_path: String,
    /// Base names.
    pub references: Vec<String>,
    /// Nix's system type; the server only keeps it.
    pub system: Option<String>,
    /// Base name of the derivation.
    pub deriver: Option<String>,
    /// Signatures, `name:base64`.
    pub sigs: Vec<String>,
    /// Content address, for fixed outputs and sources.
    pub ca: Option<String>,
    /// `sha256:` and 64 hexadecimal digits.
    pub nar_hash: String,
    /// Exact size of the NAR.
    pub nar_size: u64,
}

/// An upload the server has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// The server had this NAR already, under this or another path.
    pub deduplicated: bool,
    /// Size as stored, when the server says so.
    pub file_size: Option<u64>,
}

impl UploadInfo {
    /// A server takes references of any form and a hash that is not the path's
    /// (seen with atticd b7c9056), and what it then serves is broken for
    /// everyone: so such an upload is never sent.
    pub(super) fn check(&self, cache: &CacheName) -> Result<(), CacheError> {
        let wrong = |what: String| {
            Err(CacheError::new(ErrorClass::Rejected, format!("{} is not uploaded: {what}", self.store_path)))
        };
        if self.cache != *cache {
            return wrong(format!("it is meant for the cache {}, this client is for {cache}", self.cache));
        }
        let base = match self.store_path.rsplit_once('/') {
            Some((dir, base)) if dir.starts_with('/') && is_base_name(base) => base,
            _ => return wrong("that is not a full store path".to_owned()),
        };
        if !base.starts_with(&self.store_path_hash) || self.store_path_hash.len() != HASH_LEN {
            return wrong(format!("{} is not the hash of this path", self.store_path_hash));
        }
        if let Some(odd) = self.references.iter().find(|r| !is_base_name(r)) {
            return wrong(format!("its reference {odd:?} is not the base name of a store path"));
        }
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match self.nar_hash.strip_prefix("sha256:") {
            Some(digits) if digits.len() == 64 && digits.bytes().all(hex) => Ok(()),
            _ => wrong(format!("its NAR hash {:?} is not sha256: and 64 hexadecimal digits", self.nar_hash)),
        }
    }
}

const HASH_LEN: usize = 32;

/// `<32 characters of Nix's base 32>-<name>` (Nix's `store/path.cc`).
fn is_base_name(text: &str) -> bool {
    let nix32 =
        |b: u8| b.is_ascii_digit() || (b.is_ascii_lowercase() && !matches!(b, b'e' | b'o' | b't' | b'u'));
    let named = |b: u8| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b);
    match text.as_bytes().split_at_checked(HASH_LEN) {
        Some((hash, [b'-', name @ ..])) => {
            hash.iter().copied().all(nix32)
                && (1..=211).contains(&name.len())
                && name.iter().copied().all(named)
        }
        _ => false,
    }
}

#[derive(Serialize)]
pub(super) struct MissingRequest<'a> {
    pub(super) cache: &'a CacheName,
    pub(super) store_path_hashes: &'a [String],
}

#[derive(Deserialize)]
pub(super) struct MissingAnswer {
    pub(super) missing_paths: Vec<String>,
}

/// `kind` is a string and not an enum: the server's enum is open, and a kind
/// we do not know is an upload all the same (Attic's own client reads it so).
#[derive(Deserialize)]
pub(super) struct UploadAnswer {
    pub(super) kind: String,
    #[serde(default)]
    pub(super) file_size: Option<u64>,
}

/// What the application answers on errors. The framework and proxies answer plain text or HTML.
#[derive(Deserialize)]
pub(super) struct ErrorAnswer {
    pub(super) error: String,
    pub(super) message: String,
}
