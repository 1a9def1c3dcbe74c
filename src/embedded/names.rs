//! The names that come in from outside, checked once: cache names, store path
//! hashes, base names, NAR hashes. Must not know requests or disks.

use std::fmt;

use serde::de::{Deserialize, Deserializer, Error as _};

/// Nix's base 32: no e, o, t, u (nix: src/libutil/hash.cc).
const NIX32: &[u8; 32] = b"0123456789abcdfghijklmnpqrsvwxyz";

/// A cache's name: letters, digits, `-`, `_`, `+`, at most 50, a letter or digit first (attic: src/cache.rs).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct CacheName(String);

impl CacheName {
    pub(super) fn parse(name: &str) -> Option<Self> {
        let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'+'));
        let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
        (plain && first && name.len() <= 50).then(|| Self(name.to_owned()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for CacheName {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let name = String::deserialize(d)?;
        Self::parse(&name).ok_or_else(|| D::Error::custom(format!("Invalid cache name \"{}\"", short(&name))))
    }
}

/// The 32 characters a store path's base name starts with. Kept inline: requests bring 40,000 of them.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct PathHash([u8; 32]);

impl PathHash {
    pub(super) fn parse(text: &str) -> Result<Self, &'static str> {
        let bytes: [u8; 32] = text.as_bytes().try_into().map_err(|_| "Hash is of invalid length")?;
        if bytes.iter().all(|b| NIX32.contains(b)) {
            Ok(Self(bytes))
        } else {
            Err("Hash contains invalid characters")
        }
    }

    pub(super) fn as_str(&self) -> &str {
        std::str::from_utf8(&self.0).unwrap_or_default()
    }
}

impl fmt::Debug for PathHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl<'de> Deserialize<'de> for PathHash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text)
            .map_err(|why| D::Error::custom(format!("Invalid store path hash \"{}\": {why}", short(&text))))
    }
}

/// SHA-256 of a NAR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NarHash(pub(super) [u8; 32]);

impl NarHash {
    /// `sha256:` and 64 hex digits, or 52 characters of Nix's base 32.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let digest = text.strip_prefix("sha256:")?;
        match digest.len() {
            64 => from_hex(digest),
            52 => from_nix32(digest),
            _ => None,
        }
        .map(Self)
    }

    pub(super) fn hex(&self) -> String {
        self.0.iter().map(|b| format!("{b:02x}")).collect()
    }

    /// As Nix writes it, in fingerprints and elsewhere: the digits go from the
    /// highest five bits of the little-endian number to the lowest.
    pub(super) fn nix32(&self) -> String {
        let digit = |n: usize| {
            let (byte, shift) = (n * 5 / 8, n * 5 % 8);
            let next = self.0.get(byte + 1).copied().unwrap_or(0);
            let pair = u16::from(self.0[byte]) | (u16::from(next) << 8);
            char::from(NIX32[usize::from((pair >> shift) & 31)])
        };
        (0..52).rev().map(digit).collect()
    }
}

impl<'de> Deserialize<'de> for NarHash {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        let text = String::deserialize(d)?;
        Self::parse(&text)
            .ok_or_else(|| D::Error::custom(format!("invalid SHA-256 NAR hash \"{}\"", short(&text))))
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks(2)) {
        let digit = |b: u8| char::from(b).to_digit(16);
        *byte = u8::try_from(digit(pair[0])? * 16 + digit(*pair.get(1)?)?).ok()?;
    }
    Some(out)
}

fn from_nix32(text: &str) -> Option<[u8; 32]> {
    let mut out = [0u8; 32];
    for (n, c) in text.bytes().rev().enumerate() {
        let digit = u16::try_from(NIX32.iter().position(|&d| d == c)?).ok()?;
        let (byte, bits) = (n * 5 / 8, digit << (n * 5 % 8));
        out[byte] |= u8::try_from(bits & 0xff).ok()?;
        let carry = u8::try_from(bits >> 8).ok()?;
        match out.get_mut(byte + 1) {
            Some(next) => *next |= carry,
            None if carry != 0 => return None,
            None => {}
        }
    }
    Some(out)
}

/// Whether `base` is `<32 characters>-<name>` as Nix accepts it (nix: src/libstore/path.cc).
pub(super) fn base_name_hash(base: &str) -> Option<PathHash> {
    let (hash, rest) = base.split_at_checked(32)?;
    let name = rest.strip_prefix('-')?;
    let plain = name.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-._?=".contains(&b));
    let dots = matches!(name, "." | "..") || name.starts_with(".-") || name.starts_with("..-");
    if name.is_empty() || name.len() > 211 || !plain || dots {
        return None;
    }
    PathHash::parse(hash).ok()
}

/// What is echoed in an answer has a bound too.
pub(super) fn short(text: &str) -> String {
    text.chars().take(64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_read_and_written_as_nix_does() {
        // nix-hash --type sha256 --to-base32 / --to-base16
        let hex = "142164cea9bea7a89a6443f487ebb2d91588a996d501652c64436ce493b0c05e";
        let hash = NarHash::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!(hash.hex(), hex);
        assert_eq!(NarHash::parse(&format!("sha256:{}", hash.nix32())), Some(hash));
        let out = std::process::Command::new("nix-hash")
            .args(["--type", "sha256", "--to-base32", hex])
            .output()
            .unwrap();
        assert_eq!(String::from_utf8(out.stdout).unwrap().trim(), hash.nix32());
        for bad in [
            "",
            "sha256:",
            "md5:00",
            "sha256:zz",
            &format!("sha256:{}", "g".repeat(64)),
            &format!("sha256:{}", "z".repeat(52)),
        ] {
            assert_eq!(NarHash::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn base_names() {
        let h = "a64qcx6rx81vhi139l1w70ad26xwcxjz";
        for good in ["x", "hello-2.12", ".hidden", "a+b_c?d=e"] {
            assert!(base_name_hash(&format!("{h}-{good}")).is_some(), "{good}");
        }
        for bad in ["", ".", "..", ".-a", "a b", "a\nb", "a/b", "é", &"n".repeat(212)] {
            assert!(base_name_hash(&format!("{h}-{bad}")).is_none(), "{bad}");
        }
        for bad in ["/nix/store/notahash", h, "short-x", &format!("{}-x", h.replace('a', "e"))] {
            assert!(base_name_hash(bad).is_none(), "{bad}");
        }
    }

    #[test]
    fn cache_names() {
        for good in ["main", "a", "0-_+", &"a".repeat(50)] {
            assert!(CacheName::parse(good).is_some(), "{good}");
        }
        for bad in ["", "b ad", "-a", "_a", "a/b", "..", &"a".repeat(51)] {
            assert!(CacheName::parse(bad).is_none(), "{bad}");
        }
    }
}
