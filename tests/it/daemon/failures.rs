//! Paths that cannot be pushed, and paths that are not to be: a failure costs the path and those
//! that refer to it, and the cache never lacks a reference.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::nix::PrivateNix;

/// `large` is refused for its size; `above` and `higher` refer to it, `beside` does not.
fn tree(daemon: &Daemon) -> String {
    daemon
        .nix
        .build(
            "let make = name: needs: script: derivation { inherit name needs; system = builtins.currentSystem; \
               builder = \"/bin/sh\"; PATH = \"/usr/bin:/bin\"; args = [ \"-c\" script ]; }; \
               large = make \"large\" [ ] \"head -c 200000 /dev/zero > $out\"; \
               beside = make \"beside\" [ ] \"echo hi > $out\"; \
               above = make \"above\" [ large beside ] \"echo $needs > $out\"; \
             in make \"higher\" [ above ] \"echo $needs > $out\"",
        )
        .remove(0)
}

#[test]
fn a_rejected_path_fails_its_referrers_and_nothing_else() {
    let nix = PrivateNix::new();
    let mut cache = StandaloneCache::start(&nix, |s| s.max_nar_size = 64 << 10);
    let daemon = Daemon::start(nix, &cache.config());
    let session = daemon.session(&[]);
    let higher = tree(&daemon);
    let summary = daemon.end(&session, &[]);
    assert_eq!(summary["outcome"], "partial", "{summary}");
    assert_eq!(
        (&summary["pushed"], &summary["failed_total"]),
        (&Value::from(1), &Value::from(3)),
        "{summary}"
    );
    let failed: BTreeMap<String, (String, String)> = summary["failed"]
        .as_array()
        .unwrap()
        .iter()
        .map(|f| {
            let text = |key: &str| f[key].as_str().unwrap().to_owned();
            (text("path").rsplit_once('-').unwrap().1.to_owned(), (text("class"), text("error")))
        })
        .collect();
    assert_eq!(failed["large"].0, "too-large", "{failed:?}");
    assert!(failed["large"].1.contains("413"), "{failed:?}");
    assert_eq!(failed["above"].0, "reference");
    assert!(failed["above"].1.contains("-large"), "{failed:?}");
    assert_eq!(failed["higher"].0, "reference");
    assert!(failed["higher"].1.contains("-above"), "{failed:?}");
    assert_eq!(cache.main().names(), ["beside"]);
    cache.main().assert_closed();
    assert_eq!(daemon.status()["queue"]["parked"], 3);
    let flushed = daemon.json_of_failed(&["flush"]);
    assert_eq!((&flushed["outcome"], &flushed["failed_total"]), (&"partial".into(), &3.into()), "{flushed}");
    let named: Vec<&str> =
        flushed["failed"].as_array().unwrap().iter().filter_map(|f| f["path"].as_str()).collect();
    assert!(named.len() == 3 && named.contains(&higher.as_str()), "{flushed}");

    // Only a job that asked for it fails, and its output says why.
    let strict = daemon.ctl(&["--strict", "session", "end", &session]);
    assert_eq!(strict.code, 3, "{strict:?}");
    let lenient = daemon.ctl(&["session", "end", &session]);
    assert_eq!(lenient.code, 0, "{lenient:?}");
    assert!(lenient.out.starts_with("watch-store pushed 1 store paths incrementally\n"), "{lenient:?}");
    assert_eq!(lenient.out.lines().filter(|l| l.starts_with("failed: /")).count(), 3, "{lenient:?}");

    // The limit is raised, and a reload pushes the paths.
    cache.change(|s| s.max_nar_size = 64 << 20);
    let reload = daemon.ctl(&["reload"]);
    assert_eq!(reload.code, 0, "{reload:?}");
    daemon.flush();
    assert_eq!(cache.main().names(), ["above", "beside", "higher", "large"]);
    cache.main().assert_closed();
    // The ended session's summary does not change; a new session sees the path in the cache.
    assert_eq!(daemon.end(&session, &[])["failed_total"], 3);
    let session = daemon.session(&[]);
    assert_eq!(daemon.end(&session, &["--push", &higher])["already_cached"], 4);
    cache.main().assert_nix_takes(&daemon.nix, &[higher]);
}

#[test]
fn naming_a_path_that_failed_tries_it_again() {
    let nix = PrivateNix::new();
    let mut cache = StandaloneCache::start(&nix, |s| s.max_nar_size = 64 << 10);
    let daemon = Daemon::start(nix, &cache.config());
    let higher = tree(&daemon);
    daemon.flush();
    let still = daemon.json_of_failed(&["push", "--wait", &higher]);
    assert_eq!(
        (&still["failed_total"], &still["already_cached"]),
        (&Value::from(3), &Value::from(1)),
        "{still}"
    );
    cache.change(|s| s.max_nar_size = 64 << 20);
    let pushed = daemon.json(&["push", "--wait", &higher]);
    assert_eq!((&pushed["pushed"], &pushed["failed_total"]), (&Value::from(3), &Value::from(0)), "{pushed}");
    assert_eq!(cache.main().names(), ["above", "beside", "higher", "large"]);
}

#[test]
fn filters_leave_out_what_nothing_needs() {
    let filter =
        "[push.filter]\norigins = [\"built\"]\nnames = [\"*\", \"!secret-*\"]\nmax_size = \"10KiB\"\n";
    let daemon = Daemon::start(PrivateNix::new(), &format!("{EMBEDDED}{filter}"));
    let session = daemon.session(&[]);
    for (name, script) in [
        ("plain", "echo hi > $out"),
        ("secret-plan", "echo hi > $out"),
        ("large", "head -c 20000 /dev/zero > $out"),
    ] {
        daemon.nix.build(&PrivateNix::shell(name, script));
    }
    daemon.nix.build(
        "derivation { name = \"user\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
         used = builtins.toFile \"used\" \"hi\"; args = [ \"-c\" \"echo $used > $out\" ]; }",
    );
    let lonely = ["--eval", "--strict", "--read-write-mode", "-E", "builtins.toFile \"lonely\" \"hi\""];
    assert!(daemon.nix.run("nix-instantiate", &lonely).status.success());
    let summary = daemon.end(&session, &[]);
    assert_eq!(summary["outcome"], "complete", "{summary}");
    let shown = daemon.json(&["session", "show", &session]);
    let states: BTreeMap<&str, &str> = shown["paths"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| {
            (&p["path"].as_str().unwrap().rsplit('/').next().unwrap()[33..], p["state"].as_str().unwrap())
        })
        .filter(|(name, _)| !name.ends_with(".drv"))
        .collect();
    let expected = BTreeMap::from([
        ("plain", "pushed"),
        ("secret-plan", "skipped"),
        ("large", "skipped"),
        ("user", "pushed"),
        // The filter leaves it out, but a path that is pushed refers to it.
        ("used", "pushed"),
        ("lonely", "skipped"),
    ]);
    assert_eq!(states, expected);
    assert_eq!(daemon.main().names(), ["plain", "used", "user"]);
    daemon.main().assert_closed();
    // Naming a path overrides the filter.
    let secret = shown["paths"]
        .as_array()
        .unwrap()
        .iter()
        .find_map(|p| p["path"].as_str().filter(|p| p.ends_with("-secret-plan")).map(str::to_owned));
    assert_eq!(daemon.json(&["push", "--wait", &secret.unwrap()])["pushed"], 1);
    assert_eq!(daemon.main().names(), ["plain", "secret-plan", "used", "user"]);
}

/// Two paths: one with the signature of an upstream cache, one without. The second is the signed one.
pub(super) fn signed(nix: &PrivateNix) -> (String, String) {
    let run = |program: &str, args: &[&str]| {
        let out = nix.run(program, args);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    };
    run("nix-store", &["--generate-binary-cache-key", "up-1", "sk", "pk"]);
    let near = nix
        .build(
            "let far = derivation { name = \"far\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
               args = [ \"-c\" \"echo hi > $out\" ]; }; \
             in derivation { name = \"near\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
               inherit far; args = [ \"-c\" \"echo $far > $out\" ]; }",
        )
        .remove(0);
    let references = nix.run("nix-store", &["-q", "--references", &near]);
    let far = String::from_utf8(references.stdout).unwrap().trim().to_owned();
    run("nix", &["store", "sign", "-k", nix.work_dir().join("sk").to_str().unwrap(), &far]);
    (near, far)
}

#[test]
fn what_an_upstream_cache_has_is_not_pushed() {
    let nix = PrivateNix::new();
    let (near, far) = signed(&nix);
    let cache = StandaloneCache::start(&nix, |s| s.upstream_cache_key_names = vec!["up-1".to_owned()]);
    let daemon = Daemon::start(nix, &format!("{}[push]\nexisting = true\n", cache.config()));
    daemon.flush();
    assert_eq!(cache.main().names(), ["near"]);
    let session = daemon.session(&[]);
    let summary = daemon.end(&session, &["--push", &near]);
    assert_eq!(
        (&summary["upstream"], &summary["already_cached"], &summary["outcome"]),
        (&Value::from(1), &Value::from(1), &Value::from("complete")),
        "{summary}"
    );
    assert!(!cache.main().has(&far));
}

#[test]
fn what_was_valid_before_the_first_start_is_pushed_on_request() {
    let nix = PrivateNix::new();
    nix.build(&PrivateNix::shell("old", "echo old > $out"));
    let mut daemon = Daemon::start(nix, EMBEDDED);
    daemon.flush();
    assert!(daemon.main().all().is_empty());
    daemon.nix.build(&PrivateNix::shell("new", "echo new > $out"));
    daemon.flush();
    assert_eq!(daemon.main().names(), ["new"]);
    // The key is about the first start: at later starts the ledger decides.
    daemon.configure(&format!("{EMBEDDED}[push]\nexisting = true\n"));
    daemon.restart();
    daemon.flush();
    assert_eq!(daemon.main().names(), ["new"]);
    daemon.stop();
    std::fs::remove_dir_all(daemon.state_dir()).unwrap();
    daemon.up();
    daemon.flush();
    assert_eq!(daemon.main().names(), ["new", "old"]);
}
