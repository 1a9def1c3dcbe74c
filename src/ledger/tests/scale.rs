//! Memory and query plans with a long backlog. `benches/library.rs` measures times.

use std::process::Command;

use super::*;

#[test]
fn the_queue_is_found_without_a_scan_of_history() {
    let (_dir, ledger) = new_ledger();
    let plan: Vec<String> = ledger
        .read(|conn| {
            let mut explain = conn.prepare(&format!("EXPLAIN QUERY PLAN {}", pushes::UNSETTLED))?;
            Ok(explain.query_map((0, 10), |r| r.get(3))?.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap();
    assert!(plan[0].contains("item_unsettled") && plan[0].contains("(id>?)"), "{plan:?}");
    assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
}

/// SQLite makes a temporary table for a list, also for one in the condition of an index.
#[test]
fn a_write_of_a_push_needs_no_temporary_table() {
    let (_dir, ledger) = new_ledger();
    let writes = [
        "INSERT INTO item (cache, path, nar_size, state) VALUES (1, 'a', 1, 0)",
        "UPDATE item SET state = 2, attempts = 1 WHERE id = 1",
    ];
    for write in writes {
        let steps: Vec<String> = ledger
            .read(move |conn| {
                let mut explain = conn.prepare(&format!("EXPLAIN {write}"))?;
                Ok(explain.query_map([], |row| row.get(1))?.collect::<rusqlite::Result<_>>()?)
            })
            .unwrap();
        assert!(steps.iter().any(|step| step == "IdxInsert"), "{steps:?}");
        assert!(!steps.iter().any(|step| step == "OpenEphemeral"), "{write}: {steps:?}");
    }
}

const CHILD: &str = "FLYWHEEL_TEST_LEDGER_MEMORY";

/// Runs in a process of its own, because memory is counted by process.
#[test]
fn memory_does_not_grow_with_the_backlog() {
    let (dir, ledger) = new_ledger();
    drop(ledger);
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["ledger::tests::scale::memory_child", "--exact", "--nocapture"])
        .env(CHILD, dir.path().join("ledger.db"))
        .status()
        .unwrap();
    assert!(status.success());
}

#[test]
fn memory_child() {
    let Some(file) = std::env::var_os(CHILD) else { return };
    let (ledger, _) = Ledger::open(Path::new(&file)).unwrap();
    let s = session(&ledger, "s");
    let peak = || -> u64 {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find(|l| l.starts_with("VmHWM")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    let fill = |from: usize, to_n: usize| {
        for start in (from..to_n).step_by(1000) {
            let batch = (start..start + 1000).map(|n| new_push(n, &[(s, Evidence::Window)])).collect();
            for (id, ..) in ledger.admit(admit(batch)).unwrap().pushes {
                ledger.uploading(id, 1);
                ledger.settle(id, to(if id % 2 == 0 { PushState::Pushed } else { PushState::Failed }));
            }
        }
        let (mut after, mut seen) = (0, 0);
        while let Some(last) = ledger.unsettled(after, 1000).unwrap().last() {
            after = last.id;
            seen += 1;
        }
        assert_eq!(seen, to_n / 2000);
        ledger.summary(s).unwrap();
    };
    fill(0, 10_000);
    let small = peak();
    fill(10_000, 100_000);
    let large = peak();
    assert_eq!(ledger.summary(s).unwrap().total(), 100_000);
    assert!(large < small + 4096, "{small} KiB at 10,000 pushes, {large} KiB at 100,000");
    ledger.session_state(s, SessionState::Closed, 1, None);
    assert_eq!(ledger.prune(5000).unwrap(), Pruned { sessions: 1, pushes: 100_000 });
    assert!(peak() < small + 4096);
}
