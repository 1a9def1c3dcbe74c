//! The lock watcher with real locks of its own process and of others.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, ChildStdin, Command, Stdio};

use rustix::fs::{FlockOperation, flock};

use super::super::proc::ProcId;
use super::attempts::{ATTEMPTS, PATHS, State};
use super::*;

struct Store {
    dir: tempfile::TempDir,
    lock_watcher: LockWatcher,
}

/// Another process that holds a lock.
struct Other {
    child: Child,
    stdin: ChildStdin,
}

impl Other {
    /// As Nix does: opened for writing, then locked.
    fn locks(file: PathBuf) -> Self {
        let script = "open F, '>>', shift; flock F, 2; $| = 1; print 1; <STDIN>";
        let mut child = Command::new("perl")
            .args(["-e", script])
            .arg(file)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let stdin = child.stdin.take().unwrap();
        Self { child, stdin }
    }

    fn pid(&self) -> Option<i32> {
        i32::try_from(self.child.id()).ok()
    }

    /// Lets go, and leaves the file.
    fn gives_up(mut self) {
        self.stdin.write_all(b"\n").unwrap();
        self.child.wait().unwrap();
    }
}

impl Store {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let lock_watcher = LockWatcher::start(dir.path()).unwrap();
        let store = Self { dir, lock_watcher };
        store.caught_up();
        store
    }

    fn file(&self, base: &str) -> PathBuf {
        self.dir.path().join(format!("{base}.lock"))
    }

    fn open(&self, base: &str) -> File {
        File::options().create(true).append(true).open(self.file(base)).unwrap()
    }

    /// Makes a lock file, as Nix does: first the file, then the lock.
    fn make(&self, base: &str) -> File {
        let file = self.open(base);
        flock(&file, FlockOperation::LockExclusive).unwrap();
        self.until_held(base, me());
        file
    }

    /// Waits until this is seen, however slow the machine is.
    fn until_held(&self, base: &str, by: Option<i32>) {
        let until = Instant::now() + Duration::from_secs(20);
        let is = |s: &State| match s.paths.get(base)?.attempts.last()?.holder {
            attempts::Holder::Seen(pid, Some(_)) => Some(pid),
            _ => None,
        };
        while is(&self.lock_watcher.shared().state()) != by {
            assert!(Instant::now() < until, "the holder of {base} is never seen");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// As `catch_up`, however slow the machine is.
    fn caught_up(&self) {
        let shared = self.lock_watcher.shared();
        let asked = shared.asked.fetch_add(1, Ordering::AcqRel) + 1;
        shared.wake();
        drop(shared.worked.wait_while(shared.state(), |s| s.done < asked).unwrap());
    }

    fn until_no_file_is_held(&self) {
        while Arc::strong_count(&self.lock_watcher.shared().held_files) > 1 {
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    fn remove(&self, base: &str) {
        std::fs::remove_file(self.file(base)).unwrap();
    }

    fn maker(&self, base: &str) -> Option<i32> {
        self.caught_up();
        let maker = self.lock_watcher.maker(base);
        assert_eq!(self.lock_watcher.maker(base), maker, "looking forgets nothing");
        self.lock_watcher.forget(&[base.to_owned()], std::slice::from_ref(&maker));
        maker.map(|m| m.lineage.line[0].pid)
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
    assert_eq!(store.maker("a"), None, "forgotten");
    drop(lock);
    store.remove("a");
    let lock = store.make("b");
    store.remove("b");
    drop(lock);
    assert_eq!(store.maker("b"), me(), "also after the holder has let go");
}

#[test]
fn an_abandoned_attempt_made_nothing() {
    let store = Store::new();
    drop(store.make("a")); // a build that failed: the file stays
    store.until_held("a", None);
    assert_eq!(store.maker("a"), None);
    // Nor when it is gone afterwards, as after a garbage collection.
    drop(store.make("b"));
    store.remove("b");
    assert_eq!(store.maker("b"), None);
}

#[test]
fn an_attempt_without_the_lock_changes_nothing() {
    let store = Store::new();
    let lock = store.make("a");
    let waits = store.open("a");
    assert!(flock(&waits, FlockOperation::NonBlockingLockExclusive).is_err());
    drop(waits);
    store.caught_up();
    store.until_held("a", me());
    store.remove("a");
    drop(lock);
    assert_eq!(store.maker("a"), me());
}

/// Nix lets go of a lock while it waits for a build slot, and takes it again.
#[test]
fn a_lock_is_taken_again() {
    let store = Store::new();
    drop(store.make("a"));
    store.until_held("a", None);
    // Long after, when the file is not held open any more.
    store.until_no_file_is_held();
    let lock = store.make("a");
    store.remove("a");
    drop(lock);
    assert_eq!(store.maker("a"), me());
}

/// As Nix does with a goal that waits for a build slot, again and again: the lock is
/// opened, taken and closed.
#[test]
fn opens_of_a_waiting_lock_cost_no_reads_of_the_table() {
    let store = Store::new();
    store.lock_watcher.attend(true, false);
    let bases: Vec<String> = (0..300).map(|n| format!("w{n}")).collect();
    bases.iter().for_each(|base| drop(store.open(base)));
    store.caught_up();
    let reads = || store.lock_watcher.shared().state().reads;
    let (before, began, mut opens) = (reads(), Instant::now(), 0_u64);
    for _ in 0..40 {
        for base in &bases {
            let file = store.open(base);
            flock(&file, FlockOperation::LockExclusive).unwrap();
            opens += 1;
        }
    }
    let made = reads() - before;
    let per_second = pace::PER_SECOND + 1000 / u32::try_from(pace::SHORTEST.as_millis()).unwrap();
    let most = f64::from(pace::BURST + 2) + began.elapsed().as_secs_f64() * f64::from(per_second);
    assert!((made as f64) < most, "{made} reads for {opens} opens, at most {most}");
    // A lock among them that is kept is seen nevertheless.
    let kept = store.make("w150");
    store.remove("w150");
    drop(kept);
    assert_eq!(store.maker("w150"), me());
    assert_eq!(store.maker("w151"), None);
}

/// The lock was held before, and the daemon knows nothing of the file but its name: the
/// path itself shows that it is being made.
#[test]
fn a_path_that_appears_is_looked_at_at_once() {
    let store = Store::new();
    drop(store.open("a"));
    store.caught_up();
    store.until_no_file_is_held();
    let lock = store.open("a");
    flock(&lock, FlockOperation::LockExclusive).unwrap();
    std::fs::write(store.dir.path().join("a"), "made").unwrap();
    store.until_held("a", me());
    store.remove("a");
    assert_eq!(store.maker("a"), me());
}

#[test]
fn the_process_that_took_over_made_it() {
    let store = Store::new();
    let first = Other::locks(store.file("a"));
    store.until_held("a", first.pid());
    first.gives_up();
    store.until_held("a", None);
    let file = store.open("a");
    flock(&file, FlockOperation::LockExclusive).unwrap();
    store.until_held("a", me());
    store.remove("a");
    assert_eq!(store.maker("a"), me());
}

/// However fast: what is not seen after somebody let go is not known.
#[test]
fn the_process_that_took_over_is_never_mistaken_for_the_one_before() {
    let store = Store::new();
    for round in 0..50 {
        let base = format!("a{round}");
        let first = store.make(&base);
        let second = store.open(&base);
        drop(first);
        let other = Other::locks(store.file(&base));
        drop(second);
        store.remove(&base);
        let maker = store.maker(&base);
        assert!(maker.is_none() || maker == other.pid(), "round {round}: {maker:?} is not {:?}", other.pid());
        other.gives_up();
    }
}

#[test]
fn the_second_holder_made_nothing() {
    let store = Store::new();
    // Over before it was seen; then somebody who had waited for it.
    store.open("a");
    store.caught_up();
    store.remove("a");
    let lock = store.make("a");
    assert_eq!(store.maker("a"), None);
    drop(lock);
}

#[test]
fn an_attempt_that_made_no_path_is_forgotten() {
    let store = Store::new();
    let lock = store.make("a");
    store.remove("a");
    drop(lock);
    store.caught_up();
    store.lock_watcher.sweep(Instant::now());
    assert!(store.lock_watcher.shared().state().paths.is_empty());
}

#[test]
fn what_is_there_at_the_start_is_seen() {
    let dir = tempfile::tempdir().unwrap();
    let file = File::create(dir.path().join("a.lock")).unwrap();
    flock(&file, FlockOperation::LockExclusive).unwrap();
    let store = Store { lock_watcher: LockWatcher::start(dir.path()).unwrap(), dir };
    store.until_held("a", me());
    assert_eq!(store.maker("a"), me());
}

#[test]
fn another_directory_at_the_same_place() {
    let store = Store::new();
    let path = store.dir.path().to_owned();
    std::fs::rename(&path, path.with_extension("aside")).unwrap();
    std::fs::create_dir(&path).unwrap();
    store.lock_watcher.rescan();
    store.caught_up();
    drop(store.make("a"));
    std::fs::remove_dir_all(path.with_extension("aside")).unwrap();
}

#[test]
fn a_hook_is_believed_first() {
    let store = Store::new();
    let lineage =
        Arc::new(Lineage { line: vec![ProcId { pid: 7, start: 7 }], session: 1, cgroup: None, person: None });
    store.lock_watcher.hooked(&["a".to_owned()], &lineage);
    let lock = store.make("a");
    assert_eq!(store.maker("a"), Some(7));
    drop(lock);
}

#[test]
fn without_a_watch_there_is_no_evidence_and_no_wait() {
    let dir = tempfile::tempdir().unwrap();
    let lock_watcher = LockWatcher::start(&dir.path().join("nothing")).unwrap();
    lock_watcher.catch_up();
    assert!(lock_watcher.maker("a").is_none());
}

#[test]
fn memory_has_a_bound() {
    let store = Store::new();
    let lineage = Arc::new(Lineage { line: vec![], session: 1, cgroup: None, person: None });
    for _ in 0..ATTEMPTS + 5 {
        drop(store.open("0"));
        store.caught_up();
        store.remove("0");
    }
    store.caught_up();
    assert!(store.lock_watcher.shared().state().paths["0"].attempts.len() <= ATTEMPTS);
    let many: Vec<String> = (0..PATHS + 100).map(|n| n.to_string()).collect();
    store.lock_watcher.hooked(&many, &lineage);
    assert_eq!(store.lock_watcher.shared().state().paths.len(), PATHS);
    // Files that nobody takes are not held open.
    let files: Vec<File> = (0..20).map(|n| store.open(&format!("{n}"))).collect();
    store.caught_up();
    store.until_no_file_is_held();
    drop(files);
}

/// The store is mounted after the daemon has started.
#[test]
fn a_directory_that_appears_later_is_watched_after_a_rescan() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::remove_dir(dir.path()).unwrap();
    let lock_watcher = LockWatcher::start(dir.path()).unwrap();
    std::fs::create_dir(dir.path()).unwrap();
    lock_watcher.rescan();
    let store = Store { dir, lock_watcher };
    store.caught_up();
    let _lock = store.make("p");
}

/// A contract of the watcher, and of the simulation's, which is told what it sees. `make`:
/// a process makes a path; its number is returned.
fn who_made_a_path_is_known_until_it_is_forgotten(
    watcher: &LockWatcher,
    make: impl Fn(&str) -> i32,
    catch_up: impl Fn(),
) {
    let pid = |maker: &Option<Maker>| maker.as_ref().map(|maker| maker.lineage.line[0].pid);
    let maker = |base: &str| {
        catch_up();
        watcher.maker(base)
    };
    assert!(maker("a").is_none());
    let first = make("a");
    assert_eq!((pid(&maker("a")), pid(&maker("a")), pid(&maker("b"))), (Some(first), Some(first), None));
    let other = make("b");
    watcher.forget(&["a".to_owned()], &[maker("a")]);
    assert_eq!((pid(&maker("a")), pid(&maker("b"))), (None, Some(other)));
    // It was collected, and somebody else makes it again.
    let second = make("a");
    assert_eq!(pid(&maker("a")), Some(second));
    assert_ne!(first, second);
}

#[test]
fn makers_by_their_locks() {
    let store = Store::new();
    let make = |base: &str| {
        let other = Other::locks(store.file(base));
        store.until_held(base, other.pid());
        store.remove(base);
        let pid = other.pid().unwrap();
        other.gives_up();
        pid
    };
    who_made_a_path_is_known_until_it_is_forgotten(&store.lock_watcher, make, || store.caught_up());
}

#[test]
fn makers_that_the_simulation_tells() {
    let dir = tempfile::tempdir().unwrap();
    let watcher = LockWatcher::simulated(dir.path()).unwrap();
    let next = std::cell::Cell::new(100);
    let make = |base: &str| {
        next.set(next.get() + 1);
        let line = vec![ProcId { pid: next.get(), start: 1 }];
        let lineage = Lineage { line, session: 1, cgroup: None, person: None };
        watcher.saw(base, &Arc::new(lineage));
        next.get()
    };
    who_made_a_path_is_known_until_it_is_forgotten(&watcher, make, || ());
}
