//! Closures in a large synthetic Nix database.

use std::collections::{HashMap, HashSet};

use flywheel::store::NixDb;

use crate::support::nix::PrivateNix;
use flywheel::types::{NarHash, StoreDir, StorePath};

const PATHS: i64 = 50_000;

/// The references of row `id`: up to five earlier rows, and now and then the row itself.
fn references(id: i64) -> Vec<i64> {
    let mut found: HashSet<i64> = (1..=5).map(|k| (id * 7919 * k) % id.max(1)).filter(|&r| r > 0).collect();
    if id > 1 {
        found.insert(id - 1);
    }
    if id % 10 == 0 {
        found.insert(id);
    }
    found.into_iter().collect()
}

fn base(id: i64) -> String {
    format!("{id:032}-p{id}")
}

/// Fills a database that Nix made.
pub fn fill(nix: &PrivateNix, paths: i64) -> (NixDb, StoreDir) {
    let dir = StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap();
    let mut db = rusqlite::Connection::open(nix.state_dir().join("db/db.sqlite")).unwrap();
    let tx = db.transaction().unwrap();
    {
        let mut path = tx
            .prepare("insert into ValidPaths (path, hash, registrationTime, narSize) values (?1, ?2, 1, 120)")
            .unwrap();
        let mut refs = tx.prepare("insert into Refs values (?1, ?2)").unwrap();
        let hash = NarHash([7; 32]).to_string();
        for id in 1..=paths {
            path.execute((format!("{}/{}", dir.as_str(), base(id)), &hash)).unwrap();
            for reference in references(id) {
                refs.execute((id, reference)).unwrap();
            }
        }
    }
    tx.commit().unwrap();
    (NixDb::open(&nix.state_dir(), &dir).unwrap(), dir)
}

#[test]
fn fifty_thousand_paths_references_first() {
    let nix = PrivateNix::new();
    let (journal, _) = fill(&nix, PATHS);
    let root = StorePath::parse(&base(PATHS)).unwrap();
    let gone = StorePath::parse(&base(PATHS + 1)).unwrap();
    let ids = journal.ids(&[root, gone]).unwrap();
    assert_eq!(ids, [Some(PATHS), None]);
    let mut asked = HashSet::new();
    let ids = journal.closure(&[PATHS], &mut |id| asked.insert(id)).unwrap();
    assert_eq!(ids.len() as i64, PATHS);
    assert_eq!(asked.len() as i64, PATHS);
    let infos = journal.infos(&ids).unwrap();
    assert_eq!(infos.iter().map(|info| info.id).collect::<Vec<_>>(), ids);
    let place: HashMap<i64, usize> = ids.iter().enumerate().map(|(at, id)| (*id, at)).collect();
    for info in &infos {
        let mut expected: Vec<String> = references(info.id).into_iter().map(base).collect();
        expected.sort();
        assert_eq!(info.references.iter().map(StorePath::base).collect::<Vec<_>>(), expected);
        for reference in references(info.id) {
            assert!(
                reference == info.id || place[&reference] < place[&info.id],
                "{reference} before {}",
                info.id
            );
        }
    }
}

#[test]
fn what_is_not_entered_is_neither_reported_nor_descended_into() {
    let nix = PrivateNix::new();
    let (journal, _) = fill(&nix, 100);
    let root = StorePath::parse(&base(100)).unwrap();
    assert_eq!(journal.closure(&[100], &mut |id| id == 100).unwrap(), [100]);
    // Its references are still listed.
    let info = journal.infos(&[100]).unwrap().remove(0);
    assert_eq!(info.references, journal.info(&root).unwrap().unwrap().references);
    let mut asked = 0;
    let none = journal.closure(&[100, 100], &mut |_| {
        asked += 1;
        false
    });
    assert!(none.unwrap().is_empty());
    assert_eq!(asked, 1);
}
