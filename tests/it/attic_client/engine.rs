//! `engine = "attic"`: paths go through the attic client as surely as through the native uploads.
//! The cache's contents decide what is pushed, never the client's output.

use std::path::Path;

use serde_json::Value;

use crate::support::attic::{FakeAttic, environment, substitute_from, until, until_client};
use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{Daemon, secret_file};
use crate::support::nix::PrivateNix;

/// A daemon that pushes through a client that is not built yet.
struct Rig {
    daemon: Daemon,
    cache: StandaloneCache,
    gate: UploadGate,
    fake: FakeAttic,
}

impl Rig {
    /// `more`: further lines of `[caches.main]`.
    fn new(more: &str) -> Self {
        let nix = PrivateNix::new();
        let cache = StandaloneCache::start(&nix, |_| {});
        let gate = cache.gate();
        substitute_from(&nix, &cache.main());
        let fake = FakeAttic::new(&nix);
        let config = format!("{}engine = \"attic\"\n{more}\n{}", cache.caches(&gate.url()), fake.config());
        let mut daemon = Daemon::prepare(nix, &config);
        daemon.env = environment(&daemon.nix);
        daemon.up();
        Self { daemon, cache, gate, fake }
    }

    /// The same with the client built.
    fn ready(more: &str) -> Self {
        let rig = Self::new(more);
        rig.fake.built(&rig.daemon.nix);
        until_client(&rig.daemon, "ready");
        rig.daemon.flush();
        rig
    }

    /// Builds this number of paths in one command; one of them is called `odd`.
    fn build(&self, count: usize, odd: &str) -> Vec<String> {
        let name = |n: usize| if n == count / 2 { odd.to_owned() } else { format!("path-{n}") };
        let all: Vec<String> = (0..count)
            .map(|n| format!("({})", PrivateNix::shell(&name(n), &format!("echo {n} > $out"))))
            .collect();
        let paths = self.daemon.nix.build(&format!("[ {} ]", all.join(" ")));
        assert_eq!(paths.len(), count);
        paths
    }
}

/// `status` shows what the client uploads, although not how far it is.
#[test]
fn uploads_of_the_client_are_shown() {
    let rig = Rig::ready("");
    rig.gate.close();
    let path = rig.build(1, "shown").remove(0);
    until("the upload is shown", || (rig.daemon.status()["uploads"] != serde_json::json!([])).then_some(()));
    let uploads = rig.daemon.status()["uploads"].clone();
    let upload = &uploads[0];
    assert_eq!((&upload["path"], &upload["measured"]), (&path.as_str().into(), &false.into()), "{uploads}");
    rig.gate.open();
    rig.daemon.flush();
    assert!(rig.cache.main().has(&path));
    assert_eq!(rig.daemon.status()["uploads"], serde_json::json!([]));
}

/// Phase 2b: the job that builds the client does not wait, and everything that it built, the client
/// included, is pushed when the client is ready.
#[test]
fn without_a_client_the_queue_holds_until_a_job_builds_it() {
    let rig = Rig::new("");
    until_client(&rig.daemon, "absent");
    let session = rig.daemon.session(&["--label", "pipeline 1"]);
    let early = rig.build(3, "early");
    let status = until("the queue to hold", || {
        let status = rig.daemon.status();
        (status["queue"]["pending"].as_u64() >= Some(3)).then_some(status)
    });
    assert_eq!(
        (&status["cache"][0]["engine"], &status["cache"][0]["state"]),
        (&"attic".into(), &"online".into())
    );
    let reason = status["cache"][0]["reason"].as_str().unwrap();
    assert!(reason.starts_with("waiting for the attic client"), "{status}");
    // A session end that does not wait says so, and that nothing is lost.
    let ended = rig.daemon.end(&session, &["--timeout", "1s"]);
    assert_eq!(
        (&ended["outcome"], &ended["waited_for_client"]),
        (&"pending".into(), &true.into()),
        "{ended}"
    );
    assert!(ended["warnings"][0].as_str().unwrap().starts_with("waiting for the attic client"), "{ended}");
    assert_eq!(rig.gate.came().len(), 0);
    // The queue waits; there are no repeated tries.
    assert!(
        !rig.daemon.log().contains("an upload of ")
            && !rig.daemon.log().contains("the attic client has not pushed it")
    );

    let later = rig.daemon.session(&["--label", "pipeline 1, the client"]);
    let client = rig.fake.built(&rig.daemon.nix);
    let summary = rig.daemon.end(&later, &[]);
    assert_eq!(summary["outcome"], "complete", "{summary}");
    assert_eq!(
        (&summary["engine"], &summary["waited_for_client"]),
        (&"attic".into(), &true.into()),
        "{summary}"
    );
    assert!(rig.cache.main().has(&client), "the client itself is in the cache now");
    let summary = rig.daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &3.into()), "{summary}");
    assert_eq!(rig.cache.main().having(&early), [true; 3]);
    rig.cache.main().assert_closed();

    // A later session used the client from its beginning (phase 2a).
    let third = rig.daemon.session(&[]);
    rig.build(1, "third");
    let summary = rig.daemon.end(&third, &[]);
    assert_eq!((&summary["pushed"], &summary["waited_for_client"]), (&1.into(), &false.into()), "{summary}");
    let text = rig.daemon.ctl(&["session", "end", &third]);
    assert!(text.out.contains("  engine:         attic\n"), "{text:?}");
}

#[test]
fn references_come_first_and_nix_takes_it_all_back() {
    let mut rig = Rig::ready("");
    let session = rig.daemon.session(&[]);
    let top = rig
        .daemon
        .nix
        .build(
            "let f = n: derivation { name = \"c-${toString n}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; \
             needs = if n == 0 then [ ] else [ (f (n - 1)) ]; args = [ \"-c\" \"echo $needs > $out\" ]; }; in f 11",
        )
        .remove(0);
    let summary = rig.daemon.end(&session, &["--push", &top]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &12.into()), "{summary}");
    // In the order of arrival at the server, each path comes after the one that it refers to.
    let order: Vec<String> =
        rig.gate.came().iter().filter_map(|b| b[33..].strip_prefix("c-").map(str::to_owned)).collect();
    assert_eq!(order, (0..12).map(|n| n.to_string()).collect::<Vec<_>>());
    rig.cache.main().assert_closed();
    rig.daemon.stop();
    rig.cache.main().assert_nix_takes(&rig.daemon.nix, &[top]);
}

#[test]
fn one_bad_path_in_fifty_costs_itself_only() {
    let mut rig = Rig::ready("");
    // attic gives up a whole run for one refused path, and does not say which.
    rig.fake.mode("poison odd-one");
    let session = rig.daemon.session(&[]);
    // All paths at once, so that the odd one is in a run with others.
    rig.daemon.stop();
    let paths = rig.build(50, "odd-one");
    rig.daemon.up();
    let summary = rig.daemon.end(&session, &[]);
    let log = rig.daemon.log();
    let mut failed = log.lines().filter(|line| line.contains("an upload of ")).peekable();
    assert!(failed.peek().is_some());
    failed.for_each(|line| assert!(line.contains("odd-one"), "none of the others has failed once: {line}"));
    let runs = rig.fake.runs();
    let largest = runs
        .iter()
        .filter_map(|run| run.split(' ').nth(2).filter(|_| run.contains(" took "))?.parse().ok())
        .max();
    assert!(largest >= Some(5), "they went in company: {largest:?}");
    assert_eq!((&summary["pushed"], &summary["failed_total"]), (&49.into(), &1.into()), "{summary}");
    let failed = &summary["failed"][0];
    assert_eq!(failed["path"], paths[25].as_str(), "{summary}");
    assert!(failed["error"].as_str().unwrap().contains("something about one of the paths"), "{summary}");
    let expected: Vec<bool> = (0..50).map(|n| n != 25).collect();
    assert_eq!(rig.cache.main().having(&paths), expected);
    // After the repair the path is pushed.
    rig.fake.mode("");
    let pushed = rig.daemon.json(&["push", "--wait", &paths[25]]);
    assert_eq!((&pushed["outcome"], &pushed["pushed"]), (&"complete".into(), &1.into()), "{pushed}");
}

#[test]
fn a_path_that_the_server_refuses_is_reported_by_its_own_line() {
    let rig = Rig::ready("");
    rig.gate.rule(|base| base.ends_with("-huge").then_some(413));
    let session = rig.daemon.session(&[]);
    let paths = rig.build(6, "huge");
    let summary = rig.daemon.end(&session, &[]);
    assert_eq!((&summary["pushed"], &summary["failed_total"]), (&5.into(), &1.into()), "{summary}");
    assert_eq!(summary["failed"][0]["class"], "too-large", "{summary}");
    assert_eq!(rig.cache.main().having(&paths).iter().filter(|has| **has).count(), 5);
    // Once, and not again and again.
    assert_eq!(rig.gate.came().iter().filter(|base| base.ends_with("-huge")).count(), 1);
    // What the client says of the path is in the log.
    let log = rig.daemon.log();
    let line = log.lines().find(|l| l.contains("an upload of ")).unwrap_or_else(|| panic!("{log}"));
    assert!(line.contains("-huge") && line.contains("413"), "{line}");
}

/// A client that crashes, prints nonsense, or claims success falsely: the cache is asked, and
/// nothing counts as pushed that is not there.
#[test]
fn a_client_that_crashes_or_prints_nonsense_or_lies() {
    let rig = Rig::ready("");
    rig.fake.mode("garbage");
    let session = rig.daemon.session(&[]);
    let noisy = rig.build(3, "noisy");
    assert_eq!(rig.daemon.end(&session, &[])["pushed"], 3);
    assert_eq!(rig.cache.main().having(&noisy), [true; 3]);

    for (mode, says) in [("crash", "signal 6"), ("liar", "the cache does not have it")] {
        rig.fake.mode(mode);
        let session = rig.daemon.session(&[]);
        let paths = rig.daemon.nix.build(&PrivateNix::shell(mode, &format!("echo {mode} > $out")));
        let summary = rig.daemon.end(&session, &[]);
        assert_eq!(
            (&summary["pushed"], &summary["failed_total"]),
            (&0.into(), &1.into()),
            "{mode}: {summary}"
        );
        let error = summary["failed"][0]["error"].as_str().unwrap();
        assert!(error.contains(says), "{mode}: {error}");
        assert!(!rig.cache.main().has(&paths[0]));
        rig.fake.mode("");
        assert_eq!(rig.daemon.json(&["push", "--wait", &paths[0]])["pushed"], 1, "{mode}");
        assert!(rig.cache.main().has(&paths[0]));
    }
    assert_eq!(rig.daemon.status()["client"]["state"], "ready", "it answers, so it is not given up");
}

#[test]
fn a_client_that_hangs_is_killed_and_the_paths_go_with_the_next() {
    let rig = Rig::ready("stall_timeout = \"2s\"");
    rig.fake.mode("hang");
    let session = rig.daemon.session(&[]);
    let paths = rig.build(4, "slow");
    until("a run that hangs and is killed", || {
        rig.daemon.log().contains("it made no progress for 2 s").then_some(())
    });
    rig.fake.mode("");
    let summary = rig.daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &4.into()), "{summary}");
    assert_eq!(rig.cache.main().having(&paths), [true; 4]);
    let alive: Vec<String> = hanging(&rig.fake);
    assert!(alive.is_empty(), "{alive:?}");
}

/// Process numbers of the client's running processes.
fn hanging(fake: &FakeAttic) -> Vec<String> {
    let pids = fake.runs().into_iter().filter_map(|run| run.split(' ').next().map(str::to_owned));
    let is_fake = |pid: &String| {
        let name = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        String::from_utf8_lossy(&name).contains("fake-attic")
    };
    pids.filter(is_fake).collect()
}

#[test]
fn no_process_of_the_client_outlives_the_daemon() {
    let mut rig = Rig::ready("");
    for kill in [true, false] {
        rig.fake.mode("hang");
        rig.build(1, if kill { "killed" } else { "stopped" });
        until("a run that hangs", || (!hanging(&rig.fake).is_empty()).then_some(()));
        if kill {
            rig.daemon.kill();
        } else {
            // A second SIGTERM ends the daemon at once.
            rig.daemon.signal(rustix::process::Signal::TERM);
            until("the end to begin", || rig.daemon.log().contains("stopping:").then_some(()));
            rig.daemon.signal(rustix::process::Signal::TERM);
            rig.daemon.ended();
        }
        until("the client's end", || hanging(&rig.fake).is_empty().then_some(()));
        // The paths of that run are pushed after the next start.
        rig.fake.mode("");
        rig.daemon.up();
        until_client(&rig.daemon, "ready");
        assert_eq!(rig.daemon.flush()["outcome"], "complete");
    }
    let names = rig.cache.main().names();
    assert!(names.contains(&"killed".to_owned()) && names.contains(&"stopped".to_owned()), "{names:?}");
}

#[test]
fn a_deleted_client_holds_the_queue_until_it_is_back() {
    let rig = Rig::ready("");
    // The client is deleted by force.
    let path = rig.daemon.status()["client"]["path"].as_str().unwrap().to_owned();
    let package = Path::new(&path).parent().unwrap().parent().unwrap();
    let away = rig.daemon.nix.path().join("away");
    std::process::Command::new("chmod").arg("u+w").arg(package).status().unwrap();
    std::fs::rename(package, &away).unwrap();
    let session = rig.daemon.session(&[]);
    rig.build(2, "while-gone");
    until("the loss to be noticed", || rig.daemon.log().contains("does not work any more").then_some(()));
    std::fs::rename(&away, package).unwrap();
    assert_eq!(rig.daemon.ctl(&["reload"]).code, 0);
    let summary = rig.daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &2.into()), "{summary}");
}

/// The token changes in its file: the next run of the client uses the new one.
#[test]
fn a_token_is_renewed_and_never_seen() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |settings| settings.public = false);
    let fake = FakeAttic::new(&nix);
    let package = fake.built(&nix);
    let token = nix.path().join("token");
    secret_file(&token, "wrong.token.here");
    let config = format!(
        "[caches.main]\nendpoints = [\"{}\"]\ntoken_file = \"{}\"\nengine = \"attic\"\n{}",
        cache.url(),
        token.display(),
        fake.config()
    );
    let mut daemon = Daemon::prepare(nix, &config);
    daemon.env = environment(&daemon.nix);
    daemon.up();
    // The client is there and cannot be tried: the cache refuses its token, as it refuses the
    // daemon's.
    let waiting = until("the refusal", || {
        let client = daemon.status()["client"].clone();
        client["error"].as_str().is_some_and(|error| error.contains("401")).then_some(client)
    });
    assert_ne!(waiting["state"], "ready", "{waiting}");
    let session = daemon.session(&[]);
    let path = daemon.nix.build(&PrivateNix::shell("private", "echo private > $out")).remove(0);
    secret_file(&token, &cache.token());
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (&summary["outcome"], &summary["pushed"]),
        (&Value::from("complete"), &Value::from(1)),
        "{summary}"
    );
    let pushed = daemon.json(&["push", "--wait", &package]);
    assert_eq!(pushed["outcome"], "complete", "{pushed}");
    assert_eq!(daemon.status()["client"]["path"], format!("{package}/bin/attic"));
    let status = daemon.status().to_string();
    for seen in [fake.runs().join("\n"), daemon.log(), status, path] {
        assert!(!seen.contains(&cache.token()) && !seen.contains("wrong.token.here"), "{seen}");
    }
}

/// The client repeats the token in its errors: neither the log nor any answer has it, or a half of it.
#[test]
fn a_token_that_the_client_repeats_is_taken_out() {
    let rig = Rig::ready("");
    rig.fake.mode("echo");
    let session = rig.daemon.session(&[]);
    let path = rig.build(1, "odd").remove(0);
    let summary = rig.daemon.ctl(&["--json", "session", "end", &session]);
    assert_eq!(summary.json()["failed_total"].as_u64().or(Some(1)), Some(1), "{summary:?}");
    let token = rig.cache.token();
    let why = rig.daemon.ctl(&["why", &path]);
    assert!(why.out.contains("Payload Too Large: Bearer [token]"), "{why:?}");
    let said = [rig.daemon.log(), rig.daemon.status().to_string(), summary.out, summary.err, why.out];
    let (begin, end) = token.split_at(token.len() / 2);
    for said in said {
        for part in [&token, begin, end] {
            assert!(!said.contains(part), "{said}");
        }
    }
}

/// A token that is in no file is written to one that only the service can read, and to no other
/// place.
#[test]
fn a_token_from_the_environment() {
    use std::os::unix::fs::PermissionsExt as _;
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |settings| settings.public = false);
    let fake = FakeAttic::new(&nix);
    fake.built(&nix);
    let mut daemon = Daemon::prepare(nix, &format!("[push]\nengine = \"attic\"\n{}", fake.config()));
    daemon.env = environment(&daemon.nix);
    for (name, value) in [("ATTIC_SERVER", cache.url()), ("ATTIC_TOKEN", cache.token())] {
        daemon.env.push((name.to_owned(), value));
    }
    daemon.up();
    until_client(&daemon, "ready");
    let session = daemon.session(&[]);
    daemon.nix.build(&PrivateNix::shell("by-environment", "echo hi > $out"));
    let summary = daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &1.into()), "{summary}");
    let file = daemon.state_dir().join("run/attic-token-main");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let runs = fake.runs().join("\n");
    assert!(runs.contains("env XDG_CONFIG_HOME="), "{runs}");
    for seen in [runs, daemon.log(), daemon.status().to_string()] {
        assert!(!seen.contains(&cache.token()), "{seen}");
    }
}
