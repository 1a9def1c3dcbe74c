//! Connecting to a Unix socket with an end to the waiting. Must not know what
//! is said afterwards.

use std::{io, os::unix::net::UnixStream, path::Path, time::Duration};

use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with, sockopt};

/// Connects, waiting at most so long for a listener whose queue is full.
///
/// `connect` on a Unix socket waits for room in the listener's queue without
/// end, unless the socket has a send timeout (unix(7), socket(7)): then it
/// gives up with `EAGAIN`.
pub fn dial(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    // Zero would mean no limit.
    let patience = patience.max(Duration::from_millis(1));
    sockopt::set_socket_timeout(&socket, sockopt::Timeout::Send, Some(patience))?;
    match connect(&socket, &SocketAddrUnix::new(path)?) {
        Ok(()) => Ok(UnixStream::from(socket)),
        Err(rustix::io::Errno::AGAIN) => {
            Err(io::Error::new(io::ErrorKind::TimedOut, "the daemon takes no connections: its queue is full"))
        }
        Err(e) => Err(e.into()),
    }
}
