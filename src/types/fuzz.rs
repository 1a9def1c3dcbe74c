//! What holds for every name and number that is accepted.

use super::{ByteSize, CacheName, NarHash, PathHash, Period, StoreDir, StorePath, nix32};

/// Reads a text as each of the types.
pub(crate) fn decode(bytes: &[u8]) {
    let text = String::from_utf8_lossy(bytes);
    if let Ok(path) = StorePath::parse(&text) {
        assert!(path.base() == text && text.len() <= 255 && !text.contains(['/', '\n', '\0', ' ']));
        assert!(PathHash::parse(path.hash_part()).is_ok_and(|hash| hash.as_str() == path.hash_part()));
        assert_eq!(path.base(), format!("{}-{}", path.hash_part(), path.name()));
    }
    let (dir, path) = text.split_once('\n').unwrap_or(("/nix/store", &text));
    if let Ok(dir) = StoreDir::new(dir)
        && let Ok(path) = dir.parse(path)
    {
        assert_eq!(dir.parse(&dir.full(&path)).ok(), Some(path));
    }
    if let Some(digest) = nix32::decode(&text) {
        assert_eq!(nix32::encode(&digest), text);
    }
    if let Ok(digest) = <[u8; 32]>::try_from(bytes) {
        assert_eq!(nix32::decode(&nix32::encode(&digest)), Some(digest));
    }
    if let Ok(hash) = NarHash::parse(&text) {
        for written in [format!("sha256:{}", hash.hex()), format!("sha256:{}", hash.nix32())] {
            assert_eq!(NarHash::parse(&written).ok().map(|hash| hash.hex()), Some(hash.hex()), "{written}");
        }
    }
    if let Ok(name) = CacheName::parse(&text) {
        assert_eq!(name.as_str(), text);
    }
    if let Ok(size) = text.parse::<ByteSize>() {
        assert_eq!(size.to_string().parse::<ByteSize>().ok(), Some(size));
    }
    for period in [text.parse::<Period>(), Period::parse_or_seconds(&text)].into_iter().flatten() {
        assert_eq!(period.to_string().parse::<Period>().ok(), Some(period));
    }
}
