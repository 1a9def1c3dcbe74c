//! Nothing is lost when the Nix database is away, the token is refused, a path is refused, the
//! ledger cannot be written, or the daemon is stopped.

use rustix::process::Signal;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{CommandResult, Daemon, MAX_WAIT, secret_file, until};
use crate::support::nix::PrivateNix;

fn times(log: &str, what: &str) -> usize {
    log.lines().filter(|line| line.contains(what)).count()
}

#[test]
fn a_database_that_is_away_for_a_while() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    let path = daemon.nix.build(&PrivateNix::shell("before", "echo 1 > $out")).remove(0);
    daemon.flush();
    let db = daemon.nix.state_dir().join("db");
    let away = daemon.nix.state_dir().join("db.away");
    std::fs::rename(&db, &away).unwrap();
    // The answer is `pending` and not success, and it comes at the deadline.
    let said = daemon.json(&["session", "end", &session, "--timeout", "1s"]);
    assert_eq!(said["outcome"], "pending", "{said}");
    assert!(said["warnings"][0].as_str().unwrap().contains("could not be looked through in time"), "{said}");
    assert!(daemon.status()["store"]["problem"].as_str().unwrap().contains("waiting for the Nix database"));
    std::fs::rename(&away, &db).unwrap();
    let after = daemon.nix.build(&PrivateNix::shell("after", "echo 2 > $out")).remove(0);
    daemon.flush();
    assert!(daemon.main().has(&path) && daemon.main().has(&after));
    let summary = daemon.end(&session, &[]);
    assert_eq!(summary["outcome"], "complete", "{summary}");
    let log = daemon.log();
    assert_eq!(times(&log, "cannot be taken in for the moment"), 1, "{log}");
    assert_eq!(times(&log, "are taken in again"), 1, "{log}");
}

#[test]
fn a_refused_path_is_tried_again_by_push_and_reload_also_after_a_restart() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.rule(|name| name.ends_with("-big").then_some(413));
    let mut daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let session = daemon.session(&[]);
    let big = daemon.nix.build(&PrivateNix::shell("big", "echo 1 > $out")).remove(0);
    let small = daemon.nix.build(&PrivateNix::shell("small", "echo 2 > $out")).remove(0);
    let summary = daemon.end(&session, &[]);
    assert_eq!(summary["outcome"], "partial", "{summary}");
    assert_eq!(summary["failed"][0]["path"], big, "{summary}");
    assert!(cache.main().has(&small));
    let parked = |daemon: &Daemon| {
        let status = daemon.status();
        assert_eq!(status["queue"]["parked"], 1, "{status}");
        assert_eq!(status["parked"][0]["path"], big, "{status}");
        assert!(status["parked"][0]["error"].as_str().unwrap().contains("413"), "{status}");
    };
    parked(&daemon);
    assert_eq!(times(&daemon.log(), "not pushed"), 1);
    // The reason is still known after a restart, and the path is still protected.
    daemon.restart();
    until("it is known again", || daemon.status()["queue"]["parked"] == 1);
    parked(&daemon);
    assert!(daemon.nix.run("nix-store", &["--gc"]).status.success());
    assert!(std::path::Path::new(&big).exists());
    // Pushed again, it fails again, and the failure is reported.
    let said = CommandResult::of(&daemon.client(&["--json", "push", "--wait", &big]).output().unwrap());
    assert_eq!(said.json()["failed"][0]["path"], big, "{said:?}");
    gate.rule(|_| None);
    let said = daemon.json(&["push", "--wait", &big]);
    assert_eq!(said["pushed"], 1, "{said}");
    assert!(cache.main().has(&big));
    // Another path is retried by a reload.
    gate.rule(|name| name.ends_with("-big2").then_some(413));
    let big2 = daemon.nix.build(&PrivateNix::shell("big2", "echo 1 > $out")).remove(0);
    until("it is parked", || daemon.status()["queue"]["parked"] == 1);
    gate.rule(|_| None);
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    daemon.flush();
    assert!(cache.main().has(&big2));
}

/// The daemon keeps ten thousand failed paths in memory, and the ledger has all of them. This
/// writes one into the ledger that the daemon does not know.
#[test]
fn a_failure_known_to_the_ledger_alone_fails_its_referrers_and_is_retried() {
    let daemon = Daemon::embedded();
    let first = PrivateNix::shell("first", "echo 1 > $out");
    let path = daemon.nix.build(&first).remove(0);
    daemon.flush();
    let ledger = rusqlite::Connection::open(daemon.state_dir().join("ledger.sqlite")).unwrap();
    ledger.busy_timeout(MAX_WAIT).unwrap();
    let base = crate::support::cache::base(&path);
    let state = || -> i64 {
        ledger.query_row("select state from item where path = ?1", [base], |row| row.get(0)).unwrap()
    };
    let give_up = || {
        until("it is recorded", || (2..=3).contains(&state()));
        ledger.execute("update item set state = 5 where path = ?1", [base]).unwrap();
    };
    give_up();
    let second = format!(
        "let first = {first}; in derivation {{ name = \"second\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo ${{first}} > $out\" ]; }}"
    );
    let second = daemon.nix.build(&second).remove(0);
    until("both are given up", || daemon.status()["queue"]["parked"] == 2);
    let status = daemon.status();
    assert!(!daemon.main().has(&second), "sent before its reference");
    assert!(status["parked"].to_string().contains("its reference"), "{status}");
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    daemon.flush();
    assert!(daemon.main().has(&second));
    give_up();
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    until("it is tried again", || (2..=3).contains(&state()));
}

#[test]
fn a_renewed_token_is_noticed_by_itself_and_other_caches_go_on() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |s| s.caches = vec!["main".into(), "other".into()]);
    let token = nix.path().join("token");
    let config = format!(
        "default_cache = \"main\"\n[caches.main]\nendpoints = [\"{0}\"]\ntoken_file = \"{1}\"\n[caches.other]\nendpoints = [\"{0}\"]\ntoken_file = \"{2}\"\n[client]\nenable = false\n",
        cache.url(),
        token.display(),
        cache.token_file().display()
    );
    // There is no token file at first, which is not an error by itself.
    let daemon = Daemon::start(nix, &config);
    let path = daemon.nix.build(&PrivateNix::shell("one", "echo 1 > $out")).remove(0);
    until("refused", || daemon.status()["cache"][0]["state"] == "unauthorized");
    let said = daemon.json(&["push", "--wait", "--cache", "other", &path]);
    assert_eq!(said["pushed"], 1, "{said}");
    assert!(!cache.main().has(&path));
    secret_file(&token, "a wrong one");
    secret_file(&token, "another-wrong-one");
    secret_file(&token.with_extension("new"), &cache.token());
    std::fs::rename(token.with_extension("new"), &token).unwrap();
    daemon.flush();
    assert!(cache.main().has(&path));
    assert_eq!(daemon.status()["queue"]["parked"], 0);
}

#[test]
fn a_stop_lets_uploads_end_asks_for_time_and_tells_who_waits() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.close();
    let mut daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let session = daemon.session(&[]);
    let path = daemon.nix.build(&PrivateNix::shell("one", "echo 1 > $out")).remove(0);
    let mut end = daemon.client(&["--json", "session", "end", &session]);
    let end = end.stdout(std::process::Stdio::piped()).spawn().unwrap();
    gate.until_came(1);
    until("it waits", || daemon.status()["sessions"][0]["state"] == "draining");
    daemon.signal(Signal::TERM);
    let line = daemon.until_notified(|line| line.starts_with("EXTEND_TIMEOUT_USEC="));
    let micros: u64 = line.split_once('=').unwrap().1.parse().unwrap();
    assert!(micros > 10_000_000, "{line}");
    gate.open();
    assert!(daemon.ended().success());
    let said = CommandResult::of(&end.wait_with_output().unwrap()).json();
    assert_eq!((said["pushed"].as_u64(), said["outcome"].as_str()), (Some(1), Some("complete")), "{said}");
    assert!(cache.main().has(&path));
}

#[test]
fn a_stop_at_the_deadline_tells_what_is_pending_and_the_next_start_pushes_it() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.close();
    let config = format!("{}[drain]\ntimeout = \"1s\"\n", cache.config_at(&gate.url()));
    let mut daemon = Daemon::start(nix, &config);
    let session = daemon.session(&[]);
    let path = daemon.nix.build(&PrivateNix::shell("one", "echo 1 > $out")).remove(0);
    let mut end = daemon.client(&["--json", "session", "end", &session]);
    let end = end.stdout(std::process::Stdio::piped()).spawn().unwrap();
    gate.until_came(1);
    until("it waits", || daemon.status()["sessions"][0]["state"] == "draining");
    daemon.signal(Signal::TERM);
    assert!(daemon.ended().success());
    let said = CommandResult::of(&end.wait_with_output().unwrap()).json();
    assert_eq!((said["pending"].as_u64(), said["outcome"].as_str()), (Some(1), Some("pending")), "{said}");
    gate.open();
    daemon.up();
    daemon.flush();
    assert!(cache.main().has(&path));
}

#[test]
fn a_second_signal_ends_at_once() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.close();
    let mut daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let path = daemon.nix.build(&PrivateNix::shell("one", "echo 1 > $out")).remove(0);
    gate.until_came(1);
    daemon.signal(Signal::TERM);
    daemon.until_notified(|line| line == "STOPPING=1");
    daemon.signal(Signal::TERM);
    assert_eq!(daemon.ended().code(), Some(1));
    gate.open();
    daemon.up();
    daemon.flush();
    assert!(cache.main().has(&path));
}

#[test]
fn a_ledger_that_cannot_be_written_for_a_while() {
    let daemon = Daemon::embedded();
    let locked = rusqlite::Connection::open(daemon.state_dir().join("ledger.sqlite")).unwrap();
    locked.execute_batch("BEGIN IMMEDIATE").unwrap();
    let path = daemon.nix.build(&PrivateNix::shell("one", "echo 1 > $out")).remove(0);
    until("it is logged", || times(&daemon.log(), "ledger: it cannot be written") == 1);
    until("status tells", || daemon.status()["ledger"]["state"] == "degraded");
    until("the intake waits", || times(&daemon.log(), "cannot be taken in for the moment") == 1);
    locked.execute_batch("ROLLBACK").unwrap();
    daemon.flush();
    assert!(daemon.main().has(&path));
    let log = daemon.log();
    assert_eq!(times(&log, "ledger: it can be written again"), 1, "{log}");
    assert_eq!(daemon.status()["ledger"]["state"], "ok");
}

#[test]
fn a_damaged_ledger_is_set_aside_and_a_newer_one_refused() {
    let mut daemon = Daemon::embedded();
    let path = daemon.nix.build(&PrivateNix::shell("one", "echo 1 > $out")).remove(0);
    daemon.flush();
    // The path is built while the daemon is stopped.
    daemon.stop();
    let queued = daemon.nix.build(&PrivateNix::shell("queued", "echo 3 > $out")).remove(0);
    let file = daemon.state_dir().join("ledger.sqlite");
    std::fs::write(&file, vec![b'x'; 8192]).unwrap();
    daemon.up();
    let aside = |name: &str| name.starts_with("ledger.sqlite.corrupt-");
    let mut files = std::fs::read_dir(daemon.state_dir()).unwrap().map(|e| e.unwrap().file_name());
    assert!(files.any(|name| aside(name.to_str().unwrap())));
    assert!(daemon.log().contains("has been moved to"), "{}", daemon.log());
    // What became valid since the first start counts as new; the cache says what it has.
    daemon.flush();
    assert!(daemon.main().has(&queued));
    assert_eq!(daemon.json(&["push", "--wait", &path])["already_cached"], 1);
    let next = daemon.nix.build(&PrivateNix::shell("two", "echo 2 > $out")).remove(0);
    daemon.flush();
    assert!(daemon.main().has(&next));
    daemon.stop();
    rusqlite::Connection::open(&file).unwrap().pragma_update(None, "user_version", 99).unwrap();
    daemon.spawn();
    assert!(!daemon.ended().success());
    assert!(daemon.log().contains("written by flywheel"), "{}", daemon.log());
}
