//! The files that must stay private: the two tokens and a signing key for each
//! cache. The first start makes them with mode 0600. Must not know requests.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use ed25519_dalek::{Signer, SigningKey};
use sha2::{Digest, Sha256};

use super::error::EmbeddedError;
use crate::types::sync_dir;

/// Longest file that the cache reads, in bytes; the secrets are shorter.
const LONGEST: u64 = 4096;

/// The digest of a token. Comparing digests reveals nothing about the token, and the token itself is not kept.
#[derive(Clone)]
pub(super) struct TokenDigest([u8; 32]);

impl TokenDigest {
    fn of(token: &[u8]) -> Self {
        Self(Sha256::digest(token).into())
    }

    /// Compares in constant time.
    pub(super) fn matches(&self, offered: &[u8]) -> bool {
        let other = Self::of(offered);
        self.0.iter().zip(other.0).fold(0, |differ, (a, b)| differ | (a ^ b)) == 0
    }
}

/// Returns the token in `dir/name`, and makes it if the file does not exist.
pub(super) fn token(dir: &Path, name: &str) -> Result<(PathBuf, TokenDigest), EmbeddedError> {
    let path = dir.join(name);
    let text = read_or_make(dir, name, || Ok(URL_SAFE_NO_PAD.encode(random(&path)?)))?;
    if text.len() < 16 || text.contains(char::is_whitespace) {
        return Err(EmbeddedError::Secret {
            path,
            reason: "not a token (one word of at least 16 characters)",
        });
    }
    Ok((path, TokenDigest::of(text.as_bytes())))
}

/// A cache's signing key. Its file has the format of `nix-store --generate-binary-cache-key`.
pub(super) struct CacheKey {
    name: String,
    key: SigningKey,
}

impl CacheKey {
    pub(super) fn read_or_make(dir: &Path, cache: &str) -> Result<Self, EmbeddedError> {
        let name = format!("embedded-key-{cache}");
        let path = dir.join(&name);
        let text = read_or_make(dir, &name, || {
            let key = SigningKey::from_bytes(&random(&path)?);
            Ok(format!("{cache}:{}", STANDARD.encode(key.to_keypair_bytes())))
        })?;
        let wrong = |reason| EmbeddedError::Secret { path: path.clone(), reason };
        let (name, payload) =
            text.split_once(':').ok_or_else(|| wrong("not a Nix signing key (no colon)"))?;
        let bytes = STANDARD.decode(payload).map_err(|_| wrong("not a Nix signing key (base64)"))?;
        let bytes: [u8; 64] = bytes.try_into().map_err(|_| wrong("not a Nix signing key (64 bytes)"))?;
        let key = SigningKey::from_keypair_bytes(&bytes)
            .map_err(|_| wrong("its two halves do not belong together"))?;
        if name.is_empty() {
            return Err(wrong("not a Nix signing key (no name)"));
        }
        Ok(Self { name: name.to_owned(), key })
    }

    /// A fixed key for tests.
    #[cfg(any(fuzzing, test))]
    pub(super) fn for_tests() -> Self {
        Self { name: "test".to_owned(), key: SigningKey::from_bytes(&[7; 32]) }
    }

    /// Returns the public key in the format of Nix's `trusted-public-keys`.
    pub(super) fn public(&self) -> String {
        format!("{}:{}", self.name, STANDARD.encode(self.key.verifying_key().as_bytes()))
    }

    pub(super) fn sign(&self, fingerprint: &str) -> String {
        format!("{}:{}", self.name, STANDARD.encode(self.key.sign(fingerprint.as_bytes()).to_bytes()))
    }
}

fn random(path: &Path) -> Result<[u8; 32], EmbeddedError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|e| EmbeddedError::file("make a secret for", path)(std::io::Error::other(e)))?;
    Ok(bytes)
}

/// Returns the trimmed content of `dir/name`, and makes the file if it is missing. It
/// appears whole or not at all, and never replaces a file that another process made
/// at the same time, because link(2) does not replace.
fn read_or_make(
    dir: &Path,
    name: &str,
    make: impl FnOnce() -> Result<String, EmbeddedError>,
) -> Result<String, EmbeddedError> {
    let path = dir.join(name);
    match read(&path) {
        Err(EmbeddedError::File { source, .. }) if source.kind() == ErrorKind::NotFound => {}
        other => return other,
    }
    let temporary = dir.join(format!(".{name}.{}.new", std::process::id()));
    let _ = fs::remove_file(&temporary);
    let made = write_new(&temporary, &make()?).and_then(|()| fs::hard_link(&temporary, &path));
    let _ = fs::remove_file(&temporary);
    match made {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => return Err(EmbeddedError::file("write", &path)(e)),
        _ => {}
    }
    sync_dir(dir).map_err(EmbeddedError::file("sync", dir))?;
    read(&path)
}

fn write_new(path: &Path, text: &str) -> std::io::Result<()> {
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    writeln!(file, "{text}")?;
    file.sync_all()
}

fn read(path: &Path) -> Result<String, EmbeddedError> {
    let mut text = String::new();
    File::open(path)
        .and_then(|f| f.take(LONGEST).read_to_string(&mut text))
        .map_err(EmbeddedError::file("read", path))?;
    Ok(text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn secrets_are_made_once_and_private() {
        let dir = tempfile::tempdir().unwrap();
        let (path, digest) = token(dir.path(), "embedded-push-token").unwrap();
        let text = fs::read_to_string(&path).unwrap();
        assert!(
            digest.matches(text.trim().as_bytes())
                && !digest.matches(b"")
                && !digest.matches(text.as_bytes())
        );
        let key = CacheKey::read_or_make(dir.path(), "main").unwrap();
        assert_eq!(key.public(), CacheKey::read_or_make(dir.path(), "main").unwrap().public());
        assert_eq!(text, fs::read_to_string(token(dir.path(), "embedded-push-token").unwrap().0).unwrap());
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(Result::unwrap).collect();
        names.sort_by_key(fs::DirEntry::file_name);
        assert_eq!(names.len(), 2, "no temporary stays: {names:?}");
        for entry in names {
            assert_eq!(entry.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{entry:?}");
        }
    }

    #[test]
    fn a_broken_secret_is_refused_without_showing_it() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("t"), "tiny").unwrap();
        fs::write(dir.path().join("embedded-key-main"), "main:c2VjcmV0").unwrap();
        for error in
            [token(dir.path(), "t").err().unwrap(), CacheKey::read_or_make(dir.path(), "main").err().unwrap()]
        {
            assert!(matches!(error, EmbeddedError::Secret { .. }), "{error}");
            assert!(
                !error.to_string().contains("tiny") && !error.to_string().contains("c2VjcmV0"),
                "{error}"
            );
        }
    }
}
