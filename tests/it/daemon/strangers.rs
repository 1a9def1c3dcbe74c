//! What callers of different users see and may ask for, and what a path's story says.

use std::os::unix::fs::PermissionsExt;
use std::process::Command;

use serde_json::Value;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{CommandResult, Daemon, until};
use crate::support::nix::PrivateNix;

/// Runs `flywheelctl` as the user 65534, for whom the socket is opened; none when the
/// tests cannot act as another user.
fn as_another_user(daemon: &Daemon) -> Option<impl Fn(&[&str]) -> CommandResult> {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: acting as another user cannot be tried, this test is left out");
        return None;
    }
    let top = daemon.nix.path();
    let program = top.join("flywheelctl");
    std::fs::copy(env!("CARGO_BIN_EXE_flywheelctl"), &program).unwrap();
    for (path, mode) in [(top, 0o755), (&program, 0o755), (&daemon.socket(), 0o666)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let socket = daemon.socket();
    Some(move |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(args);
        CommandResult::of(&command.env("FLYWHEEL_SOCKET", &socket).current_dir("/").output().unwrap())
    })
}

/// A daemon with a path that was pushed and one that the cache rejects, both of root's
/// session; with further keys at the top of the configuration.
fn one_pushed_one_failed(keys: &str) -> (Daemon, StandaloneCache, String, [String; 2]) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.rule(|name| name.ends_with("-refused").then_some(400));
    let daemon = Daemon::start(nix, &format!("{keys}{}", cache.config_at(&gate.url())));
    let session = daemon.session(&["--label", "secret-project"]);
    let paths = [daemon.nix.make("taken"), daemon.nix.make("refused")];
    until("both have an outcome", || {
        let status = daemon.status();
        status["queue"]["failed"] == 1 && status["queue"]["pending"] == 0
    });
    (daemon, cache, session, paths)
}

#[test]
fn others_see_numbers_and_nothing_else() {
    let (daemon, _cache, session, [_, refused]) = one_pushed_one_failed("");
    let Some(other) = as_another_user(&daemon) else { return };
    let seen = other(&["--json", "status"]);
    assert_eq!(seen.code, 0, "{seen:?}");
    for secret in [session.as_str(), "secret-project", &refused] {
        assert!(!seen.out.contains(secret), "{secret} in {}", seen.out);
    }
    let status = seen.json();
    assert_eq!((&status["sessions"], &status["failed"]), (&serde_json::json!([]), &serde_json::json!([])));
    assert_eq!(status["session_counts"], serde_json::json!({ "open": 1, "draining": 0 }));
    assert_eq!(status["queue"]["failed"], 1);
    let metrics = other(&["metrics"]);
    assert!(metrics.out.contains("\nflywheel_sessions{state=\"open\"} 1\n"), "{metrics:?}");

    let story = other(&["--json", "why", &refused]).json();
    let story = &story["paths"][0];
    assert_eq!((&story["sessions"], &story["hidden_sessions"]), (&serde_json::json!([]), &Value::from(1)));
    assert_eq!(
        (&story["pushes"][0]["state"], &story["pushes"][0]["error"]),
        (&"failed".into(), &Value::Null)
    );

    // Their own sessions and failures are there.
    let own = other(&["session", "start", "--label", "own"]);
    assert_eq!(own.code, 0, "{own:?}");
    assert_eq!(other(&["--json", "session", "end", own.out.trim(), "--push", &refused]).code, 0);
    let detail = other(&["--json", "session", "show", own.out.trim()]);
    assert_eq!(detail.json()["summary"]["failed_total"], 1, "{detail:?}");
    let story = other(&["--json", "why", &refused]).json();
    assert!(story["paths"][0]["pushes"][0]["error"].as_str().unwrap().contains("400"), "{story}");
    // Root sees all of it.
    let status = daemon.status();
    assert_eq!(status["failed"][0]["path"], refused, "{status}");
    assert_eq!(status["sessions"][0]["label"], "secret-project", "{status}");
}

#[test]
fn members_of_the_admins_group_see_everything_and_end_nothing() {
    let (daemon, _cache, session, [_, refused]) = one_pushed_one_failed("admins = \"65534\"\n");
    let Some(admin) = as_another_user(&daemon) else { return };
    let status = admin(&["--json", "status"]).json();
    assert_eq!(
        (&status["sessions"][0]["label"], &status["failed"][0]["path"]),
        (&"secret-project".into(), &refused.clone().into())
    );
    assert_eq!(admin(&["--json", "session", "list"]).json()[0]["session"], session.as_str());
    assert_eq!(admin(&["session", "show", &session]).code, 0);
    assert_eq!(admin(&["--json", "why", &refused]).json()["paths"][0]["hidden_sessions"], 0);
    let end = admin(&["--strict", "session", "end", &session]);
    assert_eq!(end.code, 5, "{end:?}");
}

#[test]
fn a_path_tells_its_story() {
    let (daemon, _cache, session, [taken, refused]) = one_pushed_one_failed("");
    let text = daemon.ctl(&["why", &taken, &refused]);
    assert_eq!(text.code, 0, "{text:?}");
    for line in [
        format!("{taken} ("),
        "  the path is valid in the store\n".to_owned(),
        format!("  session {session} (secret-project): "),
        "  cache main: pushed ".to_owned(),
        "  cache main: failed ".to_owned(),
        "    last error: ".to_owned(),
        format!("    remove the cause, then `flywheelctl push {refused}` tries it again"),
    ] {
        assert!(text.out.contains(&line), "{line} in\n{}", text.out);
    }
    // By its hash alone, and by a link.
    let hash = &taken["/".len() + taken.rfind('/').unwrap()..][..32];
    std::os::unix::fs::symlink(&taken, daemon.nix.work_dir().join("result")).unwrap();
    for name in [hash, "result"] {
        let story = daemon.json(&["why", name]);
        assert_eq!(story["paths"][0]["path"], taken, "{story}");
        assert_eq!(story["paths"][0]["pushes"][0]["state"], "pushed", "{story}");
    }
    let unknown = daemon.ctl(&["--json", "why", "0000000000000000000000000000000a"]);
    assert_eq!(
        (unknown.code, &unknown.json()["paths"][0]["pushes"]),
        (2, &serde_json::json!([])),
        "{unknown:?}"
    );
    let wrong = daemon.ctl(&["why", "nothing-of-this-name"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
}

#[test]
fn a_job_learns_why_it_waits_and_does_not_wait_for_a_cache_that_is_away() {
    let nix = PrivateNix::new();
    // Nobody listens on port 9 of this host.
    let config = "[client]\nenable = false\n[caches.main]\nendpoints = [\"http://127.0.0.1:9\"]\n";
    let daemon = Daemon::start(nix, config);
    until("the cache is away", || daemon.status()["cache"][0]["state"] == "offline");
    let session = daemon.session(&[]);
    let path = daemon.nix.make("held");
    let ended = daemon.ctl(&["--json", "session", "end", &session]);
    let summary = ended.json();
    assert_eq!(
        (ended.code, &summary["outcome"], &summary["pending"]),
        (0, &"pending".into(), &1.into()),
        "{summary}"
    );
    let warnings = summary["warnings"].to_string();
    assert!(warnings.contains("cache main has not answered for "), "{warnings}");
    assert!(warnings.contains("the wait ended after 10 s"), "{warnings}");
    assert!(ended.err.contains("flywheel: 1 path waits: cache main has not answered"), "{ended:?}");
    let why = daemon.ctl(&["why", &path]);
    assert!(why.out.contains("it waits: cache main has not answered for "), "{why:?}");
}

#[test]
fn names_that_do_not_exist_are_one_line_of_the_log() {
    let daemon = Daemon::embedded();
    let store = daemon.nix.path().join("store").display().to_string();
    let names: Vec<String> = (0..500).map(|n| format!("{store}/{n:032}-absent")).collect();
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    let pushed = daemon.ctl(&[&["push", "--wait"][..], &names].concat());
    assert!(pushed.err.contains("500 paths are not valid in the store"), "{}", pushed.err);
    daemon.assert_logged(1, "not valid in the store");
}
