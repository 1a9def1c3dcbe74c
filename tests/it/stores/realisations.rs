//! Content-addressed derivations: the next pipeline takes from the built-in cache what this one
//! built, and a cache without realisations is named.

use std::path::Path;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::Daemon;
use crate::support::nix::PrivateNix;

const LENGTH: usize = 5;

/// A chain of content-addressed derivations. Each build writes a line into the file `log`.
fn chain(log: &Path) -> String {
    format!(
        "let f = i: derivation {{ name = \"ca-${{toString i}}\"; system = builtins.currentSystem; builder = \
         \"/bin/sh\"; args = [ \"-c\" \"echo ${{if i == 0 then \"end\" else f (i - 1)}} > $out; echo ${{toString i}} >> \
         {}\" ]; __contentAddressed = true; outputHashMode = \"recursive\"; outputHashAlgo = \"sha256\"; }}; in f {}",
        log.display(),
        LENGTH - 1
    )
}

fn builds(log: &Path) -> usize {
    std::fs::read_to_string(log).unwrap_or_default().lines().count()
}

#[test]
fn the_next_pipeline_builds_nothing_again() {
    let daemon = Daemon::embedded();
    let log = tempfile::tempdir().unwrap();
    let log = log.path().join("log");
    let session = daemon.session(&[]);
    let built = daemon.nix.build(&chain(&log));
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (&summary["pushed"], &summary["without_realisation"]),
        (&LENGTH.into(), &0.into()),
        "{summary}"
    );
    assert_eq!(builds(&log), LENGTH);
    // Another host: an empty store, which reads from the cache and checks signatures.
    let cache = daemon.main();
    daemon.nix.wipe();
    daemon.nix.configure(&format!(
        "substitute = true\nsubstituters = {}\ntrusted-public-keys = {}\nrequire-sigs = true",
        cache.url(),
        cache.key
    ));
    assert_eq!(daemon.nix.build(&chain(&log)), built);
    assert_eq!(builds(&log), LENGTH, "derivations were built again");
}

/// A derivation that is built to a path that was there before: there is no new path, and still
/// something to publish.
#[test]
fn a_second_way_to_the_same_path_is_published_too() {
    let daemon = Daemon::embedded();
    let log = tempfile::tempdir().unwrap();
    let log = log.path().join("log");
    let other = chain(&log).replace("> $out;", "> $out; true;");
    let built = daemon.nix.build(&chain(&log));
    daemon.flush();
    let session = daemon.session(&[]);
    assert_eq!(daemon.nix.build(&other), built, "the builds give the same paths");
    daemon.end(&session, &[]);
    let before = builds(&log);
    let cache = daemon.main();
    daemon.nix.wipe();
    daemon.nix.configure(&format!(
        "substitute = true\nsubstituters = {}\ntrusted-public-keys = {}",
        cache.url(),
        cache.key
    ));
    assert_eq!(daemon.nix.build(&other), built);
    assert_eq!(builds(&log), before, "derivations were built again");
}

/// As an Attic server: the daemon cannot give it realisations.
#[test]
fn a_cache_without_realisations_is_named_in_the_summary() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| ());
    let daemon = Daemon::start(nix, &cache.config());
    let log = tempfile::tempdir().unwrap();
    let session = daemon.session(&[]);
    daemon.nix.build(&chain(&log.path().join("log")));
    daemon.nix.make("plain");
    let fixed = "derivation { name = \"fixed\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \
         \"echo 1 > $out\" ]; outputHashMode = \"flat\"; outputHashAlgo = \"sha256\"; outputHash = \
         \"4355a46b19d348dc2f57c046f8ef63d4538ebb936000f3c9ee954a27460dd865\"; }";
    daemon.nix.build(fixed);
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (&summary["pushed"], &summary["without_realisation"]),
        (&(LENGTH + 2).into(), &LENGTH.into()),
        "{summary}"
    );
    let text = daemon.ctl(&["session", "end", &session]);
    assert!(text.out.contains("builds them again"), "{text:?}");
    let detail = daemon.json(&["session", "show", &session]);
    assert_eq!(detail["summary"]["without_realisation"], LENGTH, "{detail}");
}
