//! The hash of a NAR.

use std::fmt::{self, Write as _};

use serde::de::{Deserialize, Deserializer, Error as _};

use super::nix32;

/// SHA-256 of a NAR.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct NarHash(pub [u8; 32]);

/// A text that is not a NAR hash. It holds the first 80 characters of the text.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a NAR hash: expected `sha256:` and 64 hexadecimal digits or 52 digits of Nix's base 32"
)]
pub struct HashError(pub String);

impl NarHash {
    /// Reads `sha256:` and 64 hexadecimal digits, as Nix's database and Attic
    /// write it, or 52 digits of Nix's base 32, as narinfo files have it.
    pub fn parse(text: &str) -> Result<Self, HashError> {
        let digest = text.strip_prefix("sha256:").and_then(|digest| match digest.len() {
            64 => from_hex(digest),
            52 => nix32::decode(digest),
            _ => None,
        });
        digest.map(Self).ok_or_else(|| HashError(text.chars().take(80).collect()))
    }

    /// Writes the digest with 64 hexadecimal digits, without `sha256:`.
    #[must_use]
    pub fn hex(&self) -> String {
        self.digits().collect()
    }

    fn digits(&self) -> impl Iterator<Item = char> {
        let digit = |value: u8| char::from(b"0123456789abcdef"[usize::from(value)]);
        self.0.iter().flat_map(move |byte| [digit(byte >> 4), digit(byte & 15)])
    }

    /// Writes the digest with 52 digits of Nix's base 32, without `sha256:`.
    #[must_use]
    pub fn nix32(&self) -> String {
        nix32::encode(&self.0)
    }
}

fn from_hex(text: &str) -> Option<[u8; 32]> {
    let digit = |c: u8| char::from(c).to_digit(16).and_then(|d| u8::try_from(d).ok());
    let mut out = [0; 32];
    for (byte, pair) in out.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(out)
}

/// `sha256:` and 64 hexadecimal digits.
impl fmt::Display for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.digits().try_for_each(|digit| f.write_char(digit))
    }
}

impl fmt::Debug for NarHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

impl<'de> Deserialize<'de> for NarHash {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        Self::parse(&text).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hashes_are_read_and_written_as_nix_does() {
        // nix-hash --type sha256 --to-base32 / --to-base16
        let hex = "142164cea9bea7a89a6443f487ebb2d91588a996d501652c64436ce493b0c05e";
        let hash = NarHash::parse(&format!("sha256:{hex}")).unwrap();
        assert_eq!((hash.hex().as_str(), hash.to_string()), (hex, format!("sha256:{hex}")));
        assert_eq!(NarHash::parse(&format!("sha256:{}", hash.nix32())), Ok(hash));
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
            hex,
            &format!("sha256:{}", "g".repeat(64)),
            &format!("sha256:{hex}0"),
            &format!("sha256:{}", "z".repeat(52)),
        ] {
            assert!(NarHash::parse(bad).is_err(), "{bad}");
        }
        assert!(NarHash::parse(&"x".repeat(5000)).unwrap_err().to_string().len() < 300);
    }
}
