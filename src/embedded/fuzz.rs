//! Fuzz target: properties that hold for every request that the built-in cache accepts.

use super::narinfo;
use super::secrets::CacheKey;
use super::wire::{MissingRequest, UploadInfo};

/// Parses arbitrary bytes as the body of each kind of request.
pub(crate) fn decode(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<MissingRequest>(bytes) {
        // Each hash takes at least 32 characters and their quotes.
        assert!(request.store_path_hashes.len() <= bytes.len() / 32);
        assert!(request.store_path_hashes.iter().all(|hash| hash.as_str().len() == 32));
    }
    let Ok(info) = serde_json::from_slice::<UploadInfo>(bytes) else { return };
    let _ = info.cache.as_str();
    let Ok(record) = info.check("/nix/store") else { return };
    let text = narinfo::text("/nix/store", &record, &CacheKey::for_tests());
    // Each field is one line: no value can add another line.
    let optional = [record.system.is_some(), record.deriver.is_some(), record.ca.is_some()];
    let lines = 7 + optional.iter().filter(|is_set| **is_set).count() + record.sigs.len();
    assert_eq!(text.lines().count(), lines, "{text}");
    assert!(text.lines().all(|line| line.contains(": ")) && !text.contains('\r'), "{text}");
}
