//! The Nix database: one that Nix writes, and the simulated store.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};

use super::super::store::{Made, Store};
use super::super::trace::Moment;
use crate::store::{NixDb, NixDbError};
use crate::types::StoreDir;

#[derive(Debug, Clone, Copy)]
enum Step {
    /// A path becomes valid that refers to these.
    Register(u32, &'static [u32]),
    /// A path is collected.
    Remove(u32),
    BackUp,
    /// The database of the last backup is put into the place.
    GoBack,
}

/// A step, and the rows after it: number, path and references.
const TABLE: &[(Step, &str)] = &[
    (Step::Register(1, &[]), "1:p1"),
    (Step::Register(2, &[1]), "1:p1 2:p2(1)"),
    (Step::Register(3, &[3, 2]), "1:p1 2:p2(1) 3:p3(2,3)"),
    // A number is not used again, also the highest one.
    (Step::Remove(3), "1:p1 2:p2(1)"),
    (Step::Register(4, &[2, 1]), "1:p1 2:p2(1) 4:p4(1,2)"),
    // A path that was collected is another row.
    (Step::Register(3, &[]), "1:p1 2:p2(1) 4:p4(1,2) 5:p3"),
    (Step::BackUp, "1:p1 2:p2(1) 4:p4(1,2) 5:p3"),
    (Step::Register(6, &[3]), "1:p1 2:p2(1) 4:p4(1,2) 5:p3 6:p6(3)"),
    (Step::Register(7, &[6]), "1:p1 2:p2(1) 4:p4(1,2) 5:p3 6:p6(3) 7:p7(6)"),
    // Numbers are given again after that.
    (Step::GoBack, "1:p1 2:p2(1) 4:p4(1,2) 5:p3"),
    (Step::Register(8, &[]), "1:p1 2:p2(1) 4:p4(1,2) 5:p3 6:p8"),
];

fn base(n: u32) -> String {
    format!("{n:032}-p{n}")
}

/// What the reader of the Nix database reads.
fn rows(dir: &Path, store_dir: &StoreDir) -> Result<String, NixDbError> {
    let db = NixDb::open(&dir.join("nix"), store_dir)?;
    let name = |base: &str| base.split_once("-p").unwrap().1.to_owned();
    let rows = db.rows(0, 100)?.into_iter().map(|info| {
        assert_eq!(info.nar_size, 120);
        let references: Vec<String> = info.references.iter().map(|path| name(path.base())).collect();
        let references =
            if references.is_empty() { String::new() } else { format!("({})", references.join(",")) };
        format!("{}:p{}{references}", info.id, name(info.path.base()))
    });
    Ok(rows.collect::<Vec<_>>().join(" "))
}

/// Runs `nix-store` on the store of the test. `None`: there is no Nix here.
fn nix_store(dir: &Path, args: &[&str], input: &str) -> Option<()> {
    let mut nix = Command::new("nix-store");
    nix.args(args).env_clear().env("PATH", std::env::var_os("PATH")?).env("HOME", dir);
    nix.env("NIX_STORE_DIR", dir.join("store")).env("NIX_STATE_DIR", dir.join("nix"));
    nix.env("NIX_LOG_DIR", dir.join("log")).env("NIX_CONF_DIR", dir);
    let mut child = nix.stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().ok()?;
    child.stdin.take()?.write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Some(())
}

#[test]
#[allow(clippy::print_stderr)]
fn the_database_that_nix_writes() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path();
    let store_dir = StoreDir::new(dir.join("store").to_str().unwrap()).unwrap();
    std::fs::create_dir(dir.join("store")).unwrap();
    std::fs::create_dir_all(dir.join("nix/db")).unwrap();
    let full = |n: u32| format!("{}/{}", store_dir.as_str(), base(n));
    let (db, backup) = (dir.join("nix/db/db.sqlite"), dir.join("backup"));
    for (row, (step, expected)) in TABLE.iter().enumerate() {
        let done = match step {
            Step::Register(n, references) => {
                // The format of `nix-store --dump-db`: path, hash, size, deriver, references.
                let head = format!("{}\nsha256:{:064x}\n120\n\n{}\n", full(*n), n, references.len());
                let text = references.iter().fold(head, |text, n| format!("{text}{}\n", full(*n)));
                nix_store(dir, &["--load-db"], &text)
            }
            Step::Remove(n) => nix_store(dir, &["--delete", &full(*n)], ""),
            // The last process of Nix has written its log into the file.
            Step::BackUp => std::fs::copy(&db, &backup).ok().map(drop),
            Step::GoBack => std::fs::copy(&backup, &db).ok().map(drop),
        };
        if done.is_none() {
            eprintln!("skipped: there is no nix-store here");
            return;
        }
        assert_eq!(rows(dir, &store_dir).unwrap(), *expected, "row {row}: {step:?}");
    }
}

#[test]
fn the_database_of_the_simulated_store() {
    let dir = tempfile::tempdir().unwrap();
    let mut store = Store::new(dir.path());
    for (row, (step, expected)) in TABLE.iter().enumerate() {
        match step {
            Step::Register(n, references) => {
                let made = Made {
                    references: references.iter().copied().map(base).collect(),
                    seen: None,
                    maker: 0,
                    job: None,
                    allowed: BTreeSet::new(),
                    row: 0,
                    at: Moment { ms: 0, line: 0 },
                    valid: true,
                    open: BTreeSet::new(),
                    before: Vec::new(),
                };
                store.register(&base(*n), made, 120);
            }
            Step::Remove(n) => drop(store.collect(&BTreeSet::new(), |path| path == base(*n))),
            Step::BackUp => store.back_up(),
            Step::GoBack => drop(store.roll_back().unwrap()),
        }
        assert_eq!(rows(dir.path(), &store.store_dir).unwrap(), *expected, "row {row}: {step:?}");
    }
}
