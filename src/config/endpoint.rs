//! Checks URLs of caches. Resolves no name and opens no connection.

use std::net::IpAddr;

/// The expected form, for messages.
pub(super) const EXPECTED: &str = "a URL like \"https://attic.example.com\"";

/// Checks a URL and removes slashes at its end. The error says what was found.
pub(super) fn parse(text: &str) -> Result<String, String> {
    // The text before an `@` may be a password, so it is not in the message.
    if text.contains('@') {
        return Err("found a URL with a user name or password in it".to_owned());
    }
    let url = reqwest::Url::parse(text).map_err(|error| format!("found {text:?}: {error}"))?;
    if !matches!(url.scheme(), "http" | "https") {
        return Err(format!("found {text:?} with the scheme {:?}", url.scheme()));
    }
    if url.query().is_some() || url.fragment().is_some() {
        return Err("found a URL with a query or fragment".to_owned());
    }
    Ok(url.as_str().trim_end_matches('/').to_owned())
}

/// Returns whether others could read a token on its way to this endpoint.
pub(super) fn is_exposed(endpoint: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(endpoint) else { return true };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    url.scheme() == "http" && !local
}
