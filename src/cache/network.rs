//! Says in plain words why a request got no answer, and what to do about it. Every text about
//! a broken connection comes from here. Must not know what was asked, nor of whom.

use std::error::Error;
use std::fmt;
use std::io::{self, ErrorKind};

use rustls::{AlertDescription, CertificateError};

use super::error::quote;
use super::secrets::Secrets;

/// Why a request got no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum NetworkFault {
    Refused,
    TimedOut,
    /// The name service knows no address of this name.
    NoAddress,
    /// The name service did not answer.
    NameServiceSilent,
    NoRoute,
    /// This host's firewall, or the sandbox of the service, forbids the connection.
    Forbidden,
    /// This host has no file descriptor or port left.
    Exhausted,
    Reset,
    /// The other side ended the connection without an answer.
    Closed,
    /// No trusted authority has signed the certificate.
    UntrustedCertificate,
    ExpiredCertificate,
    EarlyCertificate,
    /// The certificate is for other names.
    OtherName,
    /// The certificate is refused for another reason.
    BadCertificate(String),
    /// The server wants a certificate of the client, or does not trust the one that it got.
    CertificateWanted,
    /// The other side does not speak TLS.
    NoTls,
    /// The TLS handshake failed for another reason.
    Handshake(String),
    /// The proxy does not connect to the server.
    Proxy(String),
    /// The other side does not speak HTTP.
    NoHttp(String),
    Other(String),
}

impl NetworkFault {
    /// Finds the reason in an error and its causes.
    pub(super) fn of(error: &(dyn Error + 'static)) -> Self {
        let mut found = None;
        let mut root = error.to_string();
        let mut next = Some(error);
        while let Some(error) = next {
            root = error.to_string();
            // The innermost cause that has a meaning is the most precise one.
            found = meaning(error).or(found);
            next = match error.downcast_ref::<io::Error>().and_then(io::Error::get_ref) {
                // The source of an I/O error is the source of what it contains, which would be left out.
                Some(inner) => Some(inner),
                None => error.source(),
            };
        }
        found.unwrap_or_else(|| Self::Other(quote(&root, &Secrets::default())))
    }
}

impl fmt::Display for NetworkFault {
    /// Writes what happened, then what to do.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text = match self {
            Self::Refused => {
                "the connection was refused, because nothing listens at this address; start the server, or correct \
                 `endpoints`"
            }
            Self::TimedOut => {
                "the connection timed out; check that the server runs, and that no firewall drops the connection"
            }
            Self::NoAddress => {
                "the name service knows no address of this name; correct the name in `endpoints`, or the DNS entry"
            }
            Self::NameServiceSilent => {
                "the name service did not answer; check /etc/resolv.conf and the network of this host"
            }
            Self::NoRoute => "this host has no way to the address; check its network, routes and VPN",
            Self::Forbidden => {
                "this host forbids the connection; check its firewall and IPAddressDeny= of the unit"
            }
            Self::Exhausted => {
                "this host has no file descriptor or port left for a connection; raise LimitNOFILE= of the unit"
            }
            Self::Reset => {
                "the other side reset the connection; the log of the server, or of the proxy before it, says why"
            }
            Self::Closed => {
                "the other side closed the connection without an answer; the log of the server, or of the proxy \
                 before it, says why"
            }
            Self::UntrustedCertificate => {
                "no authority that this host trusts has signed the server's certificate; name the authority's \
                 certificate with `ca_file` in [caches.NAME]"
            }
            Self::ExpiredCertificate => {
                "the server's certificate has expired; renew it on the server, or correct the clock of this host"
            }
            Self::EarlyCertificate => {
                "the server's certificate is not valid yet; correct the clock of this host"
            }
            Self::OtherName => {
                "the server's certificate is for another name; write the name of the certificate into `endpoints`"
            }
            Self::CertificateWanted => {
                "the server wants a certificate of the client that it trusts; name one with `client_cert` in \
                 [caches.NAME]"
            }
            Self::NoTls => {
                "the other side does not speak TLS at this port; write http:// into `endpoints`, or the port for https"
            }
            Self::BadCertificate(why) => {
                return write!(f, "the server's certificate is refused ({why}); replace it on the server");
            }
            Self::Handshake(why) => {
                return write!(
                    f,
                    "the TLS handshake failed ({why}); the log of the server, or of the proxy before it, says more"
                );
            }
            Self::Proxy(why) => {
                return write!(
                    f,
                    "the HTTP proxy does not connect to the server ({why}); correct `proxy` of the cache, or the \
                     variables HTTPS_PROXY and NO_PROXY"
                );
            }
            Self::NoHttp(why) => {
                return write!(
                    f,
                    "the other side does not speak HTTP ({why}); correct the port in `endpoints`"
                );
            }
            Self::Other(why) => why,
        };
        f.write_str(text)
    }
}

/// The meaning of one error of the chain, if it has one by itself.
fn meaning(error: &(dyn Error + 'static)) -> Option<NetworkFault> {
    if let Some(error) = error.downcast_ref::<rustls::Error>() {
        return Some(of_tls(error));
    }
    if let Some(error) = error.downcast_ref::<io::Error>() {
        return of_io(error);
    }
    if let Some(error) = error.downcast_ref::<hyper::Error>() {
        return match () {
            () if error.is_timeout() => Some(NetworkFault::TimedOut),
            () if error.is_incomplete_message() || error.is_closed() => Some(NetworkFault::Closed),
            () if error.is_parse() => {
                Some(NetworkFault::NoHttp(quote(&error.to_string(), &Secrets::default())))
            }
            () => None,
        };
    }
    if error.downcast_ref::<reqwest::Error>().is_some_and(reqwest::Error::is_timeout) {
        return Some(NetworkFault::TimedOut);
    }
    // These types are not public.
    let text = error.to_string();
    match text.as_str() {
        text if text.contains("tunnel") => Some(NetworkFault::Proxy(quote(text, &Secrets::default()))),
        "operation timed out" | "deadline has elapsed" => Some(NetworkFault::TimedOut),
        _ => None,
    }
}

fn of_io(error: &io::Error) -> Option<NetworkFault> {
    // The standard library has no kind for these, and `getaddrinfo` no number that it keeps.
    let text = error.to_string();
    if text.contains("failed to lookup address information") {
        let silent = text.contains("Temporary failure") || text.contains("Try again");
        return Some(if silent { NetworkFault::NameServiceSilent } else { NetworkFault::NoAddress });
    }
    Some(match error.kind() {
        ErrorKind::ConnectionRefused => NetworkFault::Refused,
        ErrorKind::TimedOut => NetworkFault::TimedOut,
        ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => {
            NetworkFault::Reset
        }
        ErrorKind::UnexpectedEof => NetworkFault::Closed,
        ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable | ErrorKind::NetworkDown => {
            NetworkFault::NoRoute
        }
        ErrorKind::PermissionDenied => NetworkFault::Forbidden,
        ErrorKind::AddrNotAvailable => NetworkFault::Exhausted,
        _ => match rustix::io::Errno::from_io_error(error)? {
            rustix::io::Errno::MFILE | rustix::io::Errno::NFILE => NetworkFault::Exhausted,
            _ => return None,
        },
    })
}

fn of_tls(error: &rustls::Error) -> NetworkFault {
    use NetworkFault as Fault;
    match error {
        rustls::Error::InvalidCertificate(why) => match why {
            CertificateError::UnknownIssuer => Fault::UntrustedCertificate,
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Fault::ExpiredCertificate,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Fault::EarlyCertificate
            }
            CertificateError::NotValidForName | CertificateError::NotValidForNameContext { .. } => {
                Fault::OtherName
            }
            other => Fault::BadCertificate(quote(&other.to_string(), &Secrets::default())),
        },
        rustls::Error::AlertReceived(
            AlertDescription::CertificateRequired
            | AlertDescription::BadCertificate
            | AlertDescription::UnknownCA
            | AlertDescription::CertificateUnknown,
        ) => Fault::CertificateWanted,
        rustls::Error::InvalidMessage(_) => Fault::NoTls,
        other => Fault::Handshake(quote(&other.to_string(), &Secrets::default())),
    }
}
