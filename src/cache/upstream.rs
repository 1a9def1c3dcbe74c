//! Asks another binary cache whether it offers a path, as Nix asks a substituter: it
//! fetches the narinfo. It sends no token and no extra header, and reaches the cache by
//! the certificates and proxies of the environment. Must not know what follows from the
//! answer.

use std::path::PathBuf;
use std::time::Duration;

use reqwest::{StatusCode, Url};

use super::check::Expected;
use super::endpoint::Endpoint;
use super::error::{CacheError, ErrorClass};
use super::narinfo::{self, NarInfo};
use super::network_settings::{Network, TlsFiles};
use super::secrets::Secrets;
use super::transport::{Answer, Transport};
use crate::types::{StoreDir, StorePath};

/// Time limit of a connection, and of an answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// Another binary cache.
pub struct Upstream {
    endpoint: Endpoint,
    transport: Transport,
}

impl std::fmt::Debug for Upstream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Upstream").field(&self.endpoint).finish()
    }
}

impl Upstream {
    /// The cache at this URL. `ca`: the certificates of the trusted authorities, else the
    /// system's. Fails when the URL cannot be used.
    pub fn new(url: &str, ca: Option<PathBuf>) -> Result<Self, CacheError> {
        let user_agent = concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")).to_owned();
        let network = Network { tls: TlsFiles { ca, ..TlsFiles::default() }, ..Network::default() };
        let transport = Transport::new(user_agent, PATIENCE, PATIENCE, network);
        Ok(Self { endpoint: Endpoint::parse(url)?, transport })
    }

    /// Returns whether the cache offers the path with this NAR and these references, and
    /// vouches for it by a signature or content address. An error means that it is not
    /// known.
    pub async fn offers(
        &self,
        path: &StorePath,
        expected: &Expected,
        store_dir: &StoreDir,
    ) -> Result<bool, CacheError> {
        let url = format!("{}/{}.narinfo", self.endpoint, path.hash_part());
        let doing = format!("reading {url}");
        let url =
            Url::parse(&url).map_err(|e| CacheError::new(ErrorClass::Rejected, format!("{doing}: {e}")))?;
        let answer = self.get(url, &doing).await.inspect_err(|_| self.transport.refresh())?;
        match answer.status {
            StatusCode::OK => {}
            // Nix takes 403 for "not there" too: a bucket that nobody may list answers so.
            StatusCode::NOT_FOUND | StatusCode::FORBIDDEN | StatusCode::GONE => return Ok(false),
            _ => return Err(answer.refusal(&doing)),
        }
        if let Some(why) = &answer.cut {
            return Err(CacheError::new(ErrorClass::Transient, format!("{doing}: {why}")));
        }
        // What Nix could not use is not there.
        let Ok(info) = NarInfo::parse(&String::from_utf8_lossy(&answer.body), store_dir) else {
            return Ok(false);
        };
        let mut references = expected.references.clone();
        references.sort_unstable();
        Ok(info.path == *path
            && info.nar_hash == expected.nar_hash
            && info.references == references
            && info.is_vouched_for())
    }

    async fn get(&self, url: Url, doing: &str) -> Result<Answer, CacheError> {
        let request = self.transport.client(&self.endpoint)?.get(url);
        match tokio::time::timeout(PATIENCE, request.send()).await {
            Ok(Ok(response)) => {
                Ok(Answer::read(response, narinfo::LONGEST, PATIENCE, Secrets::default()).await)
            }
            Ok(Err(e)) => Err(CacheError::from_transport(&e, false, doing)),
            Err(_) => {
                let late = format!("{doing}: no answer for {} s", PATIENCE.as_secs());
                Err(CacheError::new(ErrorClass::Unreachable, late))
            }
        }
    }
}
