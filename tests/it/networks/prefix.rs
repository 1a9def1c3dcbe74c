//! A server below a path of its host, behind nginx: `https://host/attic/`.

use crate::faults::Nginx;
use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, secret_file, until};
use crate::support::nix::PrivateNix;

#[test]
fn a_server_below_a_path() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |settings| settings.public = false);
    let behind = cache.url();
    let location = format!(
        "location /attic/ {{ proxy_pass {behind}/; proxy_http_version 1.1; proxy_set_header Host $http_host; \
         proxy_set_header X-Forwarded-Prefix /attic; }} location ~ ^/old/(.*)$ {{ return 301 /attic/$1; }} location / {{ return 404; }}"
    );
    let Some(nginx) = Nginx::with_locations(&location) else { return };
    let (pull, netrc) = (nix.path().join("pull"), nix.path().join("netrc"));
    secret_file(&pull, &cache.pull_token());
    let mut daemon = Daemon::prepare(nix, "");
    let configure = |daemon: &Daemon, base: &str| {
        let keys = format!("pull_token_file = \"{}\"\n[client]\nenable = false\n", pull.display());
        daemon.configure_nix(
            &format!("{}{keys}", cache.caches(&format!("{}{base}", nginx.url()))),
            &format!("netrc = \"{}\"\n", netrc.display()),
        );
    };
    configure(&daemon, "/attic/");
    daemon.up();
    let path = daemon.nix.build(&PrivateNix::shell("below", "echo below > $out")).remove(0);
    daemon.flush();
    assert_eq!(daemon.status()["cache"][0]["endpoint"], format!("{}/attic", nginx.url()));
    let conf = daemon.ctl(&["nix-conf"]).out;
    assert!(conf.contains(&format!("extra-substituters = {}/attic/main\n", nginx.url())), "{conf}");
    until("the netrc file", || std::fs::read_to_string(&netrc).is_ok_and(|text| text.contains("machine")));
    let doctor = daemon.ctl(&["doctor"]);
    assert!(doctor.out.contains("takes uploads"), "{doctor:?}");
    // What was pushed can be served, and a real Nix reads it.
    let verify = daemon.ctl(&["verify", &path]);
    assert_eq!(verify.code, 0, "{verify:?}");
    // A redirect on the same host is followed.
    configure(&daemon, "/old");
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    let moved = daemon.nix.build(&PrivateNix::shell("moved", "echo moved > $out")).remove(0);
    daemon.flush();
    let verify = daemon.ctl(&["verify", &moved]);
    assert_eq!(verify.code, 0, "{verify:?}");
    daemon.nix.configure(&format!("substitute = true\n{conf}"));
    daemon.nix.wipe();
    let taken = daemon.nix.run("nix-store", &["--realise", &path]);
    assert!(taken.status.success(), "{}", String::from_utf8_lossy(&taken.stderr));
}
