//! The GC roots in a state directory that the test makes: which paths are held for which
//! caches, and when they are released.

use std::path::Path;

use notify::Watcher as _;

use super::*;

struct Bench {
    dir: tempfile::TempDir,
    state: State,
}

fn path(n: usize) -> StorePath {
    StorePath::parse(&format!("{n:032}-p")).unwrap()
}

fn bench() -> Bench {
    let dir = tempfile::tempdir().unwrap();
    let store_dir = StoreDir::new("/nix/store").unwrap();
    let places = places(dir.path());
    let state = State {
        held: Held::default(),
        failed: VecDeque::new(),
        links: Some(RootFiles::new(&places.links, &store_dir).unwrap()),
        link_failed: false,
        temp: Some(TempRoots::open(dir.path(), &store_dir, &places.socket).unwrap()),
        lost: None,
        next_try: Instant::now(),
        piled: 0,
        idle_since: Instant::now(),
        places,
        bounds: Bounds::default(),
        unprotected: Unprotected::default(),
        free: None,
        measured_at: None,
        drop_soon: false,
        dropped_at: None,
    };
    Bench { dir, state }
}

impl Bench {
    fn take(&mut self, cache: u16, n: usize) {
        let new = self.state.take(cache, [(&path(n), 100)]);
        self.state.guard(&new);
    }

    fn links(&self) -> Vec<StorePath> {
        self.state.links.as_ref().unwrap().list().unwrap()
    }

    fn temp(&self) -> String {
        let file = self.dir.path().join("temproots").join(std::process::id().to_string());
        std::fs::read_to_string(file).unwrap_or_default()
    }
}

#[test]
fn a_path_is_held_until_no_cache_wants_it() {
    let mut bench = bench();
    bench.take(0, 1);
    bench.take(1, 1);
    bench.take(1, 1);
    assert_eq!(bench.links(), [path(1)]);
    assert_eq!(bench.temp(), format!("/nix/store/{}\0", path(1)));
    bench.state.carry_out(Request::Release(0, path(1)));
    bench.state.carry_out(Request::Release(0, path(1)));
    bench.state.carry_out(Request::Release(1, path(1)));
    assert_eq!(bench.links(), [path(1)], "it was taken in once more for the same cache");
    bench.state.carry_out(Request::Release(1, path(1)));
    bench.state.look_after();
    assert_eq!((bench.links(), bench.temp()), (vec![], String::new()));
}

#[test]
fn the_latest_failed_paths_stay() {
    let mut bench = bench();
    for n in 0..FAILED_KEPT + 2 {
        bench.take(0, n);
        bench.state.carry_out(Request::KeepFailed(0, path(n)));
    }
    // A path whose push is retried is not among the failed ones any more.
    bench.state.carry_out(Request::Keep(0, vec![(path(5), 100)]));
    bench.state.carry_out(Request::ForgetFailed(0, path(5)));
    assert_eq!(bench.state.failed.len(), FAILED_KEPT - 1);
    assert_eq!(bench.links().len(), FAILED_KEPT);
    assert!(!bench.links().contains(&path(1)) && bench.links().contains(&path(2)));
    // Beyond the bound the oldest failed path is released, never the wanted one.
    for n in FAILED_KEPT + 2..2 * FAILED_KEPT + 10 {
        bench.take(0, n);
        bench.state.carry_out(Request::KeepFailed(0, path(n)));
    }
    assert!(bench.links().contains(&path(5)) && !bench.links().contains(&path(2)));
}

#[test]
fn lost_temporary_roots_are_made_again_for_all_held_paths() {
    let mut bench = bench();
    bench.take(0, 1);
    bench.take(0, 2);
    let dir = bench.dir.path().join("temproots");
    std::fs::remove_file(dir.join(std::process::id().to_string())).unwrap();
    bench.state.look_after();
    let temp = bench.temp();
    assert!(temp.contains(path(1).base()) && temp.contains(path(2).base()), "{temp}");
    assert!(bench.state.lost.is_none());
}

/// An administrator may remove the directory below gcroots.
#[test]
fn links_whose_directory_was_removed_are_made_again() {
    let mut bench = bench();
    bench.take(0, 1);
    std::fs::remove_dir_all(&bench.state.places.links).unwrap();
    bench.take(0, 2);
    assert_eq!(bench.links(), [path(1), path(2)]);
}

#[test]
fn stale_links_are_removed_when_the_other_paths_are_known() {
    let mut bench = bench();
    bench.take(0, 1);
    bench.state.links.as_ref().unwrap().add(&path(9)).unwrap();
    bench.state.carry_out(Request::Restored);
    assert_eq!(bench.links(), [path(1)]);
}

#[test]
fn piled_up_temporary_roots_are_dropped_while_others_are_held() {
    let mut bench = bench();
    bench.take(0, 0);
    for n in 1..=PILED {
        bench.take(0, n);
        bench.state.carry_out(Request::Release(0, path(n)));
    }
    bench.state.look_after();
    assert_eq!(bench.temp(), format!("/nix/store/{}\0", path(0)));
}

#[test]
fn the_oldest_paths_lose_their_roots_when_a_bound_is_passed() {
    let mut bench = bench();
    bench.state.bounds = Bounds { protect_max: Some(1000), min_free: 0 };
    for n in 0..11 {
        bench.take(0, n);
    }
    bench.take(1, 0);
    // The push of the youngest path failed, so nothing will push it soon: it goes first.
    bench.state.carry_out(Request::KeepFailed(0, path(10)));
    bench.state.enforce();
    bench.state.look_after();
    assert_eq!(bench.links(), (1..10).map(path).collect::<Vec<_>>());
    assert!(
        !bench.temp().contains(path(0).base()) && bench.temp().contains(path(1).base()),
        "{}",
        bench.temp()
    );
    let counts = bench.state.unprotected.counts();
    assert_eq!((counts.paths, counts.bytes, counts.passed), (1, 100, Some("protect_max")));
    // What begins its push does not get its root back, and does not push another out.
    bench.state.carry_out(Request::Keep(0, vec![(path(0), 100)]));
    bench.state.enforce();
    assert_eq!(bench.links().len(), 9);
    // It is settled when no cache waits for it. One admission of it was on its way.
    bench.state.carry_out(Request::Release(0, path(0)));
    bench.state.carry_out(Request::Release(0, path(0)));
    assert_eq!(bench.state.unprotected.counts().paths, 1);
    bench.state.carry_out(Request::Release(1, path(0)));
    assert_eq!(bench.state.unprotected.counts().paths, 0);
}

#[test]
fn paths_get_their_roots_back_when_there_is_room() {
    let mut bench = bench();
    for n in 0..10 {
        bench.take(0, n);
    }
    bench.state.carry_out(Request::Bounds(Bounds { protect_max: Some(500), min_free: 0 }));
    bench.state.enforce();
    assert_eq!(bench.links(), (6..10).map(path).collect::<Vec<_>>());
    bench.state.enforce();
    assert_eq!(bench.links().len(), 4, "one bound is applied once");
    bench.state.carry_out(Request::Bounds(Bounds { protect_max: Some(2000), min_free: 0 }));
    bench.state.enforce();
    assert_eq!(bench.links(), (0..10).map(path).collect::<Vec<_>>());
    assert!(bench.state.unprotected.is_empty() && bench.temp().contains(path(0).base()));
}

#[test]
fn too_little_free_space_lets_go_what_is_missing() {
    let mut bench = bench();
    bench.state.bounds = Bounds { protect_max: None, min_free: 1000 };
    for n in 0..10 {
        bench.take(0, n);
    }
    bench.state.free = Some(750);
    bench.state.enforce();
    assert_eq!(bench.links(), (3..10).map(path).collect::<Vec<_>>());
    // Nothing more is let go while no collection has run.
    bench.state.enforce();
    assert_eq!(bench.links().len(), 7);
    // A collection has deleted them, and something else has taken the space.
    bench.state.measured(Some(750));
    bench.state.enforce();
    assert_eq!(bench.links(), (6..10).map(path).collect::<Vec<_>>());
}

/// A contract of the thread, and of the simulation that does its work. `carried_out`: waits
/// until these are the files.
fn the_files_are_those_of_pending_paths(
    dir: &Path,
    gc_roots: &GcRoots,
    carried_out: impl Fn(&dyn Fn() -> bool),
) {
    let files = || {
        let entries = std::fs::read_dir(dir.join("gcroots/flywheel")).unwrap();
        let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
        let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
        names.sort();
        names
    };
    let after = |expected: &[usize]| {
        let expected: Vec<String> = expected.iter().map(|n| path(*n).to_string()).collect();
        carried_out(&|| files() == expected);
        assert_eq!(files(), expected);
    };
    gc_roots.protect(0, [(&path(1), 100), (&path(2), 100)]);
    assert_eq!(files().len(), 2, "at once");
    gc_roots.release(0, path(1));
    after(&[2]);
    gc_roots.keep(1, vec![(path(2), 100), (path(3), 100)]);
    gc_roots.release(0, path(2));
    after(&[2, 3]);
    gc_roots.release(1, path(2));
    gc_roots.keep_failed(1, path(3));
    after(&[3]);
    gc_roots.forget_failed(1, path(3));
    after(&[]);
}

fn places(dir: &Path) -> Places {
    Places {
        state_dir: dir.to_owned(),
        store_dir: StoreDir::new("/nix/store").unwrap(),
        socket: dir.join("socket"),
        links: dir.join("gcroots/flywheel"),
    }
}

#[test]
fn the_files_with_the_thread() {
    let dir = tempfile::tempdir().unwrap();
    let gc_roots = GcRoots::start(places(dir.path()), Bounds { protect_max: None, min_free: 0 }).unwrap();
    let (tell, changes) = std::sync::mpsc::channel();
    let mut watcher = notify::recommended_watcher(tell).unwrap();
    watcher.watch(&dir.path().join("gcroots/flywheel"), notify::RecursiveMode::NonRecursive).unwrap();
    the_files_are_those_of_pending_paths(dir.path(), &gc_roots, |are_there| {
        while !are_there() {
            changes.recv_timeout(Duration::from_secs(90)).expect("the files change").unwrap();
        }
    });
    gc_roots.stop();
}

#[test]
fn the_files_in_the_simulation() {
    let dir = tempfile::tempdir().unwrap();
    let gc_roots = GcRoots::simulated(places(dir.path()), Bounds { protect_max: None, min_free: 0 });
    the_files_are_those_of_pending_paths(dir.path(), &gc_roots, |_| {
        assert!(gc_roots.has_requests());
        gc_roots.turn();
    });
}
