//! Writes a path as a narinfo (Nix's `src/libstore/nar-info.cc`) and as the
//! fingerprint that a signature covers (Nix's `ValidPathInfo::fingerprint`,
//! `path-info.cc`). Must not know HTTP or disks.

use std::fmt::Write;

use super::secrets::CacheKey;
use super::wire::PathRecord;
use crate::types::StorePath;

/// Returns the fingerprint: `1;path;sha256:<base 32>;size;full references, comma separated`.
pub(super) fn fingerprint(store_dir: &str, path: &PathRecord) -> String {
    let references: Vec<_> = path.references.iter().map(|r| format!("{store_dir}/{r}")).collect();
    format!(
        "1;{store_dir}/{};sha256:{};{};{}",
        path.path,
        path.nar_hash.nix32(),
        path.nar_size,
        references.join(",")
    )
}

/// Returns the narinfo. It is signed on each read and not at the upload, so a new key applies to every path at once.
pub(super) fn text(store_dir: &str, path: &PathRecord, key: &CacheKey) -> String {
    let mut out = format!(
        "StorePath: {store_dir}/{}\nURL: nar/{}.nar\nCompression: zstd\nNarHash: sha256:{}\nNarSize: {}\nReferences: {}\n",
        path.path,
        path.path.hash_part(),
        path.nar_hash.hex(),
        path.nar_size,
        path.references.iter().map(StorePath::base).collect::<Vec<_>>().join(" ")
    );
    let mut line = |name: &str, value: &str| {
        let _ = writeln!(out, "{name}: {value}"); // writing to a String cannot fail
    };
    if let Some(system) = &path.system {
        line("System", system);
    }
    if let Some(deriver) = &path.deriver {
        line("Deriver", deriver.base());
    }
    line("Sig", &key.sign(&fingerprint(store_dir, path)));
    path.sigs.iter().for_each(|sig| line("Sig", sig));
    if let Some(ca) = &path.ca {
        line("CA", ca);
    }
    out
}
