//! The intake's upper bound of paths, with a Nix database that the test makes.

use std::path::Path;

use super::routes::WAITING;
use super::*;
use crate::config::{Route, Settings, Subject};
use crate::daemon::gc_roots::{Bounds, Places};

const RECHECK_AFTER: Duration = Duration::from_secs(600);

/// Returns an intake on a database with one path that it has not read.
fn intake(top: &Path) -> (Intake, tokio::sync::mpsc::Receiver<Input>) {
    intake_with(top, Vec::new())
}

fn intake_with(top: &Path, routes: Vec<Route>) -> (Intake, tokio::sync::mpsc::Receiver<Input>) {
    let store = top.join("store");
    for dir in [&store, &top.join("db")] {
        std::fs::create_dir(dir).unwrap();
    }
    let store_dir = StoreDir::new(store.to_str().unwrap()).unwrap();
    let db = rusqlite::Connection::open(top.join("db/db.sqlite")).unwrap();
    db.execute_batch(&format!(
        "create table ValidPaths (id integer primary key autoincrement, path text, hash text,
           registrationTime integer, deriver text, narSize integer, ultimate integer, sigs text, ca text);
         create table Refs (referrer integer, reference integer);
         insert into ValidPaths (path, hash, registrationTime, narSize, ultimate)
           values ('{}/{:032}-p', 'sha256:{:064}', 1, 120, 1)",
        store.display(),
        0,
        0
    ))
    .unwrap();
    let env = |name: &str| name.ends_with("_DIRECTORY").then(|| top.display().to_string());
    let settings = Arc::new(Settings { routes, ..Settings::load(None, &env).unwrap() });
    let gc_roots = GcRoots::start(
        Places {
            state_dir: top.to_owned(),
            store_dir: store_dir.clone(),
            socket: top.join("socket"),
            links: top.join("gcroots"),
        },
        Bounds::default(),
    );
    let (out, inputs) = tokio::sync::mpsc::channel(16);
    let nix_db = || CurrentNixDb::new(top, &store_dir, &top.join("socket"));
    let intake = Intake {
        nix_db: nix_db(),
        store: StoreReader::new(nix_db(), store_dir.clone(), Default::default()),
        baseline: Baseline::read(top),
        lock_watcher: LockWatcher::start(&store).unwrap(),
        store_dir,
        ledger: Ledger::open(&top.join("ledger.sqlite")).unwrap().0,
        windows: Arc::default(),
        gc_roots: gc_roots.unwrap(),
        policy: PushPolicy {
            filter: settings.push.filter.clone(),
            default_cache: CacheId(0),
            routes: Routes::new(Arc::clone(&settings), vec!["main".to_owned()], People::of(&settings, || ())),
            caches: vec![IntakeCache {
                name: "main".to_owned(),
                upstream_keys: UpstreamKeys::default(),
                asks_upstreams: false,
            }],
        },
        new_policy: NewPolicy::default(),
        undecided: UndecidedPaths::default(),
        client: crate::daemon::attic::Client::disabled(),
        existing: Existing::No,
        marks: Vec::new(),
        read_before: None,
        was_absent: false,
        out,
        pulse: Heartbeat::default(),
        known: Arc::default(),
        confirmed: vec![Confirmed::new(RECHECK_AFTER)],
        recheck_after: RECHECK_AFTER,
        settlements: Settlements::default(),
        began: Instant::now(),
        lower: None,
        realisations: None,
        generation: 0,
    };
    (intake, inputs)
}

#[test]
fn while_the_driver_knows_as_much_as_it_may_the_rest_waits_in_the_database() {
    let dir = tempfile::tempdir().unwrap();
    let (mut intake, mut inputs) = intake(dir.path());
    let identity = intake.look_at_database().unwrap().0;
    let mut cursor = Cursor { identity, ..Cursor::default() };
    intake.known.store(MOST, Ordering::Relaxed);
    let full = intake.look(&mut cursor).unwrap_err();
    assert!(matches!(full, IntakeError::Full(MOST)) && full.is_passing(), "{full}");
    assert_eq!(cursor.id, 0);
    assert!(inputs.try_recv().is_err(), "the driver learns of nothing");
    // One fewer: there is room.
    intake.known.store(MOST - 1, Ordering::Relaxed);
    intake.look(&mut cursor).unwrap();
    assert_eq!(cursor.id, 1);
    assert!(matches!(inputs.try_recv(), Ok(Input::Found { pushes, .. }) if pushes.len() == 1));
}

#[test]
fn a_path_that_waits_for_a_route_is_kept_unless_too_many_do() {
    let dir = tempfile::tempdir().unwrap();
    let confines = Subject::Person { user: Some("4242".to_owned()), group: None, label: None };
    let route = Route { subject: confines, cache: Some("main".to_owned()), allow: Vec::new() };
    let (mut intake, mut inputs) = intake_with(dir.path(), vec![route]);
    let identity = intake.look_at_database().unwrap().0;
    let waiting = |intake: &Intake| {
        intake
            .ledger
            .undecided_people()
            .unwrap()
            .iter()
            .find(|(who, _)| *who == UNKNOWN)
            .map_or(0, |(_, n)| *n)
    };
    let mut cursor = Cursor { identity: identity.clone(), ..Cursor::default() };
    intake.look(&mut cursor).unwrap();
    assert_eq!((cursor.id, waiting(&intake)), (1, 1));
    assert!(!matches!(inputs.try_recv(), Ok(Input::Found { .. })), "it is pushed nowhere");
    let path = format!("{:032}-p", 0);
    assert_eq!(intake.ledger.undecided_user(&path[..32]).unwrap(), Some(UNKNOWN));

    // The ledger is full of others: the path is not kept, and the cursor moves on all the same.
    intake.forget_undecided(vec![path]).unwrap();
    let others = (1..=WAITING).map(|n| (format!("{n:032}-p"), UNKNOWN)).collect();
    intake.ledger.keep_undecided(others).unwrap();
    intake.undecided = UndecidedPaths::default();
    let mut cursor = Cursor { identity, ..Cursor::default() };
    intake.look(&mut cursor).unwrap();
    assert_eq!((cursor.id, waiting(&intake)), (1, WAITING));
    // Those that are not valid any more are forgotten at the next start.
    intake.restore_undecided().unwrap();
    assert_eq!(waiting(&intake), 0);
}

#[test]
fn with_as_many_paths_as_there_may_be_namings_wait_and_rechecks_do_not() {
    let dir = tempfile::tempdir().unwrap();
    let (mut intake, mut inputs) = intake(dir.path());
    intake.known.store(MOST, Ordering::Relaxed);
    let path = StorePath::parse(&format!("{:032}-p", 0)).unwrap();
    let naming = |paths: Vec<StorePath>| Naming {
        token: 7,
        session: -1,
        close_window: false,
        cache: CacheId(0),
        paths: paths.into(),
        retry: false,
        everything: false,
    };
    let recheck = Recheck { cache: CacheId(0), pushes: vec![(1, path.clone())] };
    let mut progress = Progress {
        first: None,
        cursor: None,
        restored: false,
        namings: VecDeque::from([naming(vec![path])]),
        hooked: VecDeque::new(),
        rechecks: VecDeque::from([recheck]),
        retry: false,
        added: None,
        more: false,
        stuck: Stuck::default(),
    };
    let full = intake.advance(&mut progress).unwrap_err();
    assert!(matches!(full, IntakeError::Full(MOST)), "{full}");
    assert!(progress.rechecks.is_empty() && progress.namings.len() == 1);
    let mut seen = Vec::new();
    while let Ok(input) = inputs.try_recv() {
        seen.push(input);
    }
    assert!(seen.iter().any(|input| matches!(input, Input::Rechecked { .. })), "{seen:?}");
    assert!(!seen.iter().any(|input| matches!(input, Input::Named { .. })), "{seen:?}");
    intake.known.store(MOST - 1, Ordering::Relaxed);
    intake.advance(&mut progress).unwrap();
    let mut named = std::iter::from_fn(|| inputs.try_recv().ok());
    assert!(named.any(|input| matches!(input, Input::Named { token: 7, .. })));
}

#[test]
fn without_a_database_nothing_is_valid_only_on_a_host_that_has_had_none() {
    let dir = tempfile::tempdir().unwrap();
    let (mut intake, mut inputs) = intake(dir.path());
    let db = dir.path().join("db");
    let away = dir.path().join("away");
    let name = |intake: &mut Intake| {
        let mut progress = intake.begin(None);
        progress.namings.push_back(Naming {
            token: 7,
            session: 1,
            close_window: false,
            cache: CacheId(0),
            paths: Vec::new().into(),
            retry: false,
            everything: true,
        });
        assert!(intake.turn(&mut progress).unwrap().is_some(), "it retries");
        progress.namings.len()
    };
    std::fs::rename(&db, &away).unwrap();
    assert_eq!(name(&mut intake), 0);
    assert!(matches!(inputs.try_recv(), Ok(Input::Named { token: 7, .. })));
    std::fs::rename(&away, &db).unwrap();
    intake.first_cursor().unwrap();
    // The ledger is lost, and the database is away for a moment.
    intake.ledger = Ledger::open(&dir.path().join("other.sqlite")).unwrap().0;
    intake.baseline = Baseline::read(dir.path());
    intake.nix_db.close();
    std::fs::rename(&db, &away).unwrap();
    assert_eq!(name(&mut intake), 1);
}

#[test]
fn the_pushes_of_a_cache_that_comes_back_with_a_reload_continue() {
    let dir = tempfile::tempdir().unwrap();
    let (mut intake, mut inputs) = intake(dir.path());
    let path = format!("{:032}-p", 0);
    let push = crate::ledger::NewPushRow {
        cache: "other".to_owned(),
        path,
        nar_size: 120,
        valid_at: 0,
        state: crate::ledger::PushState::Pending,
        retry_failed: false,
        sessions: Vec::new(),
        needed_by: None,
        route: None,
    };
    let admit = crate::ledger::Admit { cursor: None, pushes: vec![push], at: 1 };
    let id = intake.ledger.admit(admit).unwrap().pushes[0].0;
    let mut progress = intake.begin(None);
    intake.turn(&mut progress).unwrap();
    let mut found = |intake: &mut Intake, progress: &mut Progress| {
        intake.turn(progress).unwrap();
        let inputs = std::iter::from_fn(|| inputs.try_recv().ok());
        let found = inputs.filter_map(|input| match input {
            Input::Found { cache: CacheId(1), pushes, .. } => Some(pushes),
            _ => None,
        });
        found.flatten().map(|push| push.id).collect::<Vec<_>>()
    };
    assert!(found(&mut intake, &mut progress).is_empty(), "the configuration does not have its cache");
    let mut caches = intake.policy.caches.clone();
    caches.push(IntakeCache { name: "other".to_owned(), ..caches[0].clone() });
    let env = |name: &str| name.ends_with("_DIRECTORY").then(|| dir.path().display().to_string());
    let settings = Arc::new(Settings::load(None, &env).unwrap());
    let people = People::of(&settings, || ());
    let names = vec!["main".to_owned(), "other".to_owned()];
    *intake.new_policy.lock().unwrap() = Some(PushPolicy {
        filter: settings.push.filter.clone(),
        default_cache: CacheId(0),
        routes: Routes::new(Arc::clone(&settings), names, people),
        caches,
    });
    assert_eq!(found(&mut intake, &mut progress), [id]);
    assert!(found(&mut intake, &mut progress).is_empty(), "once");
}
