//! When paths become valid and when they are in the cache: reads the Nix database and the built-in
//! cache's database a few thousand times a second. A row that another connection can read is
//! committed, so the path is valid or its narinfo is served.

use std::collections::HashMap;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

/// The pause between two reads, which is the resolution of the measurement.
const PAUSE: Duration = Duration::from_micros(250);

#[derive(Default)]
struct Seen {
    /// The key is the hash part of the path.
    valid: HashMap<String, Instant>,
    cached: HashMap<String, Instant>,
}

/// A thread that reads. Dropping it ends it.
pub struct Watch {
    seen: Arc<(Mutex<Seen>, Condvar)>,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

fn open(path: &Path) -> Connection {
    let db = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
    db.busy_timeout(Duration::from_secs(5)).unwrap();
    db
}

/// Rows after `last`: id and text.
fn rows(db: &Connection, sql: &str, last: &mut i64) -> Vec<String> {
    let mut query = db.prepare_cached(sql).unwrap();
    let found: Vec<(i64, String)> =
        query.query_map([*last], |r| Ok((r.get(0)?, r.get(1)?))).unwrap().map(Result::unwrap).collect();
    if let Some((id, _)) = found.last() {
        *last = *id;
    }
    found.into_iter().map(|(_, text)| text).collect()
}

impl Watch {
    /// Starts with rows that are added from now on.
    pub fn new(nix_state: &Path, cache_dir: &Path) -> Self {
        let nix = open(&nix_state.join("db/db.sqlite"));
        let cache = open(&cache_dir.join("cache.sqlite"));
        let highest = |db: &Connection, table: &str| -> i64 {
            db.query_row(&format!("select coalesce(max(id), 0) from {table}"), [], |r| r.get(0)).unwrap()
        };
        let (mut valid, mut cached) = (highest(&nix, "ValidPaths"), highest(&cache, "path"));
        let seen = Arc::new((Mutex::new(Seen::default()), Condvar::new()));
        let stop = Arc::new(AtomicBool::new(false));
        let (shared, stopped) = (Arc::clone(&seen), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            while !stopped.load(Ordering::Relaxed) {
                let new = rows(&nix, "select id, path from ValidPaths where id > ?1 order by id", &mut valid);
                let at = Instant::now();
                let stored = rows(&cache, "select id, hash from path where id > ?1 order by id", &mut cached);
                let stored_at = Instant::now();
                if !new.is_empty() || !stored.is_empty() {
                    let mut seen = shared.0.lock().unwrap();
                    for path in new {
                        let hash = path.rsplit('/').next().unwrap()[..32].to_owned();
                        seen.valid.insert(hash, at);
                    }
                    for hash in stored {
                        seen.cached.insert(hash, stored_at);
                    }
                    shared.1.notify_all();
                }
                std::thread::sleep(PAUSE);
            }
        });
        Self { seen, stop, thread: Some(thread) }
    }

    /// Waits until these paths are in the cache; returns both times for each.
    pub fn cached(&self, paths: &[String]) -> Vec<(Instant, Instant)> {
        let hashes: Vec<&str> = paths.iter().map(|p| &p.rsplit('/').next().unwrap()[..32]).collect();
        let mut seen = self.seen.0.lock().unwrap();
        let deadline = Instant::now() + Duration::from_secs(300);
        loop {
            let times: Vec<_> =
                hashes.iter().map_while(|h| Some((*seen.valid.get(*h)?, *seen.cached.get(*h)?))).collect();
            if times.len() == hashes.len() {
                return times;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            assert!(!left.is_zero(), "{} of {} paths are in the cache", times.len(), hashes.len());
            seen = self.seen.1.wait_timeout(seen, left).unwrap().0;
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
