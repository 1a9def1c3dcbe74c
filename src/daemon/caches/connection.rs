//! How a cache is reached: its endpoints and its token, as the configuration says.
//! Must not know whether it answers.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail};

use super::BuiltIn;
use crate::cache::{CacheClient, ClientSettings, Network, SuppliedToken, TlsFiles, TokenSource, Upstream};
use crate::config::{self, Cache, Jobs, Settings, Target, Token, TokenCommand};
use crate::daemon::attic::CacheLogin;
use crate::daemon::push::UpstreamCheck;
use crate::flow::CacheLimits;
use crate::types::CacheName;

/// Uploads at a time when the configuration says `jobs = "auto"`.
const AUTO: CacheLimits = CacheLimits { least: 1, most: 128 };

/// The least and the greatest number of uploads at a time.
pub(in crate::daemon) fn limits(jobs: Jobs) -> CacheLimits {
    match jobs {
        Jobs::Auto => AUTO,
        Jobs::Fixed(n) => CacheLimits { least: n, most: n },
    }
}

/// A client for a cache, and where its token is.
#[derive(Debug, Clone)]
pub(in crate::daemon) struct Connection {
    login: CacheLogin,
    /// The file that holds the token, if it is in a file.
    token_file: Option<PathBuf>,
    /// The program that gives the token, if one does.
    token_command: Option<TokenCommand>,
    upstream_check: UpstreamCheck,
}

impl Connection {
    /// The connection of a configured cache. Reads its token. Fails when the
    /// configuration cannot be used, not when the cache does not answer.
    pub(in crate::daemon) fn new(
        name: &str,
        cache: &Cache,
        recheck_after: Duration,
        built_in: Option<&BuiltIn>,
    ) -> Result<Self> {
        let (endpoints, token) = match (&cache.target, built_in) {
            (Target::Embedded, Some(at)) => {
                (vec![at.url()], TokenSource::File(at.push_token_file().to_owned()))
            }
            (Target::Embedded, None) => {
                bail!("the cache {name} is built in, and the built-in cache does not run")
            }
            (Target::Remote(urls), _) => {
                let token = match &cache.token {
                    Token::File(file) => TokenSource::File(file.clone()),
                    Token::Env(variable) => TokenSource::Env(variable.clone()),
                    Token::Command(_) => TokenSource::Supplied(SuppliedToken::default()),
                    Token::None => TokenSource::None,
                };
                (urls.clone(), token)
            }
        };
        let token_file = match &token {
            TokenSource::File(file) => Some(file.clone()),
            TokenSource::Env(_) | TokenSource::Supplied(_) | TokenSource::None => None,
        };
        let token_command = match &cache.token {
            Token::Command(command) => Some(command.clone()),
            Token::File(_) | Token::Env(_) | Token::None => None,
        };
        let first_endpoint = endpoints.first().cloned().unwrap_or_default();
        let mut settings = ClientSettings::new(endpoints, CacheName::parse(&cache.cache)?, token.clone());
        settings.stall_timeout = cache.stall_timeout;
        settings.trust_api_endpoint = cache.trust_api_endpoint;
        settings.network = network(&cache.network);
        if let (Target::Embedded, Some(at)) = (&cache.target, built_in) {
            settings.hold = Some(at.port_trouble().clone());
        }
        let client = CacheClient::new(settings).with_context(|| format!("the cache {name}"))?;
        let login = CacheLogin { name: name.to_owned(), client, first_endpoint, token };
        let upstream = |url: &String| Ok((url.clone(), Upstream::new(url, nix_certificates())?));
        let upstreams: Result<Vec<_>> = cache.upstream_check.iter().map(upstream).collect();
        let upstream_check = UpstreamCheck::new(name, upstreams?, recheck_after);
        Ok(Self { login, token_file, token_command, upstream_check })
    }

    /// The connections of all configured caches.
    pub(in crate::daemon) fn all(settings: &Settings, built_in: Option<&BuiltIn>) -> Result<Vec<Self>> {
        let recheck_after = settings.push.recheck_after;
        settings.caches.iter().map(|(name, cache)| Self::new(name, cache, recheck_after, built_in)).collect()
    }

    /// The cache's name in the configuration.
    pub(in crate::daemon) fn name(&self) -> &str {
        &self.login.name
    }

    pub(in crate::daemon) fn client(&self) -> &CacheClient {
        &self.login.client
    }

    pub(super) fn login(&self) -> &CacheLogin {
        &self.login
    }

    /// The program that gives the token.
    pub(super) fn token_command(&self) -> Option<&TokenCommand> {
        self.token_command.as_ref()
    }

    /// The upstream caches that are asked for the cache's paths.
    pub(in crate::daemon) fn upstream_check(&self) -> &UpstreamCheck {
        &self.upstream_check
    }

    pub(super) fn token_file(&self) -> Option<&Path> {
        self.token_file.as_deref()
    }
}

/// The file with the certificates that Nix trusts, if the environment names one.
/// `$SSL_CERT_FILE` is read with the system's certificates.
fn nix_certificates() -> Option<PathBuf> {
    std::env::var_os("NIX_SSL_CERT_FILE").map(PathBuf::from)
}

/// How requests get to a cache with these settings.
fn network(settings: &config::Network) -> Network {
    let tls = &settings.tls;
    Network {
        tls: TlsFiles {
            ca: tls.ca_file.clone().or_else(nix_certificates),
            cert: tls.client_cert.clone(),
            key: tls.client_key.clone(),
        },
        headers_file: settings.headers_file.clone(),
        proxy: settings.proxy.clone(),
        http2: settings.http2,
    }
}
