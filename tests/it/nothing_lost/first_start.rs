//! What counts as old at the first start stays old, whatever happens to the Nix database; a host
//! that has no Nix database yet loses nothing of its first job.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::Stdio;

use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::daemon::{Daemon, EMBEDDED, MAX_WAIT, until};
use crate::support::multiuser::NixDaemon;
use crate::support::nix::PrivateNix;

fn database(nix: &PrivateNix) -> PathBuf {
    nix.state_dir().join("db/db.sqlite")
}

fn sql(nix: &PrivateNix, text: &str) {
    let db = Connection::open(database(nix)).unwrap();
    db.busy_timeout(MAX_WAIT).unwrap();
    db.execute_batch(text).unwrap();
}

/// Makes a new database with the rows of the present one, as virtual machines do at boot: other
/// numbers, registered now, and without signatures. Nothing may use the store meanwhile.
fn load_into_a_new_database(nix: &PrivateNix) {
    let dump = nix.run("nix-store", &["--dump-db"]);
    assert!(dump.status.success(), "{dump:?}");
    std::fs::remove_dir_all(nix.state_dir().join("db")).unwrap();
    let mut load = nix.command("nix-store");
    let mut load = load.arg("--load-db").stdin(Stdio::piped()).spawn().unwrap();
    load.stdin.take().unwrap().write_all(&dump.stdout).unwrap();
    assert!(load.wait().unwrap().success());
}

/// The directory's content at the end of the baseline's making.
fn until_baseline(daemon: &Daemon) {
    until("the baseline is written", || daemon.state_dir().join("baseline").exists());
}

#[test]
fn a_base_image_that_is_loaded_at_each_boot_stays_old() {
    for (away, ledger_lost) in [(true, false), (false, false), (true, true)] {
        let nix = PrivateNix::new();
        let base = ["base-0", "base-1", "base-2"].map(|name| nix.make(name));
        let mut daemon = Daemon::start(nix, EMBEDDED);
        until_baseline(&daemon);
        let first = daemon.nix.make("first");
        daemon.flush();
        if away {
            daemon.stop();
        }
        // The image is without what the first job built.
        assert!(daemon.nix.run("nix-store", &["--delete", "--ignore-liveness", &first]).status.success());
        load_into_a_new_database(&daemon.nix);
        let second = daemon.nix.make("second");
        if ledger_lost {
            std::fs::remove_file(daemon.state_dir().join("ledger.sqlite")).unwrap();
        }
        if away {
            daemon.up();
        }
        daemon.flush();
        let cache = daemon.main();
        assert!(cache.has(&second));
        assert_eq!(cache.having(&base), [false; 3], "away {away}, ledger lost {ledger_lost}");
        if !ledger_lost {
            daemon.assert_logged(1, "except paths that were valid at the first start");
        }
        // One that is built again is new, although it was valid at the first start.
        assert!(daemon.nix.run("nix-store", &["--delete", "--ignore-liveness", &base[0]]).status.success());
        assert_eq!(daemon.nix.make("base-0"), base[0]);
        daemon.flush();
        assert_eq!(daemon.main().having(&base), [true, false, false]);
        // What a job names goes to the cache with its closure.
        daemon.json(&["push", "--wait", &base[1]]);
        assert!(daemon.main().has(&base[1]));
    }
}

/// A rollback of /nix: the file is the same, rows are taken back, and their numbers are given to
/// other paths, to as many as before and more.
#[test]
fn numbers_that_are_given_again_after_a_rollback() {
    let mut daemon = Daemon::embedded();
    let base = daemon.nix.make("base");
    daemon.flush();
    daemon.stop();
    let file = database(&daemon.nix);
    let aside = daemon.nix.path().join("snapshot");
    sql(&daemon.nix, "pragma wal_checkpoint(truncate)");
    std::fs::copy(&file, &aside).unwrap();
    daemon.up();
    let lost = ["a", "b"].map(|name| daemon.nix.make(name));
    daemon.flush();
    assert_eq!(daemon.main().having(&lost), [true; 2]);
    daemon.stop();
    sql(&daemon.nix, "pragma wal_checkpoint(truncate)");
    // Keeps the inode, as a rollback does.
    std::fs::copy(&aside, &file).unwrap();
    for beside in ["db.sqlite-wal", "db.sqlite-shm"] {
        let _ = std::fs::remove_file(file.with_file_name(beside));
    }
    let built = ["c", "d", "e"].map(|name| daemon.nix.make(name));
    daemon.up();
    until("they come without being asked for", || daemon.main().having(&built) == [true; 3]);
    daemon.assert_logged(1, "the Nix database went back to an earlier state");
    assert!(daemon.main().has(&base));
}

#[test]
fn since_boot_takes_what_was_registered_since_the_machine_booted() {
    let nix = PrivateNix::new();
    let paths = ["old", "new"].map(|name| nix.make(name));
    sql(&nix, "update ValidPaths set registrationTime = 1 where path like '%-old%'");
    let daemon = Daemon::start(nix, &format!("{EMBEDDED}[push]\nexisting = \"since-boot\"\n"));
    daemon.flush();
    assert_eq!(daemon.main().having(&paths), [false, true]);
}

fn build_through(nix_daemon: &NixDaemon, nix: &PrivateNix, name: &str) -> String {
    let expression = PrivateNix::shell(name, &format!("echo {name} > $out"));
    let mut build = nix.command("nix-build");
    build.args(["--no-out-link", "-E", &expression]).env("NIX_REMOTE", nix_daemon.remote());
    let out = build.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).trim().to_owned()
}

/// An autoscaled host: the daemon starts before Nix was ever used. The nix-daemon makes its database
/// with the first client, while a session is open.
#[test]
fn a_nix_daemon_makes_the_database_while_a_session_is_open() {
    let nix = PrivateNix::new();
    std::fs::remove_dir_all(nix.state_dir()).unwrap();
    std::fs::remove_dir_all(nix.store_dir()).unwrap();
    let daemon = Daemon::start(nix, EMBEDDED);
    // Until it has looked for a database, the missing store directory is what it reports.
    until("the daemon waits for a database", || {
        daemon.status()["store"]["problem"].to_string().contains("waiting for the Nix database at")
    });
    let session = daemon.session(&[]);
    // Nothing is valid yet, and the answer does not wait for a database.
    let absent = format!("{}/{:032}-absent", daemon.nix.store_dir().display(), 0);
    let answer = daemon.ctl(&["push", "--wait", &absent]);
    assert!(format!("{answer:?}").contains("not valid"), "{answer:?}");
    for dir in [daemon.nix.state_dir(), daemon.nix.store_dir()] {
        std::fs::create_dir_all(dir).unwrap();
    }
    let nix_daemon = NixDaemon::start(&daemon.nix, &[]);
    // The first look at the database comes after the first build.
    daemon.signal(Signal::STOP);
    let one = build_through(&nix_daemon, &daemon.nix, "one");
    daemon.signal(Signal::CONT);
    let two = build_through(&nix_daemon, &daemon.nix, "two");
    let end = daemon.end(&session, &[]);
    assert_eq!((&end["pushed"], &end["outcome"]), (&2.into(), &"complete".into()), "{end}");
    assert_eq!(daemon.main().having(&[one, two]), [true; 2]);
}

/// The same while the daemon is restarted: that there was no database is not forgotten.
#[test]
fn a_database_that_is_made_while_the_daemon_is_away() {
    let nix = PrivateNix::new();
    std::fs::remove_dir_all(nix.state_dir().join("db")).unwrap();
    let mut daemon = Daemon::start(nix, EMBEDDED);
    daemon.stop();
    let path = daemon.nix.make("meanwhile");
    daemon.up();
    until("it comes without being asked for", || daemon.main().has(&path));
}
