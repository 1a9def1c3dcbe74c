//! `doctor` against the real daemon, a real cache and the real Nix.

use serde_json::Value;

use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{CommandResult, Daemon, until};
use crate::support::nix::PrivateNix;
use crate::support::users::{as_nobody, can_switch_user, open_to_all};

fn gated() -> (Daemon, StandaloneCache, UploadGate) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    (Daemon::start(nix, &cache.config_at(&gate.url())), cache, gate)
}

/// Runs `doctor` with this host's private Nix; returns its status and its JSON.
fn look(daemon: &Daemon, args: &[&str]) -> (i32, Value) {
    let mut doctor = daemon.client(&[&["--json", "doctor"], args].concat());
    let said = CommandResult::of(&doctor.envs(daemon.nix.env()).output().unwrap());
    (said.code, said.json())
}

fn finding<'a>(all: &'a Value, what: &str) -> &'a Value {
    let list = all["findings"].as_array().unwrap();
    list.iter().find(|f| f["what"] == what).unwrap_or_else(|| panic!("{what}: {all}"))
}

#[test]
fn doctor_names_what_is_wrong() {
    let (daemon, _cache, gate) = gated();
    daemon.nix.make("first");
    daemon.flush();
    // This private Nix uses no cache; doctor says how to make it.
    let (code, all) = look(&daemon, &[]);
    assert_eq!(
        (code, &all["outcome"], &finding(&all, "cache main")["level"]),
        (3, &"bad".into(), &"good".into())
    );
    let reading = finding(&all, "reading main");
    assert_eq!((&reading["level"], &reading["good"]), (&"bad".into(), &false.into()), "{reading}");
    assert!(reading["command"].as_str().unwrap().contains("flywheelctl nix-conf"), "{reading}");
    daemon.nix.configure(&daemon.ctl(&["nix-conf"]).out);
    let (code, all) = look(&daemon, &[]);
    assert_eq!((code, &all["outcome"]), (0, &"good".into()), "{all}");
    gate.rule(|_| Some(401));
    daemon.nix.make("second");
    until("the token is refused", || daemon.status()["cache"][0]["state"] == "unauthorized");
    let (code, all) = look(&daemon, &[]);
    let cache = finding(&all, "cache main");
    assert_eq!((code, &cache["level"]), (3, &"bad".into()), "{cache}");
    assert!(cache["text"].as_str().unwrap().contains("paths wait until it is renewed"), "{cache}");
    let people = daemon.ctl(&["doctor"]);
    assert!(people.code == 3 && people.out.starts_with("BAD "), "{people:?}");
}

#[test]
fn a_path_is_pushed_and_read_back_on_request_only() {
    let (daemon, cache, gate) = gated();
    let (_, all) = look(&daemon, &[]);
    assert!(gate.came().is_empty(), "nothing is uploaded without --push");
    assert!(!all.to_string().contains(&cache.token()), "no secret");
    let (_, all) = look(&daemon, &["--push"]);
    let found = finding(&all, "cache main");
    assert!(found["level"] == "good" && found["text"].as_str().unwrap().contains("returned it"), "{found}");
    assert_eq!(cache.main().names(), ["flywheel-doctor"]);
    gate.rule(|_| Some(413));
    let (code, all) = look(&daemon, &["--push"]);
    let found = finding(&all, "cache main");
    assert_eq!((code, &found["level"]), (3, &"bad".into()), "{found}");
    assert!(found["text"].as_str().unwrap().contains("accepted no upload"), "{found}");
    if can_switch_user() {
        open_to_all(&daemon);
        let stranger = as_nobody(&daemon, &["--json", "doctor", "--push"]).json();
        assert!(
            finding(&stranger, "caches")["text"].as_str().unwrap().contains("`doctor --push` is for root")
        );
        assert_eq!(as_nobody(&daemon, &["doctor"]).code, 3, "others may look");
    }
}

#[test]
fn a_cache_that_is_away_is_not_blamed_on_nix_conf() {
    let (mut daemon, cache, _gate) = gated();
    daemon.nix.make("first");
    daemon.flush();
    daemon.nix.configure(&daemon.ctl(&["nix-conf"]).out);
    drop(cache);
    let (code, all) = look(&daemon, &[]);
    let (found, reading) = (finding(&all, "cache main"), finding(&all, "reading main"));
    assert_eq!((code, &found["level"]), (3, &"bad".into()), "{all}");
    assert!(!all.to_string().contains("takes uploads"), "{all}");
    assert!(reading["text"].as_str().unwrap().starts_with("nix.conf is set up, and "), "{reading}");
    // After a restart the daemon does not know what the cache says of itself.
    daemon.kill();
    daemon.up();
    let (_, all) = look(&daemon, &[]);
    let reading = finding(&all, "reading main");
    assert_eq!(reading["level"], "unchecked", "{reading}");
    assert!(reading["text"].as_str().unwrap().starts_with("nix.conf names http://127.0.0.1"), "{reading}");
}

#[test]
fn without_a_daemon_doctor_checks_what_it_can() {
    let mut daemon = Daemon::embedded();
    daemon.stop();
    let (code, all) = look(&daemon, &[]);
    assert_eq!((code, &all["outcome"]), (5, &"unreachable".into()), "{all}");
    assert!(all["error"].as_str().unwrap().contains("no flywheel daemon"), "{all}");
    assert_eq!(finding(&all, "caches")["level"], "unchecked");
    assert_eq!(finding(&all, "post-build-hook")["level"], "good");
    let people = daemon.ctl(&["doctor"]);
    assert!(people.code == 5 && people.out.contains("not checked  caches: "), "{people:?}");
    assert!(people.err.starts_with("error: no flywheel daemon at "), "{people:?}");
}
