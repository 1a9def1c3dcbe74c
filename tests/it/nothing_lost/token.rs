//! A token that expires, is refused or is no JWT: the message comes in time and says what to do,
//! and no path fails.

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, secret_file, until};
use crate::support::nix::PrivateNix;

#[test]
fn an_expiring_token_is_warned_of_and_an_opaque_one_is_accepted() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let token = nix.path().join("token");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs();
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    secret_file(&token, &format!("{}.{}.sig", part("{}"), part(&format!("{{\"exp\":{}}}", now + 1800))));
    let config = cache.config().replace(cache.token_file().to_str().unwrap(), token.to_str().unwrap());
    let daemon = Daemon::start(nix, &config);
    until("it is warned of", || daemon.log().contains("expires in less than an hour"));
    // The cache accepts another token, which does not say when it expires.
    let path = daemon.nix.make("one");
    until("refused", || daemon.status()["cache"][0]["state"] == "unauthorized");
    assert!(!cache.token().contains('.'));
    secret_file(&token, &cache.token());
    daemon.flush();
    assert!(cache.main().has(&path));
    let log = daemon.log();
    assert_eq!(log.lines().filter(|line| line.contains("expires in less than")).count(), 1, "{log}");
}

#[test]
fn a_403_says_that_it_may_have_expired() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.rule(|_| Some(403));
    let daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let path = daemon.nix.make("one");
    until("refused", || daemon.status()["cache"][0]["state"] == "unauthorized");
    let log = daemon.log();
    let warning = log.lines().find(|line| line.contains("refuses the token")).unwrap();
    assert!(warning.contains("expired or lacks the right to push"), "{warning}");
    assert_eq!(daemon.status()["queue"]["parked"], 0);
    gate.rule(|_| None);
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    daemon.flush();
    assert!(cache.main().has(&path));
}
