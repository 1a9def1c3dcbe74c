//! Reads a narinfo as Nix does (Nix's `src/libstore/nar-info.cc`), and checks its
//! signature over Nix's fingerprint (`ValidPathInfo::fingerprint`, `path-info.cc`). Must
//! not know HTTP.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use ed25519_dalek::{Signature, VerifyingKey};

use crate::types::{NarHash, StoreDir, StorePath};

/// Largest narinfo that is read, in bytes. A path with 5,000 references has 300 KB.
pub(super) const LONGEST: usize = 1024 * 1024;

/// The fields of a narinfo that matter for reading the path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct NarInfo {
    pub(super) path: StorePath,
    /// Where the NAR is, relative to the cache.
    pub(super) url: String,
    pub(super) compression: String,
    pub(super) file_hash: Option<NarHash>,
    pub(super) file_size: Option<u64>,
    pub(super) nar_hash: NarHash,
    pub(super) nar_size: u64,
    /// Sorted.
    pub(super) references: Vec<StorePath>,
    sigs: Vec<String>,
    is_content_addressed: bool,
}

/// A key in the format of `trusted-public-keys`.
#[derive(Debug, Clone)]
pub(super) struct PublicKey {
    name: String,
    key: VerifyingKey,
}

impl PublicKey {
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, key) = text.split_once(':')?;
        let key: [u8; 32] = STANDARD.decode(key).ok()?.try_into().ok()?;
        Some(Self { name: name.to_owned(), key: VerifyingKey::from_bytes(&key).ok()? })
    }

    pub(super) fn name(&self) -> &str {
        &self.name
    }
}

impl NarInfo {
    /// The error says which field is wrong.
    pub(super) fn parse(text: &str, store_dir: &StoreDir) -> Result<Self, String> {
        let mut fields = Fields::default();
        for line in text.lines().filter(|line| !line.is_empty()) {
            let (name, value) = line.split_once(": ").or_else(|| line.split_once(':')).ok_or_else(|| {
                let begin: String = line.chars().take(40).collect();
                format!("{begin:?} is not a line of a narinfo")
            })?;
            fields.take(name, value.trim())?;
        }
        let missing = |name: &str| format!("it has no {name}");
        let path = fields.path.ok_or_else(|| missing("StorePath"))?;
        let mut references = Vec::new();
        for reference in fields.references.split_ascii_whitespace() {
            references.push(StorePath::parse(reference).map_err(|e| format!("References: {e}"))?);
        }
        references.sort_unstable();
        Ok(Self {
            path: store_dir.parse(&path).map_err(|e| format!("StorePath: {e}"))?,
            url: fields.url.ok_or_else(|| missing("URL"))?,
            // Nix's default for a narinfo without the field.
            compression: fields.compression.unwrap_or_else(|| "bzip2".to_owned()),
            file_hash: fields.file_hash,
            file_size: fields.file_size,
            nar_hash: fields.nar_hash.ok_or_else(|| missing("NarHash"))?,
            nar_size: fields.nar_size.ok_or_else(|| missing("NarSize"))?,
            references,
            sigs: fields.sigs,
            is_content_addressed: fields.ca.is_some_and(|ca| !ca.is_empty()),
        })
    }

    /// Returns whether anything but the cache's word says that the path is what it should
    /// be. Whether the signature is valid, and its key trusted, is for its readers to say.
    pub(super) fn is_vouched_for(&self) -> bool {
        self.is_content_addressed || self.sigs.iter().any(|sig| sig.contains(':'))
    }

    /// `1;path;sha256:<base 32>;size;full references, comma separated`
    fn fingerprint(&self, store_dir: &StoreDir) -> String {
        let references: Vec<_> = self.references.iter().map(|r| store_dir.full(r)).collect();
        format!(
            "1;{};sha256:{};{};{}",
            store_dir.full(&self.path),
            self.nar_hash.nix32(),
            self.nar_size,
            references.join(",")
        )
    }

    /// Checks that the key has signed the path. The error says what there is instead.
    pub(super) fn check_signature(&self, key: &PublicKey, store_dir: &StoreDir) -> Result<(), String> {
        let mut others = Vec::new();
        let mut wrong = false;
        for sig in &self.sigs {
            let Some((name, sig)) = sig.split_once(':') else { continue };
            if name != key.name {
                others.push(name.chars().take(60).collect::<String>());
                continue;
            }
            let sig = STANDARD.decode(sig).ok().and_then(|sig| Signature::from_slice(&sig).ok());
            let message = self.fingerprint(store_dir);
            if sig.is_some_and(|sig| key.key.verify_strict(message.as_bytes(), &sig).is_ok()) {
                return Ok(());
            }
            wrong = true;
        }
        others.truncate(5);
        Err(match (wrong, others.is_empty()) {
            (true, _) => format!("its signature by {} does not match the cache's public key", key.name),
            (false, true) => format!("it has no signature; {} should have signed it", key.name),
            (false, false) => format!("it is signed by {}, not by {}", others.join(", "), key.name),
        })
    }
}

/// The fields as they come.
#[derive(Default)]
struct Fields {
    path: Option<String>,
    url: Option<String>,
    compression: Option<String>,
    file_hash: Option<NarHash>,
    file_size: Option<u64>,
    nar_hash: Option<NarHash>,
    nar_size: Option<u64>,
    references: String,
    sigs: Vec<String>,
    ca: Option<String>,
}

impl Fields {
    /// Unknown fields are ignored, as Nix does.
    fn take(&mut self, name: &str, value: &str) -> Result<(), String> {
        let hash = || NarHash::parse(value).map(Some).map_err(|e| format!("{name}: {e}"));
        let size = || match value.parse() {
            Ok(size) => Ok(Some(size)),
            Err(e) => Err(format!("{name}: {e}")),
        };
        match name {
            "StorePath" => self.path = Some(value.to_owned()),
            "URL" => self.url = Some(value.to_owned()),
            "Compression" => self.compression = Some(value.to_owned()),
            "FileHash" => self.file_hash = hash()?,
            "FileSize" => self.file_size = size()?,
            "NarHash" => self.nar_hash = hash()?,
            "NarSize" => self.nar_size = size()?,
            "References" => value.clone_into(&mut self.references),
            "CA" => self.ca = Some(value.to_owned()),
            "Sig" => self.sigs.push(value.to_owned()),
            _ => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use ed25519_dalek::{Signer as _, SigningKey};

    use super::*;

    const HASH: &str = "sha256:0000000000000000000000000000000000000000000000000000000000000000";

    fn store() -> StoreDir {
        StoreDir::new("/nix/store").unwrap()
    }

    fn text(sig: &str) -> String {
        let (a, b) = ("1".repeat(32), "0".repeat(32));
        format!(
            "StorePath: /nix/store/{a}-p\nURL: nar/x.nar\nCompression: zstd\nNarHash: {HASH}\nNarSize: 120\n\
             References: {a}-p {b}-q\nDeriver: unknown\nSig: {sig}\nSig: other:AAAA\n"
        )
    }

    fn signed(key: &SigningKey) -> String {
        let info = NarInfo::parse(&text("a:b"), &store()).unwrap();
        let sig = key.sign(info.fingerprint(&store()).as_bytes());
        format!("main:{}", STANDARD.encode(sig.to_bytes()))
    }

    #[test]
    fn a_signature_counts_when_the_caches_key_made_it_over_these_fields() {
        let (key, other) = (SigningKey::from_bytes(&[1; 32]), SigningKey::from_bytes(&[2; 32]));
        let public = |key: &SigningKey| {
            PublicKey::parse(&format!("main:{}", STANDARD.encode(key.verifying_key().to_bytes()))).unwrap()
        };
        let info = |text: &str| NarInfo::parse(text, &store()).unwrap();
        let good = text(&signed(&key));
        assert_eq!(info(&good).check_signature(&public(&key), &store()), Ok(()));
        assert!(
            info(&good).check_signature(&public(&other), &store()).unwrap_err().contains("does not match")
        );
        let changed = good.replace("NarSize: 120", "NarSize: 121");
        assert!(info(&changed).check_signature(&public(&key), &store()).is_err());
        let foreign = info(&text("else:AAAA")).check_signature(&public(&key), &store()).unwrap_err();
        assert_eq!(foreign, "it is signed by else, other, not by main");
    }

    #[test]
    fn a_field_that_is_missing_or_wrong_is_named() {
        for (from, to, why) in [
            ("NarSize: 120\n", "", "it has no NarSize"),
            ("NarSize: 120", "NarSize: many", "NarSize: "),
            ("StorePath: /nix/store/", "StorePath: /gnu/store/", "StorePath: "),
            ("References: ", "References: x ", "References: "),
            ("Deriver: unknown", "<html>", "is not a line of a narinfo"),
        ] {
            let error = NarInfo::parse(&text("a:b").replace(from, to), &store()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
    }
}
