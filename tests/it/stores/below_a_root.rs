//! A store below a root, as `nix-build --store ROOT` has it: paths are named `/nix/store/…`, and
//! files and database are below the root.

use std::path::PathBuf;
use std::process::Command;

use crate::attribution::sessions::{evidence, job};
use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::nix::{PrivateNix, in_chroot};

/// Nix builds for such a store in its sandbox, which mounts directories of the host.
pub fn can_build() -> bool {
    let possible = Command::new("unshare").args(["--mount", "true"]).status().is_ok_and(|s| s.success());
    if !possible {
        eprintln!("skipped: building for a store below a root needs mount namespaces");
    }
    possible
}

/// A daemon on an empty store below `<dir>/root`. `env` of its Nix commands is that of the host's
/// own store, without one.
struct Rooted(Daemon);

impl Rooted {
    fn start(config: &str, nix_conf: &str) -> Self {
        let daemon = Daemon::prepare(PrivateNix::new(), config);
        daemon.nix.configure(&format!("sandbox-paths = /bin /lib /lib64 /usr\n{nix_conf}"));
        let mut rooted = Self(daemon);
        let top = rooted.0.nix.path().display().to_string();
        let text = format!(
            "socket = \"{top}/s\"\nstate_dir = \"{top}/state\"\n{config}\n[nix]\nroot = \"{top}/root\"\n"
        );
        std::fs::write(rooted.0.config(), text).unwrap();
        // Locks are seen from the start when the store directory is there.
        rooted.job("exec nix-store --store \"$STORE\" --init", &[]);
        rooted.0.up();
        rooted
    }

    fn root(&self) -> PathBuf {
        self.0.nix.path().join("root")
    }

    /// Where the file of this path is.
    fn file(&self, path: &str) -> PathBuf {
        self.root().join(path.strip_prefix('/').unwrap())
    }

    /// Runs a shell script as a job, with `$STORE` for Nix's `--store`; returns what it printed.
    fn job(&self, script: &str, env: &[(&str, &str)]) -> String {
        let root = self.root().display().to_string();
        let script = format!("unset NIX_STORE_DIR NIX_STATE_DIR NIX_LOG_DIR NIX_REMOTE\n{script}");
        let env = [&[("STORE", root.as_str())], env].concat();
        let out = job(&self.0, &script, &env).wait_with_output().unwrap();
        assert!(out.status.success(), "{script}");
        String::from_utf8(out.stdout).unwrap()
    }

    fn is_valid(&self, path: &str) -> bool {
        let check = "nix-store --store \"$STORE\" --check-validity \"$P\" 2>/dev/null && echo yes || echo no";
        self.job(check, &[("P", path)]) == "yes\n"
    }
}

/// A chain of paths, each of which refers to the one before.
pub fn chain(length: usize) -> String {
    format!(
        "let f = i: derivation {{ name = \"c-${{toString i}}\"; system = builtins.currentSystem; builder = \
         \"/bin/sh\"; args = [ \"-c\" \"echo ${{if i == 0 then \"end\" else f (i - 1)}} > $out\" ]; }}; in f {}",
        length - 1
    )
}

#[test]
fn every_path_is_pushed_and_known_by_either_name() {
    if !can_build() {
        return;
    }
    let rooted = Rooted::start(EMBEDDED, "");
    let script = "set -e; id=$(\"$CTL\" session start)
        nix-build --store \"$STORE\" -o result -E \"$CHAIN\" >/dev/null 2>&1
        echo $id; readlink result; \"$CTL\" --json session end $id --push 'result*'; true";
    let out = rooted.job(script, &[("CHAIN", &chain(12))]);
    let mut lines = out.lines();
    let (session, built) = (lines.next().unwrap(), lines.next().unwrap());
    let summary: serde_json::Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &12.into()), "{summary}");
    assert!(built.starts_with("/nix/store/") && rooted.file(built).exists(), "{built}");
    let daemon = &rooted.0;
    let detail = daemon.json(&["session", "show", session]);
    // A build of some milliseconds may be over before its lock is read. Its path is then known by
    // its closure; one that is known by its process shows that locks below the root are read.
    let found: Vec<_> = (0..12).map(|i| evidence(&detail, &format!("-c-{i}"))).collect();
    assert!(found.iter().all(|by| by == "process" || by == "closure"), "{detail}");
    assert!(found.iter().any(|by| by == "process"), "{detail}");
    assert_eq!(daemon.main().names().iter().filter(|name| name.starts_with("c-")).count(), 12);
    // The cache has what Nix has: each NAR is fetched and compared.
    let verified = daemon.ctl(&["--json", "verify", "--session", session]);
    assert_eq!(verified.code, 0, "{verified:?}");
    // A path is named as Nix names it, or where its file is.
    let physical = rooted.file(built);
    for name in [built, physical.to_str().unwrap(), "result"] {
        let pushed = daemon.json(&["push", name, "--wait"]);
        let found = (&pushed["outcome"], &pushed["already_cached"]);
        assert_eq!(found, (&"complete".into(), &12.into()), "its closure is there: {name}");
        assert!(daemon.ctl(&["why", name]).out.contains(built), "{name}");
    }
    let files = rooted.root().join("nix/store");
    assert_eq!(daemon.status()["store"]["files"], files.to_str().unwrap());
    let doctor = daemon.ctl(&["doctor"]);
    assert!(doctor.out.contains(&format!("followed in {}", files.display())), "{doctor:?}");
    assert!(!doctor.out.contains("for the store directory"), "{doctor:?}");
}

/// Both kinds of roots, each alone.
#[test]
fn pending_paths_are_kept_from_collection() {
    if !can_build() {
        return;
    }
    let token = tempfile::tempdir().unwrap();
    std::fs::write(token.path().join("token"), "t").unwrap();
    let away = format!(
        "[caches.main]\nendpoints = [\"http://127.0.0.1:1\"]\ntoken_file = \"{}/token\"\n[client]\nenable = false\n",
        token.path().display()
    );
    let mut rooted = Rooted::start(&away, "");
    let build = "nix-build --store \"$STORE\" --no-out-link -E \"$ONE\" 2>/dev/null";
    let built = rooted.job(build, &[("ONE", &chain(1))]);
    let built = built.trim();
    crate::support::daemon::until("the path is pending", || {
        rooted.0.status()["queue"]["pending"].as_u64() > Some(0)
    });
    let roots = rooted.root().join("nix/var/nix/gcroots/flywheel");
    let base = built.rsplit('/').next().unwrap();
    assert!(roots.join(base).exists(), "no root in {}", roots.display());
    let collect = "nix-store --store \"$STORE\" --gc >/dev/null 2>&1";
    // Without the files, the temporary roots protect.
    std::fs::remove_file(roots.join(base)).unwrap();
    rooted.job(collect, &[]);
    assert!(rooted.is_valid(built), "the temporary root protects nothing");
    // Without the daemon, the files do.
    rooted.0.restart();
    crate::support::daemon::until("the root is there again", || roots.join(base).exists());
    rooted.0.kill();
    rooted.job(collect, &[]);
    assert!(rooted.is_valid(built), "the root in {} protects nothing", roots.display());
    // Neither of them is left: the path can be collected, so the above proves something.
    std::fs::remove_dir_all(&roots).unwrap();
    rooted.job(collect, &[]);
    assert!(!rooted.is_valid(built));
}

#[test]
fn the_post_build_hook_names_paths_of_the_store() {
    if !can_build() || in_chroot() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let hook = dir.path().join("flywheel-hook");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flywheelctl"), &hook).unwrap();
    let rooted = Rooted::start(EMBEDDED, &format!("post-build-hook = {}", hook.display()));
    let script = "set -e; id=$(\"$CTL\" session start)
        nix-build --store \"$STORE\" --no-out-link -E \"$ONE\" >/dev/null 2>&1
        \"$CTL\" session end $id >/dev/null; echo $id";
    let out = rooted.job(script, &[("ONE", &chain(1))]);
    let detail = rooted.0.json(&["session", "show", out.trim()]);
    assert_eq!(evidence(&detail, "-c-0"), "hook", "{detail}");
}
