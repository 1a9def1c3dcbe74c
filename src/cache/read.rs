//! Checks whether Nix can read a cache with the login from a netrc file. Must not
//! know where that file is.

use reqwest::Url;

use super::client::{CacheClient, Inner};
use super::endpoint::Endpoint;
use super::error::{CacheError, ErrorClass};
use super::token::TokenSource;
use super::transport::Answer;

/// Largest `nix-cache-info` that the client reads, in bytes. Real ones have three lines.
const LONGEST: usize = 4096;

impl CacheClient {
    /// Asks `substituter` for its `nix-cache-info`, with the token as the
    /// password that Nix would send, if there is one.
    pub async fn readable(&self, substituter: &str, pull: &TokenSource) -> Result<(), CacheError> {
        let base = Endpoint::parse(substituter)?;
        let url = Url::parse(&format!("{}/nix-cache-info", substituter.trim_end_matches('/')))
            .map_err(|e| CacheError::new(ErrorClass::Rejected, format!("{substituter}: {e}")))?;
        let doing = format!("reading {url}");
        let answer = get(self.inner(), &base, url, pull, LONGEST, &doing).await?;
        if !answer.status.is_success() {
            return Err(answer.refusal(&doing));
        }
        if String::from_utf8_lossy(&answer.body).contains("StoreDir:") {
            return Ok(());
        }
        Err(CacheError::new(ErrorClass::Rejected, format!("{doing}: the answer is not from a binary cache")))
    }
}

/// Sends a GET to `base` with the token as the password that Nix would send, if there
/// is one. Reads at most `limit` bytes.
pub(super) async fn get(
    inner: &Inner,
    base: &Endpoint,
    url: Url,
    pull: &TokenSource,
    limit: usize,
    doing: &str,
) -> Result<Answer, CacheError> {
    inner.check_hold()?;
    let secret = pull.read()?;
    if let (Some(_), Some(why)) = (&secret, inner.distrust(base)) {
        return Err(CacheError::new(ErrorClass::Rejected, format!("{doing}: {why}")));
    }
    let mut request = inner.transport.client(base)?.get(url);
    if let Some(secret) = &secret {
        request = request.basic_auth("flywheel", Some(secret.expose()));
    }
    let patience = inner.stall_timeout.min(inner.connect_timeout);
    match tokio::time::timeout(patience, request.send()).await {
        Ok(Ok(response)) => {
            Ok(Answer::read(response, limit, patience, inner.secrets().and(secret.as_ref())).await)
        }
        Ok(Err(e)) => Err(CacheError::from_transport(&e, false, doing)),
        Err(_) => {
            let late = format!("{doing}: no answer for {} s", patience.as_secs());
            Err(CacheError::new(ErrorClass::Unreachable, late))
        }
    }
}
