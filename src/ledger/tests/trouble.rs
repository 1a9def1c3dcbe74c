//! A full disk, and a killed process.

use std::io::{BufRead, BufReader, Write};
use std::process::{Command, Stdio};

use super::*;

/// Forbids any further page, so that SQLite answers with SQLITE_FULL.
fn fill_up(ledger: &Ledger) {
    ledger
        .read(|conn| {
            let pages: i64 = conn.query_row("PRAGMA page_count", [], |r| r.get(0))?;
            conn.query_row(&format!("PRAGMA max_page_count = {pages}"), [], |_| Ok(()))?;
            Ok(())
        })
        .unwrap();
}

fn make_space(ledger: &Ledger) {
    ledger.read(|conn| Ok(conn.query_row("PRAGMA max_page_count = 1000000", [], |_| Ok(()))?)).unwrap();
}

/// Returns a failure with a long reason of its own, so that it needs space.
fn failure(n: PushId) -> Settle {
    Settle { error: Some(format!("{n} {}", "long ".repeat(300))), ..to(PushState::Failed) }
}

#[test]
fn a_full_disk_loses_nothing_and_shows_in_the_health() {
    let (dir, ledger) = new_ledger();
    let s = session(&ledger, "s");
    let new = |from, to| admit((from..to).map(|n| new_push(n, &[(s, Evidence::Hook)])).collect());
    let ids: Vec<_> = ledger.admit(new(0, 20)).unwrap().pushes.iter().map(|push| push.0).collect();
    fill_up(&ledger);
    for id in &ids {
        ledger.settle(*id, failure(*id));
    }
    // The order counts: a failure, then its retry.
    ledger.reopen(&ids[..5]);
    ledger.session_state(s, SessionState::Draining, 7, None);
    assert!(matches!(ledger.sync(), Err(LedgerError::Full(_))));
    assert!(matches!(ledger.admit(new(20, 2000)), Err(LedgerError::Full(_))));
    let Health::Degraded { error, kept, lost, .. } = ledger.health() else { panic!("healthy") };
    assert!(error.contains("full"), "{error}");
    assert!(kept > 0 && lost == 0);
    // Reads go on, from the last commit.
    let before = ledger.summary(s).unwrap();
    assert_eq!(before.total(), 20);
    assert!(before.pending > 0);
    make_space(&ledger);
    // The writer retries without a further command.
    while ledger.health() != Health::Ok {
        std::thread::yield_now();
    }
    let counts = ledger.summary(s).unwrap();
    assert_eq!((counts.pending, counts.failed_total), (5, 15));
    assert_eq!(ledger.session("s").unwrap().unwrap().state, SessionState::Draining);
    ledger.admit(new(20, 2000)).unwrap();
    drop(ledger);
    let (ledger, _) = Ledger::open(&dir.path().join("ledger.db")).unwrap();
    assert_eq!(ledger.summary(s).unwrap().total(), 2000);
}

#[test]
fn a_call_too_large_for_the_disk_does_not_stop_the_rest() {
    let (_dir, ledger) = new_ledger();
    let (id, ..) = one(&ledger, new_push(1, &[]));
    fill_up(&ledger);
    assert!(matches!(
        ledger.admit(admit((2..5000).map(|n| new_push(n, &[])).collect())),
        Err(LedgerError::Full(_))
    ));
    assert_eq!(ledger.lookup("main", &[path(2)]).unwrap(), [None]);
    ledger.settle(id, to(PushState::Cached));
    ledger.sync().unwrap();
    assert_eq!(ledger.lookup("main", &[path(1)]).unwrap()[0].unwrap().1, PushState::Cached);
    assert_eq!(ledger.health(), Health::Ok);
}

const CHILD: &str = "FLYWHEEL_TEST_LEDGER_KILL";

#[test]
fn after_a_kill_at_any_moment_answered_calls_are_in_the_file() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("ledger.db");
    let mut known = 0;
    for round in 1..=5_usize {
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["ledger::tests::trouble::kill_child", "--exact", "--nocapture"])
            .env(CHILD, &file)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut answered = 0;
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        for (count, n) in lines
            .map_while(std::result::Result::ok)
            .filter_map(|line| line.strip_prefix("answered ")?.parse::<i64>().ok())
            .enumerate()
        {
            answered = n;
            if count == 40 * round {
                child.kill().unwrap();
            }
        }
        assert!(!child.wait().unwrap().success(), "it should have been killed");
        assert!(answered > known);
        let (ledger, opened) = Ledger::open(&file).unwrap();
        assert_eq!(opened, Opened::Continued);
        known = ledger.cursor().unwrap().unwrap().id;
        assert!(known >= answered, "{answered} was answered, {known} is in the file");
        let count: i64 =
            ledger.read(|conn| Ok(conn.query_row("SELECT count(*) FROM item", [], |r| r.get(0))?)).unwrap();
        assert_eq!(count, known, "the cursor fits the pushes");
        // Changes that were sent before an answered call are in the file too.
        assert!(ledger.unsettled(0, 10).unwrap().iter().all(|row| row.id >= answered));
    }
}

#[test]
fn kill_child() {
    let Some(file) = std::env::var_os(CHILD) else { return };
    let (ledger, _) = Ledger::open(Path::new(&file)).unwrap();
    for row in ledger.unsettled(0, 10).unwrap() {
        ledger.settle(row.id, to(PushState::Pushed));
    }
    let first = ledger.cursor().unwrap().map_or(0, |c| c.id) + 1;
    for n in first.. {
        let cursor = Some(Cursor { identity: "db".into(), id: n, ..Cursor::default() });
        let pushes = vec![new_push(usize::try_from(n).unwrap(), &[])];
        let (id, ..) = ledger.admit(Admit { cursor, pushes, at: n }).unwrap().pushes[0];
        if writeln!(std::io::stdout(), "answered {n}").is_err() {
            return;
        }
        ledger.uploading(id, 1);
        ledger.settle(id, to(PushState::Pushed));
    }
}

const NO_ROOM: &str = "FLYWHEEL_TEST_LEDGER_NO_ROOM";

/// A limit on the size of files takes the place of a full disk. It applies to a whole
/// process and kills it unless the signal is ignored, so the test runs in a process
/// of its own.
#[test]
fn on_a_full_disk_calls_run_in_memory() {
    let dir = tempfile::tempdir().unwrap();
    let ended = Command::new("sh")
        .args(["-c", "trap '' XFSZ; exec \"$@\"", "sh"])
        .arg(std::env::current_exe().unwrap())
        .args(["ledger::tests::trouble::no_room_child", "--exact", "--nocapture"])
        .env(NO_ROOM, dir.path().join("ledger.db"))
        .status()
        .unwrap();
    assert!(ended.success());
}

fn limit(bytes: Option<u64>) {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let maximum = getrlimit(Resource::Fsize).maximum;
    setrlimit(Resource::Fsize, Rlimit { current: bytes.or(maximum), maximum }).unwrap();
}

#[test]
fn no_room_child() {
    let Some(file) = std::env::var_os(NO_ROOM) else { return };
    let file = Path::new(&file);
    let (ledger, _) = Ledger::open(file).unwrap();
    let first = session(&ledger, "first");
    let (written, ..) = one(&ledger, new_push(0, &[(first, Evidence::Hook)]));
    ledger.sync().unwrap();
    let log = || std::fs::metadata(file.with_file_name("ledger.db-wal")).unwrap();
    // A part of a commit can be written, and never all of it.
    limit(Some(log().len() + 8192));
    let cursor = |id| Some(Cursor { identity: "db".into(), id, ..Cursor::default() });
    let pushes = (1..100).map(|n| new_push(n, &[(first, Evidence::Process)])).collect();
    let ids = ledger.admit(Admit { cursor: cursor(99), pushes, at: 1000 }).unwrap().pushes;
    for (id, ..) in &ids[..50] {
        ledger.uploading(*id, 1);
        ledger.settle(*id, to(PushState::Pushed));
    }
    let second = session(&ledger, "second");
    // A refused call changes nothing, now and when the calls run again.
    let twice = ledger.session("first").unwrap().unwrap().new;
    assert!(matches!(ledger.session_open(twice), Err(LedgerError::SessionExists(_))));
    assert!(matches!(ledger.sync(), Err(LedgerError::Io(_) | LedgerError::Full(_))));
    let Health::Degraded { kept, lost, .. } = ledger.health() else { panic!("healthy") };
    // Each success replaces the beginning of its upload.
    assert!(kept >= 150 && lost == 0, "{kept} kept, {lost} lost");
    let as_expected = |ledger: &Ledger| {
        let counts = ledger.summary(first).unwrap();
        assert_eq!((counts.pushed, counts.pending), (50, 50));
        assert_eq!(ledger.cursor().unwrap(), cursor(99));
        assert_eq!(ledger.session("second").unwrap().unwrap().row, second);
        let found = ledger.lookup("main", &[path(0), path(1), path(99)]).unwrap();
        let found: Vec<_> = found.into_iter().map(|f| f.unwrap()).map(|(id, state, _)| (id, state)).collect();
        let wanted =
            [(written, PushState::Pending), (ids[0].0, PushState::Pushed), (ids[98].0, PushState::Pending)];
        assert_eq!(found, wanted);
    };
    as_expected(&ledger);
    // Two further attempts: each writes a part, is rolled back, and runs again.
    for _ in 0..2 {
        let before = log().modified().unwrap();
        while log().modified().unwrap() == before {
            std::thread::yield_now();
        }
        as_expected(&ledger);
    }
    // Memory is bounded: admitted pushes must still be able to settle.
    let many: Vec<NewPushRow> = (1000..41_000).map(|n| new_push(n, &[])).collect();
    assert!(ledger.admit(admit(many)).unwrap_err().is_storage());
    as_expected(&ledger);
    limit(None);
    while ledger.health() != Health::Ok {
        std::thread::yield_now();
    }
    ledger.sync().unwrap();
    drop(ledger);
    let (ledger, opened) = Ledger::open(file).unwrap();
    assert_eq!(opened, Opened::Continued);
    as_expected(&ledger);
}
