//! The cursor never passes a path that is not in the ledger, and old history is deleted while
//! pending paths stay.

use rusqlite::Connection;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, MAX_WAIT, until};
use crate::support::nix::PrivateNix;

fn ledger(daemon: &Daemon) -> Connection {
    let ledger = Connection::open(daemon.state_dir().join("ledger.sqlite")).unwrap();
    ledger.busy_timeout(MAX_WAIT).unwrap();
    ledger
}

/// A ledger that refuses the path ends the daemon between reading and writing, where otherwise only
/// a kill at the right moment would.
#[test]
fn ended_between_reading_and_writing() {
    let mut daemon = Daemon::embedded();
    let before = daemon.nix.make("before");
    daemon.flush();
    daemon.stop();
    let refuse =
        "create trigger refuse before insert on item begin select raise(abort, 'as the test wants'); end";
    ledger(&daemon).execute_batch(refuse).unwrap();
    daemon.up();
    let path = daemon.nix.make("one");
    let status = daemon.ended();
    assert!(!status.success(), "{status}");
    assert!(daemon.log().contains("as the test wants"), "{}", daemon.log());
    ledger(&daemon).execute_batch("drop trigger refuse").unwrap();
    daemon.up();
    daemon.flush();
    assert_eq!(daemon.main().having(&[before, path]), [true; 2]);
}

#[test]
fn old_history_is_forgotten_and_what_is_unsettled_is_not() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    let config = format!("{}[history]\nkeep = \"1h\"\n", cache.config_at(&gate.url()));
    let mut daemon = Daemon::start(nix, &config);
    let session = daemon.session(&[]);
    daemon.nix.make("old");
    assert_eq!(daemon.end(&session, &[])["pushed"], 1);
    gate.close();
    let held = daemon.nix.make("held");
    gate.until_came(2);
    daemon.kill();
    // Two hours pass.
    let older = "update session set started_at = started_at - 7200000, closed_at = closed_at - 7200000;
        update item set settled_at = max(settled_at - 7200000, 0)";
    ledger(&daemon).execute_batch(older).unwrap();
    let all = |daemon: &Daemon| daemon.json(&["session", "list", "--all"]).as_array().unwrap().len();
    daemon.up();
    until("the session is forgotten", || all(&daemon) == 0);
    let items = || -> i64 {
        let count = "select count(*) from item where path like '%-old'";
        ledger(&daemon).query_row(count, [], |row| row.get(0)).unwrap()
    };
    until("so is its path", || items() == 0);
    gate.open();
    daemon.flush();
    assert!(cache.main().has(&held));
}
