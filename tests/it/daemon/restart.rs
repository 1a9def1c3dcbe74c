//! The daemon is stopped, or killed at any moment: what became valid meanwhile is found, the queue
//! goes on, and sessions report the truth.

use serde_json::Value;

use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::Daemon;
use crate::support::nix::PrivateNix;

/// A daemon whose cache runs outside of it, behind an upload gate.
fn gated(top: &str, more: &str) -> (Daemon, StandaloneCache, UploadGate) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    let config = format!("{top}\n{}\n{more}", cache.config_at(&gate.url()));
    (Daemon::start(nix, &config), cache, gate)
}

#[test]
fn what_became_valid_while_it_was_stopped_or_killed() {
    let mut daemon = Daemon::embedded();
    daemon.stop();
    daemon.nix.make("while-stopped");
    daemon.up();
    daemon.flush();
    assert_eq!(daemon.main().names(), ["while-stopped"]);
    daemon.kill();
    daemon.nix.make("while-killed");
    daemon.up();
    daemon.flush();
    assert_eq!(daemon.main().names(), ["while-killed", "while-stopped"]);
}

#[test]
fn a_session_and_its_queue_outlive_a_kill() {
    let (mut daemon, cache, gate) = gated("", "");
    let session = daemon.session(&["--label", "long"]);
    gate.close();
    let before = daemon.nix.make("before");
    gate.until_came(1);
    daemon.kill();
    let away = daemon.nix.make("away");
    daemon.up();
    let after = daemon.nix.make("after");
    gate.open();
    let summary = daemon.end(&session, &[]);
    assert_eq!(summary["outcome"], "complete", "{summary}");
    assert_eq!(summary["pushed"], 3, "{summary}");
    assert_eq!(
        (&summary["label"], &summary["session"]),
        (&Value::from("long"), &Value::from(session.as_str()))
    );
    assert_eq!(cache.main().having(&[before, away, after]), [true; 3]);
    // The restarted daemon gives the same answer.
    daemon.kill();
    daemon.up();
    assert_eq!(daemon.end(&session, &[]), summary);
}

#[test]
fn a_session_that_drains_goes_on_draining() {
    let (mut daemon, cache, gate) = gated("", "");
    let session = daemon.session(&[]);
    gate.close();
    let path = daemon.nix.make("slow");
    let summary = daemon.end(&session, &["--no-wait"]);
    assert_eq!((&summary["outcome"], &summary["pending"]), (&Value::from("pending"), &Value::from(1)));
    gate.until_came(1);
    daemon.kill();
    // The session had ended before this path was built, so it is not the session's.
    daemon.nix.make("later");
    daemon.up();
    gate.open();
    // The session closes without being asked for.
    crate::attribution::sessions::until_state(&daemon, &session, "closed");
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (&summary["outcome"], &summary["pushed"]),
        (&Value::from("complete"), &Value::from(1)),
        "{summary}"
    );
    daemon.flush();
    assert!(cache.main().has(&path));
    assert_eq!(cache.main().names(), ["later", "slow"]);
}

/// A push is never open: after a restart it drains by itself, and an end without an id does not
/// find it.
#[test]
fn a_push_that_outlives_the_daemon_drains_and_is_nobodys_open_session() {
    let (mut daemon, cache, gate) = gated("", "");
    gate.close();
    let path = daemon.nix.make("pushed");
    let pushed = daemon.ctl(&["push", &path]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    daemon.kill();
    daemon.up();
    let listed = daemon.json(&["session", "list"]);
    assert_eq!(listed.as_array().unwrap().len(), 1, "{listed}");
    assert_eq!(listed[0]["state"], "draining", "{listed}");
    let session = daemon.session(&[]);
    let ended = daemon.json(&["session", "end", "--no-wait"]);
    assert_eq!(ended["session"], session.as_str(), "{ended}");
    gate.open();
    crate::support::daemon::until("both are closed", || {
        daemon.json(&["session", "list"]).as_array().unwrap().is_empty()
    });
    assert!(cache.main().has(&path));
}

#[test]
fn stopping_lets_what_runs_end_and_keeps_the_rest() {
    let (mut daemon, cache, gate) = gated("", "[push]\njobs = 1\n");
    gate.close();
    daemon.nix.make("one");
    daemon.nix.make("two");
    let came = gate.until_came(1);
    daemon.signal(rustix::process::Signal::TERM);
    daemon.until_notified(|line| line == "STOPPING=1");
    gate.open();
    let status = daemon.ended();
    assert_eq!(status.code(), Some(0), "{status}");
    assert_eq!(gate.came(), came, "nothing new was begun");
    assert_eq!(cache.main().all().into_iter().collect::<Vec<_>>(), came);
    assert!(!daemon.socket().exists());
    daemon.up();
    daemon.flush();
    assert_eq!(cache.main().names(), ["one", "two"]);
}

#[test]
fn a_second_signal_ends_it_at_once_and_nothing_is_lost() {
    let (mut daemon, cache, gate) = gated("", "");
    gate.close();
    daemon.nix.make("held");
    gate.until_came(1);
    daemon.signal(rustix::process::Signal::TERM);
    daemon.until_notified(|line| line == "STOPPING=1");
    daemon.signal(rustix::process::Signal::TERM);
    let status = daemon.ended();
    assert_eq!(status.code(), Some(1), "{status}");
    assert!(cache.main().all().is_empty());
    gate.open();
    daemon.up();
    daemon.flush();
    assert_eq!(cache.main().names(), ["held"]);
}

#[test]
fn systemd_is_notified_of_each_state() {
    let mut daemon = Daemon::embedded();
    let line = daemon.until_notified(|line| line.starts_with("STATUS="));
    assert!(line.contains("0 sessions") && line.contains("main"), "{line}");
    daemon.signal(rustix::process::Signal::INT);
    daemon.until_notified(|line| line == "STOPPING=1");
    assert_eq!(daemon.ended().code(), Some(0));
    let notified = daemon.notified();
    assert_eq!(notified.iter().filter(|l| *l == "READY=1").count(), 1, "{notified:?}");
}

#[test]
fn a_second_daemon_is_refused_and_the_first_goes_on() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    for (state, why) in [("elsewhere", "is listening on"), ("state", "another daemon")] {
        let top = daemon.nix.path().display();
        let config = std::fs::read_to_string(daemon.config()).unwrap();
        let config = config.replace(&format!("{top}/state\""), &format!("{top}/{state}\""));
        let second = daemon.nix.path().join("second.toml");
        std::fs::write(&second, config).unwrap();
        let out = daemon.program().arg("--config").arg(&second).output().unwrap();
        let text = String::from_utf8_lossy(&out.stderr).into_owned() + &String::from_utf8_lossy(&out.stdout);
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains(why), "{text}");
    }
    daemon.nix.make("after");
    assert_eq!(daemon.end(&session, &[])["pushed"], 1);
    assert_eq!(daemon.main().names(), ["after"]);
}

/// Sending to a full notify socket blocks, so the driver must not be the one that sends.
#[test]
fn a_full_notify_socket_blocks_nothing() {
    let mut daemon = Daemon::embedded();
    daemon.deafen();
    // Each session changes the status line; the second change is sent a second later at the
    // earliest.
    let patience = std::time::Instant::now() + std::time::Duration::from_millis(2500);
    let mut number = 0;
    while std::time::Instant::now() < patience {
        let session = daemon.session(&[]);
        number += 1;
        daemon.nix.make(&format!("n{number}"));
        assert_eq!(daemon.end(&session, &[])["pushed"], 1);
    }
    daemon.stop();
}
