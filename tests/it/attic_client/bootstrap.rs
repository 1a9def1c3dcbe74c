//! The attic client that the daemon keeps: obtained without a build, tried before it is used,
//! protected from collection, and found again after a restart.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use serde_json::Value;

use crate::support::attic::{FakeAttic, environment, substitute_from, until, until_client};
use crate::support::cache::StandaloneCache;
use crate::support::daemon::Daemon;
use crate::support::multiuser::NixDaemon;
use crate::support::nix::PrivateNix;

/// A daemon with a cache outside of it that Nix substitutes from, and a client that is not built
/// yet.
fn start(more: &str) -> (Daemon, StandaloneCache, FakeAttic) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    substitute_from(&nix, &cache.main());
    let fake = FakeAttic::new(&nix);
    let config = format!("{}{}{more}", cache.caches(&cache.url()), fake.config());
    let mut daemon = Daemon::prepare(nix, &config);
    daemon.env = environment(&daemon.nix);
    daemon.up();
    (daemon, cache, fake)
}

#[test]
fn the_first_pipeline_builds_it_and_the_second_substitutes_it() {
    let (mut daemon, cache, fake) = start("");
    // No cache has the client, and the daemon does not build it.
    let absent = until_client(&daemon, "absent");
    let error = absent["error"].as_str().unwrap();
    assert!(error.contains("no substituter has it"), "{absent}");
    assert_eq!(absent["path"], Value::Null);

    // A job builds the client, and it is available while that job goes on.
    let session = daemon.session(&["--label", "pipeline 1"]);
    let path = fake.built(&daemon.nix);
    let ready = until_client(&daemon, "ready");
    assert_eq!(ready["path"], format!("{path}/bin/attic"));
    assert_eq!(ready["version"], "attic 1", "{ready}");
    for key in ["since", "took_ms", "waited_ms"] {
        assert!(ready[key].as_i64().unwrap() > 0, "{key}: {ready}");
    }
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (&summary["outcome"], &summary["engine"]),
        (&"complete".into(), &"native".into()),
        "{summary}"
    );
    assert!(cache.main().has(&path));

    // Another host: its store and its state are empty.
    daemon.stop();
    daemon.nix.wipe();
    std::fs::remove_dir_all(daemon.state_dir()).unwrap();
    let _ = std::fs::remove_file(daemon.nix.path().join("attic/runs"));
    daemon.up();
    let ready = until_client(&daemon, "ready");
    assert_eq!(ready["path"], format!("{path}/bin/attic"));
    assert!(Path::new(&path).exists(), "Nix has substituted it");
    assert!(daemon.log().contains("the attic client is ready"), "{}", daemon.log());
    // The client was tried before it was used.
    let runs = fake.runs().join("\n");
    assert!(runs.contains("--version") && runs.contains("cache info main:main"), "{runs}");
}

#[test]
fn collection_does_not_take_it_and_a_restart_finds_it() {
    let (mut daemon, _cache, fake) = start("");
    let path = fake.built(&daemon.nix);
    until_client(&daemon, "ready");
    let gc = |daemon: &Daemon| {
        let out = daemon.nix.run("nix-store", &["--gc"]);
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        Path::new(&path).exists()
    };
    assert!(gc(&daemon), "while the daemon runs");
    daemon.stop();
    assert!(gc(&daemon), "while it does not");
    // Nothing can be fetched, so the previous client is used.
    daemon.nix.configure("substitute = false");
    fake.release("2");
    daemon.up();
    let ready = until("the next look's reason", || {
        let client = daemon.status()["client"].clone();
        (client["state"] == "ready" && client["error"] != Value::Null).then_some(client)
    });
    assert_eq!(ready["path"], format!("{path}/bin/attic"), "{ready}");
    std::fs::remove_file(daemon.state_dir().join("attic-client")).unwrap();
    assert!(!gc(&daemon), "without its link it is nobody's");
}

#[test]
fn a_newer_one_that_does_not_work_is_not_taken() {
    let (daemon, _cache, fake) = start("");
    let one = fake.built(&daemon.nix);
    until_client(&daemon, "ready");
    for (version, script, says) in [
        ("2", "exit 3", "status 3"),
        // It starts, and cannot talk to the cache.
        (
            "3",
            "test \"$1\" = --version && echo attic 3 || { echo 'Error: no such option' >&2; exit 1; }",
            "no such option",
        ),
    ] {
        fake.release_script(version, script);
        let two = fake.built(&daemon.nix);
        assert_ne!(one, two);
        assert_eq!(daemon.ctl(&["reload"]).code, 0);
        let kept = until(says, || {
            let client = daemon.status()["client"].clone();
            let said = client["error"].as_str().is_some_and(|error| error.contains(says));
            (client["state"] == "ready" && said).then_some(client)
        });
        assert_eq!(kept["path"], format!("{one}/bin/attic"), "{kept}");
        assert_eq!(std::fs::read_link(daemon.state_dir().join("attic-client")).unwrap(), Path::new(&one));
        assert!(!daemon.state_dir().join("attic-client.new").exists(), "the candidate is gone");
    }
    fake.release("4");
    let four = fake.built(&daemon.nix);
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    let new = until("the good one", || {
        let client = daemon.status()["client"].clone();
        (client["version"] == "attic 4" && client["state"] == "ready").then_some(client)
    });
    assert_eq!((&new["path"], &new["error"]), (&Value::from(format!("{four}/bin/attic")), &Value::Null));
}

#[test]
fn a_store_path_and_a_program_that_is_there() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let fake = FakeAttic::new(&nix);
    let path = fake.built(&nix);
    let program = nix.work_dir().join("my-attic");
    std::fs::copy(format!("{path}/bin/attic"), &program).unwrap();
    let mut daemon = Daemon::prepare(nix, "");
    daemon.env = environment(&daemon.nix);
    for (installable, expected) in [
        (path.clone(), format!("{path}/bin/attic")),
        (program.display().to_string(), program.display().to_string()),
    ] {
        daemon
            .configure(&format!("{}[client]\ninstallable = \"{installable}\"\n", cache.caches(&cache.url())));
        daemon.up();
        assert_eq!(until_client(&daemon, "ready")["path"], expected);
        daemon.stop();
        std::fs::remove_dir_all(daemon.state_dir()).unwrap();
    }
    // A client that does not exist is reported.
    let gone = format!("{}/00000000000000000000000000000000-attic", daemon.nix.store_dir().display());
    daemon.configure(&format!("{}[client]\ninstallable = \"{gone}\"\n", cache.caches(&cache.url())));
    daemon.up();
    let absent = until_client(&daemon, "absent");
    assert!(absent["error"].as_str().unwrap().starts_with("nix-store: "), "{absent}");
}

#[test]
fn a_job_calls_it_and_sees_no_token() {
    let (daemon, cache, fake) = start("");
    let early = daemon.ctl(&["client", "exec", "--", "--version"]);
    assert_eq!(early.code, 127, "{early:?}");
    assert!(early.err.contains("no attic client"), "{early:?}");
    fake.built(&daemon.nix);
    until_client(&daemon, "ready");

    let scratch = daemon.nix.work_dir().join("scratch");
    std::fs::create_dir(&scratch).unwrap();
    let with_input = |mut command: std::process::Command| {
        use std::io::Write as _;
        command.env("TMPDIR", &scratch).stdin(std::process::Stdio::piped());
        let mut child = command
            .stdout(std::process::Stdio::piped())
            .stderr(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(b"one\ntwo\n").unwrap();
        crate::support::daemon::CommandResult::of(&child.wait_with_output().unwrap())
    };
    let said = with_input(daemon.client(&["client", "exec", "--", "echo", "a b", "--x"]));
    assert_eq!((said.code, said.err.as_str()), (7, ""), "{said:?}");
    assert!(said.out.starts_with("a b --x / one,two\n"), "{said:?}");
    assert!(said.out.contains(&format!("endpoint = \"{}/\"", cache.url())), "{said:?}");
    assert!(!said.out.contains("token"), "{said:?}");
    assert_eq!(std::fs::read_dir(&scratch).unwrap().count(), 0, "nothing is left behind");
    // The same through the program in the runtime directory.
    let run = daemon.state_dir().join("run");
    let mut wrapper = std::process::Command::new(run.join("bin/attic"));
    wrapper.args(["echo", "c"]);
    let said = with_input(wrapper);
    assert_eq!(said.code, 7, "{said:?}");
    assert!(said.out.starts_with("c / one,two\n"), "{said:?}");
    let info = daemon.ctl(&["client", "exec", "--", "cache", "info", "main"]);
    assert_eq!(info.code, 0, "{info:?}");
    let shown = daemon.ctl(&["client", "status"]);
    assert!(shown.out.contains("client: ready") && shown.out.contains("attic 1"), "{shown:?}");

    // Only the service can read the configuration, and it does not contain the token.
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    let config = run.join("attic/attic/config.toml");
    assert_eq!((mode(&run.join("attic")), mode(&config)), (0o700, 0o600));
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(text.contains("token-file"), "{text}");
    for seen in [text, fake.runs().join("\n"), daemon.log()] {
        assert!(!seen.contains(&cache.token()), "{seen}");
    }
}

/// As the service does without root: the daemon makes the link, and the nix-daemon registers it as
/// a GC root.
#[test]
fn through_a_nix_daemon_it_is_a_root_as_well() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let fake = FakeAttic::new(&nix);
    let path = fake.built(&nix);
    let nix_daemon = NixDaemon::start(&nix, &[]);
    let mut daemon = Daemon::prepare(nix, &format!("{}{}", cache.caches(&cache.url()), fake.config()));
    daemon.env = environment(&daemon.nix);
    daemon.env.retain(|(name, _)| name != "NIX_REMOTE");
    daemon.env.push(("NIX_REMOTE".to_owned(), nix_daemon.remote()));
    daemon.up();
    assert_eq!(until_client(&daemon, "ready")["path"], format!("{path}/bin/attic"));
    daemon.stop();
    let out = daemon.nix.run("nix-store", &["--gc"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert!(Path::new(&path).exists());
}
