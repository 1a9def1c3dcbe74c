//! Ids of new sessions. Must not know sessions.

use crate::types::Wall;

/// Makes the id of a new session: 80 random bits in the alphabet of store paths, which
/// has no character with a meaning to a shell or in a file name.
pub(in crate::daemon) fn new_id() -> String {
    const ALPHABET: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";
    let mut bytes = [0_u8; 16];
    if getrandom::fill(&mut bytes).is_err() {
        // Without an entropy source the id is still unique on this host.
        let now = Wall::now().0.to_be_bytes();
        bytes[..8].copy_from_slice(&now);
        bytes[8..12].copy_from_slice(&std::process::id().to_be_bytes());
    }
    bytes.iter().map(|b| char::from(ALPHABET[usize::from(b % 32)])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_differ_and_are_plain() {
        let (a, b) = (new_id(), new_id());
        assert_ne!(a, b);
        assert!(a.len() == 16 && a.bytes().all(|c| c.is_ascii_alphanumeric()));
    }
}
