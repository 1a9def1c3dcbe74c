//! The write-ahead log is copied into the file while the ledger is used.

use std::time::{Duration, Instant};

use super::*;

#[test]
fn the_log_is_copied_into_the_file_and_commits_go_on() {
    let (dir, ledger) = new_ledger();
    let file = dir.path().join("ledger.db");
    let size = || std::fs::metadata(&file).unwrap().len();
    let before = size();
    let transactions = checkpoint::EVERY;
    for n in 0..transactions {
        session(&ledger, &format!("s{n}"));
    }
    // SQLite itself would copy the log only when it is longer than this.
    let log = std::fs::metadata(dir.path().join("ledger.db-wal")).unwrap().len();
    assert!(log < u64::from(checkpoint::LONG) * 4096, "{log} bytes");
    let began = Instant::now();
    while size() == before {
        assert!(began.elapsed() < Duration::from_secs(60), "the log was not copied");
        std::thread::sleep(Duration::from_millis(1));
    }
    let more = 10;
    for n in transactions..transactions + more {
        session(&ledger, &format!("s{n}"));
    }
    drop(ledger);
    let (ledger, _) = Ledger::open(&file).unwrap();
    let count = ledger
        .read(|conn| Ok(conn.query_row("SELECT count(*) FROM session", [], |row| row.get::<_, u32>(0))?));
    assert_eq!(count.unwrap(), transactions + more);
}
