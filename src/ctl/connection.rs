//! A connection to the daemon. Every wait on it has a limit, so that a daemon that
//! hangs does not hang a job. Must not know what the messages mean.

use std::{
    io::{self, Read, Write},
    os::unix::{fs::MetadataExt as _, net::UnixStream},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::control::{
    codec::{self, ClientHello, CodecError, MINIMUM, PROTOCOL, ServerHello},
    dial::dial,
    messages::{Progress, Reply, Request},
};

/// How long flywheelctl waits for a connection and the daemon's hello.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long flywheelctl waits for a reply that does not depend on uploads. For a
/// reply that does, the time counts from the deadline that the daemon keeps.
pub(super) const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

/// Why the daemon cannot be asked.
#[derive(Debug, thiserror::Error)]
pub(super) enum ConnectionError {
    #[error(
        "no flywheel daemon at {socket}: {}; start it (`systemctl start flywheeld`), or name its socket by --socket or $FLYWHEEL_SOCKET",
        absence(source)
    )]
    Absent { socket: PathBuf, source: io::Error },
    #[error(
        "you may not use the flywheel daemon at {socket}: it is open to root and {group}; add the user (`usermod -aG`) and log in again, or restart the service that runs you"
    )]
    Forbidden { socket: PathBuf, group: String },
    #[error("the flywheel daemon at {socket} does not answer within {}: `journalctl -u flywheeld` shows what it does", super::text::duration(*.waited))]
    Silent { socket: PathBuf, waited: Duration },
    #[error("the flywheel daemon at {socket} closed the connection: {source}")]
    Lost { socket: PathBuf, source: CodecError },
    #[error("{socket}: {source}")]
    Garbled { socket: PathBuf, source: CodecError },
    #[error(
        "the daemon at {socket} is flywheel {theirs}, this is {}: restart flywheeld after an upgrade, so that both are of one version",
        env!("CARGO_PKG_VERSION")
    )]
    Version { socket: PathBuf, theirs: String },
    #[error("the request is too long: {0}")]
    TooLong(CodecError),
}

/// Says why a connection could not be made.
fn absence(source: &io::Error) -> String {
    match source.kind() {
        io::ErrorKind::NotFound => "there is no such socket".to_owned(),
        io::ErrorKind::ConnectionRefused => "nothing listens on the socket".to_owned(),
        _ => source.to_string(),
    }
}

/// Names the group that may use a socket: that of the socket, or of the innermost of
/// its directories that the caller may see.
fn group_of(socket: &Path) -> String {
    let Some(meta) = socket.ancestors().find_map(|path| std::fs::metadata(path).ok()) else {
        return "the group of the socket".to_owned();
    };
    // group(5): name, password, number, members.
    let groups = std::fs::read_to_string("/etc/group").unwrap_or_default();
    let has_number = |line: &&str| line.split(':').nth(2) == Some(&meta.gid().to_string());
    match groups.lines().find(has_number).and_then(|line| line.split(':').next()) {
        Some(name) => format!("the group {name}"),
        None => format!("the group number {}", meta.gid()),
    }
}

impl ConnectionError {
    /// Returns whether the daemon may be restarting, so that a later attempt can work.
    pub(super) fn may_return(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Lost { .. })
    }
}

/// An open connection, on which both sides have sent their hello.
#[derive(Debug)]
pub(super) struct Connection {
    socket: PathBuf,
    stream: UnixStream,
    /// The daemon's hello.
    pub(super) server: ServerHello,
}

impl Connection {
    /// Connects and exchanges hellos, within `patience`.
    pub(super) fn open(socket: &Path, patience: Duration) -> Result<Self, ConnectionError> {
        let until = Instant::now() + patience;
        let stream = dial(socket, patience).map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => {
                ConnectionError::Silent { socket: socket.to_owned(), waited: patience }
            }
            io::ErrorKind::PermissionDenied => {
                ConnectionError::Forbidden { socket: socket.to_owned(), group: group_of(socket) }
            }
            _ => ConnectionError::Absent { socket: socket.to_owned(), source },
        })?;
        let mut timed = Timed { stream: &stream, until };
        // A daemon that refuses the caller may have closed the connection already; its
        // reply is still there to be read.
        let _ = timed.write_all(&ClientHello::ours().frame());
        let wrong = |e| wrong(socket, patience, e);
        let body =
            codec::read_body(&mut timed, codec::MAX_HELLO).map_err(wrong)?.ok_or(CodecError::Truncated);
        let server = body.and_then(|b| ServerHello::parse(&b)).map_err(wrong)?;
        if PROTOCOL < server.minimum || server.protocol < MINIMUM {
            return Err(ConnectionError::Version { socket: socket.to_owned(), theirs: server.version });
        }
        Ok(Self { socket: socket.to_owned(), stream, server })
    }

    /// Sends a request, calls `progress` for each report, and returns the reply. Fails
    /// when the reply does not come within `patience`.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        patience: Duration,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Reply, ConnectionError> {
        let mut timed = Timed { stream: &self.stream, until: Instant::now() + patience };
        let frame = codec::encode(request).map_err(ConnectionError::TooLong)?;
        let _ = timed.write_all(&frame); // as in `open`
        loop {
            let reply = codec::read(&mut timed).and_then(|r| r.ok_or(CodecError::Truncated));
            match reply.map_err(|e| wrong(&self.socket, patience, e))? {
                Reply::Progress(p) => progress(&p),
                reply => return Ok(reply),
            }
        }
    }
}

fn wrong(socket: &Path, waited: Duration, source: CodecError) -> ConnectionError {
    let socket = socket.to_owned();
    match source {
        CodecError::Io(e) if matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            ConnectionError::Silent { socket, waited }
        }
        CodecError::Io(_) | CodecError::Truncated => ConnectionError::Lost { socket, source },
        _ => ConnectionError::Garbled { socket, source },
    }
}

/// A stream on which all reads and writes together end at one point in time.
struct Timed<'a> {
    stream: &'a UnixStream,
    until: Instant,
}

impl Timed<'_> {
    fn left(&self) -> io::Result<Option<Duration>> {
        match self.until.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.stream.set_read_timeout(self.left()?)?;
        self.stream.read(buf)
    }
}

impl Write for Timed<'_> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.stream.set_write_timeout(self.left()?)?;
        self.stream.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
