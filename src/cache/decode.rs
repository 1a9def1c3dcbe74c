//! Decompresses a served NAR and hashes it, in bounded memory, on a thread that may
//! block. Must not know HTTP.

use std::io::{self, Read};

use bytes::{Buf, Bytes};
use sha2::{Digest, Sha256};
use tokio::sync::mpsc::Receiver;

use crate::types::NarHash;

/// Most memory that a decompressor takes, in bytes. The highest levels of xz and zstd
/// need 64 MiB and 128 MiB.
const MEMORY: u64 = 128 << 20;
/// Size of the pieces that are hashed, in bytes.
const PIECE: usize = 64 * 1024;

/// What a file was that a cache served.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Decoded {
    pub(super) file_hash: NarHash,
    pub(super) file_size: u64,
    /// The NAR's hash and size, or why there is no whole NAR.
    pub(super) nar: Result<(NarHash, u64), Broken>,
}

/// Why a file has no whole NAR in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Broken {
    /// The compression is unknown here.
    Unsupported,
    /// The file ends too early.
    Short,
    /// The NAR is longer than it should be.
    Long,
    /// The decompressor found an error.
    Garbled(String),
}

/// The pieces of a file, in the order in which they come from the server.
struct File {
    pieces: Receiver<Bytes>,
    piece: Bytes,
    hash: Sha256,
    size: u64,
}

impl Read for File {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.pieces.blocking_recv() {
                Some(piece) => {
                    self.hash.update(&piece);
                    self.size += piece.len() as u64;
                    self.piece = piece;
                }
                None => return Ok(0),
            }
        }
        let n = self.piece.len().min(buf.len());
        self.piece.copy_to_slice(&mut buf[..n]);
        Ok(n)
    }
}

/// Decodes a file of this compression whose NAR should have `nar_size` bytes. Reads the
/// file to its end, unless the NAR is longer.
pub(super) fn decode(compression: &str, pieces: Receiver<Bytes>, nar_size: u64) -> Decoded {
    let mut file = File { pieces, piece: Bytes::new(), hash: Sha256::new(), size: 0 };
    let nar = nar(compression, &mut file, nar_size);
    if !matches!(nar, Err(Broken::Long | Broken::Unsupported)) {
        // What follows the compressed data belongs to the file's hash.
        let _ = io::copy(&mut file, &mut io::sink());
    }
    Decoded { file_hash: NarHash(file.hash.finalize().into()), file_size: file.size, nar }
}

fn nar(compression: &str, file: &mut File, nar_size: u64) -> Result<(NarHash, u64), Broken> {
    match compression {
        "none" | "" => hash(file, nar_size),
        "zstd" => hash(zstd::stream::read::Decoder::new(file).map_err(|e| broken(&e))?, nar_size),
        "xz" => {
            let stream = liblzma::stream::Stream::new_stream_decoder(MEMORY, 0);
            let stream = stream.map_err(|e| Broken::Garbled(e.to_string()))?;
            hash(liblzma::read::XzDecoder::new_stream(file, stream), nar_size)
        }
        // The decoder goes on after the end of a stream, as `bzip2 -d` does.
        "bzip2" => hash(bzip2::read::MultiBzDecoder::new(file), nar_size),
        "br" => hash(brotli_decompressor::Decompressor::new(file, PIECE), nar_size),
        _ => Err(Broken::Unsupported),
    }
}

fn hash(mut nar: impl Read, nar_size: u64) -> Result<(NarHash, u64), Broken> {
    let (mut hash, mut size, mut piece) = (Sha256::new(), 0, vec![0; PIECE]);
    loop {
        match nar.read(&mut piece) {
            Ok(0) => return Ok((NarHash(hash.finalize().into()), size)),
            Ok(n) => {
                hash.update(&piece[..n]);
                size += n as u64;
                if size > nar_size {
                    return Err(Broken::Long);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(broken(&error)),
        }
    }
}

fn broken(error: &io::Error) -> Broken {
    match error.kind() {
        io::ErrorKind::UnexpectedEof => Broken::Short,
        _ => Broken::Garbled(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    fn run(compression: &str, file: &[u8], nar_size: u64) -> Decoded {
        let (sender, receiver) = tokio::sync::mpsc::channel(10_000);
        for piece in file.chunks(1000) {
            sender.try_send(Bytes::copy_from_slice(piece)).unwrap();
        }
        drop(sender);
        decode(compression, receiver, nar_size)
    }

    fn xz(data: &[u8]) -> Vec<u8> {
        let mut encoder = liblzma::write::XzEncoder::new(Vec::new(), 6);
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    fn bz(data: &[u8]) -> Vec<u8> {
        let mut encoder = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
        encoder.write_all(data).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn every_compression_gives_the_nar_and_its_faults() {
        let nar: Vec<u8> = (0..200_000_u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
        let (size, hash) = (nar.len() as u64, NarHash(Sha256::digest(&nar).into()));
        let zstd = zstd::encode_all(nar.as_slice(), 3).unwrap();
        let files = [("none", nar.clone()), ("zstd", zstd), ("xz", xz(&nar)), ("bzip2", bz(&nar))];
        for (compression, file) in files {
            let good = run(compression, &file, size);
            assert_eq!(good.nar, Ok((hash, size)), "{compression}");
            assert_eq!(
                (good.file_hash, good.file_size),
                (NarHash(Sha256::digest(&file).into()), file.len() as u64)
            );
            assert_eq!(run(compression, &file, size - 1).nar, Err(Broken::Long), "{compression}");
            let short = run(compression, &file[..file.len() / 2], size).nar;
            match compression {
                "none" => assert_eq!(short.unwrap().1, size / 2),
                _ => assert_eq!(short, Err(Broken::Short), "{compression}"),
            }
            let mut flipped = file.clone();
            flipped[file.len() / 2] ^= 1;
            assert_ne!(run(compression, &flipped, size).nar, Ok((hash, size)), "{compression}");
        }
        assert_eq!(run("lzip", b"", 1).nar, Err(Broken::Unsupported));
        // What follows the compressed data changes the file, not the NAR.
        let mut longer = xz(&nar);
        longer.extend_from_slice(b"more");
        assert_eq!(run("xz", &longer, size).file_size, longer.len() as u64);
    }

    /// `printf hello | brotli`
    #[test]
    fn brotli() {
        let file = [0x0b, 0x02, 0x80, b'h', b'e', b'l', b'l', b'o', 0x03];
        assert_eq!(run("br", &file, 5).nar, Ok((NarHash(Sha256::digest(b"hello").into()), 5)));
        assert!(run("br", &file[..5], 5).nar.is_err());
    }
}
