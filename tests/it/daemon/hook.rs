//! The post-build hook beside other hooks: `hook.d`, `--then`, their order, environment and status.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use crate::support::daemon::{Daemon, until};
use crate::support::nix::{PrivateNix, in_chroot};

/// A directory with a link `flywheel-hook`, a `hook.d`, and a log that the hooks write.
struct Hooks(tempfile::TempDir);

impl Hooks {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flywheelctl"), dir.path().join("flywheel-hook"))
            .unwrap();
        let hooks = Self(dir);
        std::fs::create_dir(hooks.dir()).unwrap();
        hooks.set_mode(&hooks.dir(), 0o755);
        hooks
    }

    fn dir(&self) -> PathBuf {
        self.0.path().join("hook.d")
    }

    fn log(&self) -> String {
        std::fs::read_to_string(self.0.path().join("log")).unwrap_or_default()
    }

    fn set_mode(&self, path: &Path, mode: u32) {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    /// A hook that logs its name, its arguments and the outputs, and ends with this status.
    fn add(&self, name: &str, status: u8) -> PathBuf {
        let file = self.dir().join(name);
        let log = self.0.path().join("log");
        let script =
            format!("#!/bin/sh\necho \"{name}$*: $OUT_PATHS\" >> '{}'\nexit {status}\n", log.display());
        std::fs::write(&file, script).unwrap();
        self.set_mode(&file, 0o755);
        file
    }

    /// Calls the hook as Nix does, with these arguments.
    fn call(&self, args: &[&str]) -> Output {
        let mut command = Command::new(self.0.path().join("flywheel-hook"));
        command
            .args(args)
            .env("OUT_PATHS", "/nix/store/a /nix/store/b")
            .env("FLYWHEEL_SOCKET", "/nonexistent");
        command.env("FLYWHEEL_HOOK_DIR", self.dir()).output().unwrap()
    }
}

#[test]
fn other_hooks_run_in_order_with_nixs_environment_and_their_status_counts() {
    let hooks = Hooks::new();
    assert_eq!(
        hooks.call(&[]).status.code(),
        Some(0),
        "without another hook it succeeds, also without a daemon"
    );
    hooks.add("20-second", 0);
    hooks.add("10-first", 0);
    hooks.add("skipped~", 1);
    hooks.set_mode(&hooks.add("30-not-executable", 1), 0o644);
    let aside = hooks.add("then", 0);
    let then = hooks.0.path().join("then");
    std::fs::rename(aside, &then).unwrap();
    let out = hooks.call(&["--then", then.to_str().unwrap(), " --with", "args"]);
    assert_eq!((out.status.code(), out.stderr.len()), (Some(0), 0), "{out:?}");
    let paths = "/nix/store/a /nix/store/b";
    assert_eq!(hooks.log(), format!("10-first: {paths}\n20-second: {paths}\nthen --with args: {paths}\n"));
    // The first status that is not 0 is the hook's, and the others run anyway.
    hooks.add("10-first", 7);
    hooks.add("20-second", 9);
    assert_eq!(hooks.call(&["--then", then.to_str().unwrap()]).status.code(), Some(7));
    assert_eq!(hooks.log().lines().count(), 6);
    let missing = hooks.call(&["--then", "/nonexistent/hook"]);
    assert!(
        String::from_utf8_lossy(&missing.stderr).contains("/nonexistent/hook cannot be started"),
        "{missing:?}"
    );
}

/// The nix-daemon runs hooks as root.
#[test]
fn a_hook_that_others_may_change_is_left_out_with_a_warning() {
    let hooks = Hooks::new();
    hooks.add("good", 0);
    hooks.set_mode(&hooks.add("writable", 5), 0o775);
    let out = hooks.call(&[]);
    assert_eq!(out.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&out.stderr).contains("writable is left out"), "{out:?}");
    assert_eq!(hooks.log().lines().count(), 1);
    hooks.set_mode(&hooks.dir(), 0o777);
    let out = hooks.call(&[]);
    assert!(String::from_utf8_lossy(&out.stderr).contains("is left alone"), "{out:?}");
    assert_eq!(hooks.log().lines().count(), 1);
}

#[test]
fn nix_runs_both_hooks_and_fails_a_build_whose_other_hook_fails() {
    if in_chroot() {
        eprintln!("skipped: Nix runs no post-build hook in a chroot");
        return;
    }
    let daemon = Daemon::embedded();
    let hooks = Hooks::new();
    hooks.add("other", 0);
    daemon.nix.configure(&format!("post-build-hook = {}", hooks.0.path().join("flywheel-hook").display()));
    let build = |name: &str| {
        let mut command = daemon.nix.command("nix-build");
        command.args(["--no-out-link", "-E", &PrivateNix::shell(name, "echo > $out")]);
        command
            .env("FLYWHEEL_SOCKET", daemon.socket())
            .env("FLYWHEEL_HOOK_DIR", hooks.dir())
            .output()
            .unwrap()
    };
    let out = build("hooked");
    assert!(out.status.success(), "{out:?}");
    assert_eq!(hooks.log().lines().count(), 1, "{}", hooks.log());
    hooks.add("other", 3);
    assert!(!build("refused").status.success());
}

/// Nix from 2.35 on runs the hooks of one client side by side, up to `max-jobs` of them; here more
/// run at once than any host has jobs. A hook gives up when the daemon does not answer within its
/// limit, and no path is lost by that: its path only lacks this evidence. Such hooks are run again
/// here, so the test does not say how many of the first 96 are heard.
#[test]
fn hooks_of_many_builds_at_once_lose_nothing() {
    const BUILDS: usize = 96;
    let daemon = Daemon::embedded();
    let hooks = Hooks::new();
    // The session's anchor. It builds nothing; it runs the hooks when it is told which.
    let script = "while read -r name; do while read -r path && [ -n \"$path\" ]; do \
                  OUT_PATHS=$path \"$0\" & done; wait; echo \"$name\"; done";
    let mut anchor = Command::new("sh");
    anchor.args(["-c", script]).arg(hooks.0.path().join("flywheel-hook"));
    anchor.env("FLYWHEEL_SOCKET", daemon.socket()).env("FLYWHEEL_HOOK_DIR", hooks.dir());
    let mut anchor =
        anchor.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut tell, said) = (anchor.stdin.take().unwrap(), anchor.stdout.take().unwrap());
    let mut said = BufReader::new(said).lines();
    let session = daemon.session(&["--anchor-pid", &anchor.id().to_string()]);
    let all = format!(
        "builtins.genList (n: derivation {{ name = \"hooked-${{toString n}}\"; system = builtins.currentSystem; \
         builder = \"/bin/sh\"; args = [ \"-c\" \"echo $name > $out\" ]; }}) {BUILDS}"
    );
    let paths = daemon.nix.build(&all);
    assert_eq!(paths.len(), BUILDS);
    let hooked = || -> Vec<String> {
        let why =
            daemon.json(&[&["why"], &paths.iter().map(String::as_str).collect::<Vec<_>>()[..]].concat());
        let told = |path: &&serde_json::Value| path["sessions"][0]["evidence"] == "hook";
        let told = why["paths"].as_array().unwrap().iter().filter(told);
        told.map(|path| path["path"].as_str().unwrap().to_owned()).collect()
    };
    let mut waves = 0;
    until("every hook was heard", || {
        let heard = hooked();
        let unheard: Vec<&String> = paths.iter().filter(|path| !heard.contains(path)).collect();
        if unheard.is_empty() {
            return true;
        }
        waves += 1;
        tell.write_all(format!("{waves}\n").as_bytes()).unwrap();
        for path in &unheard {
            tell.write_all(format!("{path}\n").as_bytes()).unwrap();
        }
        tell.write_all(b"\n").unwrap();
        // Each has ended, in spite of a daemon that is busy with the others.
        assert_eq!(said.next().unwrap().unwrap(), waves.to_string());
        eprintln!("wave {waves}: {} hooks at once", unheard.len());
        false
    });
    let summary = daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["attributed"]["hook"]), (&"complete".into(), &BUILDS.into()));
    assert!(daemon.main().having(&paths).into_iter().all(|there| there), "{summary}");
    drop(tell);
    let out = anchor.wait_with_output().unwrap();
    assert!(out.status.success() && out.stderr.is_empty(), "a hook prints nothing: {out:?}");
}
