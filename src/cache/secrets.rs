//! All secrets of one cache, and their removal from texts: the token, the values of
//! extra headers, and the proxy's password. Must not know where they come from.

use std::sync::Arc;

use super::token::Secret;

/// Secrets that no message may contain. Clones share them.
#[derive(Clone, Debug, Default)]
pub(super) struct Secrets(Arc<[Secret]>);

impl Secrets {
    /// Returns `text` without any of the secrets, as [`Secret::scrub`] does for one. Scrub a text before you
    /// cut it.
    pub(super) fn scrub(&self, text: &str) -> String {
        self.0.iter().fold(text.to_owned(), |text, secret| secret.scrub(&text))
    }

    /// Returns whether `text` contains one of the secrets.
    pub(super) fn are_in(&self, text: &str) -> bool {
        self.0.iter().any(|secret| secret.scrub(text) != text)
    }

    /// Returns these secrets and another one.
    pub(super) fn and(&self, other: Option<&Secret>) -> Self {
        match other {
            None => self.clone(),
            Some(_) => self.0.iter().chain(other).cloned().collect(),
        }
    }
}

impl FromIterator<Secret> for Secrets {
    fn from_iter<T: IntoIterator<Item = Secret>>(secrets: T) -> Self {
        Self(secrets.into_iter().collect())
    }
}
