//! How requests get to a cache's hosts: certificates, proxy, extra headers, HTTP version.
//! Must not know HTTP clients.

use std::path::PathBuf;

use crate::types::Proxy;

/// The files with the certificates for TLS, as PEM.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TlsFiles {
    /// The certificates of the authorities that are trusted. `None`: the system's.
    pub ca: Option<PathBuf>,
    /// The certificate that the client shows to servers that ask for one.
    pub cert: Option<PathBuf>,
    /// Its private key. `None`: it is in the same file.
    pub key: Option<PathBuf>,
}

/// How requests get to a cache's hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The certificates for TLS.
    pub tls: TlsFiles,
    /// The file with headers that each request to a trusted host carries.
    pub headers_file: Option<PathBuf>,
    /// The proxy.
    pub proxy: Proxy,
    /// Whether the client uses HTTP/2 where a server offers it in the TLS handshake. Requests without TLS use
    /// HTTP/1.1.
    pub http2: bool,
}

impl Network {
    /// The files that HTTP clients are made of.
    pub(super) fn files(&self) -> impl Iterator<Item = &PathBuf> {
        self.tls.ca.iter().chain(&self.tls.cert).chain(&self.tls.key).chain(self.proxy.file())
    }
}
