//! Fuzz target: properties that hold for every answer of a server.

use std::time::SystemTime;

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderValue, RETRY_AFTER};

use super::error::{CacheError, retry_after};
use super::narinfo::{NarInfo, PublicKey};
use super::wire::{CacheConfig, ErrorAnswer, MissingAnswer, UploadAnswer};
use crate::types::StoreDir;

/// Parses arbitrary bytes as each kind of answer.
pub(crate) fn decode(bytes: &[u8]) {
    if let Ok(config) = serde_json::from_slice::<CacheConfig>(bytes) {
        let written = serde_json::to_vec(&config).unwrap_or_default();
        assert_eq!(serde_json::from_slice::<CacheConfig>(&written).ok(), Some(config));
    }
    if let Ok(answer) = serde_json::from_slice::<MissingAnswer>(bytes) {
        assert!(answer.missing_paths.len() <= bytes.len());
    }
    if let Ok(answer) = serde_json::from_slice::<UploadAnswer>(bytes) {
        assert!(answer.kind.len() <= bytes.len());
    }
    if let Ok(answer) = serde_json::from_slice::<ErrorAnswer>(bytes) {
        assert!(answer.error.len() + answer.message.len() <= bytes.len());
    }
    let text = String::from_utf8_lossy(bytes);
    if let Ok(store_dir) = StoreDir::new("/nix/store")
        && let Ok(info) = NarInfo::parse(&text, &store_dir)
        && let Some(key) = PublicKey::parse("main:11qYAYKxCrfVS/7TyWQHOg7hcvPapiMlrwIaaPcHURo=")
    {
        // Nobody has signed it.
        assert!(info.check_signature(&key, &store_dir).is_err());
        assert!(info.references.len() <= bytes.len());
    }
    let mut headers = HeaderMap::new();
    let first = bytes.split(|byte| *byte == b'\n').next().unwrap_or_default();
    if let Ok(value) = HeaderValue::from_bytes(first) {
        headers.insert(RETRY_AFTER, value);
    }
    let _ = retry_after(&headers, bytes, SystemTime::UNIX_EPOCH);
    for status in [400, 401, 404, 413, 429, 500, 502, 503] {
        let status = StatusCode::from_u16(status).unwrap_or_default();
        let error = CacheError::from_answer(
            status,
            &headers,
            bytes,
            &super::secrets::Secrets::default(),
            "uploading",
        );
        // The message is one line of bounded length, whatever the server sends.
        let message = error.to_string();
        assert!(message.len() < 2000 && !message.contains('\n'), "{message:?}");
    }
}
