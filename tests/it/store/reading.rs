//! Nix databases that are absent, replaced, put back, or written without a write-ahead log.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

use flywheel::store::{CurrentNixDb, Look, NixDb, NixDbError};
use flywheel::types::StoreDir;
use rusqlite::{Connection, OpenFlags};

use crate::support::multiuser::NixDaemon;
use crate::support::nix::PrivateNix;

fn store_dir(nix: &PrivateNix) -> StoreDir {
    StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap()
}

#[test]
fn absent_open_put_back_and_replaced() {
    let nix = PrivateNix::new();
    let db_dir = nix.state_dir().join("db");
    fs::rename(&db_dir, nix.path().join("aside")).unwrap();
    let mut current = CurrentNixDb::new(&nix.state_dir(), &store_dir(&nix), &nix.path().join("none"));
    assert_eq!(current.look(&[]).unwrap(), Look::Absent);
    assert!(matches!(current.db(), Err(NixDbError::Missing(_))));
    fs::rename(nix.path().join("aside"), &db_dir).unwrap();
    let Look::Open { identity, head: 0, .. } = current.look(&[]).unwrap() else { panic!("not open") };
    nix.make("one");
    nix.make("two");
    let rows = current.db().unwrap().rows(0, 100).unwrap();
    let marks: Vec<_> = rows.iter().map(flywheel::store::PathInfo::mark).collect();
    let there = |look: Look| match look {
        Look::Open { there, head, identity } => (there, head, identity),
        other => panic!("{other:?}"),
    };
    let (found, head, same) = there(current.look(&marks).unwrap());
    assert_eq!((found, head, &same), (marks.iter().cloned().map(Some).collect(), 4, &identity));
    // A collected row is absent and contradicts nothing.
    assert!(nix.run("nix-store", &["--gc"]).status.success());
    assert_eq!(there(current.look(&marks).unwrap()).0, [None, None, None, None]);
    // The content is put back in the same file, and its row ids are given to other paths.
    let db = Connection::open(db_dir.join("db.sqlite")).unwrap();
    db.execute("update sqlite_sequence set seq = 0", []).unwrap();
    drop(db);
    nix.make("three");
    let (found, head, same) = there(current.look(&marks).unwrap());
    assert_eq!((head, &same), (2, &identity), "the file is the same");
    assert!(found[0].is_some() && found[0].as_ref() != Some(&marks[0]), "{found:?}");
    // The database is another file.
    fs::remove_dir_all(&db_dir).unwrap();
    assert_eq!(current.look(&marks).unwrap(), Look::Absent);
    assert!(nix.run("nix-store", &["--init"]).status.success());
    assert_ne!(there(current.look(&marks).unwrap()).2, identity);
    // The file is replaced after a look: the rows of the new file are not returned.
    fs::remove_dir_all(&db_dir).unwrap();
    assert!(nix.run("nix-store", &["--init"]).status.success());
    assert!(matches!(current.db().unwrap().rows(0, 1), Err(NixDbError::Replaced)));
}

/// Determinate Nix adds a column to an existing database.
#[test]
fn a_column_is_added_under_the_open_reader() {
    let nix = PrivateNix::new();
    let made = nix.make("one");
    let db = NixDb::open(&nix.state_dir(), &store_dir(&nix)).unwrap();
    let before = db.rows(0, 100).unwrap();
    let writer = Connection::open(nix.state_dir().join("db/db.sqlite")).unwrap();
    writer.execute("alter table ValidPaths add column provenance text", []).unwrap();
    assert_eq!(db.rows(0, 100).unwrap(), before);
    let path = store_dir(&nix).parse(&made).unwrap();
    assert_eq!(db.info(&path).unwrap().unwrap().path, path);
    assert_eq!(db.head().unwrap(), 2);
}

#[test]
fn real_nix_without_a_write_ahead_log() {
    let nix = PrivateNix::new();
    let db = NixDb::open(&nix.state_dir(), &store_dir(&nix)).unwrap();
    nix.make("one");
    assert_eq!(db.rows(0, 100).unwrap().len(), 2);
    drop(db);
    drop(nix.without_wal());
    let mut current = CurrentNixDb::new(&nix.state_dir(), &store_dir(&nix), &nix.path().join("none"));
    for name in ["two", "three", "four"] {
        assert!(matches!(current.look(&[]).unwrap(), Look::Open { .. }));
        nix.make(name);
        let rows = current.current().unwrap().rows(0, 100).unwrap();
        assert!(rows.iter().any(|row| row.path.name() == name), "{name}");
    }
}

/// Without a write-ahead log, Nix locks another file, which a reader does not see. Each
/// generation is one transaction over some hundred pages. Most of them are in the database
/// file before the transaction ends.
#[test]
fn a_half_written_page_is_never_read() {
    const ROWS: usize = 400;
    let nix = PrivateNix::new();
    drop(nix.without_wal());
    let (dir, state) = (store_dir(&nix), nix.state_dir());
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE;
    let mut writer =
        Connection::open_with_flags_and_vfs(state.join("db/db.sqlite"), flags, c"unix-dotfile").unwrap();
    writer
        .execute_batch("pragma cache_size = 5; pragma synchronous = off; pragma journal_mode = truncate")
        .unwrap_or_default();
    let path =
        |n: usize, generation: i64| format!("{}/{n:032}-{}{generation}", dir.as_str(), "long".repeat(40));
    let mut write = |generation: i64| {
        let transaction = writer.transaction().unwrap();
        transaction.execute("delete from ValidPaths", []).unwrap();
        for n in 0..ROWS {
            transaction
                .execute(
                    "insert into ValidPaths (path, hash, registrationTime, narSize, deriver) values (?1, ?2, ?3, 1, ?4)",
                    (path(n, generation), format!("sha256:{}", "00".repeat(32)), generation, path(n, 0)),
                )
                .unwrap();
        }
        transaction.commit().unwrap();
    };
    write(1);
    let db = NixDb::open(&state, &dir).unwrap();
    let done = AtomicBool::new(false);
    let (mut reads, mut generations) = (0, std::collections::BTreeSet::new());
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for generation in 2..80 {
                write(generation);
                // Nix does not write all the time: without a pause no reader gets the lock.
                std::thread::sleep(std::time::Duration::from_millis(3));
            }
            done.store(true, Ordering::Release);
        });
        loop {
            let last = done.load(Ordering::Acquire);
            match db.rows(0, 2 * ROWS) {
                Ok(rows) => {
                    reads += 1;
                    let at: std::collections::BTreeSet<i64> =
                        rows.iter().map(|row| row.registered_at).collect();
                    assert_eq!((rows.len(), at.len()), (ROWS, 1), "generations {at:?}");
                    generations.extend(at);
                }
                Err(NixDbError::Busy) => {}
                Err(error) => panic!("{error}"),
            }
            if last {
                break;
            }
        }
    });
    eprintln!("{reads} reads saw {} generations", generations.len());
    assert!(generations.contains(&79), "the last is read");
}

fn is_root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: only root can become another user");
    }
    root
}

/// Runs it on a thread of user nobody: in the kernel each thread has a user of its own.
fn as_nobody<R: Send>(run: impl FnOnce() -> R + Send) -> R {
    std::thread::scope(|scope| {
        let nobody = scope.spawn(|| {
            rustix::thread::set_thread_gid(rustix::process::Gid::from_raw(65534)).unwrap();
            rustix::thread::set_thread_uid(rustix::process::Uid::from_raw(65534)).unwrap();
            run()
        });
        nobody.join().unwrap()
    })
}

fn open_to_all(nix: &PrivateNix) {
    for dir in [nix.path().to_owned(), nix.state_dir(), nix.state_dir().join("db")] {
        fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

/// Nix 2.8 removes the files of the write-ahead log when it closes the last connection. A
/// reader that may not write in the directory cannot create them.
#[test]
fn an_idle_database_is_opened_by_way_of_the_nix_daemon() {
    if !is_root() {
        return;
    }
    let nix = PrivateNix::new();
    let daemon = NixDaemon::start(&nix, &[]);
    nix.make("one");
    open_to_all(&nix);
    for file in ["db.sqlite-wal", "db.sqlite-shm"] {
        let _ = fs::remove_file(nix.state_dir().join("db").join(file)); // newer versions of Nix leave them
    }
    let (dir, state) = (store_dir(&nix), nix.state_dir());
    let open = |socket: &Path| as_nobody(|| NixDb::open_with_daemon(&state, &dir, socket));
    let refused = open(&nix.path().join("no.sock")).unwrap_err();
    assert!(matches!(&refused, NixDbError::Permission { hint, .. } if hint.contains("no.sock")), "{refused}");
    let socket = nix.path().join("nix.sock");
    fs::set_permissions(&socket, fs::Permissions::from_mode(0o666)).unwrap();
    let rows = |db: NixDb| {
        as_nobody(move || {
            let rows = db.rows(0, 100).unwrap().len();
            (db, rows)
        })
    };
    let (db, before) = rows(open(&socket).unwrap());
    // It can also be read after the nix-daemon has ended, and with new rows.
    drop(daemon);
    nix.make("two");
    let (_, after) = rows(db);
    assert_eq!((before, after), (2, 4));
}

/// After a crash of the machine the write-ahead log has no index, and this reader may not
/// write one. It reads the rows in the log anyway.
#[test]
fn a_log_without_an_index_is_read() {
    if !is_root() {
        return;
    }
    let nix = PrivateNix::new();
    let db_dir = nix.state_dir().join("db");
    let keeps = Connection::open(db_dir.join("db.sqlite")).unwrap();
    keeps.execute("insert into ValidPaths (path, hash, registrationTime) values ('x', 'y', 1)", []).unwrap();
    let crashed = nix.path().join("crashed");
    fs::create_dir_all(crashed.join("db")).unwrap();
    for file in ["db.sqlite", "db.sqlite-wal"] {
        fs::copy(db_dir.join(file), crashed.join("db").join(file)).unwrap();
    }
    fs::write(crashed.join("db/db.sqlite-shm"), vec![0; 32768]).unwrap();
    open_to_all(&nix);
    let (dir, none) = (store_dir(&nix), nix.path().join("none"));
    let read = as_nobody(|| NixDb::open_with_daemon(&crashed, &dir, &none).unwrap().head().unwrap());
    assert_eq!(read, 1);
}
