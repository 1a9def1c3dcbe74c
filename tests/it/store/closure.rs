//! Closures over a large synthetic database, made with the schema that Nix makes.

use std::collections::{HashMap, HashSet};
use std::time::Instant;

use flywheel::store::NixDb;

use crate::support::nix::PrivateNix;
use flywheel::types::{NarHash, StoreDir, StorePath};

const PATHS: i64 = 50_000;

/// What row `id` refers to: itself now and then, and up to five earlier rows.
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
    let mut asked = HashSet::new();
    let start = Instant::now();
    let closure = journal.closure(&[root, gone.clone()], &mut |id| asked.insert(id)).unwrap();
    eprintln!("closure of {} paths: {:?}", closure.paths.len(), start.elapsed());
    assert_eq!(closure.invalid, [gone]);
    assert_eq!(closure.paths.len() as i64, PATHS);
    assert_eq!(asked.len() as i64, PATHS);
    let place: HashMap<i64, usize> = closure.paths.iter().enumerate().map(|(at, p)| (p.id, at)).collect();
    for info in &closure.paths {
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
    let closure = journal.closure(std::slice::from_ref(&root), &mut |id| id == 100).unwrap();
    assert_eq!(closure.paths.iter().map(|p| p.id).collect::<Vec<_>>(), [100]);
    // Its references are still named.
    assert_eq!(closure.paths[0].references, journal.info(&root).unwrap().unwrap().references);
    let mut asked = 0;
    let none = journal.closure(&[root.clone(), root], &mut |_| {
        asked += 1;
        false
    });
    assert!(none.unwrap().paths.is_empty());
    assert_eq!(asked, 1);
}
