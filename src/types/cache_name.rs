//! Names of caches: the rule of Attic's `attic/src/cache.rs`. It is checked here, so
//! that a wrong name is an error of the configuration and not a "400 Invalid URL"
//! for each path.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// The longest name that Attic accepts.
const LONGEST: usize = 50;

/// A name that Attic accepts for a cache: 1 to 50 ASCII letters, digits,
/// `-`, `_` and `+`, the first one a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct CacheName(String);

/// A text that is not the name of a cache.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a cache: 1 to {LONGEST} letters, digits, '-', '_' or '+', \
     beginning with a letter or digit"
)]
pub struct InvalidCacheName(String);

impl CacheName {
    /// The rule in words, for messages of what was expected.
    pub const EXPECTED: &str = "up to 50 of A-Z a-z 0-9 - _ +, the first a letter or digit";

    /// Checks and takes `name`.
    pub fn parse(name: &str) -> Result<Self, InvalidCacheName> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'+');
        let valid = name.len() <= LONGEST
            && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && name.bytes().all(inner);
        if valid {
            Ok(Self(name.to_owned()))
        } else {
            // The text goes into a message, so its length is limited.
            Err(InvalidCacheName(name.chars().take(LONGEST + 14).collect()))
        }
    }

    /// Returns the name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for CacheName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for CacheName {
    type Err = InvalidCacheName;

    fn from_str(name: &str) -> Result<Self, Self::Err> {
        Self::parse(name)
    }
}

impl<'de> Deserialize<'de> for CacheName {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let name = String::deserialize(deserializer)?;
        // In the words of Attic's server, which clients may compare.
        let invalid =
            |InvalidCacheName(name)| serde::de::Error::custom(format!("Invalid cache name {name:?}"));
        Self::parse(&name).map_err(invalid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_attic_accepts() {
        for good in ["a", "main", "plan9", "user+cache", "A_b-c", &"x".repeat(50)] {
            assert!(CacheName::parse(good).is_ok(), "{good}");
        }
        for bad in ["", "_a", "-a", "+a", "a b", "a/b", "a.b", "ä", "team-*", &"x".repeat(51)] {
            assert!(CacheName::parse(bad).is_err(), "{bad}");
        }
        assert!(CacheName::parse(&"x".repeat(5000)).unwrap_err().to_string().len() < 300);
    }
}
