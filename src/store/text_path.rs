//! The store path of a text, as `builtins.toFile` makes it, without a store: its name
//! follows from the text, so that it is the same on all hosts.
//!
//! Must not know: the Nix database. Nothing is written.

use sha2::{Digest as _, Sha256};

use super::source_path::hash_part;
use crate::types::{NarHash, StoreDir, StorePath};

/// A store path that is one text.
pub(crate) struct TextPath {
    /// The path.
    pub(crate) path: StorePath,
    /// Its content address, as Nix records it.
    pub(crate) ca: String,
    /// The hash of its NAR.
    pub(crate) nar_hash: NarHash,
    /// Its NAR.
    pub(crate) nar: Vec<u8>,
}

impl TextPath {
    /// The path of `text`. `None`: Nix does not allow the name.
    pub(crate) fn new(store_dir: &StoreDir, name: &str, text: &str) -> Option<Self> {
        let content: [u8; 32] = Sha256::digest(text).into();
        let hash = hash_part(store_dir, "text", &content, name);
        let path = StorePath::parse(&format!("{hash}-{name}")).ok()?;
        let nar = nar(text.as_bytes());
        let nar_hash = NarHash(Sha256::digest(&nar).into());
        Some(Self { path, ca: format!("text:sha256:{}", NarHash(content).nix32()), nar_hash, nar })
    }
}

/// The NAR of a regular file.
fn nar(text: &[u8]) -> Vec<u8> {
    let mut nar = Vec::new();
    for word in [b"nix-archive-1", &b"("[..], b"type", b"regular", b"contents", text, b")"] {
        nar.extend_from_slice(&(word.len() as u64).to_le_bytes());
        nar.extend_from_slice(word);
        nar.resize(nar.len().next_multiple_of(8), 0);
    }
    nar
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    #[test]
    fn it_is_what_nix_makes_of_the_text() {
        let dir = tempfile::tempdir().unwrap();
        let (store, text) = (dir.path().join("store"), "one line\nand more");
        std::fs::create_dir(&store).unwrap();
        let nix = |program: &str, args: &[&str]| {
            let mut command = Command::new(program);
            command.args(args).env("NIX_STORE_DIR", &store).env("NIX_STATE_DIR", dir.path().join("var"));
            command.env("NIX_REMOTE", "local").env("NIX_CONF_DIR", dir.path()).env("HOME", dir.path());
            let output = command.output().unwrap();
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            output.stdout
        };
        let expression = format!("builtins.toFile \"a-text\" {text:?}");
        let made = nix("nix-instantiate", &["--eval", "--read-write-mode", "-E", &expression]);
        let made = String::from_utf8(made).unwrap().trim().trim_matches('"').to_owned();
        let store_dir = StoreDir::new(store.to_str().unwrap()).unwrap();
        let path = TextPath::new(&store_dir, "a-text", text).unwrap();
        assert_eq!(store_dir.full(&path.path), made);
        assert_eq!(path.nar, nix("nix-store", &["--dump", &made]));
        let hash = nix("nix-store", &["--query", "--hash", &made]);
        assert_eq!(String::from_utf8(hash).unwrap().trim(), format!("sha256:{}", path.nar_hash.nix32()));
        assert!(TextPath::new(&store_dir, "a name", text).is_none());
    }
}
