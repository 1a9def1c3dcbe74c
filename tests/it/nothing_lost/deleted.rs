//! Caches delete: by age, to make room, or because somebody set them up again. What flywheel says of
//! a cache is what the cache said a moment ago, and what it uploads has its closure there.

use rusqlite::Connection;

use crate::support::attic::{FakeAttic, environment, substitute_from, until_client};
use crate::support::cache::{StandaloneCache, base};
use crate::support::daemon::{Daemon, EMBEDDED, MAX_WAIT, until};
use crate::support::nix::PrivateNix;

/// A daemon with a cache that runs beside it, and that a test can delete from.
struct Rig {
    daemon: Daemon,
    cache: StandaloneCache,
    database: std::path::PathBuf,
}

impl Rig {
    fn new(push: &str) -> Self {
        let nix = PrivateNix::new();
        let mut database = None;
        let cache =
            StandaloneCache::start(&nix, |settings| database = Some(settings.dir.join("cache.sqlite")));
        let daemon = Daemon::start(nix, &format!("{}[push]\n{push}\n", cache.config()));
        Self { daemon, cache, database: database.unwrap() }
    }

    /// What a server's retention does.
    fn delete(&self, path: &str) {
        let db = Connection::open(&self.database).unwrap();
        db.busy_timeout(MAX_WAIT).unwrap();
        let hash = base(path).split('-').next().unwrap();
        let deleted = db.execute("delete from path where hash = ?1", [hash]).unwrap();
        assert_eq!(deleted, 1, "{path}");
        assert!(!self.cache.main().has(path));
    }

    fn refers_to(&self, name: &str, reference: &str) -> String {
        refers_to(&self.daemon, name, reference)
    }
}

/// Builds a path that refers to another one.
fn refers_to(daemon: &Daemon, name: &str, reference: &str) -> String {
    let script = format!("echo ${{builtins.storePath \"{reference}\"}} {name} > $out");
    let args = ["--option", "pure-eval", "false", "--no-out-link", "-E", &PrivateNix::shell(name, &script)];
    let built = daemon.nix.run("nix-build", &args);
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    String::from_utf8_lossy(&built.stdout).trim().to_owned()
}

#[test]
fn a_reference_that_the_cache_deleted_is_pushed_before_its_referrer() {
    let rig = Rig::new("recheck_after = \"5s\"");
    let deep = rig.daemon.nix.make("deep");
    let middle = rig.refers_to("middle", &deep);
    rig.daemon.flush();
    assert_eq!(rig.cache.main().having(&[deep.clone(), middle.clone()]), [true; 2]);
    rig.delete(&deep);
    // As soon as what is remembered is too old, the closure of whatever is built is asked about.
    let mut count = 0;
    until("what was deleted is there again", || {
        count += 1;
        let top = rig.refers_to(&format!("top-{count}"), &middle);
        until("it comes without being asked for", || rig.cache.main().has(&top));
        rig.cache.main().has(&deep)
    });
    rig.daemon.assert_logged(1, "has deleted paths");
}

#[test]
fn after_a_restart_nothing_that_the_cache_had_is_taken_for_granted() {
    let mut rig = Rig::new("");
    let deep = rig.daemon.nix.make("deep");
    let middle = rig.refers_to("middle", &deep);
    rig.daemon.flush();
    rig.delete(&deep);
    rig.daemon.restart();
    let top = rig.refers_to("top", &middle);
    until("it comes without being asked for", || rig.cache.main().has(&top));
    assert_eq!(rig.cache.main().having(&[deep, middle, top]), [true; 3]);
}

/// The attic engine asks for the closure of what it is given, not for the closure of that.
#[test]
fn what_the_cache_deleted_is_pushed_through_the_attic_client_as_well() {
    let nix = PrivateNix::new();
    let mut database = None;
    let cache = StandaloneCache::start(&nix, |settings| database = Some(settings.dir.join("cache.sqlite")));
    let fake = FakeAttic::new(&nix);
    let config = format!("{}engine = \"attic\"\n{}", cache.caches(&cache.url()), fake.config());
    let mut daemon = Daemon::prepare(nix, &config);
    daemon.env = environment(&daemon.nix);
    substitute_from(&daemon.nix, &cache.main());
    daemon.up();
    fake.built(&daemon.nix);
    until_client(&daemon, "ready");
    let mut rig = Rig { daemon, cache, database: database.unwrap() };
    let deep = rig.daemon.nix.make("deep");
    let middle = rig.refers_to("middle", &deep);
    rig.daemon.flush();
    rig.delete(&deep);
    rig.daemon.restart();
    until_client(&rig.daemon, "ready");
    let top = rig.refers_to("top", &middle);
    until("it comes without being asked for", || rig.cache.main().has(&top));
    assert_eq!(rig.cache.main().having(&[deep, middle, top]), [true; 3]);
}

/// The built-in cache makes room: what a newer path refers to is the last to go, and what went is
/// pushed again before something refers to it.
#[test]
fn what_the_built_in_cache_evicted_is_pushed_before_its_referrer() {
    let config = EMBEDDED.replace("[embedded]\n", "[embedded]\nmax_size = \"2MiB\"\n");
    let mut daemon = Daemon::start(PrivateNix::new(), &config);
    let noise = |name: &str| format!("head -c 400000 /dev/urandom > $out; echo {name} >> $out");
    let deep = daemon.nix.build(&PrivateNix::shell("deep", &noise("deep"))).remove(0);
    let middle = refers_to(&daemon, "middle", &deep);
    daemon.flush();
    let mut fillers = 0;
    until("the cache makes room", || {
        fillers += 1;
        let name = format!("filler-{fillers}");
        let path = daemon.nix.build(&PrivateNix::shell(&name, &noise(&name))).remove(0);
        until("it comes without being asked for", || daemon.main().has(&path));
        !daemon.main().has(&deep)
    });
    assert!(fillers > 2, "more than two of them fit");
    daemon.restart();
    let top = refers_to(&daemon, "top", &middle);
    until("it comes without being asked for", || daemon.main().has(&top));
    assert_eq!(daemon.main().having(&[deep, middle, top]), [true; 3]);
    daemon.main().assert_closed();
}

#[test]
fn a_path_that_was_collected_and_is_built_again_is_pushed_again() {
    let rig = Rig::new("");
    let path = rig.daemon.nix.make("again");
    rig.daemon.flush();
    rig.delete(&path);
    let collected = rig.daemon.nix.run("nix-store", &["--delete", "--ignore-liveness", &path]);
    assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    let session = rig.daemon.session(&[]);
    assert_eq!(rig.daemon.nix.make("again"), path);
    let end = rig.daemon.end(&session, &[]);
    assert_eq!(
        (&end["pushed"], &end["already_cached"], &end["outcome"]),
        (&1.into(), &0.into(), &"complete".into())
    );
    assert!(rig.cache.main().has(&path));
}

#[test]
fn a_session_is_answered_from_what_the_cache_says_now() {
    let mut rig = Rig::new("");
    let references: Vec<String> = (0..10).map(|n| rig.daemon.nix.make(&format!("reference-{n}"))).collect();
    let script = |list: &[String]| {
        let stores: Vec<String> = list.iter().map(|p| format!("${{builtins.storePath \"{p}\"}}")).collect();
        format!("echo {} > $out", stores.join(" "))
    };
    let app = rig.daemon.nix.build(&PrivateNix::shell("app", &script(&references))).remove(0);
    rig.daemon.flush();
    // The cache is set up again.
    rig.cache.change(|settings| std::fs::remove_dir_all(&settings.dir).unwrap());
    let session = rig.daemon.session(&[]);
    let end = rig.daemon.json(&["session", "end", &session, "--strict", "--push", &app]);
    assert_eq!((&end["pushed"], &end["already_cached"]), (&11.into(), &0.into()), "{end}");
    assert_eq!(rig.cache.main().all().len(), 11);
    // Asked a second time, nothing has changed, and that is true now.
    let session = rig.daemon.session(&[]);
    let end = rig.daemon.json(&["session", "end", &session, "--strict", "--push", &app]);
    assert_eq!((&end["pushed"], &end["already_cached"]), (&0.into(), &11.into()), "{end}");
    // `push --wait` is as fresh.
    rig.delete(&app);
    assert_eq!(rig.daemon.json(&["push", "--wait", &app])["pushed"], 1);
    assert!(rig.cache.main().has(&app));
}

/// Nothing is pending, and what is remembered is fresh: the answer of a flush is about what the
/// caches have now, each of them.
#[test]
fn a_flush_asks_about_what_was_confirmed() {
    let nix = PrivateNix::new();
    let mut cache = StandaloneCache::start(&nix, |settings| settings.caches.push("other".to_owned()));
    let other = cache.caches(&cache.url()).replace("caches.main", "caches.other");
    let config = format!("default_cache = \"main\"\n{}{other}cache = \"other\"\n", cache.config());
    let daemon = Daemon::start(nix, &config);
    let paths = ["one", "two"].map(|name| daemon.nix.make(name));
    daemon.flush();
    daemon.json(&["push", "--wait", "--cache", "other", &paths[1]]);
    let has = |cache: &StandaloneCache| {
        let (main, other) = (cache.view("main"), cache.view("other"));
        [main.has(&paths[0]), main.has(&paths[1]), other.has(&paths[0]), other.has(&paths[1])]
    };
    assert_eq!(has(&cache), [true, true, false, true]);
    // The cache is set up again; the daemon does not notice the moment without it.
    cache.change(|settings| std::fs::remove_file(settings.dir.join("cache.sqlite")).unwrap());
    assert_eq!(has(&cache), [false; 4]);
    daemon.flush();
    assert_eq!(has(&cache), [true, true, false, true]);
}

#[test]
fn what_a_session_pushed_and_the_cache_deleted_is_there_when_it_ends() {
    let rig = Rig::new("");
    let session = rig.daemon.session(&[]);
    let path = rig.daemon.nix.make("early");
    rig.daemon.flush();
    rig.delete(&path);
    let end = rig.daemon.end(&session, &[]);
    assert_eq!((&end["pushed"], &end["outcome"]), (&1.into(), &"complete".into()), "{end}");
    assert!(rig.cache.main().has(&path));
}

#[test]
fn an_early_answer_counts_nothing_that_is_only_remembered() {
    let mut rig = Rig::new("");
    let path = rig.daemon.nix.make("known");
    rig.daemon.flush();
    let session = rig.daemon.session(&[]);
    rig.cache.stop();
    let end = rig.daemon.json(&["session", "end", &session, "--push", &path, "--timeout", "1s"]);
    assert_eq!((&end["already_cached"], &end["pending"]), (&0.into(), &1.into()), "{end}");
    rig.cache.change(|_| {});
    rig.daemon.flush();
    let again = rig.daemon.json(&["session", "end", &session]);
    assert_eq!((&again["already_cached"], &again["pending"]), (&1.into(), &0.into()), "{again}");
}
