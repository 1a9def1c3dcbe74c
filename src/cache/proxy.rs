//! Reads the URL of a cache's HTTP proxy. Must not know HTTP clients.

use std::path::Path;

use zeroize::Zeroizing;

use super::token::Secret;
use crate::types::{Proxy, ProxyUrl};

/// Longest address in bytes.
const LONGEST: u64 = 4096;

/// Returns the URL of the proxy that the configuration names, if it names one.
pub(super) fn url(proxy: &Proxy) -> Result<Option<ProxyUrl>, String> {
    match proxy {
        Proxy::Environment | Proxy::Direct => Ok(None),
        Proxy::At(url) => Ok(Some(url.clone())),
        Proxy::File(file) => read(file).map(Some),
    }
}

/// Returns the proxy's password as secrets.
pub(super) fn secrets(proxy: &Proxy) -> Vec<Secret> {
    let Ok(Some(url)) = url(proxy) else { return Vec::new() };
    url.passwords().iter().filter_map(|text| Secret::hidden(text)).collect()
}

fn read(file: &Path) -> Result<ProxyUrl, String> {
    use std::io::Read as _;
    let wrong = |why: String| format!("the proxy_file {} cannot be used: {why}", file.display());
    let mut text = Zeroizing::new(String::new());
    std::fs::File::open(file)
        .and_then(|opened| opened.take(LONGEST).read_to_string(&mut text))
        .map_err(|e| wrong(format!("{e}; the service's user must be able to read it")))?;
    ProxyUrl::parse(&text)
        .map_err(|why| wrong(format!("{why}; it must hold one URL like http://user:password@proxy:3128")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_with_the_url_of_a_proxy() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("proxy");
        let proxy = Proxy::File(file.clone());
        assert!(url(&proxy).unwrap_err().contains("proxy_file"));
        std::fs::write(&file, "http://me:hunter%2Ftwo22@proxy:1\n").unwrap();
        assert_eq!(url(&proxy).unwrap().unwrap().to_string(), "http://proxy:1");
        let secrets = secrets(&proxy);
        for text in ["hunter/two22", "hunter%2Ftwo22"] {
            assert!(secrets.iter().any(|s| s.scrub(text) != text), "{text}");
        }
        std::fs::write(&file, "http://me:hunter22@proxy/x").unwrap();
        let error = url(&proxy).unwrap_err();
        assert!(error.contains("path") && !error.contains("hunter"), "{error}");
    }
}
