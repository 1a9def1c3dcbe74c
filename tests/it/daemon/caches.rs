//! Which cache a path goes to, and what goes with it: two caches, overlapping sessions, named
//! closures, large closures.

use serde_json::Value;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, EMBEDDED, until};
use crate::support::nix::PrivateNix;

const TWO: &str = "default_cache = \"main\"\n[caches.main]\nendpoints = \"embedded\"\n\
    [caches.other]\nendpoints = \"embedded\"\n[embedded]\nlisten = \"127.0.0.1:0\"\n[client]\nenable = false\n";

#[test]
fn a_session_goes_to_its_cache_and_the_rest_to_the_default() {
    let daemon = Daemon::start(PrivateNix::new(), TWO);
    daemon.nix.make("nobodys");
    daemon.flush();
    let session = daemon.session(&["--cache", "other"]);
    let of_session = daemon.nix.make("sessions");
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (&summary["cache"], &summary["pushed"]),
        (&Value::from("other"), &Value::from(1)),
        "{summary}"
    );
    assert_eq!(daemon.cache("main").names(), ["nobodys"]);
    assert_eq!(daemon.cache("other").names(), ["sessions"]);
    // The same path is named for the other cache.
    let pushed = daemon.json(&["push", "--wait", "--cache", "main", &of_session]);
    assert_eq!(pushed["pushed"], 1, "{pushed}");
    assert_eq!(daemon.cache("main").names(), ["nobodys", "sessions"]);
    let unknown = daemon.ctl(&["session", "start", "--cache", "nowhere"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(unknown.err.contains("main, other"), "{unknown:?}");
}

/// Another process has the port of the built-in cache: that costs this cache, and nothing is sent to
/// that process.
#[test]
fn a_port_that_is_taken_costs_that_cache_and_not_the_daemon() {
    let stranger = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    stranger.set_nonblocking(true).unwrap();
    let port = stranger.local_addr().unwrap();
    let nix = PrivateNix::new();
    let other = StandaloneCache::start(&nix, |_| ());
    let config = format!(
        "default_cache = \"own\"\n[caches.own]\nendpoints = \"embedded\"\n[caches.other]\nendpoints = [\"{}\"]\n\
         cache = \"main\"\ntoken_file = \"{}\"\n[embedded]\nlisten = \"{port}\"\n[client]\nenable = false\n",
        other.url(),
        other.token_file().display()
    );
    let daemon = Daemon::start(nix, &config);
    let path = daemon.nix.make("waits");
    let pushed = daemon.json(&["push", "--wait", "--cache", "other", &path]);
    assert_eq!(pushed["pushed"], 1, "{pushed}");
    let own = |status: &Value| {
        let caches = status["cache"].as_array().unwrap();
        caches.iter().find(|cache| cache["name"] == "own").unwrap().clone()
    };
    until("the status says that the cache is away", || own(&daemon.status())["state"] == "offline");
    let status = daemon.status();
    let reason = own(&status)["reason"].as_str().unwrap().to_owned();
    assert!(reason.contains(&port.to_string()) && reason.contains("flywheeld-cache.socket"), "{status}");
    assert!(status["warnings"].to_string().contains(&port.to_string()), "{status}");
    let doctor = daemon.ctl(&["doctor"]);
    assert!(doctor.code == 3 && doctor.out.contains(&port.to_string()), "{doctor:?}");
    daemon.assert_logged(1, "the daemon tries again until the address is free");
    let refused = daemon.ctl(&["--json", "flush", "--timeout", "1s"]);
    assert_eq!(refused.code, 4, "{refused:?}");
    assert!(stranger.accept().is_err(), "no connection was made to the other process");
    drop(stranger);
    let summary = daemon.flush();
    assert_eq!(summary["outcome"], "complete", "{summary}");
    assert!(daemon.cache("own").has(&path));
    assert_eq!(daemon.status()["warnings"], serde_json::json!([]));
}

#[test]
fn overlapping_sessions_share_what_either_may_have_made() {
    let daemon = Daemon::embedded();
    let one = daemon.session(&[]);
    daemon.nix.make("first");
    let two = daemon.session(&[]);
    daemon.nix.make("both");
    let ended = daemon.end(&one, &[]);
    daemon.nix.make("last");
    let last = daemon.end(&two, &[]);
    for (summary, label) in [(&ended, "one"), (&last, "two")] {
        assert_eq!(summary["outcome"], "complete", "{label}: {summary}");
        assert_eq!(summary["pushed"], 2, "{label}: {summary}");
    }
    assert_eq!(daemon.main().names(), ["both", "first", "last"]);
}

#[test]
fn a_named_path_goes_with_its_closure() {
    let nix = PrivateNix::new();
    let top = nix
        .build(
            "let dep = derivation { name = \"dep\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
               args = [ \"-c\" \"echo hi > $out\" ]; }; \
             in derivation { name = \"top\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
               inherit dep; args = [ \"-c\" \"echo $dep > $out\" ]; }",
        )
        .remove(0);
    // The path was valid before the first start, so it is not pushed without being named.
    let daemon = Daemon::start(nix, EMBEDDED);
    daemon.flush();
    assert!(daemon.main().all().is_empty());
    let session = daemon.session(&[]);
    std::os::unix::fs::symlink(&top, daemon.nix.work_dir().join("result")).unwrap();
    let summary = daemon.end(&session, &["--push", "result*"]);
    assert_eq!(summary["pushed"], 2, "{summary}");
    assert_eq!(daemon.main().names(), ["dep", "top"]);
    // A name that is not a valid path is reported, and the other names are pushed.
    let session = daemon.session(&[]);
    let gone = format!("{}/00000000000000000000000000000000-gone", daemon.nix.store_dir().display());
    let said = daemon.ctl(&["--json", "session", "end", &session, "--push", &gone, &top]);
    assert_eq!(said.code, 0, "{said:?}");
    let summary = said.json();
    assert_eq!(
        (&summary["already_cached"], &summary["pushed"]),
        (&Value::from(2), &Value::from(0)),
        "{summary}"
    );
    assert!(summary["warnings"][0].as_str().unwrap().contains("is not valid"), "{summary}");
}

const MANY: usize = 5_200;

/// More than 5,000 paths, one of which refers to all others.
#[test]
fn a_closure_of_thousands_is_counted_once_each() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    let text = format!(
        "builtins.toFile \"top\" (builtins.concatStringsSep \"\\n\" \
         (builtins.genList (i: builtins.toFile \"f-${{toString i}}\" \"x${{toString i}}\") {MANY}))"
    );
    let out = daemon.nix.run("nix-instantiate", &["--eval", "--strict", "--read-write-mode", "-E", &text]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let top = String::from_utf8(out.stdout).unwrap().trim().trim_matches('"').to_owned();
    let summary = daemon.end(&session, &["--push", &top]);
    assert_eq!(summary["pushed"], MANY + 1, "{summary}");
    assert_eq!((&summary["already_cached"], &summary["skipped"]), (&Value::from(0), &Value::from(0)));
    assert_eq!(summary["outcome"], "complete");
    let cache = daemon.main();
    assert_eq!(cache.all().len(), MANY + 1);
    let references = cache.narinfo(&top).unwrap();
    let references = references.lines().find_map(|l| l.strip_prefix("References: ")).unwrap();
    assert_eq!(references.split(' ').count(), MANY);

    // Everything is in the cache already.
    let flushed = daemon.flush();
    assert_eq!((&flushed["outcome"], &flushed["failed_total"]), (&Value::from("complete"), &Value::from(0)));
    let session = daemon.session(&[]);
    let summary = daemon.end(&session, &["--push", &top]);
    assert_eq!(
        (&summary["already_cached"], &summary["pushed"]),
        (&Value::from(MANY + 1), &Value::from(0)),
        "{summary}"
    );
}

/// Another host uploads the same large path, and is quicker: this upload is broken off. The other
/// host is a second cache of the configuration, which leads to the same cache of the server.
#[test]
fn a_large_upload_is_broken_off_when_the_path_has_arrived_from_elsewhere() {
    let nix = PrivateNix::new();
    let server = StandaloneCache::start(&nix, |_| ());
    let gate = server.gate();
    gate.close();
    let config = format!(
        "default_cache = \"main\"\n{}[caches.other]\nendpoints = [\"{}\"]\ncache = \"main\"\ntoken_file = \"{}\"\n\
         [client]\nenable = false\n",
        server.caches(&gate.url()),
        server.url(),
        server.token_file().display()
    );
    let daemon = Daemon::start(nix, &config);
    let size = 24 << 20;
    let path =
        daemon.nix.build(&PrivateNix::shell("large", &format!("head -c {size} /dev/zero > $out"))).remove(0);
    gate.until_came(1);
    let other = daemon.json(&["push", "--wait", "--cache", "other", &path]);
    assert_eq!(other["pushed"], 1, "{other}");
    // The gate is still closed.
    until("the upload is broken off", || daemon.status()["queue"]["uploading"] == 0);
    let counts = daemon.status()["cache"][0]["counts"].clone();
    assert_eq!(
        (&counts["already_cached"], &counts["pushed"]),
        (&Value::from(1), &Value::from(0)),
        "{counts}"
    );
    daemon.assert_logged(0, "WARN");
    assert_eq!(server.main().names(), ["large"]);
}
