//! An HTTP proxy: which one is used, and its URL, which may have a login. Must not know
//! HTTP clients.

use std::fmt;
use std::path::PathBuf;

use reqwest::Url;
use zeroize::Zeroizing;

/// The proxy for requests to hosts other than this one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Proxy {
    /// The one that the environment names (`https_proxy` and its relatives), if it names one.
    #[default]
    Environment,
    /// None.
    Direct,
    /// This one.
    At(ProxyUrl),
    /// The one whose URL is in a file.
    File(PathBuf),
}

impl Proxy {
    /// Returns the file with the URL, if it is in a file.
    pub(crate) fn file(&self) -> Option<&PathBuf> {
        match self {
            Self::File(file) => Some(file),
            Self::Environment | Self::Direct | Self::At(_) => None,
        }
    }
}

/// The URL of a proxy, which may have a login. Neither `Debug` nor `Display` shows the login.
#[derive(Clone, PartialEq, Eq)]
pub struct ProxyUrl(Url);

impl ProxyUrl {
    /// Checks a URL. The error does not quote it.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let url = Url::parse(text.trim()).map_err(|e| {
            format!("it is not a URL ({e}); percent-encode `/`, `?`, `#` and `@` in a password")
        })?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err("it does not begin with http:// or https:// (SOCKS is not supported)".to_owned());
        }
        if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
            return Err("it has a path; percent-encode `/`, `?`, `#` and `@` in a password".to_owned());
        }
        Ok(Self(url))
    }

    /// Whether it has a password.
    pub(crate) fn has_password(&self) -> bool {
        self.0.password().is_some()
    }

    /// Returns the password as it is written and decoded, to remove it from messages.
    pub(crate) fn passwords(&self) -> [Zeroizing<String>; 2] {
        let written = Zeroizing::new(self.0.password().unwrap_or_default().to_owned());
        let plain = decoded(&written);
        [written, plain]
    }

    /// The URL with its login, for the HTTP client and no other use.
    pub(crate) fn expose(&self) -> &str {
        self.0.as_str()
    }
}

impl fmt::Display for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let host = self.0.host_str().unwrap_or_default();
        write!(f, "{}://{host}:{}", self.0.scheme(), self.0.port_or_known_default().unwrap_or_default())
    }
}

impl fmt::Debug for ProxyUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ProxyUrl({self})")
    }
}

/// Decodes a percent-encoded text.
fn decoded(text: &str) -> Zeroizing<String> {
    let mut bytes = Zeroizing::new(Vec::new());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let hex = (*first == b'%').then(|| after.get(..2)).flatten();
        let byte = hex.and_then(|hex| u8::from_str_radix(std::str::from_utf8(hex).ok()?, 16).ok());
        bytes.push(byte.unwrap_or(*first));
        rest = if byte.is_some() { after.get(2..).unwrap_or_default() } else { after };
    }
    Zeroizing::new(String::from_utf8_lossy(&bytes).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_login_of_a_proxy_is_not_shown() {
        let url = ProxyUrl::parse(" http://me:hunter%2Ftwo22@proxy:3128/\n").unwrap();
        assert_eq!(url.to_string(), "http://proxy:3128");
        assert_eq!(format!("{url:?}"), "ProxyUrl(http://proxy:3128)");
        assert!(url.has_password() && url.expose().contains("hunter"));
        let [written, plain] = url.passwords();
        assert_eq!((written.as_str(), plain.as_str()), ("hunter%2Ftwo22", "hunter/two22"));
        assert_eq!(ProxyUrl::parse("https://proxy").unwrap().to_string(), "https://proxy:443");
        for (text, why) in [
            ("proxy:3128", "http:// or https://"),
            ("socks5://proxy:1080", "SOCKS"),
            ("http://me:hunter/two@proxy", "not a URL"),
            ("http://me:hunter@proxy/path", "path"),
            ("http://", "not a URL"),
        ] {
            let error = ProxyUrl::parse(text).unwrap_err();
            assert!(error.contains(why) && !error.contains("hunter"), "{text}: {error}");
        }
    }
}
