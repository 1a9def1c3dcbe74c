//! `headers_file`: an access proxy lets only requests with its headers pass.

use super::HeadProxy;
use super::heads::refusal;
use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, secret_file, until};
use crate::support::nix::PrivateNix;

#[test]
fn an_access_proxy_gets_its_headers_and_new_ones_without_a_reload() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let access = HeadProxy::before(cache.address());
    let wants = |secret: &'static str| {
        move |head: &mut super::heads::Head| {
            (head.header("cf-access-client-secret") != Some(secret))
                .then(|| refusal("403 Forbidden", "x-why: access\r\n"))
        }
    };
    access.rule(wants("secret-one-0123456789"));
    let file = nix.path().join("headers");
    let write = |secret: &str| {
        secret_file(
            &file,
            &format!("# access\nCF-Access-Client-Id: id.access\nCF-Access-Client-Secret: {secret}\n"),
        );
    };
    write("secret-one-0123456789");
    let keys = format!("headers_file = \"{}\"\n[client]\nenable = false\n", file.display());
    let daemon = Daemon::start(nix, &format!("{}{keys}", cache.caches(&access.url())));
    let path = daemon.nix.make("with-headers");
    daemon.flush();
    assert!(cache.main().has(&path));
    let seen = access.seen();
    assert!(seen.iter().any(|head| head.line.starts_with("PUT ")), "{seen:?}");
    assert!(seen.iter().all(|head| head.header("cf-access-client-id") == Some("id.access")));
    // The proxy wants another secret, which comes into the file afterwards.
    access.rule(wants("secret-two-0123456789"));
    let path = daemon.nix.make("refused");
    until("the proxy refuses", || daemon.status()["cache"][0]["state"] == "unauthorized");
    let doctor = daemon.ctl(&["doctor"]);
    assert!(doctor.out.contains("403"), "{doctor:?}");
    write("secret-two-0123456789");
    until("the path arrives", || cache.main().has(&path));
    until("it is said", || daemon.log().contains("has new headers"));
    // A file that cannot be used is named, and the present headers stay.
    write("x\nnonsense");
    let reload = daemon.ctl(&["reload"]);
    assert!(reload.out.contains("no colon in line 4"), "{reload:?}");
    let path = daemon.nix.make("kept");
    daemon.flush();
    assert!(cache.main().has(&path));
    let all = format!("{}{:?}{:?}", daemon.logs(), doctor, daemon.status());
    assert!(!all.contains("0123456789"), "{all}");
}
