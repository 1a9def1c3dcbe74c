//! The calls of the Attic API that the daemon makes. One call has one outcome.
//! Must not know retry policy, sessions or the ledger.

use std::collections::HashSet;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use reqwest::RequestBuilder;
use reqwest::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue};
use tokio::sync::watch;

use super::body::{self, Failure, Limits, Stall, Streams, Watch};
use super::credentials::{CredentialSource, Credentials, Renewed};
use super::discover::{Discovered, Discovery};
use super::endpoint::Endpoint;
use super::error::{CacheError, ErrorClass, Sent};
use super::network::NetworkFault;
use super::network_settings::Network;
use super::secrets::Secrets;
use super::supplied::SuppliedToken;
use super::token::TokenSource;
use super::transport::{Answer, Transport};
use super::wire::{CacheConfig, MissingAnswer, MissingRequest, UploadAnswer, UploadInfo, Uploaded};
use crate::types::CacheName;

/// Largest number of hashes in one question. A real server accepts 10,000 and fails at 40,000.
const HASHES_A_QUESTION: usize = 5_000;
/// Upload info of at least this size precedes the body, as Attic's `upload_path.rs` advises.
const LONGEST_INFO_HEADER: usize = 4 * 1024;
/// Largest answer that the client reads, in bytes. An answer to 5,000 hashes has 175 KB.
const LONGEST_ANSWER: usize = 1024 * 1024;
const MAX_ENDPOINTS: usize = 32;
/// How often the patience of an upload doubles at most: from a minute to half an hour.
const MOST_DOUBLINGS: u32 = 5;

/// Settings of a cache client.
#[derive(Clone, Debug)]
pub struct ClientSettings {
    /// Addresses to try, in order.
    pub endpoints: Vec<String>,
    /// The cache's name on the server.
    pub cache: CacheName,
    /// The source of the token.
    pub token: TokenSource,
    /// Time limit of name look-up, TCP and TLS together.
    pub connect_timeout: Duration,
    /// Longest time without a byte in either direction. The whole upload has no limit, because it depends on
    /// the NAR's size.
    pub stall_timeout: Duration,
    /// The user agent of the requests.
    pub user_agent: String,
    /// Whether the client may send tokens to hosts that the server names (`api_endpoint`,
    /// `substituter_endpoint`) and that are in none of `endpoints`.
    pub trust_api_endpoint: bool,
    /// Why the client must not send a request now. While there is a reason, every call fails with it, and
    /// neither request nor token leaves the process.
    pub hold: Option<watch::Receiver<Option<String>>>,
    /// Certificates, proxy, extra headers, HTTP version.
    pub network: Network,
}

impl ClientSettings {
    /// Settings with the usual timeouts: 10 s and 60 s.
    pub fn new(endpoints: Vec<String>, cache: CacheName, token: TokenSource) -> Self {
        Self {
            endpoints,
            cache,
            token,
            connect_timeout: Duration::from_secs(10),
            stall_timeout: Duration::from_secs(60),
            user_agent: concat!(env!("CARGO_PKG_NAME"), "/", env!("CARGO_PKG_VERSION")).to_owned(),
            trust_api_endpoint: false,
            hold: None,
            network: Network::default(),
        }
    }
}

/// A client for one cache. Clones share the connections, the token and the result of the last discovery.
#[derive(Clone)]
pub struct CacheClient(Arc<Inner>);

pub(super) struct Inner {
    pub(super) cache: CacheName,
    pub(super) candidates: Vec<Endpoint>,
    pub(super) connect_timeout: Duration,
    pub(super) stall_timeout: Duration,
    pub(super) transport: Transport,
    pub(super) discovery: Discovery,
    trust_api_endpoint: bool,
    hold: Option<watch::Receiver<Option<String>>>,
    pub(super) credentials: CredentialSource,
    /// The uploads that share HTTP/2 streams, where that may be used.
    streams: Option<Arc<Streams>>,
}

impl fmt::Debug for CacheClient {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CacheClient")
            .field("cache", &self.0.cache)
            .field("endpoint", &self.endpoint())
            .finish()
    }
}

impl CacheClient {
    /// Checks the settings. Neither connects nor reads the token: both may
    /// become available later.
    pub fn new(s: ClientSettings) -> Result<Self, CacheError> {
        let rejected =
            |what: &str| CacheError::new(ErrorClass::Rejected, format!("the cache {}: {what}", s.cache));
        if s.endpoints.is_empty() || s.endpoints.len() > MAX_ENDPOINTS {
            return Err(rejected("it needs an endpoint, and 32 at most"));
        }
        if s.connect_timeout.is_zero() || s.stall_timeout.is_zero() {
            return Err(rejected("a timeout of 0 would fail every request"));
        }
        if HeaderValue::from_str(&s.user_agent).is_err() {
            return Err(rejected("the user agent has characters that a header cannot carry"));
        }
        let candidates = s.endpoints.iter().map(|e| Endpoint::parse(e)).collect::<Result<_, _>>()?;
        Ok(Self(Arc::new(Inner {
            cache: s.cache,
            candidates,
            connect_timeout: s.connect_timeout,
            stall_timeout: s.stall_timeout,
            credentials: CredentialSource::new(
                s.token,
                s.network.headers_file.clone(),
                s.network.proxy.clone(),
            ),
            streams: s.network.http2.then(Default::default),
            transport: Transport::new(s.user_agent, s.connect_timeout, s.stall_timeout, s.network),
            discovery: Discovery::default(),
            trust_api_endpoint: s.trust_api_endpoint,
            hold: s.hold,
        })))
    }

    /// The cache's name on the server.
    pub fn cache(&self) -> &CacheName {
        &self.0.cache
    }

    pub(super) fn inner(&self) -> &Inner {
        &self.0
    }

    /// Finds an endpoint that answers and asks it for the cache's configuration.
    /// The daemon also uses this to probe a cache that was offline. It first asks the
    /// endpoint that answered most recently, then the others in their order, and reads
    /// the token again.
    ///
    /// When all fail, the error has the class of the most informative failure, and its
    /// message names all failures.
    pub async fn discover(&self) -> Result<Discovered, CacheError> {
        let this = self.clone();
        // The token and the certificates may be on a file system that hangs.
        let read = tokio::task::spawn_blocking(move || this.0.reload().map(drop)).await;
        self.0.discover(read.unwrap_or(Ok(()))).await.map_err(|e| self.0.scrubbed(e))
    }

    /// The endpoint that the last discovery found.
    pub fn endpoint(&self) -> Option<String> {
        self.0.discovery.last().map(|d| d.endpoint)
    }

    /// The configuration that the last successful discovery read. It stays while no endpoint answers.
    pub fn config(&self) -> Option<CacheConfig> {
        self.0.discovery.config()
    }

    /// The host whose entry in a netrc file Nix uses to read this cache, without a port, as curl compares it;
    /// `None` until a discovery has found it. An error says why no token may go to that host.
    pub fn netrc_host(&self) -> Result<Option<String>, String> {
        let named = self.config().and_then(|config| config.substituter_endpoint);
        let Some(Ok(endpoint)) = named.map(|named| Endpoint::parse(&named)) else { return Ok(None) };
        match self.0.distrust(&endpoint) {
            Some(why) => Err(why),
            None => Ok(endpoint.host()),
        }
    }

    /// Returns those of `hashes` that the cache does not have. After an error the
    /// caller knows nothing about any of them.
    pub async fn missing(&self, hashes: Vec<String>) -> Result<HashSet<String>, CacheError> {
        let mut missing = HashSet::new();
        for part in hashes.chunks(HASHES_A_QUESTION) {
            missing.extend(self.0.missing(part).await.map_err(|e| self.0.scrubbed(e))?);
        }
        Ok(missing)
    }

    /// Uploads one path. Reads `nar` as fast as the server accepts it, and drops it
    /// as soon as the outcome is known.
    pub async fn upload<S>(&self, info: &UploadInfo, nar: S) -> Result<Uploaded, CacheError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        self.upload_again(info, nar, 0).await
    }

    /// Uploads one path of which `no_verdicts` uploads have ended without a verdict. Each of them doubles the
    /// time for which the answer to the whole body is awaited, since a server that drops a request whose
    /// client has left would never store the path otherwise.
    pub async fn upload_again<S>(
        &self,
        info: &UploadInfo,
        nar: S,
        no_verdicts: u32,
    ) -> Result<Uploaded, CacheError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        info.check(&self.0.cache)?;
        let patience = self.0.stall_timeout.saturating_mul(1 << no_verdicts.min(MOST_DOUBLINGS));
        // The body has one type whatever the stream's type is, which keeps the generic part small.
        self.0.upload(info, nar, patience).await.map_err(|e| self.0.scrubbed(e))
    }

    /// Reads the token and the extra headers again and returns what has changed. After an error the old ones stay
    /// in use. Certificates and a proxy's URL that have changed are read before the next connection.
    pub fn reload_token(&self) -> Result<Renewed, CacheError> {
        self.0.reload()
    }

    /// The token that a program supplies, if that is the source.
    pub fn supplied(&self) -> Option<&SuppliedToken> {
        match self.0.credentials.token_source() {
            TokenSource::Supplied(supplied) => Some(supplied),
            TokenSource::File(_) | TokenSource::Env(_) | TokenSource::None => None,
        }
    }

    /// The file that the extra headers are read from.
    pub fn headers_file(&self) -> Option<&Path> {
        self.0.credentials.headers_file()
    }

    /// The file that the token is read from, if it is in a file.
    pub fn token_file(&self) -> Option<&Path> {
        match self.0.credentials.token_source() {
            TokenSource::File(file) => Some(file),
            TokenSource::Env(_) | TokenSource::Supplied(_) | TokenSource::None => None,
        }
    }

    /// Removes the secrets in use from the text of another program.
    pub fn scrub(&self, text: &str) -> String {
        self.0.secrets().scrub(text)
    }

    /// Returns when the token expires (seconds since 1970), if the token says so. Only a warning depends on it.
    pub fn token_expiry(&self) -> Option<i64> {
        self.0.credentials.expiry()
    }
}

impl Inner {
    /// Reads the credentials again, and notes that certificates and proxy may have changed.
    pub(super) fn reload(&self) -> Result<Renewed, CacheError> {
        self.transport.refresh();
        self.credentials.reload()
    }

    /// Removes the secrets from an error's message.
    pub(super) fn scrubbed(&self, mut error: CacheError) -> CacheError {
        error.message = self.secrets().scrub(&error.message);
        error
    }

    /// Returns the secrets in use.
    pub(super) fn secrets(&self) -> Secrets {
        self.credentials.secrets()
    }

    /// Returns why the client must not send the token to `endpoint`, which the server named.
    pub(super) fn distrust(&self, endpoint: &Endpoint) -> Option<String> {
        let trusted = self.trust_api_endpoint || self.candidates.iter().any(|c| c.has_host_of(endpoint));
        (!trusted).then(|| {
            format!(
                "the server names {endpoint}, whose host is in no configured endpoint, so no token is sent \
                 there; if it may have the token, set trust_api_endpoint = true for this cache"
            )
        })
    }

    /// Fails while `hold` forbids to send anything. To be called before each request.
    pub(super) fn check_hold(&self) -> Result<(), CacheError> {
        match self.hold.as_ref().and_then(|hold| hold.borrow().clone()) {
            Some(why) => Err(CacheError::new(ErrorClass::Unreachable, why)),
            None => Ok(()),
        }
    }

    /// Adds token and headers to a request. Every request goes through here, so that none is sent while `hold`
    /// forbids it.
    fn authorized(&self, request: RequestBuilder, known: &Credentials) -> Result<RequestBuilder, CacheError> {
        self.check_hold()?;
        let request = if known.headers.is_empty() { request } else { request.headers(known.headers.clone()) };
        Ok(match &known.bearer {
            None => request,
            Some(bearer) => request.header(AUTHORIZATION, bearer),
        })
    }

    /// Sends a request without a stream. Sends it a second time if the server turns out
    /// to have closed the pooled connection of the first.
    pub(super) async fn small(
        &self,
        request: impl Fn() -> Result<RequestBuilder, CacheError>,
        limit: usize,
        patience: Duration,
        doing: &str,
    ) -> Result<Answer, CacheError> {
        let mut again = true;
        loop {
            let known = self.credentials.get().await?;
            let sending = self.authorized(request()?, &known)?.send();
            match tokio::time::timeout(self.connect_timeout + patience, sending).await {
                Ok(Ok(response)) => {
                    self.credentials.note_refusal(response.status(), &known);
                    return Ok(Answer::read(response, limit, patience, known.secrets.clone()).await);
                }
                Ok(Err(e)) if again && !e.is_connect() && !e.is_timeout() && !e.is_builder() => again = false,
                Ok(Err(e)) => return Err(CacheError::from_transport(&e, false, doing)),
                Err(_) => return Err(stall_error(&Stall::Answer, patience, doing)),
            }
        }
    }

    async fn missing(&self, hashes: &[String]) -> Result<Vec<String>, CacheError> {
        let base = self.locate().await?;
        let doing = format!("asking {base} which of {} paths it lacks", hashes.len());
        let question = MissingRequest { cache: &self.cache, store_path_hashes: hashes };
        let json = Bytes::from(serde_json::to_vec(&question).map_err(|e| unwritable(&e))?);
        let request = || {
            let url = base.api("get-missing-paths")?;
            Ok(self
                .transport
                .client(&base)?
                .post(url)
                .header(CONTENT_TYPE, "application/json")
                .body(json.clone()))
        };
        let answer = self.small(request, LONGEST_ANSWER, self.stall_timeout, &doing).await;
        let answer = answer.inspect_err(|e| self.note(e, &base))?;
        let MissingAnswer { missing_paths } = answer.json(&doing)?;
        // A hash that the answer does not name counts as present. An answer that names
        // hashes we did not ask for belongs to another question (from a caching proxy,
        // for example). It proves nothing, so the client discards all of it.
        let asked: HashSet<&str> = hashes.iter().map(String::as_str).collect();
        if let Some(stranger) = missing_paths.iter().find(|hash| !asked.contains(hash.as_str())) {
            let stranger: String = super::error::quote(stranger, &self.secrets()).chars().take(40).collect();
            return Err(CacheError::new(
                ErrorClass::Transient,
                format!(
                    "{doing}: the answer names {stranger:?}, which was not asked for; is a proxy caching answers?"
                ),
            ));
        }
        Ok(missing_paths)
    }

    async fn upload<S>(&self, info: &UploadInfo, nar: S, patience: Duration) -> Result<Uploaded, CacheError>
    where
        S: Stream<Item = io::Result<Bytes>> + Send + 'static,
    {
        let base = self.locate().await?;
        let doing = format!("the upload to {base}");
        let json = serde_json::to_vec(info).map_err(|e| unwritable(&e))?;
        let mut request = self.transport.upload_client(&base)?.put(base.api("upload-path")?);
        // The client sends both header names: celler, a fork of Attic, has the same API with its own header
        // names, and each server ignores the other's.
        // A header may contain visible ASCII only, and Nix writes nothing else.
        let header =
            (json.len() < LONGEST_INFO_HEADER).then(|| HeaderValue::from_bytes(&json).ok()).flatten();
        let preamble = match header.filter(|_| json.is_ascii()) {
            Some(value) => {
                request = request.header("X-Attic-Nar-Info", &value).header("X-Celler-Nar-Info", value);
                None
            }
            None => {
                request = request
                    .header("X-Attic-Nar-Info-Preamble-Size", json.len())
                    .header("X-Celler-Nar-Info-Preamble-Size", json.len());
                Some(Bytes::from(json))
            }
        };
        // Attic's own client sends chunks without a total length. Here the NAR's size
        // is known. With it a proxy can refuse a body that is too long before it has
        // received all of it, and need not buffer the body to count it.
        let length = info.nar_size + preamble.as_ref().map_or(0, |p| p.len() as u64);
        let (body, watch) = body::body(preamble, info.nar_size, nar, self.streams.clone());
        let known = self.credentials.get().await?;
        let request = self
            .authorized(request, &known)?
            .header(CONTENT_LENGTH, length)
            .header(CONTENT_TYPE, "application/octet-stream")
            .body(reqwest::Body::wrap_stream(body));
        let answer = self.exchange(request, &watch, patience, &doing).await;
        let (answer, sent) = answer.inspect_err(|e| self.note(e, &base))?;
        self.credentials.note_refusal(answer.status, &known);
        let UploadAnswer { kind, file_size } = answer.json(&doing).map_err(|e| e.of_upload(sent))?;
        Ok(Uploaded { deduplicated: kind == "Deduplicated", file_size })
    }

    async fn exchange(
        &self,
        request: RequestBuilder,
        watch: &Watch,
        patience: Duration,
        doing: &str,
    ) -> Result<(Answer, Sent), CacheError> {
        let limits = Limits { connect: self.connect_timeout, stall: self.stall_timeout, answer: patience };
        let response = tokio::select! {
            // `biased` polls the answer first: it takes precedence over a stall at the same moment.
            biased;
            response = request.send() => response,
            stall = watch.stalled(limits) => {
                let after = if stall == Stall::Answer { patience } else { self.stall_timeout };
                return Err(stall_error(&stall, after, doing).of_upload(watch.sent()));
            }
        };
        let sent = watch.sent();
        match response {
            Ok(response) => {
                watch.hold();
                let secrets = self.secrets();
                Ok((Answer::read(response, LONGEST_ANSWER, self.stall_timeout, secrets).await, sent))
            }
            Err(e) => Err(match watch.failure() {
                Some(Failure::Broken(why)) => {
                    CacheError::new(ErrorClass::Local, format!("{doing}: the path cannot be read: {why}"))
                }
                // The server would give the same answer after the whole body.
                Some(Failure::Short { missing }) => mismatch(doing, &format!("{missing} bytes shorter")),
                Some(Failure::Long) => mismatch(doing, "longer"),
                None if CacheError::is_refused_stream(&e) => CacheError::new(
                    ErrorClass::Transient,
                    format!(
                        "{doing}: the server refused the request before it looked at it, and gets it again"
                    ),
                ),
                None => CacheError::from_transport(&e, sent != Sent::Nothing, doing).of_upload(sent),
            }),
        }
    }

    /// Makes the next request look for an endpoint first if this one found no connection.
    fn note(&self, error: &CacheError, base: &Endpoint) {
        if error.class == ErrorClass::Unreachable {
            self.discovery.suspect(base);
        }
    }
}

fn mismatch(doing: &str, how: &str) -> CacheError {
    let message = format!(
        "{doing}: the path's NAR is {how} than what Nix registered; `nix-store --verify-path` shows more"
    );
    CacheError::new(ErrorClass::Mismatch, message)
}

fn stall_error(stall: &Stall, after: Duration, doing: &str) -> CacheError {
    let seconds = after.as_secs_f32();
    let (class, what) = match stall {
        Stall::Connecting => (ErrorClass::Unreachable, NetworkFault::TimedOut.to_string()),
        Stall::Sending => (ErrorClass::Transient, format!("the server accepted no data for {seconds} s")),
        Stall::Answer => (ErrorClass::Transient, format!("no answer for {seconds} s")),
        Stall::Source => (ErrorClass::Local, "reading the path made no progress for minutes".to_owned()),
    };
    CacheError::new(class, format!("{doing}: {what}"))
}

fn unwritable(error: &serde_json::Error) -> CacheError {
    CacheError::new(ErrorClass::Rejected, format!("the request cannot be written: {error}"))
}
