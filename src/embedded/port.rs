//! The address that the server listens on. Another process may have it, so listening
//! is tried again until it works. Must not know what the server serves.

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::sync::watch;

use super::error::EmbeddedError;
use crate::observe::event;

/// The first delay before listening is tried again; each further one is twice as long, up to [`LONGEST`].
/// The kernel does not report that a port became free.
const FIRST: Duration = Duration::from_millis(250);
/// The longest delay.
const LONGEST: Duration = Duration::from_secs(15);

/// An address that the server listens on, or is going to listen on.
pub(super) struct Port {
    addr: SocketAddr,
    listener: Option<TcpListener>,
    trouble: watch::Sender<Option<String>>,
}

impl Port {
    /// Takes over `passed`, or listens on `addr`. If `addr` cannot be listened on now, [`Self::listener`] tries
    /// again. Fails for a passed socket that cannot be used, and for port 0, because then the address would
    /// not be known.
    pub(super) fn open(addr: SocketAddr, passed: Option<StdListener>) -> Result<Self, EmbeddedError> {
        let failed = |source| EmbeddedError::Listen { addr, source };
        let listening = match passed {
            Some(passed) => adopt(passed).map_err(failed)?,
            None => match bind(addr) {
                Ok(listener) => listener,
                Err(source) if addr.port() == 0 => return Err(failed(source)),
                Err(source) => {
                    let why = explain(addr, &source);
                    event!(
                        BUILT_IN_WAITS,
                        address = %addr,
                        error = why,
                        "{why}; its paths wait, and the daemon tries again until the address is free"
                    );
                    return Ok(Self { addr, listener: None, trouble: watch::Sender::new(Some(why)) });
                }
            },
        };
        let addr = listening.local_addr().map_err(failed)?;
        Ok(Self { addr, listener: Some(listening), trouble: watch::Sender::new(None) })
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// Why nothing listens yet; `None` when something does.
    pub(super) fn trouble(&self) -> watch::Receiver<Option<String>> {
        self.trouble.subscribe()
    }

    /// Returns the listening socket. Waits until the address is free.
    pub(super) async fn listener(self) -> TcpListener {
        let mut delay = FIRST;
        let mut listener = self.listener;
        loop {
            if let Some(listener) = listener {
                self.trouble.send_replace(None);
                return listener;
            }
            tokio::time::sleep(delay).await;
            delay = (delay * 2).min(LONGEST);
            listener = match bind(self.addr) {
                Ok(bound) => Some(bound),
                Err(error) => {
                    self.trouble.send_replace(Some(explain(self.addr, &error)));
                    None
                }
            };
        }
    }
}

/// Listens on `addr`. Needs a tokio runtime.
fn bind(addr: SocketAddr) -> io::Result<TcpListener> {
    let socket =
        if addr.is_ipv4() { tokio::net::TcpSocket::new_v4() } else { tokio::net::TcpSocket::new_v6() }?;
    // The connections of an earlier run may still linger on the port.
    socket.set_reuseaddr(true)?;
    socket.bind(addr)?;
    socket.listen(1024)
}

fn adopt(passed: StdListener) -> io::Result<TcpListener> {
    passed.set_nonblocking(true)?;
    TcpListener::from_std(passed)
}

fn explain(addr: SocketAddr, error: &io::Error) -> String {
    let what = match error.kind() {
        io::ErrorKind::AddrInUse => {
            "another process listens there (`ss -ltnp` shows it): stop that process, or set \
             another [embedded] listen; flywheeld-cache.socket lets systemd hold the port from boot on"
                .to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            format!("this host has no such address ({error}): see [embedded] listen")
        }
        _ => format!("{error}; see [embedded] listen"),
    };
    format!("the built-in cache cannot listen on {addr}: {what}")
}
