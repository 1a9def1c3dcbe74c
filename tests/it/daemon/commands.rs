//! The commands against the real daemon: session ends, exit statuses, shapes of JSON, configuration
//! checks, and that the token stays in the daemon.

use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use serde_json::Value;

use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{CommandResult, Daemon, EMBEDDED};
use crate::support::nix::PrivateNix;
use crate::support::users::{as_nobody, can_switch_user, open_to_all};

fn gated() -> (Daemon, StandaloneCache, UploadGate) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    (Daemon::start(nix, &cache.config_at(&gate.url())), cache, gate)
}

fn keys(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("{value}")).keys().map(String::as_str).collect()
}

#[test]
fn a_session_ends_the_same_way_each_time() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&["--label", "twice"]);
    daemon.nix.make("it");
    // Without an id, the caller's only open session is meant.
    let first = daemon.json(&["session", "end"]);
    assert_eq!(daemon.end(&session, &[]), first);
    assert_eq!(daemon.end(&session, &["--no-wait"]), first);
    let expected = [
        "session",
        "label",
        "cache",
        "outcome",
        "pushed",
        "already_cached",
        "upstream",
        "failed",
        "pending",
        "skipped",
        "bytes",
        "attributed",
        "flush_ms",
        "duration_ms",
    ];
    for key in expected {
        assert!(first.get(key).is_some(), "{key} in {first}");
    }
    for key in ["process", "hook", "closure", "window"] {
        assert!(first["attributed"][key].is_u64(), "{key} in {first}");
    }
    assert!(first["failed"].is_array());

    let text = daemon.ctl(&["session", "end", &session]);
    assert_eq!(text.out.lines().next(), Some("watch-store pushed 1 store paths incrementally"), "{text:?}");
    let unknown = daemon.ctl(&["session", "end", "no-such-session"]);
    assert_eq!(unknown.code, 2, "{unknown:?}");
    assert!(unknown.err.contains("no-such-session"), "{unknown:?}");
    let none = daemon.ctl(&["session", "end"]);
    assert_eq!(none.code, 0, "{none:?}");
    assert_eq!(daemon.ctl(&["--strict", "session", "end"]).code, 5);
}

#[test]
fn waiting_ends_at_the_deadline_and_the_daemon_goes_on() {
    let (daemon, cache, gate) = gated();
    gate.close();
    let session = daemon.session(&[]);
    let path = daemon.nix.make("held");
    gate.until_came(1);
    for args in [&["--no-wait"][..], &["--timeout", "50ms"]] {
        let summary = daemon.end(&session, args);
        assert_eq!(
            (&summary["outcome"], &summary["pending"]),
            (&Value::from("pending"), &Value::from(1)),
            "{summary}"
        );
    }
    let strict = daemon.ctl(&["--strict", "session", "end", &session, "--timeout", "50ms"]);
    assert_eq!(strict.code, 4, "{strict:?}");
    assert_eq!(daemon.ctl(&["--strict", "session", "end", &session, "--no-wait"]).code, 0);
    let flush = daemon.ctl(&["--strict", "flush", "--timeout", "50ms"]);
    assert_eq!(flush.code, 4, "{flush:?}");
    assert_eq!(daemon.status()["sessions"][0]["state"], "draining");
    gate.open();
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (&summary["outcome"], &summary["pushed"]),
        (&Value::from("complete"), &Value::from(1)),
        "{summary}"
    );
    assert!(cache.main().has(&path));
}

#[test]
fn without_a_daemon_a_job_goes_on_unless_it_is_strict() {
    let daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    for args in [&["session", "start"][..], &["session", "end", "x"], &["flush"], &["status"]] {
        let said = daemon.ctl(args);
        let code = if args[0] == "session" { 0 } else { 5 };
        assert_eq!((said.code, said.out.as_str()), (code, ""), "{args:?}: {said:?}");
        assert!(said.err.contains(daemon.socket().to_str().unwrap()), "{said:?}");
        assert_eq!(daemon.ctl(&[&["--strict"], args].concat()).code, 5, "{args:?}");
    }
}

#[test]
fn another_user_may_neither_see_nor_end_it() {
    if !can_switch_user() {
        return;
    }
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    open_to_all(&daemon);
    let nobody = |args: &[&str]| as_nobody(&daemon, args);
    for command in ["end", "show"] {
        let refused = nobody(&["--strict", "session", command, &session]);
        assert_eq!((refused.code, refused.out.as_str()), (5, ""), "{refused:?}");
        assert!(refused.err.contains("uid") || refused.err.contains("another user"), "{refused:?}");
    }
    assert_eq!(nobody(&["--json", "session", "list", "--all"]).json(), serde_json::json!([]));
    assert_eq!(nobody(&["--strict", "reload"]).code, 5);
    let theirs = nobody(&["session", "start"]);
    assert_eq!(theirs.code, 0, "{theirs:?}");
    // Root's session is still open, and root may end the other user's.
    assert_eq!(daemon.json(&["session", "list"]).as_array().unwrap().len(), 2);
    for id in [&session, theirs.out.trim()] {
        assert_eq!(daemon.end(id, &[])["outcome"], "complete");
    }
    let closed = nobody(&["--strict", "session", "end", &session]);
    assert_eq!(closed.code, 5, "{closed:?}");
}

#[test]
fn status_list_and_show() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&["--label", "nightly"]);
    let path = daemon.nix.make("it");
    daemon.flush();
    let status = daemon.status();
    for key in ["version", "cache", "queue", "sessions", "store", "client"] {
        assert!(status.get(key).is_some(), "{key} in {status}");
    }
    let cache = &status["cache"][0];
    assert_eq!(
        (&cache["name"], &cache["state"], &cache["engine"]),
        (&"main".into(), &"online".into(), &"native".into())
    );
    assert_eq!(cache["endpoint"], format!("http://{}", daemon.main().address()), "{status}");
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(
        (&status["store"]["lag"], &status["queue"]["pending"]),
        (&Value::from(0), &Value::from(0)),
        "{status}"
    );
    assert!(status["store"]["cursor"].as_i64().unwrap() >= 2, "{status}");
    assert_eq!(keys(&status["queue"]), ["failed", "parked", "pending", "uploading"]);
    assert_eq!(status["sessions"][0]["session"], session.as_str());

    let shown = daemon.json(&["session", "show", &session]);
    assert_eq!(shown["paths_total"], 2, "{shown}");
    let entry = shown["paths"].as_array().unwrap().iter().find(|p| p["path"] == path.as_str()).unwrap();
    assert_eq!(entry["state"], "pushed", "{shown}");
    assert!(["process", "window"].contains(&entry["evidence"].as_str().unwrap()), "{shown}");
    assert_eq!(shown["summary"]["pushed"], 1);
    daemon.end(&session, &[]);
    assert_eq!(daemon.json(&["session", "list"]), serde_json::json!([]));
    assert_eq!(daemon.json(&["session", "list", "--all"])[0]["label"], "nightly");
    let text = daemon.ctl(&["session", "list", "--all"]);
    assert!(text.out.contains("nightly") && text.out.contains("closed"), "{text:?}");
    let text = daemon.ctl(&["status"]);
    assert!(text.out.contains("cache main: online, http://127.0.0.1:"), "{text:?}");
    let wrong = daemon.ctl(&["push", "/etc/passwd"]);
    assert_eq!(wrong.code, 2, "{wrong:?}");
}

#[test]
fn a_configuration_is_checked() {
    let daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    let check = |config: &Path| {
        CommandResult::of(
            &daemon.program().arg("--check-config").arg("--config").arg(config).output().unwrap(),
        )
    };
    let good = check(&daemon.config());
    assert_eq!(good.code, 0, "{good:?}");
    assert!(!daemon.state_dir().exists(), "nothing is made by a check");
    let bad = daemon.nix.path().join("bad.toml");
    for (text, line, word) in [
        ("[push]\nexisting = true\njbos = 3\n", 3, "jbos"),
        ("\n\n[push]\njobs = 0\n", 4, "jobs"),
        ("socket = \"relative\"\n", 1, "absolute"),
        ("[push\n", 1, ""),
    ] {
        std::fs::write(&bad, text).unwrap();
        for said in
            [check(&bad), CommandResult::of(&daemon.program().arg("--config").arg(&bad).output().unwrap())]
        {
            assert_eq!(said.code, 2, "{text:?}: {said:?}");
            let all = format!("{}{}", said.out, said.err);
            assert!(
                all.contains(&format!("{}:{line}:", bad.display())) && all.contains(word),
                "{text:?}: {all}"
            );
        }
    }
    // A token's file that does not exist is named.
    let (config, file) = (daemon.nix.path().join("token.toml"), daemon.nix.path().join("token"));
    let text = format!("[caches.main]\nendpoints = [\"https://a\"]\ntoken_file = \"{}\"\n", file.display());
    std::fs::write(&config, text).unwrap();
    let checked = check(&config);
    let missing = format!("token_file {} does not exist", file.display());
    assert!(checked.code == 0 && checked.err.contains(&missing), "{checked:?}");
    crate::support::daemon::secret_file(&file, "token");
    assert!(!check(&config).err.contains(&missing));

    let missing = check(Path::new("/nonexistent/flywheel.toml"));
    assert_eq!(missing.code, 2, "{missing:?}");
}

#[test]
fn without_caches_the_environment_decides_and_else_the_built_in_one() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |s| s.caches = vec!["theirs".to_owned()]);
    let mut daemon = Daemon::prepare(nix, "[embedded]\nlisten = \"127.0.0.1:0\"\n");
    daemon.env = vec![
        ("ATTIC_SERVER".to_owned(), cache.url()),
        ("ATTIC_CACHE".to_owned(), "theirs".to_owned()),
        ("ATTIC_TOKEN".to_owned(), cache.token()),
    ];
    daemon.up();
    daemon.nix.make("one");
    daemon.flush();
    assert_eq!(cache.view("theirs").names(), ["one"]);
    daemon.stop();
    daemon.env.clear();
    daemon.up();
    daemon.nix.make("two");
    daemon.flush();
    assert_eq!(daemon.main().names(), ["two"]);
    assert_eq!(cache.view("theirs").names(), ["one"]);

    // There is no configuration file, as on a host where only the package is installed.
    let empty = daemon.nix.path().join("empty");
    std::fs::create_dir(&empty).unwrap();
    let checked = CommandResult::of(
        &daemon.program().arg("--check-config").env("CONFIGURATION_DIRECTORY", &empty).output().unwrap(),
    );
    assert_eq!(checked.code, 0, "{checked:?}");
}

/// All files below a directory that contain these bytes.
fn containing(dir: &Path, needle: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let path = entry.path();
        if entry.file_type().unwrap().is_dir() {
            found.extend(containing(&path, needle));
        } else if entry.file_type().unwrap().is_file() {
            let bytes = std::fs::read(&path).unwrap();
            if bytes.windows(needle.len()).any(|w| w == needle.as_bytes()) {
                found.push(path.display().to_string());
            }
        }
    }
    found
}

#[test]
fn the_token_stays_inside() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    let mut daemon = Daemon::prepare(nix, &cache.config_at(&gate.url()));
    daemon.env = vec![("FLYWHEEL_LOG".to_owned(), "trace".to_owned())];
    daemon.up();
    let token = cache.token();
    assert!(token.len() > 20);
    gate.rule(|name| name.ends_with("-refused").then_some(400));
    let session = daemon.session(&[]);
    daemon.nix.make("taken");
    daemon.nix.make("refused");
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (&summary["pushed"], &summary["failed_total"]),
        (&Value::from(1), &Value::from(1)),
        "{summary}"
    );
    let pid = daemon.pid();
    for file in ["cmdline", "environ"] {
        let bytes = std::fs::read(format!("/proc/{pid}/{file}")).unwrap();
        assert!(!String::from_utf8_lossy(&bytes).contains(&token), "{file}");
    }
    let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap_or_default();
    assert_eq!(children.trim(), "", "it has no children to tell");
    assert!(!daemon.log().is_empty() && !daemon.log().contains(&token), "the log, at its most talkative");
    for args in [&["--json", "status"][..], &["--json", "session", "show", &session], &["status"]] {
        let said = daemon.ctl(args);
        assert!(!said.out.contains(&token) && !said.err.contains(&token), "{args:?}");
    }
    daemon.stop();
    assert_eq!(containing(&daemon.state_dir(), &token), Vec::<String>::new());

    // The built-in cache's own token is in its file and in no other.
    daemon.configure(EMBEDDED);
    daemon.up();
    daemon.nix.make("another");
    daemon.flush();
    let file = daemon.state_dir().join("embedded-push-token");
    let own = std::fs::read_to_string(&file).unwrap().trim().to_owned();
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    daemon.stop();
    assert_eq!(containing(&daemon.state_dir(), &own), [file.display().to_string()]);
    assert!(!daemon.logs().contains(&own));
}

#[test]
fn metrics_are_printed() {
    let daemon = Daemon::embedded();
    let path = daemon.nix.make("counted");
    daemon.flush();
    daemon.json(&["push", "--wait", &path]);
    let page = daemon.ctl(&["metrics"]);
    assert_eq!((page.code, page.err.as_str()), (0, ""), "{page:?}");
    let counts = &daemon.status()["cache"][0]["counts"];
    assert!(counts["pushed"].as_u64() >= Some(1) && counts["failed"] == 0, "{counts}");
    for (name, value) in [
        ("flywheel_cache_up{cache=\"main\"}".to_owned(), "1".to_owned()),
        ("flywheel_upload_duration_seconds_count{cache=\"main\"}".to_owned(), counts["pushed"].to_string()),
        ("flywheel_paths_total{cache=\"main\",outcome=\"pushed\"}".to_owned(), counts["pushed"].to_string()),
        ("flywheel_uploaded_bytes_total{cache=\"main\"}".to_owned(), counts["bytes"].to_string()),
    ] {
        assert!(page.out.contains(&format!("\n{name} {value}\n")), "{name} {value} in {}", page.out);
    }
}

/// An older systemd does not look into /etc/credstore, so the token goes into a file that the
/// configuration names.
#[test]
fn setup_knows_which_systemd_reads_credentials() {
    use std::io::Write as _;
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let systemctl = dir.path().join("systemctl");
    for (version, place) in [
        ("249 (249.11-0ubuntu3.12)", "/etc/flywheel/token"),
        ("252 (252.39-1)", "/etc/credstore/attic-token"),
    ] {
        std::fs::write(&systemctl, format!("#!/bin/sh\necho 'systemd {version}'\n")).unwrap();
        std::fs::set_permissions(&systemctl, std::fs::Permissions::from_mode(0o755)).unwrap();
        let mut setup = std::process::Command::new(env!("CARGO_BIN_EXE_flywheelctl"));
        setup.args([
            "setup",
            "--server",
            "https://attic.example.com",
            "--token-stdin",
            "--no-nix-conf",
            "--dry-run",
        ]);
        setup.arg("--config").arg(dir.path().join("flywheel.toml"));
        setup.env("PATH", format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap()));
        setup.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = setup.stderr(std::process::Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"a-token\n").unwrap();
        let planned = CommandResult::of(&child.wait_with_output().unwrap());
        let text = format!("{}{}", planned.out, planned.err);
        assert!(
            planned.code == 0 && text.contains(&format!("write the token to {place}")),
            "{version}: {text}"
        );
    }
}
