//! The JSON of the Attic API, version 1 (Attic's `attic/src/api/v1/`), and the
//! checks that the server leaves to its clients. Must not know HTTP.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde::{Deserialize, Serialize};

use super::error::{CacheError, ErrorClass};
use super::secrets::Secrets;
use crate::types::{CacheName, StoreDir, StorePath};

/// The fields of a cache's configuration that the daemon uses. Every field may be
/// missing. Unknown fields are ignored, because newer servers have more.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CacheConfig {
    /// The address from which Nix fetches.
    pub substituter_endpoint: Option<String>,
    /// The address for API requests.
    pub api_endpoint: Option<String>,
    /// The cache's key, `name:base64`, in the format of Nix's `trusted-public-keys`.
    pub public_key: Option<String>,
    /// Whether reading needs no token.
    pub is_public: Option<bool>,
    /// The store directory of the paths in the cache. The caller compares it with its own.
    pub store_dir: Option<String>,
    /// Nix's `priority`: Nix asks substituters with a lower number first.
    pub priority: Option<i32>,
    /// Names of keys; clients need not upload paths that are signed by one of them.
    pub upstream_cache_key_names: Option<Vec<String>>,
}

/// Largest number of upstream keys accepted from a server. Real servers have a handful.
const MOST_KEY_NAMES: usize = 256;

impl CacheConfig {
    /// Returns the configuration without malformed values, and without those that repeat a secret. The values
    /// become lines of a netrc file, options of Nix and text on a terminal, and the server may be hostile.
    pub(super) fn checked(mut self, secrets: &Secrets) -> Self {
        let repeats = |text: &String| secrets.are_in(text);
        for value in [
            &mut self.substituter_endpoint,
            &mut self.api_endpoint,
            &mut self.public_key,
            &mut self.store_dir,
        ] {
            value.take_if(|text| repeats(text));
        }
        if let Some(names) = &mut self.upstream_cache_key_names {
            names.retain(|name| !repeats(name));
        }
        self.substituter_endpoint = self.substituter_endpoint.filter(|url| is_plain_url(url));
        self.public_key = self.public_key.filter(|key| is_public_key(key));
        self.store_dir = self.store_dir.filter(|dir| is_word(dir) && StoreDir::new(dir).is_ok());
        if let Some(names) = &mut self.upstream_cache_key_names {
            names.retain(|name| is_word(name) && !name.contains(':'));
            names.truncate(MOST_KEY_NAMES);
        }
        self
    }
}

/// Returns whether `text` is one word of visible ASCII without quotes.
fn is_word(text: &str) -> bool {
    (1..=1024).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_graphic() && !b"\"'\\`<>".contains(&b))
}

/// Returns whether `text` is the URL of a substituter in a form from which every parser reads the same host.
fn is_plain_url(text: &str) -> bool {
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let Ok(url) = reqwest::Url::parse(text) else { return false };
    let authority = rest.split(['/', '?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    let host = url.host_str().unwrap_or_default();
    let named = authority.strip_prefix(host).is_some_and(|port| {
        port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok())
    });
    is_word(text) && matches!(scheme, "http" | "https") && !host.is_empty() && named
}

/// Returns whether `text` is a key in the format of `trusted-public-keys`: a name, a colon, 32 bytes in base 64.
fn is_public_key(text: &str) -> bool {
    let key = text.split_once(':').filter(|(name, _)| !name.is_empty());
    let bytes = key.and_then(|(_, key)| STANDARD.decode(key).ok());
    is_word(text) && bytes.is_some_and(|bytes| bytes.len() == 32)
}

/// The metadata that the client uploads with a NAR. The server defines the names and the order of the fields.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UploadInfo {
    /// The cache's name; it must be the client's own.
    pub cache: CacheName,
    /// The 32 characters that begin the path's base name.
    pub store_path_hash: String,
    /// The full path.
    pub store_path: String,
    /// Base names of the references.
    pub references: Vec<String>,
    /// Nix's system type; the server stores it and does not use it.
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

/// An upload that the server has confirmed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Uploaded {
    /// The server had this NAR already, under this or another path.
    pub deduplicated: bool,
    /// Size as stored, if the server reports it.
    pub file_size: Option<u64>,
}

impl UploadInfo {
    /// Checks the metadata before an upload. A server accepts references of any form
    /// and a hash that differs from the path's (seen with atticd b7c9056), and then
    /// serves a broken path to everybody. So the client never sends malformed metadata.
    pub(super) fn check(&self, cache: &CacheName) -> Result<(), CacheError> {
        let wrong = |what: String| {
            Err(CacheError::new(ErrorClass::Rejected, format!("{} is not uploaded: {what}", self.store_path)))
        };
        if self.cache != *cache {
            return wrong(format!("it is meant for the cache {}, this client is for {cache}", self.cache));
        }
        let path = match self.store_path.rsplit_once('/') {
            Some((dir, base)) if dir.starts_with('/') => StorePath::parse(base),
            _ => return wrong("that is not a full store path".to_owned()),
        };
        let path = match path {
            Ok(path) => path,
            Err(e) => return wrong(e.to_string()),
        };
        if path.hash_part() != self.store_path_hash {
            return wrong(format!("{} is not the hash of this path", self.store_path_hash));
        }
        if let Some(odd) = self.references.iter().find(|r| StorePath::parse(r).is_err()) {
            return wrong(format!("its reference {odd:?} is not the base name of a store path"));
        }
        let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
        match self.nar_hash.strip_prefix("sha256:") {
            Some(digits) if digits.len() == 64 && digits.bytes().all(hex) => Ok(()),
            _ => wrong(format!("its NAR hash {:?} is not sha256: and 64 hexadecimal digits", self.nar_hash)),
        }
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

/// `kind` is a string and not an enum: newer servers may add kinds, and an unknown
/// kind is an upload too (Attic's own client treats it in this way).
#[derive(Deserialize)]
pub(super) struct UploadAnswer {
    pub(super) kind: String,
    #[serde(default)]
    pub(super) file_size: Option<u64>,
}

/// The server application's answer on errors. Its web framework and proxies answer in plain text or HTML.
#[derive(Deserialize)]
pub(super) struct ErrorAnswer {
    pub(super) error: String,
    pub(super) message: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_says_is_checked() {
        for good in [
            "https://cache.example.com/main",
            "http://127.0.0.1:8742/main",
            "https://[::1]:1/a",
            "https://Cache.Example.com:443/main",
            "https://h",
        ] {
            assert!(is_plain_url(good), "{good}");
        }
        for bad in [
            "https://cache.example.com/main\ndefault login x password y",
            "https://a\tb/main",
            "https://user:pass@h/main",
            "https://h\\@evil/main",
            "https:h/main",
            "https:///h/main",
            "ftp://h/main",
            "https://h:99999/",
            "https://h%2eexample/",
            "https://h/ main",
            "https://h/\u{202e}main",
            "h/main",
            "",
        ] {
            assert!(!is_plain_url(bad), "{bad:?}");
        }
        let key = STANDARD.encode([7; 32]);
        assert!(is_public_key(&format!("main:{key}")));
        for bad in [
            key.clone(),
            format!(":{key}"),
            format!("a b:{key}"),
            format!("main:{key}\nx"),
            "main:AAAA".into(),
        ] {
            assert!(!is_public_key(&bad), "{bad:?}");
        }
        let config = CacheConfig {
            store_dir: Some("/nix/store\n".into()),
            upstream_cache_key_names: Some(vec!["cache.nixos.org-1".into(), "a b".into(), "x\n".into()]),
            priority: Some(3),
            ..CacheConfig::default()
        };
        let checked = config.checked(&Secrets::default());
        assert_eq!((checked.store_dir, checked.priority), (None, Some(3)));
        assert_eq!(checked.upstream_cache_key_names, Some(vec!["cache.nixos.org-1".to_owned()]));
    }
}
