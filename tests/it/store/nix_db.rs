//! The reader of the Nix database, on databases that real Nix writes.

use std::sync::mpsc::channel;

use flywheel::store::{DbIdentity, NixDb, NixDbError, Origin, PathInfo};

use crate::support::nix::PrivateNix;
use flywheel::types::StoreDir;

fn store_dir(nix: &PrivateNix) -> StoreDir {
    StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap()
}

fn open(nix: &PrivateNix) -> NixDb {
    NixDb::open(&nix.state_dir(), &store_dir(nix)).unwrap()
}

fn named<'a>(rows: &'a [PathInfo], name: &str) -> &'a PathInfo {
    rows.iter().find(|row| row.path.name() == name).unwrap_or_else(|| panic!("no row for {name}"))
}

#[test]
fn rows_of_a_build_and_its_sources() {
    let nix = PrivateNix::new();
    let journal = open(&nix);
    assert_eq!((journal.head().unwrap(), journal.rows(0, 10).unwrap()), (0, vec![]));
    std::fs::write(nix.work_dir().join("Cargo.lock"), "a source whose name looks like a lock's").unwrap();
    let built = nix.build(
        "derivation { name = \"built\"; system = builtins.currentSystem; builder = \"/bin/sh\"; src = ./Cargo.lock; \
         tofile = builtins.toFile \"tofile\" \"x\"; args = [ \"-c\" \"echo $src $tofile $out > $out\" ]; }",
    );
    let rows = journal.rows(0, 100).unwrap();
    assert_eq!(rows.len(), 4);
    assert!(rows.windows(2).all(|w| w[0].id < w[1].id));
    assert_eq!(journal.head().unwrap(), rows[3].id);
    let (out, drv) = (named(&rows, "built"), named(&rows, "built.drv"));
    let (source, text) = (named(&rows, "Cargo.lock"), named(&rows, "tofile"));
    assert_eq!(store_dir(&nix).full(&out.path), built[0]);
    assert_eq!(
        [out.origin(), drv.origin(), source.origin(), text.origin()],
        [Origin::Built, Origin::Derivation, Origin::Source, Origin::Source]
    );
    let mut references = vec![out.path.clone(), source.path.clone(), text.path.clone()];
    references.sort();
    assert_eq!(out.references, references);
    assert_eq!(out.deriver.as_ref(), Some(&drv.path));
    // Nix reports the same values.
    let said = |what: &str| {
        String::from_utf8(nix.run("nix-store", &["-q", what, &built[0]]).stdout).unwrap().trim().to_owned()
    };
    assert_eq!(said("--size"), out.nar_size.to_string());
    let base16 = nix.run("nix-hash", &["--type", "sha256", "--to-base16", &said("--hash")]);
    assert_eq!(
        out.nar_hash.to_string(),
        format!("sha256:{}", String::from_utf8_lossy(&base16.stdout).trim())
    );
    assert_eq!(journal.info(&out.path).unwrap().as_ref(), Some(out));
    assert!(journal.info(&source.path).unwrap().is_some());
    // The rows can be read in portions.
    assert_eq!(journal.rows(rows[0].id, 2).unwrap(), rows[1..3]);
    assert_eq!(journal.rows(rows[3].id, 2).unwrap(), []);
}

#[test]
fn ids_are_never_used_twice() {
    let nix = PrivateNix::new();
    let journal = open(&nix);
    let one = PrivateNix::shell("one", "echo 1 > $out");
    nix.build(&one);
    let before = journal.rows(0, 100).unwrap();
    let head = journal.head().unwrap();
    let collected = nix.run("nix-store", &["--gc"]);
    assert!(collected.status.success());
    assert_eq!(journal.rows(0, 100).unwrap(), []);
    assert_eq!(journal.head().unwrap(), head);
    assert!(journal.info(&before[0].path).unwrap().is_none());
    assert_eq!(journal.info(&before[0].path).unwrap(), None);
    nix.build(&one);
    let after = journal.rows(head, 100).unwrap();
    assert_eq!(after.len(), before.len());
    assert!(after.iter().all(|row| row.id > head));
    assert_eq!(
        after.iter().map(|r| &r.path).collect::<Vec<_>>(),
        before.iter().map(|r| &r.path).collect::<Vec<_>>()
    );
}

#[test]
fn readable_by_many_while_a_writer_writes() {
    let nix = PrivateNix::new();
    nix.build(&PrivateNix::shell("one", "echo 1 > $out"));
    let (dir, state) = (store_dir(&nix), nix.state_dir());
    let mut writer = rusqlite::Connection::open(state.join("db/db.sqlite")).unwrap();
    let tx = writer.transaction_with_behavior(rusqlite::TransactionBehavior::Immediate).unwrap();
    tx.execute("update ValidPaths set ultimate = 1", []).unwrap();
    let (done, results) = channel();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            let (done, dir, state) = (done.clone(), &dir, &state);
            scope.spawn(move || {
                let journal = NixDb::open(state, dir).unwrap();
                done.send(journal.rows(0, 100).unwrap().len()).unwrap();
            });
        }
    });
    drop(done);
    assert_eq!(results.iter().collect::<Vec<_>>(), [2; 8]);
    tx.commit().unwrap();
}

#[test]
fn a_database_made_anew_is_noticed() {
    let nix = PrivateNix::new();
    nix.build(&PrivateNix::shell("one", "echo 1 > $out"));
    let journal = open(&nix);
    let first = journal.identity().unwrap();
    assert_eq!(first.to_string().parse::<DbIdentity>().unwrap(), first);
    assert!("x".parse::<DbIdentity>().is_err());
    nix.build(&PrivateNix::shell("two", "echo 2 > $out"));
    assert_eq!(journal.identity().unwrap(), first, "a build changes the content, not the identity");
    assert_eq!(open(&nix).identity().unwrap(), first);
    std::fs::remove_dir_all(nix.state_dir().join("db")).unwrap();
    assert!(matches!(journal.identity(), Err(NixDbError::Missing(_))));
    assert!(nix.run("nix-store", &["--init"]).status.success());
    assert!(matches!(journal.identity(), Err(NixDbError::Replaced)));
    assert!(matches!(journal.rows(0, 1), Err(NixDbError::Replaced)));
    let again = open(&nix);
    assert_ne!(again.identity().unwrap(), first);
    assert_eq!(again.head().unwrap(), 0);
}

#[test]
fn what_is_no_nix_database_is_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let store = StoreDir::new("/nix/store").unwrap();
    let file = dir.path().join("db/db.sqlite");
    assert!(matches!(NixDb::open(dir.path(), &store), Err(NixDbError::Missing(p)) if p == file));
    std::fs::create_dir(dir.path().join("db")).unwrap();
    let found = |make: &str| {
        let _ = std::fs::remove_file(&file);
        rusqlite::Connection::open(&file).unwrap().execute_batch(make).unwrap();
        match NixDb::open(dir.path(), &store) {
            Err(NixDbError::Schema { expected, found }) => (expected, found),
            other => panic!("{make}: {other:?}"),
        }
    };
    assert_eq!(found("create table x (y)").1, "no table ValidPaths");
    let (expected, got) = found("create table ValidPaths (id integer primary key autoincrement, path text)");
    assert!(expected.contains("narSize"), "{expected}");
    assert_eq!(got, "ValidPaths with id, path");
    let columns = "path, hash, registrationTime, deriver, narSize, ultimate, sigs, ca";
    let (_, got) = found(&format!("create table ValidPaths (id integer primary key, {columns})"));
    assert_eq!(got, "an id that can be given twice");
    let (_, got) =
        found(&format!("create table ValidPaths (id integer primary key autoincrement, {columns})"));
    assert_eq!(got, "no table Refs");
    std::fs::write(&file, "certainly not a database, and long enough to be taken for a header ".repeat(20))
        .unwrap();
    assert!(matches!(NixDb::open(dir.path(), &store), Err(NixDbError::Schema { .. })));
}

#[test]
fn a_row_that_makes_no_sense_costs_only_itself() {
    let nix = PrivateNix::new();
    nix.build(&PrivateNix::shell("one", "echo 1 > $out"));
    let db = rusqlite::Connection::open(nix.state_dir().join("db/db.sqlite")).unwrap();
    db.execute_batch(
        "insert into ValidPaths (path, hash, registrationTime) values ('/elsewhere/x', 'sha256:00', 1);
         insert into ValidPaths (path, hash, registrationTime) select path || 'x', 'md5:1', 1 from ValidPaths where id = 1;
         insert into ValidPaths (path, hash, registrationTime, deriver) select path || 'y', hash, 1, 'unknown-deriver' from ValidPaths where id = 1;",
    )
    .unwrap();
    let journal = open(&nix);
    // Portions of one row skip the bad rows too: an empty portion would mean the end.
    assert_eq!(
        journal.rows(2, 1).unwrap().iter().map(|r| (r.id, r.deriver.clone())).collect::<Vec<_>>(),
        [(5, None)]
    );
    assert_eq!(journal.rows(0, 10).unwrap().len(), 3);
}
