//! A changed configuration is applied while the daemon runs: all of it or nothing, and what needs a
//! restart is named.

use rustix::process::Signal;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, EMBEDDED, secret_file, until};
use crate::support::nix::PrivateNix;

#[test]
fn a_bad_configuration_changes_nothing_and_says_why() {
    let mut daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    let good = std::fs::read_to_string(daemon.config()).unwrap();
    // One change is valid and one is not: neither is applied.
    std::fs::write(
        daemon.config(),
        format!("{good}[push.filter]\nnames = [\"!kept\"]\n[drain]\ntimeuot = \"1s\"\n"),
    )
    .unwrap();
    let said = daemon.ctl(&["--strict", "reload"]);
    assert_ne!(said.code, 0, "{said:?}");
    let line = good.lines().count() + 4;
    let place = format!("{}:{line}:", daemon.config().display());
    assert!(said.err.contains(&place) && said.err.contains("timeout"), "{place}: {said:?}");
    assert!(daemon.log().contains("cannot be used") && daemon.log().contains(&place), "{}", daemon.log());
    // The same after SIGHUP.
    daemon.signal(Signal::HUP);
    until("it is logged again", || daemon.log().matches("the new configuration cannot be used").count() == 2);

    let kept = daemon.nix.make("kept");
    assert_eq!(daemon.end(&session, &[])["pushed"], 1);
    assert!(daemon.main().has(&kept));
    // systemd was notified of both reloads.
    until("it is ready again", || daemon.notified().iter().filter(|l| *l == "READY=1").count() == 3);
    let notified = daemon.notified();
    let at = notified.iter().position(|l| l == "RELOADING=1").unwrap();
    let time = notified[at + 1].strip_prefix("MONOTONIC_USEC=").unwrap_or_else(|| panic!("{notified:?}"));
    assert!(time.parse::<u64>().unwrap() > 0);
    daemon.stop();
}

/// A credential that systemd has not renewed is named in the answer to a reload; a renewed one is used.
#[test]
fn a_reload_says_that_a_credential_is_the_same() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| ());
    let config = format!("[caches.main]\nendpoints = [\"{}\"]\n[client]\nenable = false\n", cache.url());
    let mut daemon = Daemon::prepare(nix, &config);
    let credentials = daemon.nix.path().join("credentials");
    std::fs::create_dir(&credentials).unwrap();
    secret_file(&credentials.join("attic-token"), "first-token");
    let dir = credentials.to_str().unwrap().to_owned();
    daemon.env.push(("CREDENTIALS_DIRECTORY".to_owned(), dir));
    daemon.up();
    // The first reload reads the token, if nothing has asked the cache before.
    daemon.ctl(&["reload"]);
    let same = daemon.ctl(&["reload"]);
    assert!(
        same.out.contains("main: the token is a systemd credential, and the one that was read last"),
        "{same:?}"
    );
    assert!(same.out.contains("systemctl restart flywheeld"), "{same:?}");
    secret_file(&credentials.join("attic-token"), &cache.token());
    let renewed = daemon.ctl(&["reload"]);
    // The daemon may have read the renewed one already: the cache refuses the first one, so it
    // reads it again by itself. Which of the two is in use is seen by a push.
    assert_eq!(renewed.code, 0, "{renewed:?}");
    let path = daemon.nix.make("credential");
    let pushed = daemon.json(&["push", "--wait", &path]);
    assert_eq!(pushed["outcome"], "complete", "{pushed}");
    assert!(cache.main().has(&path));
}

#[test]
fn a_reload_applies_what_it_can() {
    let nix = PrivateNix::new();
    let other = StandaloneCache::start(&nix, |_| ());
    let mut daemon = Daemon::start(nix, EMBEDDED);
    let before = daemon.session(&[]);
    daemon.nix.make("before");
    assert_eq!(daemon.end(&before, &[])["pushed"], 1);

    // Another cache, which is the default from now on, and a filter.
    let table = other
        .config()
        .replace("[caches.main]", "[caches.other]\ncache = \"main\"")
        .replace("[client]\nenable = false\n", "");
    daemon.configure(&format!(
        "default_cache = \"other\"\n{EMBEDDED}{table}[push]\njobs = 3\n[push.filter]\nnames = [\"*\", \"!secret-*\"]\n\
         [[route]]\nlabel = \"old-*\"\ncache = \"main\"\n"
    ));
    daemon.signal(Signal::HUP);
    until("it is read", || daemon.log().contains("reload: new settings"));
    let line = daemon.log().lines().find(|l| l.contains("reload: new settings")).unwrap().to_owned();
    for key in ["push.jobs", "push.filter", "caches.other", "default_cache", "route"] {
        assert!(line.contains(key), "{key}: {line}");
    }
    let names: Vec<String> = daemon.status()["cache"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names, ["main", "other"]);

    let new = daemon.session(&[]);
    let (path, secret) = (daemon.nix.make("after"), daemon.nix.make("secret-one"));
    let summary = daemon.end(&new, &[]);
    assert_eq!(
        (summary["cache"].as_str(), summary["pushed"].as_u64()),
        (Some("other"), Some(1)),
        "{summary}"
    );
    let cache = other.main();
    assert!(cache.has(&path) && !cache.has(&secret) && !daemon.main().has(&path));
    // A session that a route sends to the first cache, or that names it, still uses it.
    let old = daemon.session(&["--label", "old-job"]);
    let path = daemon.nix.make("routed");
    assert_eq!(daemon.end(&old, &[])["cache"], "main");
    assert!(daemon.main().has(&path));
    // A second reload has nothing to apply, and the added cache is there after a restart.
    let said = daemon.ctl(&["reload"]);
    assert!(said.out.contains("settings unchanged") || said.err.contains("settings unchanged"), "{said:?}");
    daemon.restart();
    let last = daemon.session(&[]);
    let path = daemon.nix.make("last");
    assert_eq!(daemon.end(&last, &[])["pushed"], 1);
    assert!(other.main().has(&path));
    daemon.stop();
}

/// A wrong endpoint is corrected while paths wait for it.
#[test]
fn a_cache_is_found_at_its_new_address() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| ());
    let good = cache.config();
    let start = good.find("http://").unwrap();
    let end = start + good[start..].find('"').unwrap();
    let daemon = Daemon::start(nix, &good.replace(&good[start..end], "http://127.0.0.1:9"));
    let path = daemon.nix.make("waits");
    until("the cache is away", || daemon.log().contains("does not answer"));
    daemon.configure(&good);
    let said = daemon.ctl(&["reload"]);
    assert!(said.out.contains("caches.main") || said.err.contains("caches.main"), "{said:?}");
    daemon.flush();
    assert!(cache.main().has(&path));
}

#[test]
fn what_needs_a_restart_is_named_and_left_alone() {
    let mut daemon = Daemon::embedded();
    let text = std::fs::read_to_string(daemon.config()).unwrap();
    let changed = text
        .replace("/s\"\n", "/other\"\n")
        .replace("127.0.0.1:0\"", "127.0.0.1:0\"\nmax_size = \"1GiB\"")
        .replace("/var/nix\"", "/var/nix\"\ngc_roots = \"/nowhere\"");
    std::fs::write(
        daemon.config(),
        changed.replace("/nowhere", &format!("{}/var/nix/gcroots/x", daemon.nix.path().display())),
    )
    .unwrap();
    let said = daemon.ctl(&["reload"]);
    assert_eq!(said.code, 0, "{said:?}");
    let printed = format!("{}{}", said.out, said.err);
    assert!(printed.contains("restart flywheeld to apply: socket, nix.gc_roots, embedded"), "{printed}");
    assert!(daemon.log().contains("restart flywheeld to apply"), "{}", daemon.log());
    daemon.nix.make("one");
    assert_eq!(daemon.flush()["outcome"], "complete", "on the same socket");
    assert!(!daemon.nix.path().join("other").exists());
    daemon.stop();
}
