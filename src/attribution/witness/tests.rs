//! The witness with real locks of its own process.

use std::fs::File;
use std::path::PathBuf;

use rustix::fs::{FlockOperation, flock};

use super::super::proc::ProcId;
use super::tries::{PATHS, State, TRIES};
use super::*;

struct Store {
    dir: tempfile::TempDir,
    witness: Witness,
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let witness = Witness::start(dir.path()).unwrap();
        Self { dir, witness }
    }

    fn file(&self, base: &str) -> PathBuf {
        self.dir.path().join(format!("{base}.lock"))
    }

    /// Makes a lock file, as Nix does: first the file, then the lock.
    fn make(&self, base: &str) -> File {
        let file = File::options().create(true).append(true).open(self.file(base)).unwrap();
        self.witness.created(base);
        flock(&file, FlockOperation::LockExclusive).unwrap();
        self.seen(base, true);
        file
    }

    fn seen(&self, base: &str, held: bool) {
        let until = Instant::now() + Duration::from_secs(10);
        let is = |s: &State| s.paths.get(base)?.tries.last().map(|t| t.holder.is_some());
        while is(&self.witness.shared.state()) != Some(held) {
            assert!(Instant::now() < until, "the holder of {base} is never seen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// As `catch_up`, however slow the machine is.
    fn until_done(&self) {
        let told = self.witness.shared.told.load(Ordering::Acquire);
        while self.witness.shared.state().done < told {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn remove(&self, base: &str) {
        std::fs::remove_file(self.file(base)).unwrap();
        self.witness.removed(base);
    }

    fn maker(&self, base: &str) -> Option<i32> {
        self.until_done();
        self.witness.maker(base).map(|m| m.lineage.line[0].pid)
    }
}

fn me() -> Option<i32> {
    i32::try_from(std::process::id()).ok()
}

#[test]
fn the_holder_made_it() {
    let store = Store::new();
    let lock = store.make("a");
    assert_eq!(store.maker("a"), me(), "also before the lock goes");
    assert_eq!(store.maker("a"), None, "said once");
    drop(lock);
    store.remove("a");
    let lock = store.make("b");
    store.remove("b");
    drop(lock);
    assert_eq!(store.maker("b"), me(), "also after the holder has let go");
}

#[test]
fn who_gave_up_made_nothing() {
    let store = Store::new();
    drop(store.make("a")); // a build that failed: the file stays
    store.seen("a", false);
    assert_eq!(store.maker("a"), None);
}

#[test]
fn who_took_over_made_it() {
    let store = Store::new();
    let mut first = std::process::Command::new("flock")
        .arg(store.file("a"))
        .args(["sh", "-c", "echo; read x"])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let mut locked = [0];
    std::io::Read::read_exact(first.stdout.as_mut().unwrap(), &mut locked).unwrap();
    store.witness.created("a");
    store.seen("a", true);
    drop(first.stdin.take());
    first.wait().unwrap();
    store.seen("a", false);
    let file = File::options().append(true).open(store.file("a")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap(); // no event tells this
    store.seen("a", true);
    store.remove("a");
    assert_eq!(store.maker("a"), me());
}

#[test]
fn who_came_second_made_nothing() {
    let store = Store::new();
    // Over before it was seen; then somebody who had waited for it.
    store.witness.created("a");
    store.witness.removed("a");
    let lock = store.make("a");
    assert_eq!(store.maker("a"), None);
    drop(lock);
}

#[test]
fn a_try_that_came_to_nothing_is_forgotten() {
    let store = Store::new();
    let lock = store.make("a");
    store.remove("a");
    drop(lock);
    store.until_done();
    store.witness.sweep(Instant::now());
    assert!(store.witness.shared.state().paths.is_empty());
}

#[test]
fn what_is_there_at_the_start_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("a.lock")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    let store = Store { witness: Witness::start(dir.path()).unwrap(), dir };
    store.seen("a", true);
    assert_eq!(store.maker("a"), me());
}

#[test]
fn a_hook_is_believed_first() {
    let store = Store::new();
    let lineage = Arc::new(Lineage { line: vec![ProcId { pid: 7, start: 7 }], session: 1, cgroup: None });
    store.witness.hooked(&["a".to_owned()], &lineage);
    let lock = store.make("a");
    assert_eq!(store.maker("a"), Some(7));
    drop(lock);
}

#[test]
fn memory_has_a_bound() {
    let store = Store::new();
    let lineage = Arc::new(Lineage { line: vec![], session: 1, cgroup: None });
    let many: Vec<String> = (0..PATHS + 100).map(|n| n.to_string()).collect();
    store.witness.hooked(&many, &lineage);
    assert_eq!(store.witness.shared.state().paths.len(), PATHS);
    for _ in 0..TRIES + 5 {
        store.witness.created("0");
    }
    store.until_done();
    assert!(store.witness.shared.state().paths["0"].tries.len() <= TRIES);
}
