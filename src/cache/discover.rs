//! Chooses one of several addresses. It asks the candidates in order until one
//! answers with the cache's configuration, and then uses the address that the
//! configuration names, if that one works. Must not know what is uploaded.
//!
//! Attic's own client always uses the named `api_endpoint`. A server behind a
//! proxy often names one that only the server can reach. So this client tests the
//! named address, and if that fails uses the candidate, which has just answered.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::client::Inner;
use super::endpoint::Endpoint;
use super::error::{CacheError, ErrorClass, quote};
use super::transport::Answer;
use super::wire::CacheConfig;

/// Time for which the client does not ask a named address again after it failed,
/// because each attempt may take the whole connect timeout.
const REFUSED_FOR: Duration = Duration::from_secs(300);
const MAX_REDIRECTS: usize = 3;
/// Largest configuration that the client reads, in bytes. Real ones are below 1 KiB.
pub(super) const LONGEST_CONFIG: usize = 256 * 1024;

/// The result of a discovery.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discovered {
    /// Where requests go.
    pub endpoint: String,
    /// The cache's configuration.
    pub config: CacheConfig,
    /// Why the client does not use the `api_endpoint` that the configuration names, if it does not.
    pub named_unusable: Option<String>,
}

#[derive(Default)]
struct Known {
    current: Option<(Endpoint, Discovered)>,
    /// The configuration that the cache has shown last, also while no endpoint answers.
    config: Option<CacheConfig>,
    /// Whether a request found no connection since the discovery; if so, the next request discovers again.
    suspect: bool,
    refused: Option<(Endpoint, Instant, String)>,
}

/// The results of discoveries: the endpoint in use, and the named endpoint that failed.
#[derive(Default)]
pub(super) struct Discovery {
    known: Mutex<Known>,
    /// One request holds this lock while it asks, and the others wait for its answer instead of asking too.
    asking: tokio::sync::Mutex<()>,
}

impl Discovery {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn last(&self) -> Option<Discovered> {
        self.known().current.as_ref().map(|(_, discovered)| discovered.clone())
    }

    pub(super) fn config(&self) -> Option<CacheConfig> {
        self.known().config.clone()
    }

    pub(super) fn suspect(&self, endpoint: &Endpoint) {
        let mut known = self.known();
        if known.current.as_ref().is_some_and(|(current, _)| current == endpoint) {
            known.suspect = true;
        }
    }

    fn trusted(&self) -> Option<Endpoint> {
        let known = self.known();
        if known.suspect { None } else { known.current.as_ref().map(|(endpoint, _)| endpoint.clone()) }
    }

    fn refusal(&self, endpoint: &Endpoint) -> Option<String> {
        match &self.known().refused {
            Some((refused, at, why)) if refused == endpoint && at.elapsed() < REFUSED_FOR => {
                Some(why.clone())
            }
            _ => None,
        }
    }
}

impl Inner {
    /// Returns the endpoint for a request: the known one, or one found now.
    pub(super) async fn locate(&self) -> Result<Endpoint, CacheError> {
        if let Some(endpoint) = self.discovery.trusted() {
            return Ok(endpoint);
        }
        let _asking = self.discovery.asking.lock().await;
        match self.discovery.trusted() {
            Some(endpoint) => Ok(endpoint),
            None => self.search().await.map(|(endpoint, _)| endpoint),
        }
    }

    /// Looks for an endpoint that answers. `read`: the result of reading the credentials again.
    pub(super) async fn discover(&self, read: Result<(), CacheError>) -> Result<Discovered, CacheError> {
        let _asking = self.discovery.asking.lock().await;
        // The cache may be waiting for a new token. If the file cannot be read at the
        // moment, for example while somebody replaces it, the token in use stays.
        if let Err(e) = read
            && self.credentials.known().is_none()
            && !self.credentials.awaits_token()
        {
            return Err(e);
        }
        self.search().await.map(|(_, discovered)| discovered)
    }

    /// Asks the remembered address first, then all candidates in order.
    async fn search(&self) -> Result<(Endpoint, Discovered), CacheError> {
        let remembered = self.discovery.known().current.as_ref().map(|(endpoint, _)| endpoint.clone());
        let others = self.candidates.iter().filter(|c| Some(*c) != remembered.as_ref());
        let mut failures: Vec<CacheError> = Vec::new();
        for base in remembered.iter().chain(others) {
            match self.settle(base.clone()).await {
                Ok((endpoint, discovered)) => {
                    if remembered.as_ref() != Some(&endpoint) {
                        crate::observe::event!(ENDPOINT_CHOSEN, cache = %self.cache, endpoint = %endpoint, "cache {} answers at {endpoint}", self.cache);
                    }
                    let mut known = self.discovery.known();
                    known.current = Some((endpoint.clone(), discovered.clone()));
                    known.config = Some(discovered.config.clone());
                    known.suspect = false;
                    return Ok((endpoint, discovered));
                }
                Err(e) => failures.push(e),
            }
        }
        // No endpoint answers, so the next request asks all of them again in their order.
        {
            let mut known = self.discovery.known();
            known.suspect = true;
            let gone = failures.first().is_some_and(|e| e.class == ErrorClass::Unreachable);
            if remembered.is_some() && gone {
                known.current = None;
            }
        }
        // The error with an answer ranks before one without; the message names all failures.
        let message = failures.iter().map(|e| e.message.as_str()).collect::<Vec<_>>().join("; ");
        match failures.into_iter().min_by_key(CacheError::rank) {
            Some(error) => Err(CacheError { message, ..error }),
            None => Err(CacheError::new(
                ErrorClass::Rejected,
                format!("the cache {} has no endpoints", self.cache),
            )),
        }
    }

    /// Asks one address, and then the one that its configuration names.
    async fn settle(&self, base: Endpoint) -> Result<(Endpoint, Discovered), CacheError> {
        let (base, config) = self.ask(base).await?;
        let here = |named_unusable| {
            let discovered =
                Discovered { endpoint: base.to_string(), config: config.clone(), named_unusable };
            (base.clone(), discovered)
        };
        let Some(named) = config.api_endpoint.as_deref() else { return Ok(here(None)) };
        let named = match Endpoint::parse(named) {
            Ok(named) if named == base => return Ok(here(None)),
            Ok(named) => named,
            Err(e) => return Ok(here(Some(e.message))),
        };
        if let Some(why) = self.discovery.refusal(&named) {
            return Ok(here(Some(why)));
        }
        let refuse = |why: String| {
            crate::observe::event!(ENDPOINT_FALLBACK, cache = %self.cache, endpoint = %base, error = why, "cache {} is reached at {base}, as configured, and not at the API endpoint that the server names: {why}", self.cache);
            self.discovery.known().refused = Some((named.clone(), Instant::now(), why.clone()));
            Ok(here(Some(why)))
        };
        if let Some(why) = base.objection_to(&named) {
            return refuse(format!("{base} names {named} as its API endpoint: {why}"));
        }
        if let Some(why) = self.distrust(&named) {
            return refuse(format!("{base} names another API endpoint: {why}"));
        }
        match self.ask(named.clone()).await {
            Ok((endpoint, config)) => {
                let discovered = Discovered { endpoint: endpoint.to_string(), config, named_unusable: None };
                Ok((endpoint, discovered))
            }
            Err(e) => refuse(format!("{base} names {named} as its API endpoint, which fails: {}", e.message)),
        }
    }

    /// Asks one address for the cache's configuration, through redirects that stay on its host.
    async fn ask(&self, mut base: Endpoint) -> Result<(Endpoint, CacheConfig), CacheError> {
        let call = Endpoint::config_call(&self.cache);
        // A candidate that does not answer must not delay the others for long.
        let patience = self.stall_timeout.min(self.connect_timeout * 2);
        for _ in 0..=MAX_REDIRECTS {
            let doing = format!("asking {base} for the cache {}", self.cache);
            let request = || Ok(self.transport.client(&base)?.get(base.api(&call)?));
            let answer: Answer = self.small(request, LONGEST_CONFIG, patience, &doing).await?;
            if answer.status.is_redirection() {
                let location = answer.headers.get(reqwest::header::LOCATION).and_then(|l| l.to_str().ok());
                if let Some(next) = location.and_then(|l| base.redirected(l, &self.cache)) {
                    base = next;
                    continue;
                }
                let mut e =
                    CacheError::from_answer(answer.status, &answer.headers, &[], &answer.secrets, &doing);
                if let Some(location) = location {
                    e.message = format!("{} ({})", e.message, quote(location, &answer.secrets));
                }
                return Err(self.scrubbed(e));
            }
            let config: CacheConfig = answer.json(&doing).map_err(|e| self.scrubbed(e))?;
            return Ok((base, config.checked(&self.secrets())));
        }
        Err(CacheError::new(ErrorClass::Rejected, format!("{base} redirects in a circle")))
    }
}
