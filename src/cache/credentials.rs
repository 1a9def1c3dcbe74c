//! What the client sends to trusted hosts with each request: the token and extra headers.
//! They are read with the first request, and again when somebody asks for that. Must not
//! know requests, nor which hosts are trusted.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError, RwLock};

use reqwest::StatusCode;
use reqwest::header::{HeaderMap, HeaderValue};

use super::error::{CacheError, ErrorClass};
use super::headers::Headers;
use super::proxy;
use super::secrets::Secrets;
use super::token::{Secret, TokenSource};
use crate::types::Proxy;

/// What the client sends to trusted hosts with each request.
#[derive(Default)]
pub(super) struct Credentials {
    pub(super) token: Option<Secret>,
    pub(super) headers: HeaderMap,
    /// The `Authorization` header that carries the token.
    pub(super) bearer: Option<HeaderValue>,
    /// All of them, and the password of the proxy.
    pub(super) secrets: Secrets,
}

/// What another reading of the credentials brought.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Renewed {
    /// Whether the token is another one than before.
    pub token: bool,
    /// Whether the extra headers are other ones than before.
    pub headers: bool,
}

impl Renewed {
    /// Returns whether anything is new.
    pub fn any(self) -> bool {
        self.token || self.headers
    }
}

impl fmt::Display for Renewed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match (self.token, self.headers) {
            (_, false) => "a new token",
            (false, true) => "new headers",
            (true, true) => "a new token and new headers",
        })
    }
}

impl Credentials {
    fn new(token: Option<Secret>, headers: HeaderMap, proxy: Vec<Secret>) -> Result<Self, CacheError> {
        let bearer = token.as_ref().map(|token| HeaderValue::from_str(&format!("Bearer {}", token.expose())));
        // The token contains only visible ASCII: `Secret` has checked that.
        let mut bearer = bearer
            .transpose()
            .map_err(|_| CacheError::new(ErrorClass::Unauthorized, "the token does not fit into a header"))?;
        if let Some(bearer) = &mut bearer {
            bearer.set_sensitive(true);
        }
        let values = headers.values().filter_map(|value| Secret::hidden(value.to_str().ok()?));
        let secrets = token.iter().cloned().chain(values).chain(proxy).collect();
        Ok(Self { token, headers, bearer, secrets })
    }
}

/// Where one cache's credentials come from, and what was read last.
pub(super) struct CredentialSource {
    token: TokenSource,
    headers_file: Option<PathBuf>,
    /// The proxy, whose password is a secret too.
    proxy: Proxy,
    known: RwLock<Option<Arc<Credentials>>>,
}

impl CredentialSource {
    /// Reads nothing yet.
    pub(super) fn new(token: TokenSource, headers_file: Option<PathBuf>, proxy: Proxy) -> Self {
        Self { token, headers_file, proxy, known: RwLock::new(None) }
    }

    pub(super) fn token_source(&self) -> &TokenSource {
        &self.token
    }

    pub(super) fn headers_file(&self) -> Option<&Path> {
        self.headers_file.as_deref()
    }

    /// Returns when the token expires, in seconds since 1970, if that is known.
    pub(super) fn expiry(&self) -> Option<i64> {
        match &self.token {
            TokenSource::Supplied(supplied) => supplied.expiry(),
            TokenSource::File(_) | TokenSource::Env(_) | TokenSource::None => {
                self.read_once().ok()?.token.as_ref()?.expiry()
            }
        }
    }

    /// Returns the credentials in use without reading them.
    pub(super) fn known(&self) -> Option<Arc<Credentials>> {
        self.known.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the credentials; the first call reads them.
    fn read_once(&self) -> Result<Arc<Credentials>, CacheError> {
        if self.known().is_none() {
            self.reload()?;
        }
        Ok(self.known().unwrap_or_default())
    }

    /// Returns the credentials. Waits for the first answer of the program that supplies the token.
    pub(super) async fn get(&self) -> Result<Arc<Credentials>, CacheError> {
        if let Some(known) = self.known() {
            return Ok(known);
        }
        if let TokenSource::Supplied(supplied) = &self.token {
            supplied.ready().await;
        }
        self.read_once()
    }

    /// Whether the program that supplies the token has not answered yet, so that a request waits for it.
    pub(super) fn awaits_token(&self) -> bool {
        matches!(&self.token, TokenSource::Supplied(s) if !s.is_there() && s.problem().is_none())
    }

    /// Reads token and headers. A part that cannot be read stays as it was.
    pub(super) fn reload(&self) -> Result<Renewed, CacheError> {
        let old = self.known();
        let mut failed = None;
        let mut or_old = |error: CacheError| match &old {
            None => Err(error),
            Some(old) => {
                failed = Some(error);
                Ok(Arc::clone(old))
            }
        };
        let token = match self.token.read() {
            Ok(token) => token,
            Err(error) => or_old(error)?.token.clone(),
        };
        let headers = match self.headers_file.as_deref().map(Headers::read) {
            None => HeaderMap::new(),
            Some(Ok(headers)) => headers.0,
            Some(Err(error)) => or_old(error)?.headers.clone(),
        };
        let fresh = Credentials::new(token, headers, proxy::secrets(&self.proxy))?;
        let before = old.unwrap_or_default();
        let renewed =
            Renewed { token: before.token != fresh.token, headers: before.headers != fresh.headers };
        *self.known.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(fresh));
        failed.map_or(Ok(renewed), Err)
    }

    /// Returns the secrets in use.
    pub(super) fn secrets(&self) -> Secrets {
        self.known().map(|known| known.secrets.clone()).unwrap_or_default()
    }

    /// Asks the program that supplies the token for another one after the server has refused this one.
    pub(super) fn note_refusal(&self, status: StatusCode, known: &Credentials) {
        if let (TokenSource::Supplied(supplied), 401 | 403) = (&self.token, status.as_u16()) {
            supplied.refused(known.token.as_ref());
        }
    }
}
