//! Whether a path is a source: its name follows from files or a text that were
//! added to the store, and not from a derivation.
//!
//! Must not know: the Nix database.
//!
//! The paths are computed as Nix does (`makeStorePath`, `makeFixedOutputPath`,
//! `makeTextPath`; Nix, `src/libstore/store-dir-config.cc`, in older versions
//! `store-api.cc`):
//!
//! | added as | fingerprint |
//! |---|---|
//! | directory or file, as a NAR | `source:sha256:<NAR hash>:<store dir>:<name>` |
//! | flat file | `output:out:sha256:<hash of "fixed:out:sha256:<file hash>:">:<store dir>:<name>` |
//! | text (`builtins.toFile`) | `text[:<reference>…]:sha256:<file hash>:<store dir>:<name>` |
//!
//! The hash part of the path is the SHA-256 of the fingerprint, folded to 20
//! bytes. Fixed-output and content-addressed builds have paths of the same kinds;
//! only their deriver tells them apart.

use std::fmt::Write as _;
use std::io;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::Path;

use sha2::{Digest as _, Sha256};

use crate::types::{NarHash, StoreDir, StorePath, nix32};

/// Files up to this size are read to find out whether they are flat sources. A
/// larger file without a content address counts as a source unless something
/// shows that it was built: not pushing it is the safe side.
const LARGEST: u64 = 64 << 20;

/// Whether files or a text with this path were added to the store. `ca` is the
/// content address that Nix recorded, `references` are those of the path.
pub(super) fn is_source(
    store_dir: &StoreDir,
    path: &StorePath,
    nar_hash: NarHash,
    ca: Option<&str>,
    references: &[StorePath],
) -> bool {
    match ca {
        Some(ca) if ca.starts_with("text:") => true,
        // Files from outside of the store refer to nothing in it.
        Some(_) => references.is_empty(),
        None => {
            let nar = || hash_part(store_dir, "source", &nar_hash.0, path.name()) == path.hash_part();
            (references.is_empty() && nar()) || is_flat(store_dir, path, references)
        }
    }
}

/// Reads the file, since its hash does not follow from the NAR hash.
fn is_flat(store_dir: &StoreDir, path: &StorePath, references: &[StorePath]) -> bool {
    let Ok(Some(content)) = hash_file(&store_dir.file(path)) else { return false };
    let FileHash::Of(content) = content else { return references.is_empty() };
    let text = references.iter().fold("text".to_owned(), |mut kind, reference| {
        let _ = write!(kind, ":{}", store_dir.full(reference));
        kind
    });
    if hash_part(store_dir, &text, &content, path.name()) == path.hash_part() {
        return true;
    }
    let inner: [u8; 32] = Sha256::digest(format!("fixed:out:sha256:{}:", NarHash(content).hex())).into();
    references.is_empty() && hash_part(store_dir, "output:out", &inner, path.name()) == path.hash_part()
}

enum FileHash {
    Of([u8; 32]),
    TooLarge,
}

/// `None`: not a regular file.
fn hash_file(path: &Path) -> io::Result<Option<FileHash>> {
    let meta = std::fs::symlink_metadata(path)?;
    if !meta.is_file() {
        return Ok(None);
    }
    if meta.size() > LARGEST {
        return Ok(Some(FileHash::TooLarge));
    }
    let nofollow = rustix::fs::OFlags::NOFOLLOW.bits().cast_signed();
    let mut file = std::fs::File::options().read(true).custom_flags(nofollow).open(path)?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match io::Read::read(&mut file, &mut buffer)? {
            0 => return Ok(Some(FileHash::Of(hasher.finalize().into()))),
            n => hasher.update(&buffer[..n]),
        }
    }
}

pub(super) fn hash_part(store_dir: &StoreDir, kind: &str, hash: &[u8; 32], name: &str) -> String {
    let fingerprint = format!("{kind}:sha256:{}:{}:{name}", NarHash(*hash).hex(), store_dir.as_str());
    let digest: [u8; 32] = Sha256::digest(fingerprint).into();
    let mut folded = [0_u8; 20];
    for (at, byte) in digest.iter().enumerate() {
        folded[at % 20] ^= byte;
    }
    nix32::encode(&folded)
}
