//! Tests of the cache store on real directories: what it keeps, evicts, sweeps and refuses.

use std::path::Path;

use sha2::{Digest, Sha256};
use tempfile::TempDir;

use super::super::wire::PathRecord;
use super::*;
use crate::types::{PathHash, StorePath};

const STORE: &str = "/nix/store";

fn base(n: usize) -> String {
    format!("{n:0>32}-p")
}

fn record(n: usize, references: &[usize], nar: &[u8]) -> PathRecord {
    PathRecord {
        path: StorePath::parse(&base(n)).unwrap(),
        references: references.iter().map(|&r| StorePath::parse(&base(r)).unwrap()).collect(),
        system: None,
        deriver: None,
        ca: None,
        sigs: Vec::new(),
        nar_hash: NarHash(Sha256::digest(nar).into()),
        nar_size: nar.len() as u64,
    }
}

/// Bytes that do not compress.
fn noise(seed: usize, len: usize) -> Vec<u8> {
    (0..len.div_ceil(32))
        .flat_map(|i| <[u8; 32]>::from(Sha256::digest(format!("{seed} {i}"))))
        .take(len)
        .collect()
}

async fn put(
    cache_store: &CacheStore,
    n: usize,
    references: &[usize],
    nar: &[u8],
) -> Result<Stored, ApiError> {
    let record = record(n, references, nar);
    let (content, pin) = if record.nar_size <= SMALL {
        (Content::Small(compress_small(nar, &record.nar_hash, record.nar_size)?), None)
    } else {
        let mut incoming = cache_store.receive(record.nar_hash, record.nar_size, false)?;
        nar.chunks(50_000).try_for_each(|c| incoming.write(c))?;
        let (content, pin) = incoming.finish()?;
        (content, Some(pin))
    };
    let stored = cache_store.writer.store(NewPath { cache: "main".to_owned(), record, content }).await;
    drop(pin);
    stored
}

fn present(cache_store: &CacheStore, n: usize) -> bool {
    let hash = PathHash::parse(&base(n)[..32]).unwrap();
    cache_store.reader.has_path("main", hash).unwrap()
}

fn files(dir: &Path) -> Vec<String> {
    let mut names: Vec<String> = fs::read_dir(dir.join("nar"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

/// Sets the time of a path's last use.
fn used(dir: &Path, n: usize, at: i64) {
    let connection = Connection::open(dir.join("cache.sqlite")).unwrap();
    connection.busy_timeout(std::time::Duration::from_secs(5)).unwrap();
    assert_eq!(connection.execute("UPDATE path SET used_at = ?1 WHERE base = ?2", (at, base(n))).unwrap(), 1);
}

fn open(dir: &TempDir, max: Option<u64>) -> (CacheStore, Done) {
    CacheStore::open(dir.path(), STORE, max).unwrap()
}

#[tokio::test]
async fn a_path_leaves_with_those_that_need_it_and_the_recent_keep_what_they_need() {
    let dir = tempfile::tempdir().unwrap();
    let (cache_store, _done) = open(&dir, Some(2 << 20));
    let nar = |n| noise(n, 300_000);
    // 1 is old but 2 needs it and is recent; 3 is old; 4 needs 3 and is older still; 5 is in between.
    for (n, references, at) in
        [(1, &[][..], 10), (2, &[1, 2][..], 900), (3, &[][..], 500), (4, &[3][..], 20), (5, &[][..], 600)]
    {
        assert!(matches!(put(&cache_store, n, references, &nar(n)).await, Ok(Stored::Uploaded { .. })));
        used(dir.path(), n, at);
    }
    assert!((1..=5).all(|n| present(&cache_store, n)));
    for n in 6..=8 {
        put(&cache_store, n, &[2], &nar(n)).await.unwrap();
    }
    let left: Vec<usize> = (1..=8).filter(|&n| present(&cache_store, n)).collect();
    assert_eq!(left, [1, 2, 5, 6, 7, 8], "4 and 3 left first, and the library of the recent ones stayed");
    assert_eq!(files(dir.path()).len(), 6, "their files left too");
    let size: u64 =
        fs::read_dir(dir.path().join("nar")).unwrap().map(|e| e.unwrap().metadata().unwrap().len()).sum();
    assert!(size <= 2 << 20);
}

#[tokio::test]
async fn a_reference_that_must_leave_takes_its_referrers() {
    let dir = tempfile::tempdir().unwrap();
    let (cache_store, _done) = open(&dir, None);
    put(&cache_store, 1, &[], &noise(1, 200_000)).await.unwrap();
    put(&cache_store, 2, &[1], &noise(2, 100)).await.unwrap();
    put(&cache_store, 3, &[2], &noise(3, 100)).await.unwrap();
    put(&cache_store, 4, &[], &noise(4, 100)).await.unwrap();
    fs::remove_file(dir.path().join("nar").join(&files(dir.path())[0])).unwrap();
    cache_store.writer.lost(record(1, &[], &noise(1, 200_000)).nar_hash).await;
    put(&cache_store, 5, &[], b"after").await.unwrap();
    assert_eq!((1..=5).filter(|&n| present(&cache_store, n)).collect::<Vec<_>>(), [4, 5]);
}

#[tokio::test]
async fn what_a_crash_leaves_is_cleared_at_start() {
    let dir = tempfile::tempdir().unwrap();
    let (cache_store, done) = open(&dir, None);
    put(&cache_store, 1, &[], &noise(1, 200_000)).await.unwrap();
    put(&cache_store, 2, &[], &noise(2, 200_000)).await.unwrap();
    put(&cache_store, 3, &[2], &noise(3, 10)).await.unwrap();
    let kept = format!("{}.zst", record(1, &[], &noise(1, 200_000)).nar_hash.hex());
    let lost = files(dir.path()).into_iter().find(|f| *f != kept).unwrap();
    drop(cache_store);
    done.await.unwrap();
    fs::write(dir.path().join("nar/.new-7"), "half").unwrap();
    fs::write(dir.path().join("nar").join(format!("{}.zst", "0".repeat(64))), "no row").unwrap();
    fs::write(dir.path().join("nar").join(lost), "shorter than it was").unwrap();
    let (cache_store, _done) = open(&dir, None);
    assert_eq!(files(dir.path()), [kept]);
    assert_eq!((1..=3).filter(|&n| present(&cache_store, n)).collect::<Vec<_>>(), [1]);
}

#[tokio::test]
async fn a_pinned_nar_is_not_evicted() {
    let dir = tempfile::tempdir().unwrap();
    let (cache_store, _done) = open(&dir, Some(1 << 20));
    let nar = noise(1, 300_000);
    put(&cache_store, 1, &[], &nar).await.unwrap();
    used(dir.path(), 1, 1);
    // An upload of the same NAR under another path begins, and while its body comes in the cache fills up.
    let again = record(2, &[], &nar);
    let mut incoming = cache_store.receive(again.nar_hash, again.nar_size, false).unwrap();
    for n in 3..8 {
        put(&cache_store, n, &[], &noise(n, 300_000)).await.unwrap();
    }
    assert!(!present(&cache_store, 1));
    incoming.write(&nar).unwrap();
    let (content, _pin) = incoming.finish().unwrap();
    let stored = cache_store.writer.store(NewPath { cache: "main".to_owned(), record: again, content }).await;
    assert_eq!(stored, Ok(Stored::Deduplicated));
}

#[tokio::test]
async fn what_can_never_fit_is_refused_and_leaves_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (cache_store, _done) = open(&dir, Some(1 << 20));
    put(&cache_store, 1, &[], &noise(1, 300_000)).await.unwrap();
    let big = put(&cache_store, 2, &[], &noise(2, 3 << 20)).await;
    assert!(matches!(big, Err(ApiError::TooLarge { .. })), "{big:?}");
    // It fits alone, but not together with its references.
    put(&cache_store, 3, &[1], &noise(3, 300_000)).await.unwrap();
    assert_eq!(put(&cache_store, 4, &[3], &noise(4, 600_000)).await, Ok(Stored::NoRoom));
    assert!(!present(&cache_store, 4));
    assert!(files(dir.path()).iter().all(|f| !f.starts_with('.')));
}

#[tokio::test]
async fn a_directory_has_one_owner_and_one_store() {
    let dir = tempfile::tempdir().unwrap();
    let (held, done) = open(&dir, None);
    assert!(matches!(CacheStore::open(dir.path(), STORE, None).err(), Some(EmbeddedError::InUse(_))));
    drop(held);
    done.await.unwrap();
    assert!(matches!(
        CacheStore::open(dir.path(), "/gnu/store", None).err(),
        Some(EmbeddedError::StoreDir { .. })
    ));
    Connection::open(dir.path().join("cache.sqlite"))
        .unwrap()
        .pragma_update(None, "user_version", 99)
        .unwrap();
    assert!(matches!(
        CacheStore::open(dir.path(), STORE, None).err(),
        Some(EmbeddedError::Newer { found: 99, .. })
    ));
}
