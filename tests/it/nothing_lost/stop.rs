//! A stop leaves no caller without an answer.

use std::process::{Child, Stdio};

use rustix::process::Signal;

use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{CommandResult, Daemon, until};
use crate::support::nix::PrivateNix;

/// A daemon with one upload at a time, and an upload gate before its cache.
fn gated() -> (Daemon, StandaloneCache, UploadGate) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    let config = format!("{}[push]\njobs = 1\n", cache.config_at(&gate.url()));
    (Daemon::start(nix, &config), cache, gate)
}

/// Ends a session, and returns when the session is draining.
fn ending(daemon: &Daemon, session: &str) -> Child {
    let mut end = daemon.client(&["--json", "session", "end", session, "--timeout", "20s"]);
    let end = end.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("it waits", || daemon.status()["sessions"][0]["state"] == "draining");
    end
}

#[test]
fn a_session_that_cannot_end_before_the_stop_is_answered_at_once() {
    let (mut daemon, cache, gate) = gated();
    gate.close();
    let session = daemon.session(&[]);
    let paths = ["one", "two"].map(|name| daemon.nix.make(name));
    let end = ending(&daemon, &session);
    gate.until_came(1);
    until("both wait", || daemon.status()["sessions"][0]["pending"] == 2);
    daemon.signal(Signal::TERM);
    // The answer comes before the upload has ended.
    let said = CommandResult::of(&end.wait_with_output().unwrap()).json();
    assert_eq!((said["outcome"].as_str(), said["pending"].as_u64()), (Some("pending"), Some(2)), "{said}");
    gate.open();
    assert!(daemon.ended().success());
    daemon.up();
    assert_eq!(daemon.end(&session, &[])["pushed"], 2);
    assert_eq!(cache.main().having(&paths), [true; 2]);
}

#[test]
fn a_stop_while_the_nix_database_is_away_answers_pending() {
    let (mut daemon, cache, _gate) = gated();
    let session = daemon.session(&[]);
    let (db, away) = (daemon.nix.state_dir().join("db"), daemon.nix.state_dir().join("db.away"));
    std::fs::rename(&db, &away).unwrap();
    let end = ending(&daemon, &session);
    until("it is noticed", || daemon.log().contains("cannot be taken in for the moment"));
    daemon.stop();
    let said = CommandResult::of(&end.wait_with_output().unwrap()).json();
    assert_eq!(said["outcome"], "pending", "{said}");
    assert!(said["warnings"][0].as_str().unwrap().contains("could not be looked through"), "{said}");
    std::fs::rename(&away, &db).unwrap();
    let path = daemon.nix.make("meanwhile");
    daemon.up();
    daemon.flush();
    assert!(cache.main().has(&path));
}

#[test]
fn requests_during_a_stop_are_refused_with_the_reason() {
    let (mut daemon, cache, gate) = gated();
    gate.close();
    let path = daemon.nix.make("one");
    gate.until_came(1);
    daemon.signal(Signal::TERM);
    daemon.until_notified(|line| line == "STOPPING=1");
    for command in [&["session", "start"][..], &["push", &path]] {
        let refused = daemon.ctl(&[&["--strict"], command].concat());
        assert_eq!((refused.code, refused.out.as_str()), (5, ""), "{refused:?}");
        assert!(refused.err.contains("the daemon is stopping"), "{refused:?}");
    }
    gate.open();
    assert!(daemon.ended().success());
    assert!(cache.main().has(&path));
}
