//! Sees who holds the locks of the store while they are held, and remembers it
//! until the path is taken in. One thread; who tells it about a lock never
//! waits for it. Must not know sessions.
//!
//! A path may be tried several times: a build fails or is killed and leaves its
//! lock file, and somebody else goes on with it; or somebody who waited finds
//! it made and lets go. Invariant: what is said about a path is about the first
//! try that was not given up. Where that one was not seen, nothing is said.

use std::collections::HashMap;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::debug;

use super::lineage::Lineage;
use super::locks;
use super::proc::{Proc, ProcId};
use super::windows::{Evidence, Maker};

/// Events that wait for the thread; more are dropped, and their paths unseen.
const QUEUE: usize = 4096;
/// Events that are looked at together.
const BATCH: usize = 64;
/// Paths that are remembered.
const PATHS: usize = 16_384;
/// Tries at one path that are remembered.
const TRIES: usize = 8;
/// Processes whose ancestors are remembered.
const LINEAGES: usize = 1024;
/// A lock file is made first and locked then: so long it is looked for a holder…
const FRESH: Duration = Duration::from_millis(20);
/// … so often.
const AGAIN: Duration = Duration::from_micros(200);
/// Looks without a pause in between: an addition is over in no time.
const EAGER: usize = 6;
/// How often held locks are looked at, for those that change hands.
const HELD: Duration = Duration::from_millis(250);
/// And lock files that nobody holds.
const LEFT: Duration = Duration::from_secs(2);
/// Longest wait of who asks for what was told before.
const PATIENCE: Duration = Duration::from_millis(30);
/// How long what a hook said is kept for a path that does not turn up.
const HOOKED: Duration = Duration::from_secs(60);

enum Order {
    Created(String),
    Removed(String),
    Rescan,
}

/// Watches locks. Clones are the same one; it ends with the last.
#[derive(Clone)]
pub struct Witness {
    orders: SyncSender<Order>,
    shared: Arc<Shared>,
}

struct Shared {
    dir: PathBuf,
    proc: Proc,
    told: AtomicU64,
    state: Mutex<State>,
    worked: Condvar,
}

#[derive(Default)]
struct State {
    paths: HashMap<String, Entry>,
    lineages: HashMap<ProcId, Arc<Lineage>>,
    /// The store's, in the kernel's words.
    device: Option<(u32, u32)>,
    /// How many orders are done with.
    done: u64,
}

#[derive(Default)]
struct Entry {
    tries: Vec<Try>,
    hook: Option<(Maker, Instant)>,
}

/// Which file a lock is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Inode {
    /// Not looked at yet.
    Unread,
    /// This one.
    Is(u64),
    /// It was gone when it was looked at: who held it stays unknown.
    Missed,
}

/// One lock file's life.
struct Try {
    /// Of the lock file.
    inode: Inode,
    /// Who held it last, and what that descends from, if that can be known.
    holder: Option<(i32, Option<Arc<Lineage>>)>,
    seen: Instant,
    removed: Option<Instant>,
}

impl Try {
    fn is_open(&self) -> bool {
        self.removed.is_none() && self.inode != Inode::Missed
    }

    /// A lock file is made first and locked then.
    fn is_awaited(&self) -> bool {
        self.is_open() && self.holder.is_none() && self.seen.elapsed() < FRESH
    }
}

impl Witness {
    /// Begins to watch the locks in a store directory.
    pub fn start(store_dir: &Path) -> std::io::Result<Self> {
        let (orders, incoming) = sync_channel(QUEUE);
        let shared = Arc::new(Shared {
            dir: store_dir.to_owned(),
            proc: Proc::default(),
            told: AtomicU64::new(0),
            state: Mutex::default(),
            worked: Condvar::new(),
        });
        let watcher = Arc::clone(&shared);
        std::thread::Builder::new().name("witness".to_owned()).spawn(move || watcher.run(&incoming))?;
        Ok(Self { orders, shared })
    }

    fn tell(&self, order: Order) {
        if self.orders.try_send(order).is_ok() {
            self.shared.told.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// `<base>.lock` appeared.
    pub fn created(&self, base: &str) {
        self.tell(Order::Created(base.to_owned()));
    }

    /// `<base>.lock` went.
    pub fn removed(&self, base: &str) {
        self.tell(Order::Removed(base.to_owned()));
    }

    /// Some of that may not have been told.
    pub fn rescan(&self) {
        self.tell(Order::Rescan);
    }

    /// Waits, for a moment at most, until what was told is seen to.
    pub fn catch_up(&self) {
        let told = self.shared.told.load(Ordering::Acquire);
        let state = self.shared.state();
        let _ = self.shared.worked.wait_timeout_while(state, PATIENCE, |s| s.done < told);
    }

    /// A hook, run by the builder, named these paths.
    pub fn hooked(&self, bases: &[String], lineage: &Arc<Lineage>) {
        let now = Instant::now();
        let mut state = self.shared.state();
        for base in bases {
            let maker = Maker { lineage: Arc::clone(lineage), evidence: Evidence::Hook };
            if let Some(entry) = state.entry(base) {
                entry.hook = Some((maker, now));
            }
        }
    }

    /// Whether a hook spoke of this path, and nobody has asked who made it.
    pub fn is_hooked(&self, base: &str) -> bool {
        self.shared.state().paths.get(base).is_some_and(|e| e.hook.is_some())
    }

    /// Who made a path that is valid now; forgets it.
    pub fn maker(&self, base: &str) -> Option<Maker> {
        let until = Instant::now() + PATIENCE;
        let mut state = self.shared.state();
        loop {
            let entry = state.paths.get(base)?;
            if let Some((maker, _)) = &entry.hook {
                let maker = maker.clone();
                state.paths.remove(base);
                return Some(maker);
            }
            let first = entry.tries.first()?;
            // A lock that is just being removed: only then it is certain that
            // what was seen is this try and not the next one's beginning.
            let sure = first.removed.is_some() || first.seen.elapsed() >= PATIENCE;
            if sure || Instant::now() >= until {
                break;
            }
            let (back, _) = self
                .shared
                .worked
                .wait_timeout(state, Duration::from_millis(1))
                .unwrap_or_else(PoisonError::into_inner);
            state = back;
        }
        let held = state.paths.get(base).is_some_and(|e| e.tries.iter().any(|t| t.removed.is_none()));
        if held {
            self.shared.look(&mut state);
        }
        let first = state.paths.remove(base)?.tries.into_iter().next()?;
        let lineage = first.holder?.1?;
        Some(Maker { lineage, evidence: Evidence::Process })
    }

    /// Everything that became valid before `since` was taken in: tries that
    /// had ended by then came to nothing.
    pub fn sweep(&self, since: Instant) {
        let mut state = self.shared.state();
        state.paths.retain(|_, entry| {
            entry.tries.retain(|t| t.removed.is_none_or(|at| at >= since));
            if entry.hook.as_ref().is_some_and(|(_, at)| at.elapsed() > HOOKED) {
                entry.hook = None;
            }
            entry.hook.is_some() || !entry.tries.is_empty()
        });
    }
}

impl State {
    /// A path's entry; none when too much is remembered already.
    fn entry(&mut self, base: &str) -> Option<&mut Entry> {
        if self.paths.len() >= PATHS && !self.paths.contains_key(base) {
            debug!(path = base, "too many locks are watched: who makes this path stays unknown");
            return None;
        }
        Some(self.paths.entry(base.to_owned()).or_default())
    }

    fn open(&self) -> impl Iterator<Item = &Try> {
        self.paths.values().flat_map(|e| &e.tries).filter(|t| t.is_open())
    }

    /// Until when to wait for the next look without being told anything.
    fn pause(&self) -> Duration {
        let wait = |t: &Try| match &t.holder {
            Some(_) => HELD,
            None if t.is_awaited() => AGAIN,
            None => LEFT,
        };
        self.open().map(wait).min().unwrap_or(Duration::from_secs(3600))
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn run(&self, incoming: &Receiver<Order>) {
        self.scan(&mut self.state());
        loop {
            let pause = self.state().pause();
            let mut orders = Vec::new();
            match incoming.recv_timeout(pause) {
                Ok(order) => orders.push(order),
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
            orders.extend(incoming.try_iter().take(BATCH));
            let mut state = self.state();
            let count = orders.len() as u64;
            for order in orders {
                match order {
                    Order::Created(base) => self.created(&mut state, &base),
                    Order::Removed(base) => self.removed(&mut state, &base),
                    Order::Rescan => self.scan(&mut state),
                }
            }
            for _ in 0..EAGER {
                self.look(&mut state);
                if count == 0 || !state.open().any(Try::is_awaited) {
                    break;
                }
            }
            state.done += count;
            drop(state);
            self.worked.notify_all();
        }
    }

    fn inode(&self, base: &str) -> Inode {
        let file = self.dir.join(format!("{base}.lock"));
        std::fs::symlink_metadata(file).map_or(Inode::Missed, |m| Inode::Is(m.ino()))
    }

    fn created(&self, state: &mut State, base: &str) {
        let Some(entry) = state.entry(base) else { return };
        if entry.tries.len() < TRIES {
            entry.tries.push(Try { inode: Inode::Unread, holder: None, seen: Instant::now(), removed: None });
        }
    }

    fn removed(&self, state: &mut State, base: &str) {
        let Some(entry) = state.paths.get_mut(base) else { return };
        let Some(ended) = entry.tries.iter_mut().find(|t| t.removed.is_none()) else { return };
        ended.removed = Some(Instant::now());
        if self.inode(base) == ended.inode {
            // Its file is there still: what was seen was the next try already.
            ended.holder = None;
        }
    }

    /// Finds the lock files that are there, and those that are not any more.
    fn scan(&self, state: &mut State) {
        state.device = locks::device(&self.proc, &self.dir);
        let now = Instant::now();
        for (base, entry) in &mut state.paths {
            for gone in entry.tries.iter_mut().filter(|t| t.removed.is_none()) {
                if self.inode(base) != gone.inode {
                    gone.removed = Some(now);
                }
            }
        }
        let Ok(files) = std::fs::read_dir(&self.dir) else { return };
        for file in files.filter_map(Result::ok) {
            if let Some(base) = file.file_name().to_str().and_then(|name| name.strip_suffix(".lock"))
                && state.paths.get(base).is_none_or(|e| e.tries.iter().all(|t| t.removed.is_some()))
            {
                self.created(state, base);
            }
        }
    }

    /// Looks who holds the open locks now.
    fn look(&self, state: &mut State) {
        if state.open().next().is_none() {
            return;
        }
        let Some((major, minor)) = state.device else { return };
        // First who holds what, then which file is there: inodes are used
        // again, and only what was there before and after is what was held.
        let holders = locks::holders(&self.proc);
        let State { paths, lineages, .. } = state;
        for (base, entry) in paths {
            for open in entry.tries.iter_mut().filter(|t| t.is_open()) {
                let there = match open.inode {
                    Inode::Unread => self.inode(base),
                    known => known,
                };
                open.inode = there;
                let Inode::Is(inode) = there else { continue };
                let now = holders.get(&(major, minor, inode)).copied();
                // Who succeeds removes the file before letting go; while it is
                // there, the former holder has given up.
                if now != open.holder.as_ref().map(|(pid, _)| *pid) && self.inode(base) == there {
                    open.holder = now.map(|pid| (pid, self.lineage(lineages, pid)));
                }
            }
        }
    }

    fn lineage(&self, known: &mut HashMap<ProcId, Arc<Lineage>>, pid: i32) -> Option<Arc<Lineage>> {
        let id = self.proc.stat(pid)?.id;
        if let Some(lineage) = known.get(&id) {
            return Some(Arc::clone(lineage));
        }
        let Some(lineage) = Lineage::of(&self.proc, pid) else {
            debug!(pid, "what holds a lock of the store does not show whom it works for");
            return None;
        };
        if known.len() >= LINEAGES {
            known.clear();
        }
        let lineage = Arc::new(lineage);
        known.insert(id, Arc::clone(&lineage));
        Some(lineage)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use rustix::fs::{FlockOperation, flock};

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
}
