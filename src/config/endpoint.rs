//! Whether a text is an address that a cache can have. Resolves nothing,
//! connects to nothing.

use std::net::IpAddr;

/// What can stand where a URL is expected.
pub(super) const EXPECTED: &str = "a URL like \"https://attic.example.com\"";

/// A checked URL without a trailing slash; else what was found instead.
pub(super) fn parse(text: &str) -> Result<String, String> {
    // Whatever stands before an `@` may be a password, and is not repeated.
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

/// Whether a token sent there could be read on the way.
pub(super) fn is_exposed(endpoint: &str) -> bool {
    let Ok(url) = reqwest::Url::parse(endpoint) else { return true };
    let host = url.host_str().unwrap_or_default().trim_matches(['[', ']']);
    let local = host == "localhost" || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    url.scheme() == "http" && !local
}
