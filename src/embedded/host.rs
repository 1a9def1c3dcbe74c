//! Checks the host name in a request. Without this check, the owner of a web page
//! could let the page's name resolve to 127.0.0.1 and read the cache through the
//! browser of a user of this host (DNS rebinding). Must not know what a request
//! asks for.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::api::App;
use super::error::ApiError;

/// The names of this server, in lower case.
#[derive(Debug)]
pub(crate) struct HostNames(Vec<String>);

impl HostNames {
    /// Collects `localhost`, the name of this host with and without its domain, and `configured`.
    pub(crate) fn new(configured: &[String]) -> Self {
        let node = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let short = node.split('.').next().unwrap_or_default().to_owned();
        let mut names = vec!["localhost".to_owned(), short, node];
        names.extend(configured.iter().map(|name| name.to_ascii_lowercase()));
        names.retain(|name| !name.is_empty());
        Self(names)
    }

    /// Returns whether the value of a `Host` header names this server. Any IP address counts as a name of it,
    /// because DNS rebinding needs a name that resolves.
    pub(crate) fn has(&self, header: &str) -> bool {
        let Ok(authority) = header.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.is_ok() || self.0.contains(&host.trim_end_matches('.').to_ascii_lowercase())
    }
}

/// Returns whether `name` can be the name of a host: letters, digits, dots and dashes.
pub(super) fn is_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
}

/// Refuses requests for a server of another name. Accepts requests without `Host`, which no browser sends.
pub(super) async fn own_names(State(app): State<Arc<App>>, request: Request, next: Next) -> Response {
    let host = request.headers().get(HOST).map(|host| String::from_utf8_lossy(host.as_bytes()).into_owned());
    match host {
        Some(host) if !app.names.has(&host) => {
            super::upload::linger(request.into_body().into_data_stream());
            ApiError::OtherHost(host.chars().take(64).collect()).into_response()
        }
        _ => next.run(request).await,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_server() {
        let names = HostNames::new(&["Cache.Example.com".to_owned()]);
        for own in [
            "localhost",
            "LOCALHOST:8742",
            "127.0.0.1:8742",
            "[::1]:8742",
            "10.1.2.3",
            "cache.example.com",
            "cache.example.com.:443",
        ] {
            assert!(names.has(own), "{own}");
        }
        for other in
            ["evil.example", "localhost.evil.example:8742", "x@localhost", "", "a b", "127.0.0.1.nip.io"]
        {
            assert!(!names.has(other), "{other}");
        }
    }
}
