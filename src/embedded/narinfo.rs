//! A path as Nix's substituters read it (nix: src/libstore/nar-info.cc), and
//! what a signature covers (nix: `ValidPathInfo::fingerprint`, path-info.cc).
//! Must not know HTTP or disks.

use std::fmt::Write;

use super::secrets::CacheKey;
use super::wire::PathRecord;
use crate::types::StorePath;

/// `1;path;sha256:<base 32>;size;full references, comma separated`.
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

/// Signed when it is read, not when it is written: a new key is in effect at once for every path.
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
        let _ = writeln!(out, "{name}: {value}"); // a String takes everything
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
