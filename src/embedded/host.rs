//! Under which names this server may be asked. A web page whose name its owner
//! lets point to 127.0.0.1 could otherwise read the cache through the browser
//! of somebody on this host. Must not know what is asked for.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::header::HOST;
use axum::http::uri::Authority;
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::api::App;
use super::error::ApiError;

/// The names of this server, in small letters.
pub(super) struct HostNames(Vec<String>);

impl HostNames {
    /// `localhost`, the name of this host with and without its domain, and `configured`.
    pub(super) fn new(configured: &[String]) -> Self {
        let node = rustix::system::uname().nodename().to_string_lossy().to_ascii_lowercase();
        let short = node.split('.').next().unwrap_or_default().to_owned();
        let mut names = vec!["localhost".to_owned(), short, node];
        names.extend(configured.iter().map(|name| name.to_ascii_lowercase()));
        names.retain(|name| !name.is_empty());
        Self(names)
    }

    /// Whether the value of a `Host` header names this server. An address always does: a page from elsewhere
    /// cannot have one as its name.
    fn has(&self, header: &str) -> bool {
        let Ok(authority) = header.parse::<Authority>() else { return false };
        if authority.as_str().contains('@') {
            return false;
        }
        let host = authority.host();
        let address = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        address.is_ok() || self.0.contains(&host.trim_end_matches('.').to_ascii_lowercase())
    }
}

/// Whether `name` can be the name of a host: letters, digits, dots and dashes.
pub(super) fn is_name(name: &str) -> bool {
    (1..=253).contains(&name.len())
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-'))
}

/// Refuses requests for a server of another name. A request without `Host` comes from no browser.
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
