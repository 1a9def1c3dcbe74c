//! Whether a cache can serve a path: fetches its narinfo and NAR as Nix would, and compares
//! them with what they say and with what the Nix database has. Streams, so memory does
//! not grow with the NAR. Must not know which paths are checked when.

use std::fmt;
use std::time::Duration;

use reqwest::header::LOCATION;
use reqwest::{Response, Url};

use super::client::CacheClient;
use super::decode::{Broken, Decoded, decode};
use super::endpoint::Endpoint;
use super::error::{CacheError, ErrorClass, quote};
use super::narinfo::{self, NarInfo, PublicKey};
use super::token::{Secret, TokenSource};
use super::transport::Answer;
use crate::types::{NarHash, StoreDir, StorePath};

/// Servers send Nix to their storage by a redirect.
const MAX_REDIRECTS: usize = 5;
/// Largest body of a refusal that is read, in bytes.
const LONGEST_REFUSAL: usize = 16 * 1024;
/// Pieces of a NAR that wait for the decompressor.
const PIECES: usize = 8;

/// What is wrong with a path in a cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum FaultKind {
    /// The cache says itself that it does not have the path.
    Absent,
    /// The cache says that it has the path, and does not serve it.
    NotServed,
    /// The NAR ends too early.
    Cut,
    /// The NAR or its file has another hash or size than it should have.
    OtherHash,
    /// The cache's key has not signed the path.
    WrongKey,
    /// The narinfo has other references than the Nix database.
    References,
    /// The cache refuses the token for reading.
    Refused,
    /// The cache does not answer.
    Unreachable,
    /// The NAR has a compression that flywheel does not know.
    Unsupported,
}

impl FaultKind {
    /// Returns the word for it in JSON, metrics and the journal.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Absent => "absent",
            Self::NotServed => "not_served",
            Self::Cut => "cut",
            Self::OtherHash => "other_hash",
            Self::WrongKey => "wrong_key",
            Self::References => "references",
            Self::Refused => "refused",
            Self::Unreachable => "unreachable",
            Self::Unsupported => "unsupported",
        }
    }
}

/// Why a path cannot be read from a cache, or cannot be trusted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{detail}")]
pub struct Fault {
    /// The kind, for programs.
    pub kind: FaultKind,
    /// What was seen and what to do, for people.
    pub detail: String,
}

fn fault(kind: FaultKind, detail: impl Into<String>) -> Fault {
    Fault { kind, detail: detail.into() }
}

/// What the Nix database has of a path.
#[derive(Debug, Clone)]
pub struct Expected {
    /// The hash of its NAR.
    pub nar_hash: NarHash,
    /// The size of its NAR, in bytes.
    pub nar_size: u64,
    /// Its references, in any order.
    pub references: Vec<StorePath>,
}

/// A cache as Nix reads it: its address, the token for reading, and its public key.
#[derive(Clone)]
pub struct Substituter {
    base: Url,
    endpoint: Endpoint,
    login: Login,
    key: Option<PublicKey>,
    store_dir: StoreDir,
}

impl fmt::Debug for Substituter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Substituter").field("base", &self.base.as_str()).finish_non_exhaustive()
    }
}

#[derive(Clone)]
enum Login {
    None,
    /// As Nix sends it, from a netrc file.
    Basic(Secret),
    /// The token for pushing, when there is none for reading.
    Bearer(Secret),
}

impl Login {
    fn secret(&self) -> Option<&Secret> {
        match self {
            Self::None => None,
            Self::Basic(secret) | Self::Bearer(secret) => Some(secret),
        }
    }
}

impl CacheClient {
    /// Returns how Nix reads this cache. Asks the server for its configuration if no
    /// discovery has yet. `pull`: the token for reading; without one the token for pushing
    /// is used for a cache that is not public.
    pub async fn substituter(
        &self,
        pull: &TokenSource,
        store_dir: &StoreDir,
    ) -> Result<Substituter, CacheError> {
        let config = match self.config() {
            Some(config) if config.substituter_endpoint.is_some() || self.endpoint().is_some() => config,
            Some(_) | None => self.discover().await?.config,
        };
        let named = config.substituter_endpoint.or_else(|| {
            // Attic serves Nix at the API's address, below the cache's name.
            Some(format!("{}/{}", self.endpoint()?.trim_end_matches('/'), self.cache()))
        });
        let text = named.unwrap_or_default();
        let rejected =
            |why: String| CacheError::new(ErrorClass::Rejected, format!("reading from {text}: {why}"));
        let endpoint = Endpoint::parse(&text)?;
        let base = Url::parse(&format!("{}/", text.trim_end_matches('/')));
        let base = base.map_err(|e| rejected(e.to_string()))?;
        let inner = self.inner();
        let login = match pull.read()? {
            Some(secret) => match inner.distrust(&endpoint) {
                Some(why) => return Err(rejected(why)),
                None => Login::Basic(secret),
            },
            None if config.is_public == Some(true) || inner.distrust(&endpoint).is_some() => Login::None,
            None => inner.credentials.get().await?.token.clone().map_or(Login::None, Login::Bearer),
        };
        let key = config.public_key.as_deref().and_then(PublicKey::parse);
        Ok(Substituter { base, endpoint, login, key, store_dir: store_dir.clone() })
    }

    /// Fetches narinfo and NAR of a path and checks them. Returns how many bytes the
    /// server sent for the NAR. `expected`: what the Nix database has, if the path is valid.
    pub async fn check(
        &self,
        from: &Substituter,
        path: &StorePath,
        expected: Option<&Expected>,
    ) -> Result<u64, Fault> {
        let info = self.fetch_info(from, path).await?;
        if info.path != *path {
            let other = from.store_dir.full(&info.path);
            return Err(fault(FaultKind::OtherHash, format!("its narinfo is that of another path, {other}")));
        }
        match &from.key {
            Some(key) => info.check_signature(key, &from.store_dir).map_err(|why| {
                let hint = "Nix refuses it; the cache's key may have been replaced after a client had taken the \
                            old one, or somebody changed the narinfo";
                fault(FaultKind::WrongKey, format!("{why}: {hint} (key {})", key.name()))
            })?,
            None => {
                let why = "the server names no public key, so that no signature can be checked";
                return Err(fault(FaultKind::WrongKey, why));
            }
        }
        if let Some(expected) = expected {
            compare(&info, expected)?;
        }
        let decoded = self.fetch_nar(from, &info).await?;
        judge(&info, &decoded)?;
        Ok(decoded.file_size)
    }

    async fn fetch_info(&self, from: &Substituter, path: &StorePath) -> Result<NarInfo, Fault> {
        let hash = path.hash_part();
        let url = from.base.join(&format!("{hash}.narinfo"));
        let url = url.map_err(|e| fault(FaultKind::Unreachable, e.to_string()))?;
        let doing = format!("reading {url}");
        let response = match self.get(from, url, &doing).await {
            Ok(response) => response,
            Err(Refusal::Status(404 | 410, _)) => return Err(self.not_there(path, "its narinfo").await),
            Err(refusal) => return Err(refusal.fault()),
        };
        let patience = self.inner().stall_timeout;
        let secrets = self.inner().secrets().and(from.login.secret());
        let answer = Answer::read(response, narinfo::LONGEST, patience, secrets).await;
        if let Some(why) = answer.cut {
            return Err(fault(FaultKind::Unreachable, format!("{doing}: {why}")));
        }
        NarInfo::parse(&String::from_utf8_lossy(&answer.body), &from.store_dir).map_err(|why| {
            fault(
                FaultKind::NotServed,
                format!("its narinfo cannot be used: {}", quote(&why, &self.inner().secrets())),
            )
        })
    }

    async fn fetch_nar(&self, from: &Substituter, info: &NarInfo) -> Result<Decoded, Fault> {
        let url = from.base.join(&info.url).map_err(|e| {
            fault(FaultKind::NotServed, format!("its narinfo names something that is not a URL: {e}"))
        })?;
        let doing = "reading its NAR".to_owned();
        let mut response = match self.get(from, url, &doing).await {
            Ok(response) => response,
            Err(Refusal::Status(404 | 410, _)) => return Err(self.not_there(&info.path, "its NAR").await),
            // Gateways and servers that are busy say nothing about the path.
            Err(Refusal::Status(status, _)) if status >= 500 && !matches!(status, 502..=504) => {
                return Err(self.not_there(&info.path, &format!("its NAR (status {status})")).await);
            }
            Err(refusal) => return Err(refusal.fault()),
        };
        let (sender, receiver) = tokio::sync::mpsc::channel(PIECES);
        let (compression, nar_size) = (info.compression.clone(), info.nar_size);
        let decoder = tokio::task::spawn_blocking(move || decode(&compression, receiver, nar_size));
        let patience = self.inner().stall_timeout;
        let mut received = 0;
        let ended: Result<(), String> = loop {
            match tokio::time::timeout(patience, response.chunk()).await {
                Ok(Ok(Some(piece))) => {
                    received += piece.len() as u64;
                    // The decoder reads no further when the NAR is too long.
                    if sender.send(piece).await.is_err() {
                        break Ok(());
                    }
                }
                Ok(Ok(None)) => break Ok(()),
                Ok(Err(_)) => break Err("the server broke the connection".to_owned()),
                Err(_) => break Err(format!("the server sent nothing for {} s", patience.as_secs())),
            }
        };
        drop(sender);
        let decoded = decoder.await.map_err(|e| fault(FaultKind::Unreachable, e.to_string()))?;
        match ended {
            Ok(()) => Ok(decoded),
            Err(why) if received == 0 => {
                Err(self.not_there(&info.path, &format!("its NAR ({why} before the first byte)")).await)
            }
            Err(why) => {
                let whole = info.file_size.map(|size| format!(" of {size}")).unwrap_or_default();
                Err(fault(
                    FaultKind::Cut,
                    format!("{why} after {received}{whole} bytes of the NAR. {REPAIR}"),
                ))
            }
        }
    }

    /// The fault of a path whose narinfo or NAR (`what`) the server does not serve: what
    /// it says when it is asked whether it has the path decides.
    async fn not_there(&self, path: &StorePath, what: &str) -> Fault {
        let hash = path.hash_part().to_owned();
        match self.missing(vec![hash.clone()]).await {
            Ok(missing) if missing.contains(&hash) => {
                fault(FaultKind::Absent, "the cache does not have it: `--repair` pushes it again".to_owned())
            }
            Ok(_) => fault(
                FaultKind::NotServed,
                format!("the server says that it has the path but does not serve {what}. {REPAIR}"),
            ),
            Err(error) => fault(
                FaultKind::Unreachable,
                format!(
                    "the server does not serve {what}, and whether it has the path is not known: {error}"
                ),
            ),
        }
    }

    /// Sends a GET and follows redirects. The token goes to the cache's own host only.
    async fn get(&self, from: &Substituter, mut url: Url, doing: &str) -> Result<Response, Refusal> {
        let inner = self.inner();
        let headers = inner.credentials.get().await.map(|known| known.headers.clone()).unwrap_or_default();
        let failed =
            |class: ErrorClass, why: &str| Refusal::Failed(CacheError::new(class, format!("{doing}: {why}")));
        for _ in 0..=MAX_REDIRECTS {
            let to = Endpoint::of(&url)
                .ok_or_else(|| failed(ErrorClass::Rejected, "it is not at an http address"))?;
            if to != from.endpoint.host_only()
                && let Some(why) = from.endpoint.objection_to(&to)
            {
                return Err(failed(ErrorClass::Rejected, &format!("it leads to another address: {why}")));
            }
            let own = url.origin() == from.base.origin();
            let request = || -> Result<_, CacheError> {
                inner.check_hold()?;
                let mut request = inner.transport.client(&to)?.get(url.clone());
                // An access proxy before the cache asks for the headers; Nix cannot send any.
                if own && inner.distrust(&to).is_none() {
                    request = request.headers(headers.clone());
                }
                Ok(match &from.login {
                    Login::Basic(secret) if own => request.basic_auth("flywheel", Some(secret.expose())),
                    Login::Bearer(secret) if own => request.bearer_auth(secret.expose()),
                    Login::Basic(_) | Login::Bearer(_) | Login::None => request,
                })
            };
            let response = send_twice(request, inner.stall_timeout, doing).await.map_err(Refusal::Failed)?;
            if response.status().is_redirection() {
                let location = response.headers().get(LOCATION).and_then(|l| l.to_str().ok());
                let next = location.and_then(|location| url.join(location).ok());
                url = next.ok_or_else(|| failed(ErrorClass::Rejected, "a redirect leads nowhere"))?;
                continue;
            }
            if response.status().is_success() {
                return Ok(response);
            }
            let status = response.status().as_u16();
            let secrets = inner.secrets().and(from.login.secret());
            let answer = Answer::read(response, LONGEST_REFUSAL, Duration::from_secs(10), secrets).await;
            // A storage that a redirect led to says 403 for what it does not have.
            let status = if own || status != 403 { status } else { 404 };
            return Err(Refusal::Status(status, answer.refusal(doing)));
        }
        Err(failed(ErrorClass::Rejected, "it redirects in a circle"))
    }
}

/// What the operator of the server has to do about a NAR that the server has lost.
const REPAIR: &str = "Pushing again does not repair it, because the server takes the path for present. Its operator \
    restores the storage (bucket or directory), or removes the path from the server's database (Attic: its row in \
    `object` and the `nar` and `chunk` rows without data), then `flywheelctl verify --repair` pushes it again";

/// Why there is no answer with a body.
enum Refusal {
    /// No answer, or a redirect that cannot be followed.
    Failed(CacheError),
    /// An answer that is not a success.
    Status(u16, CacheError),
}

impl Refusal {
    fn fault(self) -> Fault {
        match self {
            Self::Status(401 | 403 | 407, error) => {
                fault(FaultKind::Refused, format!("{error} (reading: see pull_token_file of this cache)"))
            }
            Self::Status(_, error) | Self::Failed(error) => fault(FaultKind::Unreachable, error.to_string()),
        }
    }
}

/// Sends a request, and once more when the connection broke before an answer.
async fn send_twice(
    request: impl Fn() -> Result<reqwest::RequestBuilder, CacheError>,
    patience: Duration,
    doing: &str,
) -> Result<Response, CacheError> {
    let mut again = true;
    loop {
        match tokio::time::timeout(patience, request()?.send()).await {
            Ok(Ok(response)) => return Ok(response),
            Ok(Err(e)) if again && !e.is_connect() && !e.is_timeout() && !e.is_builder() => again = false,
            Ok(Err(e)) => return Err(CacheError::from_transport(&e, false, doing)),
            Err(_) => {
                let late = format!("{doing}: no answer for {} s", patience.as_secs());
                return Err(CacheError::new(ErrorClass::Unreachable, late));
            }
        }
    }
}

/// Compares a narinfo with the Nix database.
fn compare(info: &NarInfo, expected: &Expected) -> Result<(), Fault> {
    if info.nar_hash != expected.nar_hash || info.nar_size != expected.nar_size {
        let detail = format!(
            "the cache has a NAR of {} bytes with the hash {}, the store one of {} bytes with {}: the path was \
             built twice with different results, or one of the two was changed",
            info.nar_size, info.nar_hash, expected.nar_size, expected.nar_hash
        );
        return Err(fault(FaultKind::OtherHash, detail));
    }
    let mut references = expected.references.clone();
    references.sort_unstable();
    if info.references == references {
        return Ok(());
    }
    let differs =
        |a: &[StorePath], b: &[StorePath]| a.iter().find(|r| !b.contains(r)).map(ToString::to_string);
    let detail = match (differs(&references, &info.references), differs(&info.references, &references)) {
        (Some(lacks), _) => format!("its narinfo lacks the reference {lacks}, which the store has"),
        (None, other) => {
            format!(
                "its narinfo has the reference {}, which the store does not have",
                other.unwrap_or_default()
            )
        }
    };
    Err(fault(FaultKind::References, detail))
}

/// Compares a served NAR with its narinfo.
fn judge(info: &NarInfo, decoded: &Decoded) -> Result<(), Fault> {
    let short = |have: u64, want: u64, what: &str| {
        fault(FaultKind::Cut, format!("the {what} ends after {have} of {want} bytes. {REPAIR}"))
    };
    let other = |what: &str| fault(FaultKind::OtherHash, format!("{what}. {REPAIR}"));
    if decoded.nar == Err(Broken::Unsupported) {
        let name: String = info.compression.chars().filter(char::is_ascii_graphic).take(20).collect();
        let detail = format!(
            "the compression {name} is not read here, so nothing is known of the NAR; Nix may well read it"
        );
        return Err(fault(FaultKind::Unsupported, detail));
    }
    if let Some(size) = info.file_size.filter(|size| decoded.file_size < *size) {
        return Err(short(decoded.file_size, size, "file with the NAR"));
    }
    let (hash, size) = match &decoded.nar {
        Ok(nar) => *nar,
        Err(Broken::Short) => {
            let whole =
                format!("the compressed NAR ends too early, after {} bytes. {REPAIR}", decoded.file_size);
            return Err(fault(FaultKind::Cut, whole));
        }
        Err(Broken::Long) => {
            return Err(other(&format!("the NAR is longer than its {} bytes", info.nar_size)));
        }
        Err(Broken::Garbled(why)) => {
            return Err(other(&format!("the NAR cannot be decompressed ({}): {why}", info.compression)));
        }
        Err(Broken::Unsupported) => return Ok(()),
    };
    if size < info.nar_size {
        return Err(short(size, info.nar_size, "NAR"));
    }
    if hash != info.nar_hash {
        return Err(other(&format!("the NAR has the hash {hash}, its narinfo says {}", info.nar_hash)));
    }
    if info.file_hash.is_some_and(|hash| hash != decoded.file_hash)
        || info.file_size.is_some_and(|size| size != decoded.file_size)
    {
        return Err(other(
            "the file with the NAR has another hash or size than its narinfo says, and the same NAR",
        ));
    }
    Ok(())
}
