//! The Nix database is replaced or restored, while the daemon runs or is stopped, with and without
//! the ledger.

use rustix::fs::inotify;

use crate::support::daemon::{Daemon, EMBEDDED, MAX_WAIT, until};
use crate::support::nix::PrivateNix;

fn damage_the_ledger(daemon: &Daemon) {
    std::fs::write(daemon.state_dir().join("ledger.sqlite"), vec![b'x'; 8192]).unwrap();
}

/// After a reinstallation other paths are valid under the same row numbers.
#[test]
fn replaced_while_the_daemon_was_away() {
    let mut daemon = Daemon::embedded();
    daemon.nix.make("before");
    daemon.flush();
    let session = daemon.session(&[]);
    daemon.stop();
    daemon.nix.wipe();
    let paths = ["one", "two", "three"].map(|name| daemon.nix.make(name));
    daemon.up();
    // The open session's window begins again as well.
    let summary = daemon.end(&session, &[]);
    assert_eq!(summary["pushed"], 3, "{summary}");
    assert_eq!(daemon.main().having(&paths), [true; 3]);
    daemon.assert_logged(1, "the Nix database is another one than before");
    // Another start logs nothing about it.
    daemon.restart();
    daemon.flush();
    daemon.assert_logged(0, "the Nix database");
}

/// The paths that the ledger of a replaced database knew are found without it as well.
#[test]
fn replaced_and_then_the_ledger_is_damaged() {
    for away in [false, true] {
        let mut daemon = Daemon::embedded();
        daemon.nix.make("before");
        daemon.flush();
        if away {
            daemon.stop();
        }
        daemon.nix.wipe();
        if away {
            daemon.up();
        }
        daemon.nix.make("one");
        daemon.flush();
        daemon.stop();
        let two = daemon.nix.make("two");
        damage_the_ledger(&daemon);
        daemon.up();
        daemon.flush();
        assert!(daemon.main().has(&two), "replaced while the daemon was away: {away}");
    }
}

/// A backup was written into the same file: the row numbers are lower than before.
#[test]
fn put_back_while_the_daemon_runs_or_is_away() {
    let mut daemon = Daemon::prepare(PrivateNix::new(), "");
    // Only events wake the reader; the timer does not.
    daemon.configure_nix(EMBEDDED, "poll = \"1h\"\n");
    daemon.up();
    let put_back = |daemon: &Daemon| {
        let db = rusqlite::Connection::open(daemon.nix.state_dir().join("db/db.sqlite")).unwrap();
        db.busy_timeout(MAX_WAIT).unwrap();
        let emptied = "begin immediate; delete from ValidPaths;
            update sqlite_sequence set seq = 0 where name = 'ValidPaths'; commit";
        db.execute_batch(emptied).unwrap();
    };
    for n in 0..4 {
        daemon.nix.make(&format!("before{n}"));
    }
    daemon.flush();
    put_back(&daemon);
    let while_it_runs = daemon.nix.make("while-it-runs");
    until("it comes without being asked for", || daemon.main().has(&while_it_runs));
    daemon.assert_logged(1, "the Nix database went back to an earlier state");
    for n in 0..4 {
        daemon.nix.make(&format!("after{n}"));
    }
    daemon.flush();
    daemon.stop();
    put_back(&daemon);
    let while_it_is_away = daemon.nix.make("while-it-is-away");
    daemon.up();
    until("it comes without being asked for", || daemon.main().has(&while_it_is_away));
    daemon.assert_logged(1, "the Nix database went back to an earlier state");
}

/// A path can become valid without a lock, when a backup's list of valid paths is loaded. Only the
/// timer notices that.
#[test]
fn what_becomes_valid_without_an_event() {
    let daemon = Daemon::prepare(PrivateNix::new(), "");
    let path = daemon.nix.make("restored");
    let dump = daemon.nix.run("nix-store", &["--dump-db", &path]);
    assert!(dump.status.success(), "{dump:?}");
    let aside = daemon.nix.path().join("aside");
    std::fs::copy(&path, &aside).unwrap();
    daemon.nix.wipe();
    let mut daemon = daemon;
    daemon.configure_nix(EMBEDDED, "poll = \"200ms\"\n");
    daemon.up();
    daemon.flush();
    std::fs::copy(&aside, &path).unwrap();
    let mut load = daemon.nix.command("nix-store");
    let mut load = load.arg("--load-db").stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut load.stdin.take().unwrap(), &dump.stdout).unwrap();
    assert!(load.wait().unwrap().success());
    until("it comes without being asked for", || daemon.main().has(&path));
}

/// Without a write-ahead log a writer keeps readers out, and may take longer than one read waits.
#[test]
fn locked_when_the_daemon_starts() {
    let nix = PrivateNix::new();
    let (db, file) = (nix.without_wal(), nix.state_dir().join("db/db.sqlite"));
    let mut daemon = Daemon::prepare(nix, EMBEDDED);
    db.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let opened = inotify::init(inotify::CreateFlags::NONBLOCK).unwrap();
    inotify::add_watch(&opened, &file, inotify::WatchFlags::OPEN).unwrap();
    let (mut room, mut tries) = ([std::mem::MaybeUninit::uninit(); 512], 0);
    let mut opened = inotify::Reader::new(opened, &mut room);
    daemon.spawn();
    until("a second try", || {
        tries += usize::from(opened.next().is_ok());
        tries == 2
    });
    db.execute_batch("ROLLBACK").unwrap();
    daemon.until_notified(|line| line == "READY=1");
    let path = daemon.nix.make("one");
    daemon.flush();
    assert!(daemon.main().has(&path));
}
