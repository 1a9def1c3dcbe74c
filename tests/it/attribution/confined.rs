//! Routes limit which caches a user may name. Also tests which cache paths of unknown makers
//! go to, and that no user gets more rights when the name service does not answer.

use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

use crate::attribution::sessions::until_state;
use crate::support::daemon::{CommandResult, Daemon, until};
use crate::support::multiuser::NixDaemon;
use crate::support::nix::PrivateNix;
use crate::support::users::{
    NOBODY, as_nobody, can_switch_user, open_to_all, replace_etc, replace_groups, set_mode,
};

/// Three built-in caches, `main` the default, and these routes.
fn config(routes: &str) -> String {
    format!(
        "default_cache = \"main\"\n[caches.main]\nendpoints = \"embedded\"\n[caches.untrusted]\nendpoints = \"embedded\"\n\
         [caches.extra]\nendpoints = \"embedded\"\n[embedded]\nlisten = \"127.0.0.1:0\"\n[client]\nenable = false\n{routes}"
    )
}

/// A build through the multi-user Nix as this user. Returns the path.
fn build(daemon: &Daemon, nix_daemon: &NixDaemon, name: &str, uid: u32) -> String {
    set_mode(&daemon.nix.work_dir(), 0o777);
    let mut build = daemon.nix.command("nix-build");
    build.args(["--no-out-link", "-E", &PrivateNix::shell(name, "sleep 0.2; echo $name > $out")]);
    build.env("NIX_REMOTE", nix_daemon.remote()).env("HOME", daemon.nix.work_dir());
    let result = CommandResult::of(&build.uid(uid).gid(uid).output().unwrap());
    assert_eq!(result.code, 0, "{result:?}");
    result.out.trim().to_owned()
}

#[test]
fn a_confined_user_reaches_only_the_caches_that_the_route_allows() {
    if !can_switch_user() {
        return;
    }
    let routes = format!(
        "[[route]]\nuser = \"0\"\ncache = \"untrusted\"\n[[route]]\nuser = \"{NOBODY}\"\ncache = \"untrusted\"\nallow = [\"extra\"]\n"
    );
    let daemon = Daemon::start(PrivateNix::new(), &config(&routes));
    open_to_all(&daemon);
    let rule =
        format!("cache main is not open to you: [[route]] 2 (user = \"{NOBODY}\") allows untrusted, extra");
    let path = daemon.nix.make("a");
    daemon.flush();
    for args in [
        &["--strict", "session", "start", "--cache", "main"][..],
        &["push", "--cache", "main", &path, "--wait"],
    ] {
        let refused = as_nobody(&daemon, args);
        assert!(refused.code == 5 && refused.err.contains(&rule), "{args:?}: {refused:?}");
    }
    let cache_of = |args: &[&str]| {
        let started = as_nobody(&daemon, args);
        assert_eq!(started.code, 0, "{started:?}");
        daemon.json(&["session", "show", started.out.trim()])["session"]["cache"].as_str().unwrap().to_owned()
    };
    assert_eq!(cache_of(&["session", "start", "--cache", "extra"]), "extra");
    assert_eq!(cache_of(&["session", "start"]), "untrusted");
    // The user may push to the caches that the route allows, also another user's path.
    let pushed = as_nobody(&daemon, &["push", "--cache", "extra", &path, "--wait"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    assert!(daemon.cache("extra").has(&path));
    // A session of `run` pushes to the route's cache, also the paths that are named in it.
    let run = as_nobody(&daemon, &["--strict", "run", "--push", &path, "--", "true"]);
    assert!(run.code == 0 && daemon.cache("untrusted").has(&path), "{run:?}");
    assert!(!daemon.cache("main").has(&path));
    // Root's own route has another cache and does not limit root.
    let pushed = daemon.ctl(&["push", "--cache", "main", &path, "--wait"]);
    assert!(pushed.code == 0 && daemon.cache("main").has(&path), "{pushed:?}");
}

#[test]
fn a_skipped_user_reaches_no_cache() {
    if !can_switch_user() {
        return;
    }
    let routes = format!("[[route]]\ngroup = \"{NOBODY}\"\naction = \"skip\"\n");
    let daemon = Daemon::start(PrivateNix::new(), &config(&routes));
    open_to_all(&daemon);
    let path = daemon.nix.make("a");
    for cache in ["main", "untrusted", "extra"] {
        let refused = as_nobody(&daemon, &["push", "--cache", cache, &path]);
        let rule = format!("[[route]] 1 (group = \"{NOBODY}\") allows none");
        assert!(refused.code == 5 && refused.err.contains(&rule), "{refused:?}");
    }
}

/// `why` and the session's summary tell of a path that a route skips, and of the route.
#[test]
fn a_path_that_a_route_skips_names_the_route() {
    if !can_switch_user() {
        return;
    }
    let nix = PrivateNix::new();
    let nix_daemon = NixDaemon::start(&nix, &[]);
    let routes = format!(
        "[[route]]\nuser = \"{NOBODY}\"\naction = \"skip\"\n[[route]]\nmaker = \"unknown\"\ncache = \"main\"\n"
    );
    let mut daemon = Daemon::start(nix, &config(&routes));
    open_to_all(&daemon);
    let alone = build(&daemon, &nix_daemon, "of-no-session", NOBODY);
    daemon.flush();
    let session = as_nobody(&daemon, &["session", "start"]).out.trim().to_owned();
    let theirs = build(&daemon, &nix_daemon, "of-a-session", NOBODY);
    let ended = as_nobody(&daemon, &["--json", "session", "end", &session]).json();
    // The path and its derivation.
    assert_eq!((&ended["skipped"], &ended["cache"]), (&2.into(), &"".into()), "{ended}");
    let rule = format!("[[route]] 1 (user = \"{NOBODY}\")");
    daemon.restart();
    open_to_all(&daemon);
    let why = daemon.ctl(&["why", &alone]).out;
    assert!(why.contains(&format!("no cache: skipped by {rule}")), "{why}");
    let why = as_nobody(&daemon, &["why", &theirs]).out;
    assert!(why.contains(&format!("skipped by {rule}")), "{why}");
    assert!(why.contains("no cache: skipped by the route of its session"), "{why}");
    // Rows that are read again have lost their makers, and yet are not those of unknown ones.
    daemon.stop();
    let dump = daemon.nix.run("nix-store", &["--dump-db"]);
    let db = rusqlite::Connection::open(daemon.nix.state_dir().join("db/db.sqlite")).unwrap();
    db.execute_batch("delete from ValidPaths; update sqlite_sequence set seq = 0 where name = 'ValidPaths'")
        .unwrap();
    drop(db);
    let mut load = daemon.nix.command("nix-store");
    let mut load = load.arg("--load-db").stdin(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(&mut load.stdin.take().unwrap(), &dump.stdout).unwrap();
    assert!(load.wait().unwrap().success());
    daemon.up();
    open_to_all(&daemon);
    daemon.flush();
    daemon.assert_logged(1, "the Nix database went back to an earlier state");
    for cache in ["main", "untrusted", "extra"] {
        assert!(daemon.cache(cache).names().is_empty(), "{cache}");
    }
    // Somebody whom the route does not name may push it.
    let pushed = daemon.ctl(&["push", &alone, "--wait"]);
    assert!(pushed.code == 0 && daemon.cache("main").has(&alone), "{pushed:?}");
}

/// A path that the builder's hook names goes to the cache of the route of the build's user.
#[test]
fn the_hook_of_a_confined_users_build_takes_nothing_out_of_its_route() {
    if !can_switch_user() {
        return;
    }
    let nix = PrivateNix::new();
    let hook = nix.path().join("hook");
    let ctl = env!("CARGO_BIN_EXE_flywheelctl");
    let socket = nix.path().join("s");
    let script = format!("#!/bin/sh\nFLYWHEEL_SOCKET={} exec {ctl} hook\n", socket.display());
    std::fs::write(&hook, script).unwrap();
    set_mode(&hook, 0o755);
    nix.configure(&format!("post-build-hook = {}", hook.display()));
    let nix_daemon = NixDaemon::start(&nix, &[]);
    let routes = format!("[[route]]\nuser = \"{NOBODY}\"\ncache = \"untrusted\"\n");
    let daemon = Daemon::start(nix, &config(&routes));
    open_to_all(&daemon);
    build(&daemon, &nix_daemon, "of-nobody", NOBODY);
    daemon.flush();
    assert_eq!(daemon.cache("untrusted").names(), ["of-nobody"]);
    assert!(daemon.cache("main").names().is_empty());
}

/// The maker of a path that became valid while the daemon was stopped is unknown.
#[test]
fn a_path_of_an_unknown_maker_waits_for_a_session_or_follows_the_route_for_it() {
    let confines = "[[route]]\nuser = \"nobody\"\ncache = \"untrusted\"\n";
    let mut daemon = Daemon::start(PrivateNix::new(), &config(confines));
    daemon.stop();
    let path = daemon.nix.make("unseen");
    daemon.up();
    daemon.flush();
    for cache in ["main", "untrusted"] {
        assert!(daemon.cache(cache).names().is_empty(), "{cache}");
    }
    daemon.assert_logged(1, "1 paths of no session wait");
    // It waits over a restart as well, and no garbage collection removes it meanwhile.
    for _ in 0..2 {
        let why = daemon.ctl(&["why", &path]);
        assert!(why.out.contains("nobody was seen to make it: it waits until a session names it"), "{why:?}");
        assert!(!daemon.nix.run("nix-store", &["--delete", &path]).status.success(), "it is protected");
        daemon.restart();
    }
    let pushed = daemon.ctl(&["push", &path, "--wait"]);
    assert!(pushed.code == 0 && daemon.cache("main").has(&path), "{pushed:?}");
    until("the path is not protected any more", || {
        daemon.nix.run("nix-store", &["--delete", &path]).status.success()
    });

    // A route that comes later decides about what waits.
    daemon.stop();
    let later = daemon.nix.make("unseen-until-later");
    daemon.up();
    daemon.flush();
    assert!(daemon.cache("extra").names().is_empty());
    daemon.configure(&config(&format!("{confines}[[route]]\nmaker = \"unknown\"\ncache = \"extra\"\n")));
    let reload = daemon.ctl(&["reload"]);
    assert_eq!(reload.code, 0, "{reload:?}");
    until("the path follows the new route", || daemon.cache("extra").has(&later));
    let why = daemon.json(&["why", &later]);
    assert_eq!(why["paths"][0]["pushes"][0]["route"], "[[route]] 2 (maker = \"unknown\")", "{why}");
    assert!(!daemon.cache("main").has(&later));

    daemon.stop();
    daemon.configure(&config(&format!("{confines}[[route]]\nmaker = \"unknown\"\ncache = \"extra\"\n")));
    let path = daemon.nix.make("unseen-too");
    daemon.up();
    daemon.flush();
    assert!(daemon.cache("extra").has(&path) && !daemon.cache("main").has(&path));
}

/// Routes that come while a session is open close it to what they do not allow.
#[test]
fn an_open_session_does_not_outlive_its_route() {
    if !can_switch_user() {
        return;
    }
    let nix = PrivateNix::new();
    let nix_daemon = NixDaemon::start(&nix, &[]);
    let mut daemon = Daemon::start(nix, &config(""));
    open_to_all(&daemon);
    let session = |args: &[&str]| {
        let started = as_nobody(&daemon, &[&["session", "start"], args].concat());
        assert_eq!(started.code, 0, "{started:?}");
        started.out.trim().to_owned()
    };
    let (to_main, to_extra) = (session(&[]), session(&["--cache", "extra"]));
    let before = build(&daemon, &nix_daemon, "before", 0);
    daemon.flush();
    assert!(daemon.cache("main").has(&before));
    let rule = format!("[[route]] 1 (user = \"{NOBODY}\") allows untrusted, extra");
    let routes = format!("[[route]]\nuser = \"{NOBODY}\"\ncache = \"untrusted\"\nallow = [\"extra\"]\n");
    daemon.configure(&config(&routes));
    let reload = daemon.ctl(&["reload"]);
    assert_eq!(reload.code, 0, "{reload:?}");
    until("the session is closed to further paths", || {
        daemon.log().contains(&format!(
            "session {to_main} gets no further paths: cache main is not open to you: {rule}"
        ))
    });
    // A session whose cache the route allows continues.
    let after = build(&daemon, &nix_daemon, "after", NOBODY);
    daemon.flush();
    assert!(daemon.cache("extra").has(&after) && !daemon.cache("main").has(&after));
    let ended = as_nobody(&daemon, &["--json", "session", "end", &to_extra]);
    assert_eq!(
        (&ended.json()["pushed"], &ended.json()["warnings"]),
        (&1.into(), &serde_json::json!([])),
        "{ended:?}"
    );
    // With the closed session alone, a path goes where the route sends it.
    let alone = build(&daemon, &nix_daemon, "alone", NOBODY);
    daemon.flush();
    assert!(daemon.cache("untrusted").has(&alone));
    // Nor over a restart, and nor by name.
    daemon.restart();
    open_to_all(&daemon);
    let at_end = build(&daemon, &nix_daemon, "at-end", NOBODY);
    daemon.flush();
    let ended = as_nobody(&daemon, &["--json", "session", "end", &to_main, "--push", &after]);
    assert!(
        ended.code == 0 && ended.json()["warnings"].to_string().contains("allows untrusted, extra"),
        "{ended:?}"
    );
    assert!(daemon.cache("untrusted").has(&at_end));
    for path in [&after, &alone, &at_end] {
        assert!(!daemon.cache("main").has(path), "{path}");
    }
}

/// Routes that come while the daemon is stopped confine a session also when its job comes back
/// to it after its anchor has ended.
#[test]
fn an_abandoned_session_that_its_job_ends_after_all_is_confined() {
    if !can_switch_user() {
        return;
    }
    let nix = PrivateNix::new();
    let nix_daemon = NixDaemon::start(&nix, &[]);
    let mut daemon = Daemon::start(nix, &config(""));
    open_to_all(&daemon);
    let mut anchor = Command::new("sleep").arg("600").uid(NOBODY).gid(NOBODY).spawn().unwrap();
    let started = as_nobody(&daemon, &["session", "start", "--anchor-pid", &anchor.id().to_string()]);
    let session = started.out.trim().to_owned();
    daemon.kill();
    anchor.kill().unwrap();
    anchor.wait().unwrap();
    daemon.configure(&config(&format!("[[route]]\nuser = \"{NOBODY}\"\ncache = \"untrusted\"\n")));
    daemon.up();
    open_to_all(&daemon);
    until_state(&daemon, &session, "abandoned");
    let path = build(&daemon, &nix_daemon, "late", NOBODY);
    let ended = as_nobody(&daemon, &["--json", "session", "end", &session, "--push", &path]);
    let rule = format!("[[route]] 1 (user = \\\"{NOBODY}\\\") allows untrusted");
    assert!(ended.code == 0 && ended.json()["warnings"].to_string().contains(&rule), "{ended:?}");
    assert_eq!(ended.json()["pushed"], 0, "{ended:?}");
    daemon.flush();
    assert!(daemon.cache("untrusted").has(&path) && !daemon.cache("main").has(&path));
}

/// `why` names what chose the cache, from the ledger.
#[test]
fn the_rule_that_sent_a_path_is_told() {
    if !can_switch_user() {
        return;
    }
    let nix = PrivateNix::new();
    let nix_daemon = NixDaemon::start(&nix, &[]);
    let routes = format!("[[route]]\nuser = \"{NOBODY}\"\ncache = \"untrusted\"\nallow = [\"extra\"]\n");
    let mut daemon = Daemon::start(nix, &config(&routes));
    open_to_all(&daemon);
    let theirs = build(&daemon, &nix_daemon, "of-nobody", NOBODY);
    let roots = build(&daemon, &nix_daemon, "of-root", 0);
    daemon.flush();
    let pushed = as_nobody(&daemon, &["push", "--cache", "extra", &theirs, "--wait"]);
    assert_eq!(pushed.code, 0, "{pushed:?}");
    daemon.restart();
    let rule = format!("[[route]] 1 (user = \"{NOBODY}\")");
    let why = daemon.json(&["why", &theirs]);
    let story = &why["paths"][0];
    let push = story["pushes"].as_array().unwrap().iter().find(|push| push["cache"] == "untrusted").unwrap();
    assert_eq!(push["route"], rule.as_str(), "{why}");
    let by_name = &story["sessions"][0];
    assert_eq!((&by_name["cache"], &by_name["route"]), (&"extra".into(), &"--cache".into()), "{why}");
    let text = daemon.ctl(&["why", &theirs]).out;
    assert!(
        text.contains(&format!(", sent there by {rule}")) && text.contains("to cache extra by --cache"),
        "{text}"
    );
    let why = daemon.json(&["why", &roots]);
    assert_eq!(why["paths"][0]["pushes"][0]["route"], "default_cache", "{why}");
}

#[test]
fn names_that_do_not_exist_are_warnings() {
    let routes = "[[route]]\nuser = \"no-such-user\"\ngroup = \"root\"\ncache = \"extra\"\n\
                  [[route]]\ngroup = \"domain users\"\nuser = \"4242\"\naction = \"skip\"\n";
    let daemon = Daemon::prepare(PrivateNix::new(), &config(routes));
    let mut check = daemon.program();
    check.arg("--check-config").arg("--config").arg(daemon.config());
    let checked = CommandResult::of(&check.output().unwrap());
    assert_eq!(checked.code, 0, "{checked:?}");
    let warnings = [
        "[[route]] 1 (user = \"no-such-user\", group = \"root\"): there is no user \"no-such-user\" on this system",
        "[[route]] 2 (user = \"4242\", group = \"domain users\"): there is no group \"domain users\" on this system",
        "paths that nobody was seen to make wait until a session names them",
    ];
    for warning in warnings {
        assert!(checked.err.contains(warning), "{checked:?}");
    }
    assert_eq!(checked.err.matches("there is no").count(), 2, "{checked:?}");
}

#[test]
fn a_group_with_a_blank_in_its_name_confines_its_members() {
    if !can_switch_user() {
        return;
    }
    let routes = "[[route]]\ngroup = \"domain users\"\ncache = \"untrusted\"\n";
    let mut daemon = Daemon::prepare(PrivateNix::new(), &config(routes));
    let groups = daemon.nix.path().join("group");
    std::fs::write(&groups, "root:x:0:\nnogroup:x:65534:\ndomain users:x:7777:nobody\n").unwrap();
    set_mode(&groups, 0o644);
    if !replace_groups(&mut daemon, &groups) {
        return;
    }
    daemon.up();
    open_to_all(&daemon);
    let refused = as_nobody(&daemon, &["--strict", "session", "start", "--cache", "main"]);
    let rule = "[[route]] 1 (group = \"domain users\") allows untrusted";
    assert!(refused.code == 5 && refused.err.contains(rule), "{refused:?}");
}

/// A directory may know a user or a group by several names, or by other spellings, and gives one of
/// them for the number.
#[test]
fn a_second_name_of_a_user_or_a_group_confines_too() {
    if !can_switch_user() {
        return;
    }
    for (file, text, subject) in [
        (
            "passwd",
            "root:x:0:0::/:/bin/sh\nnobody:x:65534:65534::/:/bin/sh\nCI Jobs:x:65534:65534::/:/bin/sh\n",
            "user = \"CI Jobs\"",
        ),
        (
            "group",
            "root:x:0:\nnogroup:x:65534:\nci-jobs:x:7777:nobody\nCI-Jobs:x:7777:nobody\n",
            "group = \"CI-Jobs\"",
        ),
    ] {
        let config = config(&format!("[[route]]\n{subject}\ncache = \"untrusted\"\n"));
        let mut daemon = Daemon::prepare(PrivateNix::new(), &config);
        let replacement = daemon.nix.path().join(file);
        std::fs::write(&replacement, text).unwrap();
        set_mode(&replacement, 0o644);
        if !replace_etc(&mut daemon, file, &replacement) {
            return;
        }
        daemon.up();
        open_to_all(&daemon);
        let refused = as_nobody(&daemon, &["--strict", "session", "start", "--cache", "main"]);
        let rule = format!("[[route]] 1 ({subject}) allows untrusted");
        assert!(refused.code == 5 && refused.err.contains(&rule), "{file}: {refused:?}");
    }
}

/// Ends every wait for the FIFO that is `/etc/group`, from now until the test ends: the
/// name service says that there are no groups.
fn answer(fifo: PathBuf) {
    std::thread::spawn(move || {
        while std::fs::OpenOptions::new().write(true).open(&fifo).is_ok() {
            std::thread::sleep(std::time::Duration::from_millis(5));
        }
    });
}

#[test]
fn a_name_service_that_hangs_opens_nothing_and_stops_nobody_else() {
    if !can_switch_user() {
        return;
    }
    let nix = PrivateNix::new();
    let nix_daemon = NixDaemon::start(&nix, &[]);
    let routes = "[[route]]\ngroup = \"domain users\"\ncache = \"untrusted\"\n";
    let mut daemon = Daemon::prepare(nix, &config(routes));
    let fifo = daemon.nix.path().join("group");
    let made = Command::new("mkfifo").arg(&fifo).status().unwrap();
    assert!(made.success());
    if !replace_groups(&mut daemon, &fifo) {
        return;
    }
    daemon.up();
    open_to_all(&daemon);
    let theirs = build(&daemon, &nix_daemon, "of-nobody", NOBODY);
    // No route limits root, so its paths do not wait for the name service.
    let roots = build(&daemon, &nix_daemon, "of-root", 0);
    daemon.flush();
    assert!(daemon.cache("main").has(&roots));
    assert!(!daemon.cache("main").has(&theirs) && !daemon.cache("untrusted").has(&theirs));
    let refused = as_nobody(&daemon, &["--strict", "session", "start", "--cache", "main"]);
    let why = "it is not known whether [[route]] 1 (group = \"domain users\") is for you";
    assert!(refused.code == 5 && refused.err.contains(why), "{refused:?}");
    // The path waits over a restart as well.
    daemon.restart();
    open_to_all(&daemon);
    daemon.flush();
    assert!(!daemon.cache("main").has(&theirs) && !daemon.cache("untrusted").has(&theirs));
    answer(fifo);
    // The name service says now that the user is not a member: the path goes to the default
    // cache.
    until("the path of a user who is known now", || daemon.cache("main").has(&theirs));
    let allowed = as_nobody(&daemon, &["--strict", "session", "start", "--cache", "main"]);
    assert_eq!(allowed.code, 0, "{allowed:?}");
}
