//! Addresses of servers: their form, whether one is on this host, and to which
//! address a server may send this client. Must not know HTTP clients.

use std::fmt;
use std::net::IpAddr;

use reqwest::Url;

use super::error::{CacheError, ErrorClass};
use crate::types::CacheName;

/// The base of an API; its path ends with a slash so that joining keeps it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Endpoint(Url);

impl Endpoint {
    pub(super) fn parse(text: &str) -> Result<Self, CacheError> {
        // The message must not quote a URL that contains a password.
        let wrong = |why: &str| {
            let shown = if text.contains('@') { "(with a login in it)" } else { text };
            CacheError::new(
                ErrorClass::Rejected,
                format!(
                    "the endpoint {shown} cannot be used: {why}; it should look like https://cache.example.com"
                ),
            )
        };
        let mut url = Url::parse(text.trim()).map_err(|e| wrong(&e.to_string()))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(wrong("it must begin with http:// or https://"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(wrong("a login in the URL would clash with the token"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(wrong("it must not have a '?' or '#' part"));
        }
        if !url.path().ends_with('/') {
            let path = format!("{}/", url.path());
            url.set_path(&path);
        }
        Ok(Self(url))
    }

    /// The host that a URL leads to. `None` for another scheme, and for a URL with a login.
    pub(super) fn of(url: &Url) -> Option<Self> {
        let mut url = url.clone();
        url.set_path("/");
        url.set_query(None);
        url.set_fragment(None);
        Self::parse(url.as_str()).ok()
    }

    /// The same host without a path.
    pub(super) fn host_only(&self) -> Self {
        let mut url = self.0.clone();
        url.set_path("/");
        Self(url)
    }

    pub(super) fn api(&self, call: &str) -> Result<Url, CacheError> {
        let url = self.0.join("_api/v1/").and_then(|api| api.join(call));
        url.map_err(|e| CacheError::new(ErrorClass::Rejected, format!("no URL for {call} at {self}: {e}")))
    }

    pub(super) fn config_call(cache: &CacheName) -> String {
        format!("cache-config/{cache}")
    }

    /// Returns whether the address is on this host. A request to it must not use a proxy,
    /// which would connect to the proxy's own host.
    pub(super) fn is_loopback(&self) -> bool {
        let Some(host) = self.0.host_str() else { return false };
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        match address {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => host == "localhost" || host.ends_with(".localhost"),
        }
    }

    pub(super) fn is_plain(&self) -> bool {
        self.0.scheme() == "http"
    }

    /// Returns why the client must not send the token to `next`, which the server here named.
    pub(super) fn objection_to(&self, next: &Self) -> Option<&'static str> {
        if next.is_loopback() && !self.is_loopback() {
            // The server's administrator meant the server's host, but any user of this host may listen at that address.
            Some("that is on the server's own host")
        } else if next.is_plain() && !self.is_plain() && !next.is_loopback() {
            Some("that is without TLS, and this address is with it")
        } else {
            None
        }
    }

    /// The host without a port; an IPv6 address without brackets.
    pub(super) fn host(&self) -> Option<String> {
        Some(self.0.host_str()?.trim_start_matches('[').trim_end_matches(']').to_owned())
    }

    /// Returns whether both addresses have the same host name.
    pub(super) fn has_host_of(&self, other: &Self) -> bool {
        self.0.host_str() == other.0.host_str()
    }

    /// Returns the base that a redirect of the cache-config call leads to, if it is another path with the same
    /// scheme, host and port. Any other address may belong to somebody else.
    pub(super) fn redirected(&self, location: &str, cache: &CacheName) -> Option<Self> {
        let call = Self::config_call(cache);
        let to = self.api(&call).ok()?.join(location).ok()?;
        let next = Self::parse(to.as_str().strip_suffix(&format!("_api/v1/{call}"))?).ok()?;
        (next.0.origin() == self.0.origin() && next != *self).then_some(next)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.as_str().trim_end_matches('/'))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Endpoint {
        Endpoint::parse(text).unwrap()
    }

    #[test]
    fn a_base_keeps_its_path() {
        for base in ["https://h/sub", "https://h/sub/"] {
            assert_eq!(at(base).api("upload-path").unwrap().as_str(), "https://h/sub/_api/v1/upload-path");
            assert_eq!(at(base).to_string(), "https://h/sub");
        }
        // A colon does not begin a scheme here, and a plus sign is not an encoded space.
        let call = Endpoint::config_call(&CacheName::parse("a+b").unwrap());
        assert_eq!(at("http://h").api(&call).unwrap().as_str(), "http://h/_api/v1/cache-config/a+b");
    }

    #[test]
    fn unusable_addresses_say_why() {
        for text in ["", "cache.example.com", "ftp://h", "https://h/?a", "https://h/#a", "/x"] {
            assert_eq!(Endpoint::parse(text).unwrap_err().class, ErrorClass::Rejected, "{text}");
        }
        let message = Endpoint::parse("https://me:hunter2@h/").unwrap_err().message;
        assert!(!message.contains("hunter2"), "{message}");
    }

    #[test]
    fn loopback() {
        for text in [
            "http://127.0.0.1:1",
            "http://127.9.9.9",
            "http://[::1]:80",
            "http://localhost",
            "http://[::ffff:127.0.0.1]",
        ] {
            assert!(at(text).is_loopback(), "{text}");
        }
        for text in [
            "http://10.0.0.1",
            "http://localhost.example.com",
            "http://[::2]",
            "https://127.0.0.1.example.com",
        ] {
            assert!(!at(text).is_loopback(), "{text}");
        }
    }

    #[test]
    fn where_a_token_may_go_on_to() {
        for (from, to, allowed) in [
            ("https://a", "https://b", true),
            ("http://a", "https://b", true),
            ("http://a", "http://b", true),
            ("https://a", "http://b", false),
            ("https://a", "http://localhost:8080", false),
            ("http://127.0.0.1:1", "http://127.0.0.1:2", true),
        ] {
            assert_eq!(at(from).objection_to(&at(to)).is_none(), allowed, "{from} {to}");
        }
    }

    #[test]
    fn redirects_that_are_taken() {
        let main = CacheName::parse("main").unwrap();
        for (from, location, to) in [
            ("http://a", "https://a/_api/v1/cache-config/main", None),
            ("http://a", "http://a:8080/_api/v1/cache-config/main", None),
            ("http://a", "http://a/new/_api/v1/cache-config/main", Some("http://a/new")),
            ("http://a", "/new/_api/v1/cache-config/main", Some("http://a/new")),
            ("http://a", "https://b/_api/v1/cache-config/main", None),
            ("https://a", "http://a/_api/v1/cache-config/main", None),
            ("http://a", "https://a/login", None),
            ("http://a", "/_api/v1/cache-config/main", None),
        ] {
            let next = at(from).redirected(location, &main).map(|e| e.to_string());
            assert_eq!(next.as_deref(), to, "{from} {location}");
        }
    }
}
