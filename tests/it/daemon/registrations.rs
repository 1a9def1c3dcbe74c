//! All ways in which Nix registers a path, or does not: what the cache holds afterwards, and what
//! the session's end reports.

use std::fs::File;
use std::process::Output;

use serde_json::Value;

use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::nix::PrivateNix;

fn succeeds(out: &Output) -> String {
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// Asserts these counts of a summary and zero for all others, except `skipped`, which counts the
/// derivations: they are not pushed by themselves.
fn assert_counts(summary: &Value, expected: &[(&str, u64)]) {
    for key in ["pushed", "already_cached", "upstream", "pending", "failed_total", "collected"] {
        let wanted = expected.iter().find(|(name, _)| *name == key).map_or(0, |(_, n)| *n);
        assert_eq!(summary[key], wanted, "{key} of {summary}");
    }
    assert_eq!(summary["outcome"], "complete", "{summary}");
}

fn fixed(name: &str, hash: &str) -> String {
    format!(
        "derivation {{ name = \"{name}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"echo hi > $out\" ]; outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; \
         outputHash = \"{hash}\"; }}"
    )
}

/// SHA-256 of "hi\n", and another hash.
const HI: &str = "98ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4";
const NOT_HI: &str = "00ea6e4f216f2fb4b69fff9b3a44842c38686ca685f3f55dc48c5d3fb1107be4";

#[test]
fn a_build_that_succeeds_and_one_that_is_valid_already() {
    let daemon = Daemon::embedded();
    let expression = PrivateNix::shell("good", "echo hi > $out");
    let first = daemon.session(&[]);
    let built = daemon.nix.build(&expression);
    let summary = daemon.end(&first, &[]);
    assert_counts(&summary, &[("pushed", 1)]);
    assert_eq!(summary["skipped"], 1, "the derivation: {summary}");
    // The evidence is the lock's holder when it was seen in time, else the window of the only open
    // session.
    let by = |key: &str| summary["attributed"][key].as_u64().unwrap();
    assert_eq!(by("process") + by("window"), 2, "{summary}");
    assert!(summary["bytes"].as_u64().unwrap() > 100, "{summary}");
    assert_eq!(daemon.main().names(), ["good"]);

    // The path is valid already, so nothing is registered and the session has no path unless it
    // names one.
    let second = daemon.session(&[]);
    daemon.nix.build(&expression);
    assert_counts(&daemon.end(&second, &[]), &[]);
    let third = daemon.session(&[]);
    assert_counts(&daemon.end(&third, &["--push", &built[0]]), &[("already_cached", 1)]);
    daemon.main().assert_nix_takes(&daemon.nix, &built);
}

#[test]
fn a_build_that_fails_then_a_collection_then_a_build() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    let bad = PrivateNix::shell("bad", "echo hi > $out; exit 1");
    assert!(!daemon.nix.run("nix-build", &["--no-out-link", "-E", &bad]).status.success());
    succeeds(&daemon.nix.run("nix-store", &["--gc"]));
    let good = daemon.nix.build(&PrivateNix::shell("good", "echo hi > $out"));
    assert_counts(&daemon.end(&session, &[]), &[("pushed", 1)]);
    assert_eq!(daemon.main().names(), ["good"]);
    daemon.main().assert_nix_takes(&daemon.nix, &good);
}

#[test]
fn a_floating_content_addressed_build() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    let built = daemon.nix.build(
        "derivation { name = \"floating\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         args = [ \"-c\" \"echo hi > $out\" ]; __contentAddressed = true; \
         outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; }",
    );
    assert_counts(&daemon.end(&session, &[]), &[("pushed", 1)]);
    assert_eq!(daemon.main().names(), ["floating"]);
    let info = daemon.main().narinfo(&built[0]).unwrap();
    assert!(info.contains("CA: fixed:r:sha256:"), "{info}");
    daemon.main().assert_nix_takes(&daemon.nix, &built);
}

#[test]
fn a_fixed_output_whose_hash_is_right_or_wrong() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    daemon.nix.build(&fixed("right", HI));
    // Nix registers the output under its real hash, although the build fails.
    let wrong = daemon.nix.run("nix-build", &["--no-out-link", "-E", &fixed("wrong", NOT_HI)]);
    assert!(!wrong.status.success());
    assert_counts(&daemon.end(&session, &[]), &[("pushed", 2)]);
    assert_eq!(daemon.main().names(), ["right", "wrong"]);
}

/// Imports the closure of `top`, which another store made, while a session is open; returns the
/// daemon and the session's summary.
fn imported(make: impl FnOnce(&PrivateNix) -> String) -> (Daemon, Value, String) {
    let nix = PrivateNix::new();
    let top = make(&nix);
    let closure = succeeds(&nix.run("nix-store", &["-qR", &top]));
    let paths: Vec<&str> = closure.lines().collect();
    let export = nix.run("nix-store", &[&["--export"], &paths[..]].concat());
    assert!(export.status.success());
    let file = nix.work_dir().join("export");
    std::fs::write(&file, &export.stdout).unwrap();
    nix.wipe();
    let daemon = Daemon::start(nix, EMBEDDED);
    let session = daemon.session(&[]);
    let mut import = daemon.nix.command("nix-store");
    succeeds(&import.arg("--import").stdin(File::open(&file).unwrap()).output().unwrap());
    let summary = daemon.end(&session, &[]);
    (daemon, summary, top)
}

#[test]
fn an_import() {
    let (daemon, summary, outer) = imported(|nix| {
        nix.build(
            "derivation { name = \"outer\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
             text = builtins.toFile \"inner\" \"hi\"; args = [ \"-c\" \"echo $text > $out\" ]; }",
        )
        .remove(0)
    });
    assert_counts(&summary, &[("pushed", 2)]);
    assert_eq!(daemon.main().names(), ["inner", "outer"]);
    daemon.main().assert_nix_takes(&daemon.nix, &[outer]);
}

/// Nix registers an imported source without its content address. It stays a source, which nothing
/// that is pushed refers to.
#[test]
fn an_import_of_sources() {
    let (daemon, summary, _) = imported(|nix| {
        let text = "builtins.toFile \"outer\" \"see ${builtins.toFile \"inner\" \"hi\"}\"";
        let eval = ["--eval", "--strict", "--read-write-mode", "-E", text];
        succeeds(&nix.run("nix-instantiate", &eval)).trim_matches('"').to_owned()
    });
    assert_counts(&summary, &[]);
    assert_eq!(summary["skipped"], 2, "{summary}");
    assert!(daemon.main().names().is_empty());
}

#[test]
fn a_substitution() {
    let nix = PrivateNix::new();
    succeeds(&nix.run("nix-store", &["--generate-binary-cache-key", "far-1", "sk", "pk"]));
    let key = std::fs::read_to_string(nix.work_dir().join("pk")).unwrap();
    let far = format!("file://{}/far", nix.path().display());
    let built = nix.build(
        "derivation { name = \"far\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         text = builtins.toFile \"text\" \"hi\"; args = [ \"-c\" \"echo $text > $out\" ]; }",
    );
    let secret = nix.work_dir().join("sk");
    succeeds(&nix.run("nix", &["store", "sign", "-r", "-k", secret.to_str().unwrap(), &built[0]]));
    succeeds(&nix.run("nix", &["copy", "--to", &far, &built[0]]));
    nix.wipe();
    nix.configure(&format!("substitute = true\nsubstituters = {far}\ntrusted-public-keys = {}", key.trim()));
    let daemon = Daemon::start(nix, EMBEDDED);
    let session = daemon.session(&[]);
    succeeds(&daemon.nix.run("nix-store", &["-r", &built[0]]));
    assert_counts(&daemon.end(&session, &[]), &[("pushed", 2)]);
    let cache = daemon.main();
    assert_eq!(cache.names(), ["far", "text"]);
    // The path keeps its signature beside the cache's own.
    let info = cache.narinfo(&built[0]).unwrap();
    assert!(info.contains("Sig: main:"), "{info}");
    cache.assert_nix_takes(&daemon.nix, &built);
}

#[test]
fn what_a_build_refers_to_goes_with_it() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    daemon.nix.build(
        "let dep = derivation { name = \"dep\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
           args = [ \"-c\" \"echo hi > $out\" ]; }; \
         in derivation { name = \"top\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
           inherit dep; src = builtins.toFile \"src\" \"hi\"; args = [ \"-c\" \"echo $dep $src $out > $out\" ]; }",
    );
    let summary = daemon.end(&session, &[]);
    assert_counts(&summary, &[("pushed", 3)]);
    assert_eq!(daemon.main().names(), ["dep", "src", "top"]);
    daemon.main().assert_closed();
}
