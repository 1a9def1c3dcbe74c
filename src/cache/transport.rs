//! HTTP clients and their limits. The first request that needs a client makes it, so a
//! daemon that only uploads to its own host loads no certificates. Must not know the API.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use reqwest::redirect::Policy;
use reqwest::{Client, Response};

use super::endpoint::Endpoint;
use super::error::{CacheError, ErrorClass, quote};
use super::token::Secret;

/// Number of idle connections kept open: more than there are parallel uploads.
const IDLE_CONNECTIONS: usize = 160;
/// Time for which an idle connection stays open. It is shorter than what servers and
/// proxies commonly allow (60 s and more), so that a request seldom uses a
/// connection that the other side is just closing.
const IDLE_TIME: Duration = Duration::from_secs(30);
/// The kernel's timeout is longer than the stall timeout by this time, so that the upload ends with our
/// own message about the stall.
const KERNEL_MARGIN: Duration = Duration::from_secs(5);

pub(super) struct Transport {
    user_agent: String,
    connect_timeout: Duration,
    stall_timeout: Duration,
    /// The clients for plain HTTP on this host, for TLS on this host, and for other hosts.
    clients: Mutex<[Option<Client>; 3]>,
}

impl Transport {
    pub(super) fn new(user_agent: String, connect_timeout: Duration, stall_timeout: Duration) -> Self {
        Self { user_agent, connect_timeout, stall_timeout, clients: Mutex::default() }
    }

    pub(super) fn client(&self, to: &Endpoint) -> Result<Client, CacheError> {
        let kind = match (to.is_loopback(), to.is_plain()) {
            (true, true) => 0,
            (true, false) => 1,
            (false, _) => 2,
        };
        let mut clients = self.clients.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(client) = &clients[kind] {
            return Ok(client.clone());
        }
        let mut built = self.build(!to.is_loopback(), kind != 0);
        if built.is_err() && to.is_plain() {
            // A host without CA certificates can still use plain HTTP.
            built = self.build(!to.is_loopback(), false);
        }
        let client = built.map_err(|e| {
            let why = std::error::Error::source(&e).map_or_else(|| e.to_string(), ToString::to_string);
            let message =
                format!("no HTTP client for {to}: {why}; are CA certificates installed on this host?");
            CacheError::new(ErrorClass::Unreachable, message)
        })?;
        clients[kind] = Some(client.clone());
        Ok(client)
    }

    fn build(&self, proxied: bool, certificates: bool) -> reqwest::Result<Client> {
        // The only possible error is that the process has a provider already.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let builder = Client::builder()
            .user_agent(&self.user_agent)
            .http1_only()
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
        let builder = if proxied { builder } else { builder.no_proxy() };
        let builder = if certificates { builder } else { builder.tls_certs_only([]) };
        builder.build()
    }
}

/// An answer with its body, as far as the body could be read.
pub(super) struct Answer {
    pub(super) status: reqwest::StatusCode,
    pub(super) headers: reqwest::header::HeaderMap,
    pub(super) body: Vec<u8>,
    /// Why the body is not whole, if it is not.
    pub(super) cut: Option<String>,
    /// The token of the request, to remove it from the server's text.
    pub(super) token: Option<Secret>,
}

impl Answer {
    /// Reads at most `limit` bytes, and waits at most `stall` for each piece.
    /// Keeps the status even if the body cannot be read.
    pub(super) async fn read(
        mut response: Response,
        limit: usize,
        stall: Duration,
        token: Option<Secret>,
    ) -> Self {
        let status = response.status();
        let headers = std::mem::take(response.headers_mut());
        let mut body = Vec::new();
        let cut = loop {
            match tokio::time::timeout(stall, response.chunk()).await {
                Ok(Ok(Some(piece))) if body.len() + piece.len() <= limit => body.extend_from_slice(&piece),
                Ok(Ok(Some(_))) => break Some(format!("it is longer than {limit} bytes")),
                Ok(Ok(None)) => break None,
                Ok(Err(_)) => break Some("the connection broke before its end".to_owned()),
                Err(_) => break Some(format!("nothing more was received for {} s", stall.as_secs())),
            }
        };
        Self { status, headers, body, cut, token }
    }

    /// Makes the error of an answer that is not a success. Its message begins with `doing`.
    pub(super) fn refusal(&self, doing: &str) -> CacheError {
        CacheError::from_answer(self.status, &self.headers, &self.body, self.token.as_ref(), doing)
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
            None => serde_json::from_slice(&self.body)
                .map_err(|e| unclear(&quote(&e.to_string(), self.token.as_ref()))),
        }
    }
}
