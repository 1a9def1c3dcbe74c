//! Caches delete: by age, to make room, or because somebody set them up anew. What flywheel says of
//! a cache is what the cache said a moment ago, and what it uploads has its closure there.

use rusqlite::Connection;

use crate::support::cache::{StandaloneCache, base};
use crate::support::daemon::{Daemon, MAX_WAIT, until};
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
        let script = format!("echo ${{builtins.storePath \"{reference}\"}} {name} > $out");
        let built = self.daemon.nix.run(
            "nix-build",
            &["--option", "pure-eval", "false", "--no-out-link", "-E", &PrivateNix::shell(name, &script)],
        );
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
        String::from_utf8_lossy(&built.stdout).trim().to_owned()
    }
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
        rig.daemon.flush();
        assert!(rig.cache.main().has(&top));
        rig.cache.main().has(&deep)
    });
    assert!(rig.daemon.logs().contains("the cache has deleted paths"), "{}", rig.daemon.logs());
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
    rig.daemon.flush();
    assert_eq!(rig.cache.main().having(&[deep, middle, top]), [true; 3]);
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
    // The cache is set up anew.
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
