//! Names a cache can have: the rule of Attic's `attic/src/cache.rs`, checked
//! here so that a typing error is told with the configuration and not as a
//! "400 Invalid URL" per path. Must not know where a name comes from.

use std::fmt;

use serde::{Deserialize, Deserializer, Serialize};

/// Attic's limit.
const LONGEST: usize = 50;

/// A name that Attic accepts for a cache: 1 to 50 ASCII letters, digits,
/// `-`, `_` and `+`, the first one a letter or digit.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(transparent)]
pub struct CacheName(String);

/// Why a text is no cache name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} cannot be the name of a cache: 1 to {LONGEST} letters, digits, '-', '_' or '+', \
     beginning with a letter or digit"
)]
pub struct InvalidCacheName(String);

impl CacheName {
    /// Checks `name`.
    pub fn parse(name: &str) -> Result<Self, InvalidCacheName> {
        let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'+');
        let valid = name.len() <= LONGEST
            && name.as_bytes().first().is_some_and(u8::is_ascii_alphanumeric)
            && name.bytes().all(inner);
        if valid {
            Ok(Self(name.to_owned()))
        } else {
            // What is quoted in a message has a bound as well.
            Err(InvalidCacheName(name.chars().take(LONGEST + 14).collect()))
        }
    }

    /// The name.
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
        Self::parse(&name).map_err(serde::de::Error::custom)
    }
}
