//! Reading the cache, also a private one: a real Nix uses the lines of `nix-conf` and the netrc
//! file.

use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;

use serde_json::Value;

use crate::support::attic::{environment, until};
use crate::support::cache::StandaloneCache;
use crate::support::daemon::{CommandResult, Daemon, secret_file};
use crate::support::nix::PrivateNix;

/// A daemon with a private cache, a pull token and a netrc file to keep.
struct Rig {
    daemon: Daemon,
    cache: StandaloneCache,
    pull: PathBuf,
    netrc: PathBuf,
}

impl Rig {
    fn new(more: &str) -> Self {
        let nix = PrivateNix::new();
        let cache = StandaloneCache::start(&nix, |settings| settings.public = false);
        let (pull, netrc) = (nix.path().join("pull"), nix.path().join("netrc"));
        secret_file(&pull, &cache.pull_token());
        let daemon = Daemon::prepare(nix, "");
        let rig = Self { daemon, cache, pull, netrc };
        rig.configure(more);
        rig
    }

    /// `more`: further keys of `[nix]`.
    fn configure(&self, more: &str) {
        self.daemon.configure_nix(
            &format!(
                "{}pull_token_file = \"{}\"\n[client]\nenable = false\n",
                self.cache.caches(&self.cache.url()),
                self.pull.display()
            ),
            &format!("netrc = \"{}\"\n{more}", self.netrc.display()),
        );
    }

    fn up(&mut self) {
        self.daemon.env = environment(&self.daemon.nix);
        self.daemon.up();
        until("the netrc file", || {
            std::fs::read_to_string(&self.netrc).ok().filter(|text| text.contains("machine"))
        });
    }

    fn nix_status(&self) -> Value {
        let mut command = self.daemon.client(&["--json", "client", "status"]);
        let said = CommandResult::of(&command.envs(self.daemon.nix.env()).output().unwrap());
        assert_eq!(said.code, 0, "{said:?}");
        said.json()
    }
}

#[test]
fn nix_reads_a_private_cache_with_what_is_printed() {
    let mut rig = Rig::new("");
    rig.up();
    let path = rig.daemon.nix.build(&PrivateNix::shell("private", "echo private > $out")).remove(0);
    rig.daemon.flush();
    let conf = rig.daemon.ctl(&["nix-conf"]);
    assert_eq!((conf.code, conf.err.as_str()), (0, ""), "{conf:?}");
    let view = rig.cache.main();
    assert_eq!(
        conf.out,
        format!(
            "extra-substituters = {}\nextra-trusted-public-keys = {}\nnetrc-file = {}\n# Builds continue while a cache cannot be reached. Restart the nix-daemon to make it read nix.conf.\nfallback = true\nconnect-timeout = 5\n",
            view.url(),
            view.key,
            rig.netrc.display()
        )
    );
    // This host's Nix does not use the cache yet, but could read it.
    let before = rig.nix_status();
    let server = &before["servers"][0];
    assert_eq!(
        server["nix"],
        serde_json::json!({"substituter": false, "public_key": false, "netrc": false}),
        "{before}"
    );
    assert_eq!(server["readable"], true, "{before}");
    let text = rig.daemon.ctl(&["client", "status"]);
    assert!(text.out.contains("can be read:           yes"), "{text:?}");

    rig.daemon.nix.configure(&format!("substitute = true\nsubstituters =\n{}", conf.out));
    assert_eq!(
        rig.nix_status()["servers"][0]["nix"],
        serde_json::json!({"substituter": true, "public_key": true, "netrc": true})
    );
    let take = |rig: &Rig| {
        let out = rig
            .daemon
            .nix
            .run("nix-store", &["--realise", &path, "--option", "narinfo-cache-negative-ttl", "0"]);
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    rig.daemon.stop();
    rig.daemon.nix.wipe();
    // Without the netrc file Nix cannot read the cache and builds again.
    let aside = rig.netrc.with_extension("aside");
    std::fs::rename(&rig.netrc, &aside).unwrap();
    assert!(!take(&rig).0);
    std::fs::rename(&aside, &rig.netrc).unwrap();
    let (taken, said) = take(&rig);
    assert!(taken, "{said}");
}

#[test]
fn the_netrc_file_follows_the_token_and_keeps_its_rights() {
    let mut rig = Rig::new(&format!("netrc_group = \"{}\"\n", rustix::process::getegid().as_raw()));
    rig.up();
    let mode = std::fs::metadata(&rig.netrc).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode, 0o640);
    let text = std::fs::read_to_string(&rig.netrc).unwrap();
    assert!(
        text.ends_with(&format!("machine 127.0.0.1\nlogin flywheel\npassword {}\n", rig.cache.pull_token())),
        "{text}"
    );
    assert!(!text.contains(&rig.cache.token()), "never the push token");
    let printed = rig.daemon.ctl(&["nix-conf", "--netrc"]);
    assert_eq!((printed.code, printed.out.as_str()), (0, text.as_str()));
    // The token changes: the file has the new one within seconds, and is never half written.
    secret_file(&rig.pull, "new.pull.token");
    let text = until("the new token", || {
        std::fs::read_to_string(&rig.netrc).ok().filter(|text| text.contains("new.pull.token"))
    });
    assert!(!text.contains(&rig.cache.pull_token()), "{text}");
    // The cache refuses that token; the status quotes its answer.
    let status = rig.nix_status();
    let server = &status["servers"][0];
    assert_eq!(server["readable"], false, "{status}");
    assert!(server["problem"].as_str().unwrap().contains("401"), "{status}");
    for seen in [rig.daemon.log(), status.to_string(), rig.daemon.status().to_string()] {
        assert!(!seen.contains("new.pull.token") && !seen.contains(&rig.cache.pull_token()), "{seen}");
    }
}

#[test]
fn somebody_elses_netrc_is_left_alone_and_said() {
    let mut rig = Rig::new("");
    std::fs::write(&rig.netrc, "machine x\nlogin y\npassword z\n").unwrap();
    rig.up();
    let warned = until("the warning", || {
        let status = rig.daemon.status();
        status["warnings"]
            .as_array()
            .unwrap()
            .iter()
            .any(|w| w.as_str().unwrap().contains("left alone"))
            .then_some(status)
    });
    assert_eq!(std::fs::read_to_string(&rig.netrc).unwrap(), "machine x\nlogin y\npassword z\n", "{warned}");
}

#[test]
fn a_public_cache_needs_no_netrc() {
    let daemon = Daemon::embedded();
    daemon.flush();
    let conf = daemon.json(&["nix-conf"]);
    assert_eq!(
        conf,
        serde_json::json!({
            "substituters": [daemon.main().url()], "trusted_public_keys": [daemon.main().key], "netrc_file": null,
            "ca_files": [], "client_certificates": false, "fallback": true, "connect_timeout": 5
        })
    );
    assert_eq!(daemon.ctl(&["nix-conf", "--netrc"]).code, 2);
    let unknown = daemon.ctl(&["nix-conf", "--cache", "nowhere"]);
    assert!(unknown.code == 2 && unknown.err.contains("configured: main"), "{unknown:?}");
}

/// Without `fallback`, Nix fails a build when a cache of its configuration fails.
#[test]
fn a_build_goes_on_while_the_cache_is_away() {
    let nix = PrivateNix::new();
    let mut cache = StandaloneCache::start(&nix, |_| {});
    let daemon = Daemon::start(nix, &cache.config());
    daemon.nix.make("before");
    daemon.flush();
    let conf = daemon.ctl(&["nix-conf"]).out;
    for line in ["fallback = true", "connect-timeout = 5"] {
        assert!(conf.lines().any(|l| l == line), "{conf}");
    }
    assert!(conf.contains("Restart the nix-daemon"), "{conf}");
    cache.stop();
    daemon.nix.configure(&format!("substitute = true\nsubstituters =\n{conf}"));
    daemon.nix.make("after");
}

#[test]
fn entries_of_other_netrc_files_stay() {
    let mut rig = Rig::new("");
    let other = rig.daemon.nix.path().join("other-netrc");
    secret_file(&other, "machine example.com login me password theirs\n");
    rig.configure(&format!("netrc_include = [\"{}\"]\n", other.display()));
    rig.up();
    let text = until("flywheel's own entry", || {
        std::fs::read_to_string(&rig.netrc).ok().filter(|text| text.contains("login flywheel"))
    });
    let theirs = text.find("machine example.com login me password theirs").unwrap();
    let ours = text.find("machine 127.0.0.1\nlogin flywheel").unwrap();
    assert!(theirs < ours, "{text}");
    // An entry for the same host hides flywheel's, which is reported.
    std::fs::write(&other, "machine 127.0.0.1 login me password theirs\n").unwrap();
    until("the warning", || {
        rig.daemon.status()["warnings"]
            .to_string()
            .contains("netrc_include has an entry for 127.0.0.1")
            .then_some(())
    });
}
