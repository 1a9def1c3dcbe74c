//! A cache at an IPv6 address: endpoint, built-in cache, substituter, netrc.

use std::net::TcpListener;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, secret_file, until};
use crate::support::nix::PrivateNix;

/// Whether this machine has `::1`; a line says so if not.
fn has_ipv6() -> bool {
    let has = TcpListener::bind("[::1]:0").is_ok();
    if !has {
        eprintln!("skipped: this machine has no address ::1");
    }
    has
}

#[test]
fn a_private_cache_at_an_ipv6_address() {
    if !has_ipv6() {
        return;
    }
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |settings| {
        settings.listen = "[::1]:0".parse().unwrap();
        settings.public = false;
    });
    let (pull, netrc) = (nix.path().join("pull"), nix.path().join("netrc"));
    secret_file(&pull, &cache.pull_token());
    let mut daemon = Daemon::prepare(nix, "");
    assert!(cache.url().starts_with("http://[::1]:"));
    let keys = format!("pull_token_file = \"{}\"\n[client]\nenable = false\n", pull.display());
    daemon.configure_nix(
        &format!("{}{keys}", cache.caches(&cache.url())),
        &format!("netrc = \"{}\"\n", netrc.display()),
    );
    // A proxy of the environment is not for this host.
    daemon.env.push(("http_proxy".to_owned(), "http://127.0.0.1:9".to_owned()));
    daemon.up();
    let path = daemon.nix.build(&PrivateNix::shell("six", "echo six > $out")).remove(0);
    daemon.flush();
    // The netrc file has the host as curl compares it, without brackets.
    until("the netrc file", || {
        std::fs::read_to_string(&netrc).is_ok_and(|text| text.contains("machine ::1"))
    });
    let conf = daemon.ctl(&["nix-conf"]).out;
    assert!(conf.contains(&format!("extra-substituters = {}/main\n", cache.url())), "{conf}");
    // A real Nix reads it with these lines.
    daemon.nix.configure(&format!("substitute = true\n{conf}"));
    daemon.nix.wipe();
    let taken = daemon.nix.run("nix-store", &["--realise", &path]);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
}

#[test]
fn the_built_in_cache_at_an_ipv6_address() {
    if !has_ipv6() {
        return;
    }
    let config = "[caches.main]\nendpoints = \"embedded\"\n[embedded]\nlisten = \"[::1]:0\"\n[client]\nenable = false\n";
    let daemon = Daemon::start(PrivateNix::new(), config);
    let path = daemon.nix.make("six");
    daemon.flush();
    let view = daemon.main();
    assert!(view.address().starts_with("[::1]:") && view.has(&path), "{view:?}");
}
