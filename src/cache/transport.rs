//! HTTP clients and their limits. The first request that needs a client makes it, so a
//! daemon that only uploads to its own host loads no certificates. Must not know the API.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Identity, Response};
use tokio::time::Instant;
use zeroize::Zeroizing;

use super::endpoint::Endpoint;
use super::error::{CacheError, ErrorClass, quote};
use super::network_settings::Network;
use super::proxy;
use super::secrets::Secrets;
use crate::types::Proxy;

/// Number of idle connections kept open: more than there are parallel uploads.
const IDLE_CONNECTIONS: usize = 160;
/// Time for which an idle connection stays open. It is shorter than what servers and
/// proxies commonly allow (60 s and more), so that a request seldom uses a
/// connection that the other side is just closing.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// The kernel's timeout is longer than the stall timeout by this time, so that the upload ends with our
/// own message about the stall.
const KERNEL_MARGIN: Duration = Duration::from_secs(5);

/// How many times the longest wait for a piece of an answer the whole answer may take. A server that sends
/// a byte now and then is never silent.
const WHOLE: u32 = 4;

/// Largest file with certificates that the client reads, in bytes. A system's has 250 KB.
const LONGEST_PEM: u64 = 16 * 1024 * 1024;

/// For each file, metadata that differ when it was replaced or written.
type Fingerprint = Vec<Option<(u64, u64, u64, i64, i64)>>;

/// The clients that were made, and what the files that they are made of were then.
#[derive(Default)]
struct Made {
    /// The clients for plain HTTP on this host, for TLS on this host, and for other hosts.
    clients: [Option<Client>; 3],
    /// The same for uploads, where HTTP/2 may be used.
    upload_clients: [Option<Client>; 3],
    files: Fingerprint,
}

pub(super) struct Transport {
    network: Network,
    user_agent: String,
    connect_timeout: Duration,
    stall_timeout: Duration,
    made: Mutex<Made>,
}

impl Transport {
    pub(super) fn new(
        user_agent: String,
        connect_timeout: Duration,
        stall_timeout: Duration,
        network: Network,
    ) -> Self {
        Self { network, user_agent, connect_timeout, stall_timeout, made: Mutex::default() }
    }

    /// What the files that clients are made of are now.
    fn fingerprint(&self) -> Fingerprint {
        let of = |file: &std::path::PathBuf| {
            let meta = std::fs::metadata(file).ok()?;
            Some((meta.dev(), meta.ino(), meta.size(), meta.mtime(), meta.mtime_nsec()))
        };
        self.network.files().map(of).collect()
    }

    fn made(&self) -> MutexGuard<'_, Made> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Drops the clients if a file that they are made of has changed, so that the next
    /// connection reads it. Requests under way keep theirs.
    pub(super) fn refresh(&self) {
        let now = self.fingerprint();
        let mut made = self.made();
        if made.files != now {
            made.clients = Default::default();
            made.upload_clients = Default::default();
        }
    }

    /// The client for small requests and for reading.
    pub(super) fn client(&self, to: &Endpoint) -> Result<Client, CacheError> {
        self.made_for(to, false)
    }

    /// The client for uploads. With HTTP/2 it has connections of its own, so that no question
    /// waits for a stream until an upload has ended.
    pub(super) fn upload_client(&self, to: &Endpoint) -> Result<Client, CacheError> {
        self.made_for(to, self.network.http2)
    }

    fn made_for(&self, to: &Endpoint, apart: bool) -> Result<Client, CacheError> {
        let kind = match (to.is_loopback(), to.is_plain()) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        };
        let mut made = self.made();
        let known =
            |made: &Made| if apart { made.upload_clients[kind].clone() } else { made.clients[kind].clone() };
        if let Some(client) = known(&made) {
            return Ok(client);
        }
        if made.clients.iter().chain(&made.upload_clients).all(Option::is_none) {
            made.files = self.fingerprint();
        }
        let mut built = self.build(!to.is_loopback(), kind != 0);
        if built.is_err() && to.is_plain() {
            // A host without CA certificates can still use plain HTTP.
            built = self.build(!to.is_loopback(), false);
        }
        let client = built.map_err(|why| {
            CacheError::new(ErrorClass::Unreachable, format!("no HTTP client for {to}: {why}"))
        })?;
        let place = if apart { &mut made.upload_clients } else { &mut made.clients };
        place[kind] = Some(client.clone());
        Ok(client)
    }

    /// The error says which file cannot be used.
    fn build(&self, proxied: bool, certificates: bool) -> Result<Client, String> {
        // The only possible error is that the process has a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .user_agent(&self.user_agent)
            .tcp_nodelay(true)
            .connect_timeout(self.connect_timeout)
            .pool_max_idle_per_host(IDLE_CONNECTIONS)
            .pool_idle_timeout(IDLE_TIME)
            // The library's 30 s would disconnect a server that needs that long for
            // one piece of a body.
            .tcp_user_timeout(self.stall_timeout + KERNEL_MARGIN)
            .redirect(Policy::none())
            .referer(false)
            .retry(reqwest::retry::never());
        let builder = if self.network.http2 { builder } else { builder.http1_only() };
        // Without TLS there is nothing that could negotiate it.
        #[cfg(test)]
        let builder = if self.network.http2 { builder.http2_prior_knowledge() } else { builder };
        let builder = match (proxied, &self.network.proxy) {
            (false, _) | (true, Proxy::Direct) => builder.no_proxy(),
            (true, Proxy::Environment) => builder,
            (true, setting) => {
                let url = proxy::url(setting)?;
                let proxy = url.map(|url| {
                    reqwest::Proxy::all(url.expose()).map_err(|_| format!("the proxy {url} cannot be used"))
                });
                match proxy.transpose()? {
                    Some(proxy) => builder.proxy(proxy),
                    None => builder.no_proxy(),
                }
            }
        };
        let builder = match (certificates, &self.network.tls.ca) {
            (false, _) => builder.tls_certs_only([]),
            (true, None) => builder,
            (true, Some(file)) => {
                let certs = Certificate::from_pem_bundle(&pem(file)?).map_err(|e| unusable(file, &e))?;
                if certs.is_empty() {
                    return Err(format!("{} has no certificate in PEM format", file.display()));
                }
                builder.tls_certs_only(certs)
            }
        };
        let builder = match &self.network.tls.cert {
            Some(file) if certificates => {
                let mut both = pem(file)?;
                if let Some(key) = &self.network.tls.key {
                    both.push(b'\n');
                    both.extend_from_slice(&pem(key)?);
                }
                builder.identity(Identity::from_pem(&both).map_err(|e| unusable(file, &e))?)
            }
            _ => builder,
        };
        builder.build().map_err(|e| {
            let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            format!("{why}; are CA certificates installed on this host?")
        })
    }
}

/// Reads a file with certificates or a key.
fn pem(file: &Path) -> Result<Zeroizing<Vec<u8>>, String> {
    use std::io::Read as _;
    let mut text = Zeroizing::new(Vec::new());
    let read = std::fs::File::open(file).and_then(|opened| opened.take(LONGEST_PEM).read_to_end(&mut text));
    read.map_err(|e| {
        format!("{} cannot be read: {e}; the service's user must be able to read it", file.display())
    })?;
    Ok(text)
}

fn unusable(file: &Path, error: &reqwest::Error) -> String {
    let why = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    format!("{} cannot be used: {why}; it must be in PEM format", file.display())
}

/// An answer with its body, as far as the body could be read.
pub(super) struct Answer {
    pub(super) status: reqwest::StatusCode,
    pub(super) headers: reqwest::header::HeaderMap,
    pub(super) body: Vec<u8>,
    /// Why the body is not whole, if it is not.
    pub(super) cut: Option<String>,
    /// The secrets of the request, to remove them from the server's text.
    pub(super) secrets: Secrets,
}

impl Answer {
    /// Reads at most `limit` bytes, and waits at most `stall` for each piece and [`WHOLE`] times as long for
    /// all of them. Keeps the status even if the body cannot be read.
    pub(super) async fn read(
        mut response: Response,
        limit: usize,
        stall: Duration,
        secrets: Secrets,
    ) -> Self {
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        let end = Instant::now() + stall * WHOLE;
        let cut = loop {
            match tokio::time::timeout_at(end.min(Instant::now() + stall), response.chunk()).await {
                Ok(Ok(Some(piece))) if body.len() + piece.len() <= limit => body.extend_from_slice(&piece),
                Ok(Ok(Some(_))) => break Some(format!("it is longer than {limit} bytes")),
                Ok(Ok(None)) => break None,
                Ok(Err(_)) => break Some("the connection broke before its end".to_owned()),
                Err(_) if Instant::now() >= end => {
                    break Some(format!("it did not end within {} s", (stall * WHOLE).as_secs()));
                }
                Err(_) => break Some(format!("nothing more was received for {} s", stall.as_secs())),
            }
        };
        Self { status, headers, body, cut, secrets }
    }

    /// Makes the error of an answer that is not a success. Its message begins with `doing`.
    pub(super) fn refusal(&self, doing: &str) -> CacheError {
        CacheError::from_answer(self.status, &self.headers, &self.body, &self.secrets, doing)
    }

    /// Parses the JSON of a success; any other answer is an error whose message begins with `doing`.
    pub(super) fn json<T: serde::de::DeserializeOwned>(&self, doing: &str) -> Result<T, CacheError> {
        if !self.status.is_success() {
            return Err(self.refusal(doing));
        }
        let unclear = |why: &str| CacheError {
            status: Some(self.status.as_u16()),
            ..CacheError::new(
                ErrorClass::Transient,
                format!(
                    "{doing}: the server answered {}, but not as an Attic server does: {why}",
                    self.status
                ),
            )
        };
        match &self.cut {
            Some(why) => Err(unclear(why)),
            None => {
                serde_json::from_slice(&self.body).map_err(|e| unclear(&quote(&e.to_string(), &self.secrets)))
            }
        }
    }
}
