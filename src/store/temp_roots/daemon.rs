//! Temporary roots through the nix-daemon. This is a client for two operations of
//! its protocol, `AddTempRoot` and `IsValidPath` (Nix, `src/libstore/worker-protocol.hh`,
//! `remote-store.cc`, `daemon.cc`). The roots belong to the worker process that
//! serves the connection, so they end with the connection.
//!
//! All numbers are little-endian and have 64 bits. A string is its length, its
//! bytes, and zeros up to a multiple of eight.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::RecvFlags;

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const DAEMON_MAGIC: u64 = 0x6478_696f;
/// Protocol version 1.35 (Nix 2.15 and later). Both sides use the lower one of
/// their versions. From 1.38 on, they would have to agree on features too.
const VERSION: u64 = 0x123;
const IS_VALID_PATH: u64 = 1;
const ADD_TEMP_ROOT: u64 = 11;
/// Types of the messages that the daemon sends between a request and its answer.
const SAYS_LAST: u64 = 0x616c_7473;
const SAYS_NEXT: u64 = 0x6f6c_6d67;
const SAYS_ERROR: u64 = 0x6378_7470;
const SAYS_START: u64 = 0x5354_5254;
const SAYS_STOP: u64 = 0x5354_4f50;
const SAYS_RESULT: u64 = 0x5253_4c54;
/// The longest string that is accepted, in bytes.
const LONGEST: u64 = 1 << 20;
/// The most fields of an activity, or lines of a trace, that are accepted.
const MOST: u64 = 1000;
/// How long the daemon may take to answer. It may wait for the collector.
const ANSWER: Duration = Duration::from_secs(30);
/// How many requests are sent before their answers are read. They fit into the
/// socket's buffer, so neither side waits for the other.
const AHEAD: usize = 32;

#[derive(Debug)]
pub(in crate::store) struct DaemonConnection {
    stream: BufReader<UnixStream>,
    minor: u64,
}

impl DaemonConnection {
    pub(in crate::store) fn connect(socket: &Path) -> io::Result<Self> {
        Self::open(socket, ANSWER)
    }

    /// Connects and does the protocol's handshake. Fails when an answer takes longer
    /// than `patience`.
    pub(in crate::store) fn open(socket: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Self::greet(stream)
    }

    /// Does the protocol's handshake on a connected socket.
    fn greet(stream: UnixStream) -> io::Result<Self> {
        let mut this = Self { stream: BufReader::with_capacity(4096, stream), minor: 0 };
        this.send(&[CLIENT_MAGIC])?;
        if this.number()? != DAEMON_MAGIC {
            return Err(strange("it does not speak the protocol of a nix-daemon"));
        }
        let theirs = this.number()?;
        if theirs >> 8 != VERSION >> 8 || theirs & 0xff < 14 {
            return Err(strange(&format!(
                "it speaks protocol version {}.{}, which is not supported",
                theirs >> 8,
                theirs & 0xff
            )));
        }
        this.minor = (theirs & 0xff).min(VERSION & 0xff);
        // Two obsolete fields: CPU affinity, and whether to reserve disk space.
        this.send(&[VERSION, 0, 0])?;
        if this.minor >= 33 {
            this.string()?; // The daemon's version.
        }
        if this.minor >= 35 {
            this.number()?; // Whether this client is trusted; not needed here.
        }
        this.hear_out()?;
        Ok(this)
    }

    pub(super) fn add(&mut self, paths: impl Iterator<Item = String>) -> io::Result<()> {
        self.request(ADD_TEMP_ROOT, paths)
    }

    /// Asks whether each path is valid. The answers are not used: the question makes a
    /// local-overlay store copy the rows of its lower store into its database.
    pub(in crate::store) fn ask_validity(&mut self, paths: impl Iterator<Item = String>) -> io::Result<()> {
        self.request(IS_VALID_PATH, paths)
    }

    /// Sends one request for each path, whose answer is a number.
    fn request(&mut self, operation: u64, mut paths: impl Iterator<Item = String>) -> io::Result<()> {
        loop {
            let mut request = Vec::new();
            let mut sent = 0;
            for path in paths.by_ref().take(AHEAD) {
                request.extend_from_slice(&operation.to_le_bytes());
                request.extend_from_slice(&(path.len() as u64).to_le_bytes());
                request.extend_from_slice(path.as_bytes());
                request.resize(request.len().next_multiple_of(8), 0);
                sent += 1;
            }
            if sent == 0 {
                return Ok(());
            }
            self.stream.get_ref().write_all(&request)?;
            for _ in 0..sent {
                self.hear_out()?;
                self.number()?;
            }
        }
    }

    /// Whether the connection is usable. Between requests the daemon sends nothing.
    /// The end of the stream or any byte means that the connection cannot be used
    /// any more.
    pub(super) fn is_alive(&self) -> bool {
        let mut byte = [0_u8];
        let seen = rustix::net::recv(self.stream.get_ref(), &mut byte, RecvFlags::PEEK | RecvFlags::DONTWAIT);
        matches!(seen, Err(rustix::io::Errno::WOULDBLOCK))
    }

    fn send(&self, numbers: &[u64]) -> io::Result<()> {
        let bytes: Vec<u8> = numbers.iter().flat_map(|n| n.to_le_bytes()).collect();
        self.stream.get_ref().write_all(&bytes)
    }

    fn number(&mut self) -> io::Result<u64> {
        let mut bytes = [0; 8];
        self.stream.read_exact(&mut bytes)?;
        Ok(u64::from_le_bytes(bytes))
    }

    fn string(&mut self) -> io::Result<String> {
        let length = self.number()?;
        if length > LONGEST {
            return Err(strange(&format!("it sends a string of more than {LONGEST} bytes")));
        }
        let mut bytes = vec![0; usize::try_from(length.next_multiple_of(8)).unwrap_or(0)];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(usize::try_from(length).unwrap_or(0));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn count(&mut self) -> io::Result<u64> {
        let count = self.number()?;
        if count > MOST {
            Err(strange(&format!("it sends a list of more than {MOST} entries")))
        } else {
            Ok(count)
        }
    }

    /// Reads the log messages of the daemon up to its answer. Fails when the daemon
    /// reports an error.
    fn hear_out(&mut self) -> io::Result<()> {
        loop {
            match self.number()? {
                SAYS_LAST => return Ok(()),
                SAYS_NEXT => {
                    self.string()?;
                }
                SAYS_START => {
                    self.numbers(3)?;
                    self.string()?;
                    self.fields()?;
                    self.number()?;
                }
                SAYS_STOP => self.numbers(1)?,
                SAYS_RESULT => {
                    self.numbers(2)?;
                    self.fields()?;
                }
                SAYS_ERROR => return Err(self.error()?),
                _ => return Err(strange("it sends a message of an unknown type")),
            }
        }
    }

    fn numbers(&mut self, count: u64) -> io::Result<()> {
        (0..count).try_for_each(|_| self.number().map(drop))
    }

    fn fields(&mut self) -> io::Result<()> {
        for _ in 0..self.count()? {
            match self.number()? {
                0 => self.numbers(1)?,
                1 => drop(self.string()?),
                _ => return Err(strange("it sends a field of an unknown type")),
            }
        }
        Ok(())
    }

    fn error(&mut self) -> io::Result<io::Error> {
        let message = if self.minor >= 26 {
            self.string()?; // Always "Error".
            self.number()?; // The level.
            self.string()?; // The name.
            let message = self.string()?;
            self.number()?; // Whether there is a position: always 0.
            for _ in 0..self.count()? {
                self.number()?;
                self.string()?;
            }
            message
        } else {
            let message = self.string()?;
            self.number()?; // The exit status.
            message
        };
        Ok(io::Error::other(format!("it reports an error: {message}")))
    }
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Reads bytes as the handshake of a nix-daemon and the answer to one request.
#[cfg(any(fuzzing, test))]
pub(in crate::store) fn fuzz(bytes: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    // Writes only as much as fits into the socket's buffer: more would block, since
    // the reader starts afterwards.
    let mut theirs = &theirs;
    let _ = theirs.write_all(&bytes[..bytes.len().min(64 * 1024)]);
    let _ = theirs.shutdown(std::net::Shutdown::Write);
    if let Ok(mut connection) = DaemonConnection::greet(ours)
        && connection.hear_out().is_ok()
    {
        let _ = connection.number();
    }
}
