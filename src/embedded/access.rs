//! Decides who may read and who may push. Must not know what the cache stores.

use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::error::ApiError;
use super::secrets::TokenDigest;

/// The kind of the caller's token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Caller {
    /// No token, or an unknown one. The server treats both alike, so that guessing reveals nothing.
    Unknown,
    Puller,
    Pusher,
}

/// The access rules of one server.
pub(super) struct Access {
    pub(super) public: bool,
    pub(super) push: TokenDigest,
    pub(super) pull: TokenDigest,
}

impl Access {
    pub(super) fn caller(&self, headers: &HeaderMap) -> Caller {
        let Some(token) = offered(headers) else { return Caller::Unknown };
        match (self.push.matches(&token), self.pull.matches(&token)) {
            (true, _) => Caller::Pusher,
            (_, true) => Caller::Puller,
            _ => Caller::Unknown,
        }
    }

    /// Checks that the caller may push. Without a valid token the answer is 403 if the cache is public, else 401.
    pub(super) fn push(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        match self.caller(headers) {
            Caller::Pusher => Ok(()),
            Caller::Puller => Err(ApiError::Forbidden),
            Caller::Unknown if self.public => Err(ApiError::Forbidden),
            Caller::Unknown => Err(ApiError::Unauthorized),
        }
    }

    /// Checks that the caller may read. `known` says whether the cache exists, which only callers with a token learn.
    pub(super) fn pull(&self, headers: &HeaderMap, known: bool) -> Result<(), ApiError> {
        match (self.caller(headers), known) {
            (Caller::Unknown, true) if self.public => Ok(()),
            (Caller::Unknown, _) => Err(ApiError::Unauthorized),
            (_, false) => Err(ApiError::NoSuchCache),
            (_, true) => Ok(()),
        }
    }
}

/// Returns the caller's token: from `Bearer TOKEN`, or from `Basic` with the token as the password, which Nix
/// sends from a netrc file.
fn offered(headers: &HeaderMap) -> Option<Vec<u8>> {
    let (scheme, value) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    if scheme.eq_ignore_ascii_case("bearer") {
        return Some(value.trim().as_bytes().to_vec());
    }
    if scheme.eq_ignore_ascii_case("basic") {
        let decoded = STANDARD.decode(value.trim()).ok()?;
        let colon = decoded.iter().position(|&b| b == b':')?;
        return Some(decoded[colon + 1..].to_vec());
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::secrets::token;
    use super::*;

    #[test]
    fn who_may_what() {
        let dir = tempfile::tempdir().unwrap();
        let (push_file, push) = token(dir.path(), "push").unwrap();
        let (pull_file, pull) = token(dir.path(), "pull").unwrap();
        let read = |p| std::fs::read_to_string(p).unwrap().trim().to_owned();
        let (push_token, pull_token) = (read(push_file), read(pull_file));
        let basic = |t: &str| format!("Basic {}", STANDARD.encode(format!("any user:{t}")));
        use ApiError::{Forbidden, NoSuchCache, Unauthorized};
        // Columns: header; push and pull on a private cache; push and pull on a public one; pull of an unknown cache.
        let table = [
            (None, Err(Unauthorized), Err(Unauthorized), Err(Forbidden), Ok(()), Err(Unauthorized)),
            (
                Some("Bearer nonsense".into()),
                Err(Unauthorized),
                Err(Unauthorized),
                Err(Forbidden),
                Ok(()),
                Err(Unauthorized),
            ),
            (
                Some(push_token.clone()),
                Err(Unauthorized),
                Err(Unauthorized),
                Err(Forbidden),
                Ok(()),
                Err(Unauthorized),
            ),
            (
                Some("Basic %%%".into()),
                Err(Unauthorized),
                Err(Unauthorized),
                Err(Forbidden),
                Ok(()),
                Err(Unauthorized),
            ),
            (
                Some(format!("Bearer {pull_token}")),
                Err(Forbidden),
                Ok(()),
                Err(Forbidden),
                Ok(()),
                Err(NoSuchCache),
            ),
            (Some(basic(&pull_token)), Err(Forbidden), Ok(()), Err(Forbidden), Ok(()), Err(NoSuchCache)),
            (Some(format!("bearer {push_token}")), Ok(()), Ok(()), Ok(()), Ok(()), Err(NoSuchCache)),
            (Some(basic(&push_token)), Ok(()), Ok(()), Ok(()), Ok(()), Err(NoSuchCache)),
        ];
        for (header, private_push, private_pull, public_push, public_pull, unknown) in table {
            let mut headers = HeaderMap::new();
            if let Some(h) = &header {
                headers.insert(AUTHORIZATION, h.parse().unwrap());
            }
            let mut access = Access { public: false, push: push.clone(), pull: pull.clone() };
            assert_eq!(access.push(&headers), private_push, "{header:?}");
            assert_eq!(access.pull(&headers, true), private_pull, "{header:?}");
            access.public = true;
            assert_eq!(access.push(&headers), public_push, "{header:?}");
            assert_eq!(access.pull(&headers, true), public_pull, "{header:?}");
            assert_eq!(access.pull(&headers, false), unknown, "{header:?}");
        }
    }
}
