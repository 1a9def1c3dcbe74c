//! Ends of sessions that come late, twice or again: each of them covers what it names.

use flywheel::control::messages::{Outcome, Reply, Request};

use crate::attribution::sessions::{Client, job, until_state};
use crate::daemon::notify::Stopped;
use crate::support::daemon::{Daemon, EMBEDDED, MAX_WAIT};
use crate::support::nix::PrivateNix;

/// Both look the session up before either of them makes it drain again.
#[test]
fn two_ends_of_an_abandoned_session_at_once_both_push_what_they_name() {
    let nix = PrivateNix::new();
    let old = [nix.make("a"), nix.make("b")];
    let daemon = Daemon::start(nix, EMBEDDED);
    let dead = job(&daemon, "\"$CTL\" session start", &[]);
    let session = String::from_utf8(dead.wait_with_output().unwrap().stdout).unwrap().trim().to_owned();
    until_state(&daemon, &session, "abandoned");
    let Some(stopped) = Stopped::threads(&daemon, "ledger") else { return };
    std::thread::scope(|scope| {
        let end = |path: &str| {
            let session = Some(session.clone());
            let (push, timeout_ms) = (vec![path.to_owned()], 120_000);
            let end =
                Request::SessionEnd { session, ci_job: None, push, timeout_ms, wait: true, patient: true };
            let Reply::Ended(summary) = Client::open(&daemon).ask(&end) else { panic!("no summary") };
            assert_eq!(summary.outcome, Outcome::Complete, "{summary:?}");
            assert!(daemon.main().has(path), "{path}: {summary:?}");
        };
        let ends = old.each_ref().map(|path| scope.spawn(move || end(path)));
        // It answers, so it has heard them.
        (0..2).for_each(|_| drop(daemon.status()));
        drop(stopped);
        for end in ends {
            end.join().unwrap();
        }
    });
    let detail = until_state(&daemon, &session, "closed");
    assert_eq!(detail["paths"].as_array().unwrap().len(), 2, "{detail}");
}

/// The daemon is killed after it has recorded the end of a session, and before it has taken in what
/// the end names. The caller asks again, after the next daemon has closed the session.
#[test]
fn an_end_that_is_asked_for_again_after_a_kill_pushes_what_it_names() {
    let nix = PrivateNix::new();
    let db = nix.without_wal();
    let old = nix.make("old");
    let mut daemon = Daemon::start(nix, EMBEDDED);
    let session = daemon.session(&[]);
    db.busy_timeout(MAX_WAIT).unwrap();
    db.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // Answered at its deadline: the intake cannot read the database.
    let early = daemon.end(&session, &["--push", &old, "--timeout", "1s"]);
    assert_eq!((&early["outcome"], &early["state"]), (&"pending".into(), &"draining".into()), "{early}");
    daemon.kill();
    db.execute_batch("ROLLBACK").unwrap();
    daemon.up();
    until_state(&daemon, &session, "closed");
    assert!(!daemon.main().has(&old), "nobody has asked for it");
    let summary = daemon.end(&session, &["--push", &old]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &1.into()), "{summary}");
    assert!(daemon.main().has(&old));
    // From now on it is the same answer, and the session stays closed.
    let closed = daemon.json(&["session", "show", &session]);
    assert_eq!(daemon.end(&session, &["--push", &old]), summary);
    assert_eq!(daemon.json(&["session", "show", &session]), closed);
}
