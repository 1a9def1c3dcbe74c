//! Figures of single rooms, called as a library.

use std::time::Instant;

use flywheel::ledger::{
    Admit, Evidence, Ledger, NewPushRow, NewSession, PushState, SessionKind, Settle, Steps,
};
use flywheel::store::NixDb;

use crate::nix::PrivateNix;
use crate::report::figure;
use crate::rig::ms;
use flywheel::types::{NarHash, StoreDir, StorePath};

const PATHS: i64 = 50_000;

fn base(n: i64) -> String {
    format!("{n:032}-p{n}")
}

/// A closure of 50,000 paths with six references each, in a database that Nix made.
pub fn closure() {
    let nix = PrivateNix::new();
    let dir = StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap();
    let mut db = rusqlite::Connection::open(nix.state_dir().join("db/db.sqlite")).unwrap();
    let tx = db.transaction().unwrap();
    for id in 1..=PATHS {
        tx.prepare_cached(
            "insert into ValidPaths (path, hash, registrationTime, narSize) values (?1, ?2, 1, 120)",
        )
        .unwrap()
        .execute((format!("{}/{}", dir.as_str(), base(id)), NarHash([7; 32]).to_string()))
        .unwrap();
        let mut refs: Vec<i64> =
            (1..=5).map(|k| (id * 7919 * k) % id).chain([id - 1]).filter(|r| *r > 0).collect();
        refs.sort_unstable();
        refs.dedup();
        for reference in refs {
            tx.prepare_cached("insert into Refs values (?1, ?2)").unwrap().execute((id, reference)).unwrap();
        }
    }
    tx.commit().unwrap();
    drop(db);
    let root = StorePath::parse(&base(PATHS)).unwrap();
    let took: Vec<f64> = (0..5)
        .map(|_| {
            let nix_db = NixDb::open(&nix.state_dir(), &dir).unwrap();
            let began = Instant::now();
            let roots: Vec<i64> =
                nix_db.ids(std::slice::from_ref(&root)).unwrap().into_iter().flatten().collect();
            let ids = nix_db.closure(&roots, &mut |_| true).unwrap();
            assert_eq!(nix_db.infos(&ids).unwrap().len(), 50_000);
            ms(began)
        })
        .collect();
    figure(
        "closure of 50,000",
        "ms",
        &took,
        "NixDb::closure and infos on a fresh connection, about 5.5 references a path",
    );
}

/// What a closure of 2,001 paths costs in the ledger.
pub fn ledger() {
    let dir = tempfile::tempdir().unwrap();
    let (mut fresh, mut settle, mut known) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..5 {
        let (ledger, _) = Ledger::open(&dir.path().join(format!("{round}.sqlite"))).unwrap();
        let session = |id: &str| {
            let session = NewSession {
                log_paths: false,
                route: None,
                id: id.to_owned(),
                kind: SessionKind::Job,
                label: None,
                cache: "main".to_owned(),
                uid: 0,
                gid: 0,
                anchor_pid: None,
                strict: false,
                ci: None,
                started_at: 1,
                after: 0,
            };
            ledger.session_open(session).unwrap()
        };
        let batch = |session| Admit {
            cursor: None,
            at: 1,
            pushes: (0..2001)
                .map(|n| NewPushRow {
                    valid_at: 0,
                    needed_by: None,
                    route: None,
                    cache: "main".to_owned(),
                    path: base(n),
                    nar_size: 120,
                    state: PushState::Pending,
                    retry_failed: false,
                    sessions: vec![(session, Evidence::Closure)],
                })
                .collect(),
        };
        let first = batch(session("a"));
        let began = Instant::now();
        let admitted = ledger.admit(first).unwrap();
        fresh.push(ms(began));
        let began = Instant::now();
        for (id, ..) in &admitted.pushes {
            let state = PushState::Pushed;
            ledger.settle(
                *id,
                Settle { state, error_class: None, error: None, attempts: 1, steps: Steps::default(), at: 2 },
            );
        }
        ledger.sync().unwrap();
        settle.push(ms(began));
        let again = batch(session("b"));
        let began = Instant::now();
        ledger.admit(again).unwrap();
        known.push(ms(began));
    }
    figure("ledger: admit 2,001", "ms", &fresh, "unknown items with a session, one transaction");
    figure("ledger: settle 2,001", "ms", &settle, "one by one, until committed");
    figure("ledger: admit 2,001 known", "ms", &known, "the same items again for another session");
}
