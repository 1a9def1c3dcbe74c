//! A connection to the daemon on which every wait has an end: a daemon that
//! hangs must not hang a job. Must not know what the messages mean.

use std::{
    io::{self, Read, Write},
    os::unix::net::UnixStream,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use crate::control::{
    codec::{self, ClientHello, CodecError, MINIMUM, PROTOCOL, ServerHello},
    dial::dial,
    messages::{Progress, Reply, Request},
};

/// For a connection and the daemon's hello; after that there is no daemon.
pub(super) const PATIENCE: Duration = Duration::from_secs(5);
/// For an answer that needs no waiting for uploads, and beyond a deadline that the daemon keeps itself.
pub(super) const GRACE: Duration = Duration::from_secs(10);

/// Why there is no daemon to talk to.
#[derive(Debug, thiserror::Error)]
pub(super) enum LinkError {
    #[error("no flywheel daemon at {socket}: {source}{}", hint(.source))]
    Absent { socket: PathBuf, source: io::Error },
    #[error("the flywheel daemon at {socket} does not answer within {}: see its log", super::text::span(*.waited))]
    Silent { socket: PathBuf, waited: Duration },
    #[error("the flywheel daemon at {socket} closed the connection: {source}")]
    Lost { socket: PathBuf, source: CodecError },
    #[error("{socket}: {source}")]
    Garbled { socket: PathBuf, source: CodecError },
    #[error(
        "the daemon at {socket} is flywheel {theirs}, this is {}: they do not understand each other, use the same version of both",
        env!("CARGO_PKG_VERSION")
    )]
    Version { socket: PathBuf, theirs: String },
    #[error("the request is too long: {0}")]
    TooLong(CodecError),
}

fn hint(e: &io::Error) -> &'static str {
    match e.kind() {
        io::ErrorKind::PermissionDenied => "; the user must be in the group that owns the socket",
        _ => "; start it (`systemctl start flywheel`), or name its socket by --socket or $FLYWHEEL_SOCKET",
    }
}

impl LinkError {
    /// Whether it was there and went away, so that it may come back.
    pub(super) fn may_return(&self) -> bool {
        matches!(self, Self::Absent { .. } | Self::Lost { .. })
    }
}

/// An open connection.
#[derive(Debug)]
pub(super) struct Link {
    socket: PathBuf,
    stream: UnixStream,
    /// What the daemon said about itself.
    pub(super) server: ServerHello,
}

impl Link {
    /// Connects and exchanges hellos.
    pub(super) fn open(socket: &Path, patience: Duration) -> Result<Self, LinkError> {
        let until = Instant::now() + patience;
        let stream = dial(socket, patience).map_err(|source| match source.kind() {
            io::ErrorKind::TimedOut => LinkError::Silent { socket: socket.to_owned(), waited: patience },
            _ => LinkError::Absent { socket: socket.to_owned(), source },
        })?;
        let mut timed = Timed { stream: &stream, until };
        // A server that refuses us may have closed already; what it said is still to be read.
        let _ = timed.write_all(&ClientHello::ours().frame());
        let wrong = |e| wrong(socket, patience, e);
        let body = codec::read_body(&mut timed, codec::MAX_HELLO).map_err(wrong)?.ok_or(CodecError::Cut);
        let server = body.and_then(|b| ServerHello::parse(&b)).map_err(wrong)?;
        if PROTOCOL < server.minimum || server.protocol < MINIMUM {
            return Err(LinkError::Version { socket: socket.to_owned(), theirs: server.version });
        }
        Ok(Self { socket: socket.to_owned(), stream, server })
    }

    /// Asks, reports progress, and returns the final reply.
    pub(super) fn ask(
        &mut self,
        request: &Request,
        patience: Duration,
        progress: &mut dyn FnMut(&Progress),
    ) -> Result<Reply, LinkError> {
        let mut timed = Timed { stream: &self.stream, until: Instant::now() + patience };
        let frame = codec::encode(request).map_err(LinkError::TooLong)?;
        let _ = timed.write_all(&frame); // as above
        loop {
            let reply = codec::read(&mut timed).and_then(|r| r.ok_or(CodecError::Cut));
            match reply.map_err(|e| wrong(&self.socket, patience, e))? {
                Reply::Progress(p) => progress(&p),
                reply => return Ok(reply),
            }
        }
    }
}

fn wrong(socket: &Path, waited: Duration, source: CodecError) -> LinkError {
    let socket = socket.to_owned();
    match source {
        CodecError::Io(e) if matches!(e.kind(), io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock) => {
            LinkError::Silent { socket, waited }
        }
        CodecError::Io(_) | CodecError::Cut => LinkError::Lost { socket, source },
        _ => LinkError::Garbled { socket, source },
    }
}

/// A stream that ends at a point in time, however slowly bytes trickle in.
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
