//! HTTP proxies: of the configuration, of a file, of the environment; with a login; and none.

use super::HeadProxy;
use super::heads::{Head, refusal};
use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, secret_file, until};
use crate::support::nix::PrivateNix;

/// A name that only the proxy of the test knows.
const ENDPOINT: &str = "http://cache.flywheel.invalid";
/// "me:hunter/two22" in base 64.
const LOGIN: &str = "Basic bWU6aHVudGVyL3R3bzIy";

fn config(cache: &StandaloneCache, keys: &str) -> String {
    format!("{}{keys}[client]\nenable = false\n", cache.caches(ENDPOINT))
}

fn started(nix: &PrivateNix) -> (StandaloneCache, HeadProxy) {
    let cache = StandaloneCache::start(nix, |s| s.host_names = vec!["cache.flywheel.invalid".to_owned()]);
    let proxy = HeadProxy::before(cache.address());
    (cache, proxy)
}

fn pushes(daemon: &Daemon, cache: &StandaloneCache, name: &str) {
    let path = daemon.nix.make(name);
    daemon.flush();
    assert!(cache.main().has(&path), "{name}");
}

fn reload(daemon: &Daemon, config: &str) {
    daemon.configure(config);
    let result = daemon.ctl(&["reload"]);
    assert_eq!(result.code, 0, "{result:?}");
}

#[test]
fn the_configured_proxy_gets_the_login_and_the_cache_does_not() {
    let nix = PrivateNix::new();
    let (cache, proxy) = started(&nix);
    let file = nix.path().join("proxy");
    let wants = |head: &mut Head| {
        (head.header("proxy-authorization") != Some(LOGIN)).then(|| {
            refusal("407 Proxy Authentication Required", "proxy-authenticate: Basic realm=\"p\"\r\n")
        })
    };
    proxy.rule(wants);
    let login = |password: &str| format!("http://me:{password}@{}", proxy.host());
    let daemon = Daemon::start(nix, &config(&cache, &format!("proxy = \"{}\"\n", login("wrong-password-1"))));
    daemon.nix.make("waits");
    until("the proxy wants another login", || {
        let status = daemon.status()["cache"][0].clone();
        let reason = status["reason"].as_str().unwrap_or_default().to_owned();
        status["state"] == "offline" && reason.contains("407") && reason.contains("login")
    });
    // A slash in the password is percent-encoded.
    reload(&daemon, &config(&cache, &format!("proxy = \"{}\"\n", login("hunter%2Ftwo22"))));
    pushes(&daemon, &cache, "by-proxy");
    let seen = proxy.seen();
    assert!(seen.iter().all(|head| head.line.contains(&format!(" {ENDPOINT}/"))), "{seen:?}");
    // From a file, which is read again with a reload.
    secret_file(&file, &login("wrong-password-2"));
    let of_file = config(&cache, &format!("proxy_file = \"{}\"\n", file.display()));
    reload(&daemon, &of_file);
    daemon.nix.make("waits-again");
    until("the proxy refuses", || daemon.status()["cache"][0]["state"] == "offline");
    secret_file(&file, &login("hunter%2Ftwo22"));
    reload(&daemon, &of_file);
    pushes(&daemon, &cache, "by-file");
    let all = format!("{}{:?}{:?}", daemon.logs(), daemon.status(), daemon.ctl(&["doctor"]));
    assert!(!all.contains("hunter") && !all.contains("wrong-password"), "{all}");
}

#[test]
fn the_proxy_of_the_environment_and_its_exceptions() {
    let nix = PrivateNix::new();
    let (cache, proxy) = started(&nix);
    let mut daemon = Daemon::prepare(nix, &config(&cache, ""));
    daemon.env = vec![("http_proxy".to_owned(), proxy.url())];
    daemon.up();
    pushes(&daemon, &cache, "by-environment");
    let seen = proxy.seen().len();
    // `none` goes directly, where nobody knows the name.
    reload(&daemon, &config(&cache, "proxy = \"none\"\n"));
    daemon.nix.make("directly");
    until("the name is not known", || daemon.status()["cache"][0]["state"] == "offline");
    assert_eq!(proxy.seen().len(), seen);
    daemon.stop();
    daemon.configure(&config(&cache, ""));
    daemon.env.push(("no_proxy".to_owned(), "example.com,.flywheel.invalid".to_owned()));
    daemon.up();
    until("an exception goes directly", || daemon.status()["cache"][0]["state"] == "offline");
    assert_eq!(proxy.seen().len(), seen);
    // A proxy of the configuration has no exceptions from the environment.
    reload(&daemon, &config(&cache, &format!("proxy = \"{}\"\n", proxy.url())));
    pushes(&daemon, &cache, "configured");
}

#[test]
fn an_address_of_this_host_needs_no_proxy() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let proxy = HeadProxy::before(cache.address());
    let keys = format!("proxy = \"{}\"\n[client]\nenable = false\n", proxy.url());
    let daemon = Daemon::start(nix, &format!("{}{keys}", cache.caches(&cache.url())));
    pushes(&daemon, &cache, "directly");
    assert!(proxy.seen().is_empty());
}
