//! Opening: modes, older, newer, foreign and damaged files.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use rusqlite::Connection;

use super::*;

#[test]
fn only_the_owner_can_read_it() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    fs::write(&file, "").unwrap();
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    let (ledger, opened) = Ledger::open(&file).unwrap();
    assert_eq!(opened, Opened::Fresh);
    ledger.set_meta("a", "b").unwrap();
    let modes: Vec<_> = fs::read_dir(dir.path())
        .unwrap()
        .map(|e| e.unwrap().metadata().unwrap().permissions().mode() & 0o777)
        .collect();
    assert_eq!(modes, [0o600; 3]);
}

#[test]
fn a_file_of_version_1_is_migrated_with_its_content() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    let mut v1 = Connection::open(&file).unwrap();
    schema::migrate(&mut v1, &schema::MIGRATIONS[..1], 0).unwrap();
    v1.execute_batch(
        "INSERT INTO cache VALUES (1, 'main');
         INSERT INTO reason VALUES (1, 'rejected', 'no');
         INSERT INTO item (id, cache, path, nar_size, state, reason) VALUES (1, 1, 'a', 7, 2, NULL), (2, 1, 'b', 9, 5, 1);
         INSERT INTO session (id, name, cache, uid, gid, strict, started_at) VALUES (1, 's', 'main', 0, 0, 0, 0), (2, 'push-1', 'main', 0, 0, 0, 7);
         INSERT INTO session_item VALUES (1, 1, 0, 2), (1, 2, 5, 5);",
    )
    .unwrap();
    assert_eq!(schema::version(&v1).unwrap(), 1);
    drop(v1);
    let (ledger, opened) = Ledger::open(&file).unwrap();
    assert_eq!(opened, Opened::Continued);
    let counts = ledger.summary(1).unwrap();
    assert_eq!((counts.pushed, counts.bytes, counts.failed_total), (1, 7, 1));
    assert_eq!(counts.failed[0].error, "no");
    // That is how earlier versions recorded a named path.
    assert_eq!(counts.by_evidence[Evidence::Closure as usize], 1);
    let job = ledger.session("s").unwrap().unwrap();
    assert_eq!(
        (job.state, job.new.kind, job.warnings),
        (SessionState::Open, SessionKind::Job, Warnings::default())
    );
    // Earlier versions left pushes open.
    let push = ledger.session("push-1").unwrap().unwrap();
    assert_eq!((push.state, push.new.kind), (SessionState::Draining, SessionKind::Push));
    assert_eq!(push.ended_at, Some(7));
}

#[test]
fn a_newer_file_is_refused_and_not_touched() {
    let (dir, ledger) = new_ledger();
    let file = dir.path().join("ledger.db");
    drop(ledger);
    Connection::open(&file)
        .unwrap()
        .execute_batch("PRAGMA user_version = 99; INSERT INTO migration VALUES (99, '7.8.9', 0);")
        .unwrap();
    let Err(error) = Ledger::open(&file) else { panic!("opened") };
    let text = error.to_string();
    assert!(text.contains("7.8.9") && text.contains("99") && text.contains("install"), "{text}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn another_programs_database_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    Connection::open(&file).unwrap().execute_batch("CREATE TABLE precious (x)").unwrap();
    assert!(matches!(Ledger::open(&file), Err(LedgerError::Foreign { .. })));
}

#[test]
fn a_damaged_file_is_moved_away() {
    let (dir, ledger) = new_ledger();
    let file = dir.path().join("ledger.db");
    ledger.admit(admit((0..2000).map(|n| new_push(n, &[])).collect())).unwrap();
    drop(ledger);
    // The header is intact and pages in the middle are overwritten: only the check finds that.
    let mut bytes = fs::read(&file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 16384].fill(0x5a);
    fs::write(&file, &bytes).unwrap();
    fs::write(dir.path().join("ledger.db-wal"), "rubbish").unwrap();
    let (ledger, opened) = Ledger::open(&file).unwrap();
    let Opened::Recovered { set_aside } = opened else { panic!("{opened:?}") };
    assert!(set_aside.to_str().unwrap().contains("ledger.db.corrupt-2"));
    assert_eq!(fs::metadata(&set_aside).unwrap().len(), bytes.len() as u64);
    assert_eq!(ledger.cursor().unwrap(), None);
    assert!(ledger.unsettled(0, 1).unwrap().is_empty());
    ledger.set_meta("works", "yes").unwrap();
    drop(ledger);
    // Not a database at all. The second one within a second gets another name.
    for _ in 0..2 {
        fs::write(&file, "rubbish".repeat(1000)).unwrap();
        assert!(matches!(Ledger::open(&file).unwrap().1, Opened::Recovered { .. }));
    }
    let corrupt = fs::read_dir(dir.path()).unwrap().filter(|e| {
        e.as_ref()
            .unwrap()
            .file_name()
            .to_str()
            .is_some_and(|n| n.contains("corrupt") && !n.ends_with("-wal"))
    });
    assert_eq!(corrupt.count(), 3);
}

#[test]
fn a_missing_directory_is_an_error() {
    let Err(error) = Ledger::open(Path::new("/nonexistent/dir/ledger.db")) else { panic!("opened") };
    assert!(matches!(error, LedgerError::Open { .. }), "{error}");
}
