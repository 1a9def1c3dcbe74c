//! Temporary roots through the nix-daemon: the one operation `AddTempRoot` of
//! its protocol (Nix, `src/libstore/worker-protocol.hh`, `remote-store.cc`,
//! `daemon.cc`). What is added lasts as long as the connection: the roots are
//! those of the worker process that serves it.
//!
//! Everything is little-endian 64-bit numbers; a string is its length, its
//! bytes, and zeros up to a multiple of eight.

use std::io::{self, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::net::RecvFlags;

const CLIENT_MAGIC: u64 = 0x6e69_7863;
const DAEMON_MAGIC: u64 = 0x6478_696f;
/// 1.35 (Nix 2.15 and later). A daemon of another version speaks the lower of
/// both; from 1.38 on features would have to be agreed on.
const VERSION: u64 = 0x123;
const ADD_TEMP_ROOT: u64 = 11;
/// Words of the daemon's between a request and its answer.
const SAYS_LAST: u64 = 0x616c_7473;
const SAYS_NEXT: u64 = 0x6f6c_6d67;
const SAYS_ERROR: u64 = 0x6378_7470;
const SAYS_START: u64 = 0x5354_5254;
const SAYS_STOP: u64 = 0x5354_4f50;
const SAYS_RESULT: u64 = 0x5253_4c54;
/// Longer strings than any that is meant for us.
const LONGEST: u64 = 1 << 20;
/// Fields of an activity, lines of a trace.
const MOST: u64 = 1000;
/// How long the daemon may take: it may wait for the collector.
const ANSWER: Duration = Duration::from_secs(30);
/// Requests that are sent before their answers are read; they fit into a
/// socket's buffer, so that neither side waits for the other.
const AHEAD: usize = 32;

#[derive(Debug)]
pub(in crate::store) struct DaemonConnection {
    stream: BufReader<UnixStream>,
    minor: u64,
}

impl DaemonConnection {
    pub(super) fn connect(socket: &Path) -> io::Result<Self> {
        Self::open(socket, ANSWER)
    }

    /// Connects and shakes hands; each answer may take as long as `patience`.
    pub(in crate::store) fn open(socket: &Path, patience: Duration) -> io::Result<Self> {
        let stream = UnixStream::connect(socket)?;
        stream.set_read_timeout(Some(patience))?;
        stream.set_write_timeout(Some(patience))?;
        Self::greet(stream)
    }

    /// Shakes hands.
    fn greet(stream: UnixStream) -> io::Result<Self> {
        let mut this = Self { stream: BufReader::with_capacity(4096, stream), minor: 0 };
        this.send(&[CLIENT_MAGIC])?;
        if this.number()? != DAEMON_MAGIC {
            return Err(strange("it does not answer as a nix-daemon"));
        }
        let theirs = this.number()?;
        if theirs >> 8 != VERSION >> 8 || theirs & 0xff < 14 {
            return Err(strange(&format!("it speaks protocol {}.{}", theirs >> 8, theirs & 0xff)));
        }
        this.minor = (theirs & 0xff).min(VERSION & 0xff);
        // No processor to be bound to, no space to be reserved: both obsolete.
        this.send(&[VERSION, 0, 0])?;
        if this.minor >= 33 {
            this.string()?; // The daemon's version.
        }
        if this.minor >= 35 {
            this.number()?; // Whether we are trusted; not needed here.
        }
        this.hear_out()?;
        Ok(this)
    }

    pub(super) fn add(&mut self, mut paths: impl Iterator<Item = String>) -> io::Result<()> {
        loop {
            let mut request = Vec::new();
            let mut sent = 0;
            for path in paths.by_ref().take(AHEAD) {
                request.extend_from_slice(&ADD_TEMP_ROOT.to_le_bytes());
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
                self.number()?; // Always 1.
            }
        }
    }

    /// Between requests nothing is to be read: the end of the stream, or
    /// anything else, means that this connection is of no use any more.
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
            return Err(strange("it sends more than it should"));
        }
        let mut bytes = vec![0; usize::try_from(length.next_multiple_of(8)).unwrap_or(0)];
        self.stream.read_exact(&mut bytes)?;
        bytes.truncate(usize::try_from(length).unwrap_or(0));
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    fn count(&mut self) -> io::Result<u64> {
        let count = self.number()?;
        if count > MOST { Err(strange("it sends more than it should")) } else { Ok(count) }
    }

    /// Reads what the daemon says for its user's terminal, up to the answer.
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
                _ => return Err(strange("it says something that is not understood")),
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
                _ => return Err(strange("it says something that is not understood")),
            }
        }
        Ok(())
    }

    fn error(&mut self) -> io::Result<io::Error> {
        let message = if self.minor >= 26 {
            self.string()?; // Always "Error".
            self.number()?; // Level.
            self.string()?; // Name.
            let message = self.string()?;
            self.number()?; // No position.
            for _ in 0..self.count()? {
                self.number()?;
                self.string()?;
            }
            message
        } else {
            let message = self.string()?;
            self.number()?; // Status.
            message
        };
        Ok(io::Error::other(format!("it refuses: {message}")))
    }
}

fn strange(what: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what.to_owned())
}

/// Reads bytes as what a nix-daemon sends, from its greeting on, and after it.
#[cfg(any(fuzzing, test))]
pub(in crate::store) fn fuzz(bytes: &[u8]) {
    let Ok((ours, theirs)) = UnixStream::pair() else { return };
    // What does not fit into the socket's buffer is left out, or nobody would read it.
    let mut theirs = &theirs;
    let _ = theirs.write_all(&bytes[..bytes.len().min(64 * 1024)]);
    let _ = theirs.shutdown(std::net::Shutdown::Write);
    if let Ok(mut connection) = DaemonConnection::greet(ours)
        && connection.hear_out().is_ok()
    {
        let _ = connection.number();
    }
}
