//! A power cut: the last commits may be lost, and the others are whole.

use super::*;

/// At a power cut the disk has a prefix of the log, and its last page may be torn.
#[test]
fn with_any_prefix_of_the_log_the_cursor_fits_the_pushes() {
    let (dir, ledger) = new_ledger();
    const ROUNDS: i64 = 16;
    for n in 1..=ROUNDS {
        let cursor = Some(Cursor { identity: "db".into(), id: n, marks: n.to_string() });
        let pushes = vec![new_push(usize::try_from(n).unwrap(), &[])];
        let (id, ..) = ledger.admit(Admit { cursor, pushes, at: n }).unwrap().pushes[0];
        if n % 2 == 0 {
            ledger.settle(id, to(PushState::Pushed));
        }
    }
    ledger.sync().unwrap();
    let log = std::fs::read(dir.path().join("ledger.db-wal")).unwrap();
    let file = std::fs::read(dir.path().join("ledger.db")).unwrap();
    assert!(log.len() > 50 * 4096, "all of it is in the log: {} bytes", log.len());
    let mut seen = std::collections::BTreeSet::new();
    // A page with its header has 4,120 bytes: cuts between pages, and within them.
    for cut in (0..=log.len()).step_by(4120 / 2 - 7) {
        let at = tempfile::tempdir().unwrap();
        let copy = at.path().join("ledger.db");
        std::fs::write(&copy, &file).unwrap();
        std::fs::write(at.path().join("ledger.db-wal"), &log[..cut]).unwrap();
        let (left, opened) = Ledger::open(&copy).unwrap();
        assert!(!matches!(opened, Opened::Recovered { .. }), "a cut at {cut} is no damage");
        let cursor = left.cursor().unwrap().unwrap_or_default();
        let known = cursor.id;
        assert_eq!(cursor.marks, if known > 0 { known.to_string() } else { String::new() }, "cut at {cut}");
        let ids = left.read(|conn| {
            let mut all = conn.prepare("SELECT id FROM item ORDER BY id")?;
            Ok(all.query_map([], |row| row.get(0))?.collect::<rusqlite::Result<Vec<i64>>>()?)
        });
        assert_eq!(ids.unwrap(), (1..=known).collect::<Vec<_>>(), "cut at {cut}");
        // The ledger continues from there.
        let cursor = Some(Cursor { identity: "db".into(), id: known + 1, ..Cursor::default() });
        let pushes = vec![new_push(usize::try_from(known + 1).unwrap(), &[])];
        left.admit(Admit { cursor, pushes, at: known }).unwrap();
        seen.insert(known);
    }
    assert_eq!((seen.first(), seen.last()), (Some(&0), Some(&ROUNDS)));
    assert!(seen.len() > 12, "{seen:?}");
}
