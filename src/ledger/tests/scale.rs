//! Sizes: a large closure, a burst, a long backlog. Times are printed, not judged.

use std::io::Write;
use std::process::Command;
use std::time::Instant;

use super::*;

fn took(what: &str, since: Instant) {
    writeln!(std::io::stdout(), "{what}: {:.2} ms", since.elapsed().as_secs_f64() * 1e3).unwrap();
}

#[test]
fn a_closure_of_2001_paths() {
    let (_dir, ledger) = new_ledger();
    let s = session(&ledger, "s");
    let closure = |s| (0..2001).map(|n| item(n, &[(s, Evidence::Closure)])).collect::<Vec<_>>();
    let start = Instant::now();
    let admitted = ledger.admit(admit(closure(s))).unwrap();
    took("admit 2001 unknown items and attach", start);
    let start = Instant::now();
    for (id, ..) in &admitted.items {
        ledger.settle(*id, to(PushState::Pushed));
    }
    ledger.sync().unwrap();
    took("settle 2001 items", start);
    let t = session(&ledger, "t");
    let start = Instant::now();
    ledger.admit(admit(closure(t))).unwrap();
    took("admit 2001 known items and attach", start);
    let start = Instant::now();
    let counts = ledger.summary(t).unwrap();
    took("summary of 2001 items", start);
    assert_eq!(counts.already_cached, 2001);
    assert_eq!(ledger.summary(s).unwrap().pushed, 2001);
    let paths: Vec<_> = (0..2001).map(path).collect();
    let start = Instant::now();
    ledger.lookup("main", &paths).unwrap();
    took("lookup of 2001 items", start);
}

#[test]
fn the_queue_is_found_without_walking_over_history() {
    let (_dir, ledger) = new_ledger();
    let plan: Vec<String> = ledger
        .read(|c| {
            let mut explain = c.prepare(&format!("EXPLAIN QUERY PLAN {}", pushes::UNSETTLED))?;
            Ok(explain.query_map((0, 10), |r| r.get(3))?.collect::<rusqlite::Result<_>>()?)
        })
        .unwrap();
    assert!(plan[0].contains("item_unsettled") && plan[0].contains("(id>?)"), "{plan:?}");
    assert!(!plan.iter().any(|step| step.contains("TEMP B-TREE")), "{plan:?}");
}

const CHILD: &str = "FLYWHEEL_TEST_LEDGER_MEMORY";

/// A process of its own, because memory is counted by process.
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
            let batch = (start..start + 1000).map(|n| item(n, &[(s, Evidence::Window)])).collect();
            for (id, ..) in ledger.admit(admit(batch)).unwrap().items {
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
    let start = Instant::now();
    fill(0, 10_000);
    let small = peak();
    fill(10_000, 100_000);
    took("100,000 items admitted, settled, read", start);
    let large = peak();
    let size = std::fs::metadata(&file).unwrap().len() / 1024;
    writeln!(std::io::stdout(), "peak at 10,000: {small} KiB, at 100,000: {large} KiB, file {size} KiB")
        .unwrap();
    assert_eq!(ledger.summary(s).unwrap().total(), 100_000);
    assert!(large < small + 4096, "{small} KiB at 10,000 items, {large} KiB at 100,000");
    ledger.session_state(s, SessionState::Closed, 1, None);
    let start = Instant::now();
    assert_eq!(ledger.prune(5000).unwrap(), Pruned { sessions: 1, items: 100_000 });
    took("prune of 100,000 items", start);
    assert!(peak() < small + 4096);
}
