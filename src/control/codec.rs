//! The encoding of messages: the hello that both sides send first, and frames of a
//! big-endian `u32` length and a body. The only file that names bincode. Must not
//! know what the messages mean.
//!
//! The hello does not use bincode, so that programs of any two versions can read
//! each other's version: `FLYW`, the protocol as `u16`, then (server only) the
//! oldest supported protocol as `u16`, then strings with a `u16` length. All numbers
//! are big-endian; bytes after the last string are ignored.

use std::io::{self, Read, Write};

use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::types::StoreDir;

/// The longest body of a frame, in bytes.
pub const MAX_FRAME: u32 = 1 << 20;
/// The longest body of a hello, in bytes.
pub const MAX_HELLO: u32 = 4096;
/// The protocol of this program. Every change of a message's layout raises it.
pub const PROTOCOL: u16 = 6;
/// The oldest protocol that this program understands.
pub const MINIMUM: u16 = 6;

const MAGIC: [u8; 4] = *b"FLYW";

/// Upper bound of the bytes of each text in a hello: enough for a version and a directory, and
/// below the limit of a hello for all of them.
const HELLO_TEXT: usize = 1000;

/// Why bytes from the other side cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum CodecError {
    /// Reading or writing failed.
    #[error(transparent)]
    Io(#[from] io::Error),
    /// The connection ended in the middle of a frame.
    #[error("the connection ended in the middle of a message")]
    Truncated,
    /// The message is longer than a frame may be.
    #[error("a message of {size} bytes is more than the {limit} bytes allowed: ask for less at a time")]
    TooLarge {
        /// The length of the message, in bytes.
        size: u64,
        /// The longest length allowed, in bytes.
        limit: u32,
    },
    /// The hello does not start with `FLYW`.
    #[error("the other side does not speak flywheel's protocol: is it the right socket?")]
    NotFlywheel,
    /// The body is not a message of the expected type.
    #[error("a message cannot be understood: {0}")]
    Malformed(String),
}

/// The first frame of a caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientHello {
    /// The protocol that the program speaks.
    pub protocol: u16,
    /// The version of the program, for messages to people.
    pub version: String,
}

/// The first frame of the daemon.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServerHello {
    /// The protocol that the program speaks.
    pub protocol: u16,
    /// The oldest protocol that the program understands.
    pub minimum: u16,
    /// The version of the program, for messages to people.
    pub version: String,
    /// The store directory that the daemon serves.
    pub store_dir: String,
    /// The directory in which the files of that store are. The same one, except for a
    /// store below a root.
    pub store_files: String,
}

impl ClientHello {
    /// Returns this program's hello.
    #[must_use]
    pub fn ours() -> Self {
        Self { protocol: PROTOCOL, version: env!("CARGO_PKG_VERSION").to_owned() }
    }

    /// Encodes it as a frame.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut body = [&MAGIC[..], &self.protocol.to_be_bytes()].concat();
        put_text(&mut body, &self.version);
        framed(&body)
    }

    /// Reads it from a frame's body.
    pub fn parse(body: &[u8]) -> Result<Self, CodecError> {
        let mut rest = after_magic(body)?;
        Ok(Self { protocol: take_u16(&mut rest)?, version: take_text(&mut rest)? })
    }
}

impl ServerHello {
    /// Returns this program's hello, for a store directory.
    #[must_use]
    pub fn ours(store_dir: &StoreDir) -> Self {
        Self {
            protocol: PROTOCOL,
            minimum: MINIMUM,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            store_dir: store_dir.as_str().to_owned(),
            store_files: store_dir.as_path().to_string_lossy().into_owned(),
        }
    }

    /// Encodes it as a frame.
    #[must_use]
    pub fn frame(&self) -> Vec<u8> {
        let mut body = [&MAGIC[..], &self.protocol.to_be_bytes(), &self.minimum.to_be_bytes()].concat();
        put_text(&mut body, &self.version);
        put_text(&mut body, &self.store_dir);
        if self.store_files != self.store_dir {
            put_text(&mut body, &self.store_files);
        }
        framed(&body)
    }

    /// Reads it from a frame's body.
    pub fn parse(body: &[u8]) -> Result<Self, CodecError> {
        let mut rest = after_magic(body)?;
        let (protocol, minimum) = (take_u16(&mut rest)?, take_u16(&mut rest)?);
        let (version, store_dir) = (take_text(&mut rest)?, take_text(&mut rest)?);
        let store_files = take_text(&mut rest).unwrap_or_else(|_| store_dir.clone());
        Ok(Self { protocol, minimum, version, store_dir, store_files })
    }
}

/// Encodes a message as a frame.
pub fn encode<T: Serialize>(message: &T) -> Result<Vec<u8>, CodecError> {
    let body = bincode::serde::encode_to_vec(message, bincode::config::standard())
        .map_err(|e| CodecError::Malformed(e.to_string()))?;
    if body.len() > MAX_FRAME as usize {
        return Err(CodecError::TooLarge { size: body.len() as u64, limit: MAX_FRAME });
    }
    Ok(framed(&body))
}

/// Decodes a message from a frame's body. Bytes after the message are an error.
pub fn decode<T: DeserializeOwned>(body: &[u8]) -> Result<T, CodecError> {
    // bincode counts numbers by their size in memory, so a full frame of short ones needs more than its length.
    let config = bincode::config::standard().with_limit::<{ 2 * MAX_FRAME as usize }>();
    let (message, used) =
        bincode::serde::decode_from_slice(body, config).map_err(|e| CodecError::Malformed(e.to_string()))?;
    if used != body.len() {
        return Err(CodecError::Malformed(format!("the message has {} bytes too many", body.len() - used)));
    }
    Ok(message)
}

/// Reads the next frame's body; `None` when the connection ended between two frames.
/// Memory grows with the bytes that arrive, not with the announced length.
pub fn read_body(from: &mut impl Read, limit: u32) -> Result<Option<Vec<u8>>, CodecError> {
    let mut head = Vec::with_capacity(4);
    from.by_ref().take(4).read_to_end(&mut head)?;
    let Some(size) = announced(&head, limit)? else { return Ok(None) };
    let mut body = Vec::new();
    from.by_ref().take(size.into()).read_to_end(&mut body)?;
    whole(body, size)
}

/// Reads the next message; `None` when the connection ended between two frames.
pub fn read<T: DeserializeOwned>(from: &mut impl Read) -> Result<Option<T>, CodecError> {
    read_body(from, MAX_FRAME)?.as_deref().map(decode).transpose()
}

/// Writes a message as a frame.
pub fn write<T: Serialize>(to: &mut impl Write, message: &T) -> Result<(), CodecError> {
    Ok(to.write_all(&encode(message)?)?)
}

/// As [`read_body`].
pub async fn read_body_async<R: AsyncRead + Unpin>(
    from: &mut R,
    limit: u32,
) -> Result<Option<Vec<u8>>, CodecError> {
    let mut head = Vec::with_capacity(4);
    (&mut *from).take(4).read_to_end(&mut head).await?;
    let Some(size) = announced(&head, limit)? else { return Ok(None) };
    let mut body = Vec::new();
    (&mut *from).take(size.into()).read_to_end(&mut body).await?;
    whole(body, size)
}

/// As [`read`].
pub async fn read_async<T: DeserializeOwned, R: AsyncRead + Unpin>(
    from: &mut R,
) -> Result<Option<T>, CodecError> {
    read_body_async(from, MAX_FRAME).await?.as_deref().map(decode).transpose()
}

fn announced(head: &[u8], limit: u32) -> Result<Option<u32>, CodecError> {
    match *head {
        [] => Ok(None),
        [a, b, c, d] => match u32::from_be_bytes([a, b, c, d]) {
            size if size > limit => Err(CodecError::TooLarge { size: size.into(), limit }),
            size => Ok(Some(size)),
        },
        _ => Err(CodecError::Truncated),
    }
}

fn whole(body: Vec<u8>, size: u32) -> Result<Option<Vec<u8>>, CodecError> {
    if body.len() == size as usize { Ok(Some(body)) } else { Err(CodecError::Truncated) }
}

/// Callers keep bodies below `MAX_FRAME`, so the length fits.
fn framed(body: &[u8]) -> Vec<u8> {
    let size = u32::try_from(body.len()).unwrap_or(u32::MAX);
    [&size.to_be_bytes()[..], body].concat()
}

fn put_text(body: &mut Vec<u8>, text: &str) {
    let mut end = text.len().min(HELLO_TEXT);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    let size = u16::try_from(end).unwrap_or_default();
    body.extend_from_slice(&size.to_be_bytes());
    body.extend_from_slice(&text.as_bytes()[..end]);
}

fn after_magic(body: &[u8]) -> Result<&[u8], CodecError> {
    body.strip_prefix(&MAGIC).ok_or(CodecError::NotFlywheel)
}

fn take_u16(rest: &mut &[u8]) -> Result<u16, CodecError> {
    let (head, tail) = rest.split_first_chunk::<2>().ok_or_else(short)?;
    *rest = tail;
    Ok(u16::from_be_bytes(*head))
}

fn take_text(rest: &mut &[u8]) -> Result<String, CodecError> {
    let size = usize::from(take_u16(rest)?);
    if size > HELLO_TEXT {
        return Err(CodecError::Malformed(format!(
            "a text of the hello has {size} bytes, more than {HELLO_TEXT}"
        )));
    }
    let (head, tail) = rest.split_at_checked(size).ok_or_else(short)?;
    *rest = tail;
    String::from_utf8(head.to_vec()).map_err(|e| CodecError::Malformed(e.to_string()))
}

fn short() -> CodecError {
    CodecError::Malformed("the hello is too short".to_owned())
}
