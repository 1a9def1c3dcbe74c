//! Caches delete: by age, to make room, or because somebody set them up again. What flywheel says of
//! a cache is what the cache said a moment ago, and what it uploads has its closure there.

use std::path::Path;

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
        delete(&self.database, "main", path);
        assert!(!self.cache.main().has(path));
    }

    fn refers_to(&self, name: &str, reference: &str) -> String {
        refers_to(&self.daemon, name, reference)
    }
}

/// Deletes a path from the database of a cache's server, also while the server is stopped.
fn delete(database: &Path, cache: &str, path: &str) {
    let db = Connection::open(database).unwrap();
    db.busy_timeout(MAX_WAIT).unwrap();
    let hash = base(path).split('-').next().unwrap();
    let deleted = db.execute("delete from path where hash = ?1 and cache = ?2", [hash, cache]).unwrap();
    assert_eq!(deleted, 1, "{path}");
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
    assert_eq!(rig.cache.main().having(&[deep.clone(), middle.clone(), top.clone()]), [true; 3]);
    // A session's answer is as fresh.
    rig.delete(&middle);
    let session = rig.daemon.session(&[]);
    let end = rig.daemon.json(&["session", "end", &session, "--strict", "--push", &top]);
    assert_eq!((&end["pushed"], &end["already_cached"]), (&1.into(), &2.into()), "{end}");
    assert_eq!(rig.cache.main().having(&[deep, middle, top]), [true; 3]);
}

/// What one cache confirmed says nothing of another one.
#[test]
fn each_cache_is_asked_for_itself() {
    let nix = PrivateNix::new();
    let mut database = None;
    let cache = StandaloneCache::start(&nix, |settings| {
        settings.caches.push("other".to_owned());
        database = Some(settings.dir.join("cache.sqlite"));
    });
    let database = database.unwrap();
    let other = cache.caches(&cache.url()).replace("caches.main", "caches.other");
    let config = format!("default_cache = \"main\"\n{}{other}cache = \"other\"\n", cache.config());
    let daemon = Daemon::start(nix, &config);
    let deep = daemon.nix.make("deep");
    let middle = refers_to(&daemon, "middle", &deep);
    daemon.flush();
    let in_session = |name: &str| {
        let session = daemon.session(&["--cache", "other"]);
        let path = refers_to(&daemon, name, &middle);
        daemon.end(&session, &[]);
        path
    };
    let top = in_session("top");
    let main = || cache.view("main").having(&[deep.clone(), middle.clone(), top.clone()]);
    let other = || cache.view("other").having(&[deep.clone(), middle.clone(), top.clone()]);
    assert_eq!((main(), other()), (vec![true, true, false], vec![true; 3]));
    delete(&database, "other", &deep);
    daemon.json(&["push", "--wait", "--cache", "main", &middle]);
    assert_eq!(other(), [false, true, true], "nobody has asked that cache");
    let second = daemon.session(&["--cache", "other"]);
    let end = daemon.end(&second, &["--push", &top]);
    assert_eq!((&end["pushed"], &end["already_cached"]), (&1.into(), &2.into()), "{end}");
    assert_eq!((main(), other()), (vec![true, true, false], vec![true; 3]));
}

/// The push was taken in while the reference was there; the daemon was restarted, and the cache was
/// away and has deleted meanwhile.
#[test]
fn what_was_deleted_in_an_outage_with_a_restart_in_between() {
    for restart in [false, true] {
        let mut rig = Rig::new("");
        let deep = rig.daemon.nix.make("deep");
        let middle = rig.refers_to("middle", &deep);
        rig.daemon.flush();
        rig.cache.stop();
        let top = rig.refers_to("top", &middle);
        until("it is known", || rig.daemon.status()["queue"]["pending"] == 1);
        delete(&rig.database, "main", &deep);
        if restart {
            rig.daemon.restart();
        }
        rig.cache.change(|_| {});
        if restart {
            until("it comes without being asked for", || rig.cache.main().has(&top));
        } else {
            // What was confirmed a moment ago is believed for `recheck_after`; a flush believes nothing.
            rig.daemon.flush();
        }
        assert_eq!(rig.cache.main().having(&[deep, middle, top]), [true; 3], "restart {restart}");
    }
}

/// Rows that were taken in before a rollback say nothing of the rows that have their numbers now.
#[test]
fn a_database_that_went_back_and_a_cache_that_deleted() {
    let mut rig = Rig::new("");
    let deep = rig.daemon.nix.make("deep");
    let middle = rig.refers_to("middle", &deep);
    rig.daemon.flush();
    rig.daemon.stop();
    let file = rig.daemon.nix.state_dir().join("db/db.sqlite");
    let snapshot = rig.daemon.nix.path().join("snapshot");
    let checkpoint = || {
        let db = Connection::open(&file).unwrap();
        db.execute_batch("pragma wal_checkpoint(truncate)").unwrap();
    };
    checkpoint();
    std::fs::copy(&file, &snapshot).unwrap();
    rig.daemon.up();
    let lost = rig.refers_to("lost", &middle);
    rig.daemon.flush();
    assert!(rig.cache.main().has(&lost));
    // While the daemon runs.
    checkpoint();
    std::fs::copy(&snapshot, &file).unwrap();
    for beside in ["db.sqlite-wal", "db.sqlite-shm"] {
        let _ = std::fs::remove_file(file.with_file_name(beside));
    }
    rig.delete(&deep);
    let tops = ["a", "b"].map(|name| rig.refers_to(name, &middle));
    until("they come without being asked for", || rig.cache.main().having(&tops) == [true; 2]);
    assert_eq!(rig.cache.main().having(&[deep, middle]), [true; 2]);
    rig.cache.main().assert_closed();
    rig.daemon.assert_logged(1, "went back to an earlier state");
}

/// More than the built-in cache can hold: the session is answered, and nothing is said to be there
/// that is not.
#[test]
fn a_session_that_is_larger_than_the_built_in_cache() {
    let config = EMBEDDED.replace("[embedded]\n", "[embedded]\nmax_size = \"2MiB\"\n");
    let daemon = Daemon::start(PrivateNix::new(), &config);
    let session = daemon.session(&[]);
    for n in 0..8 {
        let script = format!("head -c 400000 /dev/urandom > $out; echo {n} >> $out");
        daemon.nix.build(&PrivateNix::shell(&format!("part-{n}"), &script));
    }
    let end = daemon.end(&session, &[]);
    let warned = end["warnings"].to_string().contains("deleted by the cache repeatedly");
    assert!(warned, "{end}");
    daemon.main().assert_closed();
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

/// What a session has pushed, and then is collected here, is asked about as well at its end.
#[test]
fn what_the_store_and_then_the_cache_removed_is_not_reported_as_pushed() {
    let rig = Rig::new("");
    let session = rig.daemon.session(&[]);
    let [kept, lost] = ["kept", "lost"].map(|name| rig.daemon.nix.make(name));
    rig.daemon.flush();
    for path in [&kept, &lost] {
        let collected = rig.daemon.nix.run("nix-store", &["--delete", "--ignore-liveness", path]);
        assert!(collected.status.success(), "{}", String::from_utf8_lossy(&collected.stderr));
    }
    rig.delete(&lost);
    let end = rig.daemon.end(&session, &[]);
    let counts = (&end["pushed"], &end["collected"], &end["pending"], &end["outcome"]);
    assert_eq!(counts, (&1.into(), &1.into(), &0.into(), &"complete".into()), "{end}");
    assert!(rig.cache.main().has(&kept));
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
    // `push --wait` is as fresh, also about what a reference refers to.
    rig.delete(&app);
    assert_eq!(rig.daemon.json(&["push", "--wait", &app])["pushed"], 1);
    assert!(rig.cache.main().has(&app));
    let above = rig.refers_to("above", &app);
    rig.daemon.flush();
    rig.delete(&references[3]);
    let pushed = rig.daemon.json(&["push", "--wait", &above]);
    assert_eq!((&pushed["pushed"], &pushed["already_cached"]), (&1.into(), &11.into()), "{pushed}");
    rig.cache.main().assert_closed();
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
    let flushed = daemon.flush();
    let count = |name: &str| flushed[name].as_u64().unwrap();
    // How many the daemon pushed before it was asked depends on the machine.
    assert_eq!(count("pushed") + count("already_cached"), 2, "{flushed}");
    daemon.json(&["push", "--wait", "--cache", "other", &paths[1]]);
    let has = |cache: &StandaloneCache| {
        let (main, other) = (cache.view("main"), cache.view("other"));
        [main.has(&paths[0]), main.has(&paths[1]), other.has(&paths[0]), other.has(&paths[1])]
    };
    assert_eq!(has(&cache), [true, true, false, true]);
    // The cache is set up again; the daemon does not notice the moment without it.
    cache.change(|settings| std::fs::remove_file(settings.dir.join("cache.sqlite")).unwrap());
    assert_eq!(has(&cache), [false; 4]);
    let flushed = daemon.flush();
    assert_eq!(has(&cache), [true, true, false, true]);
    assert_eq!((&flushed["pushed"], &flushed["already_cached"]), (&3.into(), &0.into()), "{flushed}");
    assert!(flushed["bytes"].as_u64() > Some(0), "{flushed}");
    let flushed = daemon.flush();
    assert_eq!((&flushed["pushed"], &flushed["already_cached"]), (&0.into(), &3.into()), "{flushed}");
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

/// A flush in an outage leaves questions behind. They are nothing that is pending, they keep no
/// session waiting, and they are answered when the cache is back.
#[test]
fn a_flush_in_an_outage_leaves_only_questions() {
    let mut rig = Rig::new("");
    let known: Vec<String> = (0..20).map(|n| rig.daemon.nix.make(&format!("known-{n}"))).collect();
    rig.daemon.flush();
    rig.delete(&known[7]);
    rig.cache.stop();
    let flushed = rig.daemon.ctl(&["--json", "flush", "--timeout", "1s"]).json();
    assert_eq!(flushed["outcome"], "pending", "{flushed}");
    assert_eq!(rig.daemon.status()["queue"]["pending"], 0);
    let session = rig.daemon.session(&[]);
    let path = rig.daemon.nix.make("new");
    until("it is pending", || rig.daemon.status()["queue"]["pending"] == 1);
    rig.cache.change(|_| {});
    let end = rig.daemon.end(&session, &[]);
    assert_eq!((&end["pushed"], &end["outcome"]), (&1.into(), &"complete".into()), "{end}");
    assert!(rig.cache.main().has(&path));
    until("what the flush asked about is there again", || rig.cache.main().has(&known[7]));
}
