//! The Attic API's messages as this server reads and writes them (Attic's
//! `attic/src/api/v1/`), and the checks that keep a malformed upload from breaking
//! Nix. Must not know tokens or disks.

use serde::{Deserialize, Serialize};

use super::error::ApiError;
use crate::types::{CacheName, NarHash, PathHash, StorePath};

/// Largest number of references. A path usually has dozens; thousands are already unusual.
const MOST_REFERENCES: usize = 20_000;

#[derive(Deserialize)]
pub(super) struct MissingRequest {
    pub(super) cache: CacheName,
    pub(super) store_path_hashes: Vec<PathHash>,
}

#[derive(Serialize)]
pub(super) struct MissingAnswer<'a> {
    pub(super) missing_paths: Vec<&'a str>,
}

/// The metadata that the client sends before the NAR.
#[derive(Deserialize)]
pub(super) struct UploadInfo {
    pub(super) cache: CacheName,
    pub(super) store_path_hash: PathHash,
    pub(super) store_path: String,
    pub(super) references: Vec<String>,
    pub(super) system: Option<String>,
    pub(super) deriver: Option<String>,
    pub(super) sigs: Vec<String>,
    pub(super) ca: Option<String>,
    pub(super) nar_hash: NarHash,
    pub(super) nar_size: u64,
}

#[derive(Serialize)]
pub(super) struct UploadAnswer {
    pub(super) kind: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) file_size: Option<u64>,
    pub(super) frac_deduplicated: Option<f64>,
}

#[derive(Serialize)]
pub(super) struct CacheConfig<'a> {
    pub(super) substituter_endpoint: String,
    pub(super) api_endpoint: String,
    pub(super) public_key: String,
    pub(super) is_public: bool,
    pub(super) store_dir: &'a str,
    pub(super) priority: u32,
    pub(super) upstream_cache_key_names: &'a [String],
    pub(super) retention_period: &'static str,
}

/// A path whose fields are all valid in a narinfo.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct PathRecord {
    pub(super) path: StorePath,
    /// The references, sorted and without duplicates: the order in which Nix signs them.
    pub(super) references: Vec<StorePath>,
    pub(super) system: Option<String>,
    pub(super) deriver: Option<StorePath>,
    pub(super) ca: Option<String>,
    pub(super) sigs: Vec<String>,
    pub(super) nar_hash: NarHash,
    pub(super) nar_size: u64,
}

impl UploadInfo {
    /// Checks every field that becomes part of a narinfo. Attic stores these fields unchecked, and Nix then fails
    /// at a narinfo that it cannot parse.
    pub(super) fn check(self, store_dir: &str) -> Result<PathRecord, ApiError> {
        let bad = |what: &str, value: &str| ApiError::Request(format!("{what} \"{}\"", short(value)));
        let base = below(store_dir, &self.store_path)
            .ok_or_else(|| bad(&format!("store_path is not below {store_dir}:"), &self.store_path))?;
        let path =
            StorePath::parse(base).map_err(|_| bad("store_path is not a store path:", &self.store_path))?;
        if path.hash_part() != self.store_path_hash.as_str() {
            return Err(bad("store_path_hash does not belong to store_path", &self.store_path));
        }
        if self.references.len() > MOST_REFERENCES {
            return Err(ApiError::Request(format!("more than {MOST_REFERENCES} references")));
        }
        let reference = |base: &String| {
            StorePath::parse(base).map_err(|_| bad("reference is not a store path's base name:", base))
        };
        let mut references = self.references.iter().map(reference).collect::<Result<Vec<_>, _>>()?;
        references.sort_unstable();
        references.dedup();
        let deriver = self.deriver.filter(|deriver| deriver != "unknown-deriver").map(|deriver| {
            StorePath::parse(below(store_dir, &deriver).unwrap_or(&deriver))
                .map_err(|_| bad("deriver is not a store path's base name:", &deriver))
        });
        let deriver = deriver.transpose()?;
        for (what, value) in [("system", &self.system), ("ca", &self.ca)] {
            if let Some(wrong) = value.as_ref().filter(|v| !one_word(v, 256)) {
                return Err(bad(&format!("{what} is not one word:"), wrong));
            }
        }
        if let Some(wrong) = self.sigs.iter().find(|s| !one_word(s, 512) || !s.contains(':')) {
            return Err(bad("not a signature:", wrong));
        }
        if self.sigs.len() > 16 {
            return Err(ApiError::Request("more than 16 signatures".to_owned()));
        }
        Ok(PathRecord {
            path,
            references,
            system: self.system,
            deriver,
            ca: self.ca,
            sigs: self.sigs,
            nar_hash: self.nar_hash,
            nar_size: self.nar_size,
        })
    }
}

/// Shortens a text that the answer quotes.
fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

fn below<'a>(store_dir: &str, path: &'a str) -> Option<&'a str> {
    path.strip_prefix(store_dir)?.strip_prefix('/')
}

/// Returns whether a value is one word of at most `longest` visible ASCII characters. A narinfo consists of
/// lines `key: value`, so a line break in a value would let the client add lines.
fn one_word(text: &str, longest: usize) -> bool {
    !text.is_empty() && text.len() <= longest && text.bytes().all(|b| b.is_ascii_graphic())
}
