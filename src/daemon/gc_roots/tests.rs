//! The gc_roots over a made-up state directory: who holds what, and what is let go.

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
    let links = dir.path().join("gcroots/flywheel");
    let places = Places {
        state_dir: dir.path().to_owned(),
        store_dir: store_dir.clone(),
        socket: dir.path().join("socket"),
        links: links.clone(),
    };
    let state = State {
        held: Held::default(),
        parked: VecDeque::new(),
        links: Some(RootFiles::new(&links, &store_dir).unwrap()),
        link_failed: false,
        temp: Some(TempRoots::open(dir.path(), &store_dir, &places.socket).unwrap()),
        lost: None,
        next_try: Instant::now(),
        piled: 0,
        idle_since: Instant::now(),
        places,
    };
    Bench { dir, state }
}

impl Bench {
    fn take(&mut self, cache: u16, n: usize) {
        let new = self.state.take(cache, [&path(n)]);
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
    bench.state.obey(Order::Release(0, path(1)));
    bench.state.obey(Order::Release(0, path(1)));
    assert_eq!(bench.links(), [path(1)]);
    bench.state.obey(Order::Release(1, path(1)));
    bench.state.look_after();
    assert_eq!((bench.links(), bench.temp()), (vec![], String::new()));
}

#[test]
fn the_latest_parked_paths_stay() {
    let mut bench = bench();
    for n in 0..PARKED + 2 {
        bench.take(0, n);
        bench.state.obey(Order::Park(0, path(n)));
    }
    // One that is taken up again is not among the parked any more.
    bench.state.obey(Order::Keep(0, vec![path(5)]));
    assert_eq!(bench.state.parked.len(), PARKED - 1);
    assert_eq!(bench.links().len(), PARKED);
    assert!(!bench.links().contains(&path(1)) && bench.links().contains(&path(2)));
    // What comes after the bound pushes out the oldest, never the one that is wanted.
    for n in PARKED + 2..2 * PARKED + 10 {
        bench.take(0, n);
        bench.state.obey(Order::Park(0, path(n)));
    }
    assert!(bench.links().contains(&path(5)) && !bench.links().contains(&path(2)));
}

#[test]
fn a_lost_way_is_made_again_with_all_that_is_held() {
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

/// As by somebody who tidies up below gcroots.
#[test]
fn links_whose_directory_was_removed_are_made_again() {
    let mut bench = bench();
    bench.take(0, 1);
    std::fs::remove_dir_all(&bench.state.places.links).unwrap();
    bench.take(0, 2);
    assert_eq!(bench.links(), [path(1), path(2)]);
}

#[test]
fn stale_links_go_when_the_rest_is_known() {
    let mut bench = bench();
    bench.take(0, 1);
    bench.state.links.as_ref().unwrap().add(&path(9)).unwrap();
    bench.state.obey(Order::Restored);
    assert_eq!(bench.links(), [path(1)]);
}

#[test]
fn piled_up_temporary_roots_are_dropped_while_others_are_held() {
    let mut bench = bench();
    bench.take(0, 0);
    for n in 1..=PILED {
        bench.take(0, n);
        bench.state.obey(Order::Release(0, path(n)));
    }
    bench.state.look_after();
    assert_eq!(bench.temp(), format!("/nix/store/{}\0", path(0)));
}
