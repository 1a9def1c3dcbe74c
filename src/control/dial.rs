//! Connects to a Unix socket within a time limit. Must not know what is sent
//! afterwards.

use std::{io, os::unix::net::UnixStream, path::Path, time::Duration};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};

/// Connects to the socket at `path`. When the listener's queue is full, waits for
/// `patience` at most and fails with [`io::ErrorKind::TimedOut`].
///
/// `connect` on a Unix socket waits for room in the listener's queue without a
/// limit, unless the socket has a send timeout (unix(7), socket(7)): then it fails
/// with `EAGAIN`.
pub fn dial(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Zero would mean no limit.
    let patience = patience.max(Duration::from_millis(1));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(rustix::io::Errno::AGAIN) => Err(io::Error::new(
            io::ErrorKind::TimedOut,
            "the daemon does not accept connections: its queue is full",
        )),
        Err(e) => Err(e.into()),
    }
}
