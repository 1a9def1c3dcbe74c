//! `token_command`: a program gives the token, gives another one when the server refuses it, and
//! harms nobody when it hangs.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use super::HeadProxy;
use super::heads::refusal;
use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, until};
use crate::support::nix::PrivateNix;

/// A cache that takes the tokens of a program, each for as long as the test says.
struct Rig {
    cache: StandaloneCache,
    server: HeadProxy,
    script: PathBuf,
    /// The token that the server takes.
    good: Arc<Mutex<String>>,
}

impl Rig {
    fn new(nix: &PrivateNix) -> Self {
        let cache = StandaloneCache::start(nix, |_| {});
        let server = HeadProxy::before(cache.address());
        let good = Arc::new(Mutex::new("tok-5ecret-1".to_owned()));
        let (takes, real) = (Arc::clone(&good), cache.token());
        server.rule(move |head| {
            if head.header("authorization") != Some(&format!("Bearer {}", takes.lock().unwrap())) {
                return Some(refusal("401 Unauthorized", ""));
            }
            head.set("authorization", &format!("Bearer {real}"));
            None
        });
        Self { cache, server, script: nix.path().join("give token"), good }
    }

    /// Writes the program. It runs in the directory of its file.
    fn script(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = self.script.parent().unwrap().display();
        let new = self.script.with_extension("new");
        std::fs::write(&new, format!("#!/bin/sh\ncd {dir} || exit 9\n{text}\n")).unwrap();
        std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o755)).unwrap();
        std::fs::rename(new, &self.script).unwrap();
    }

    fn config(&self, more: &str) -> String {
        format!(
            "[caches.main]\nendpoints = [\"{}\"]\ntoken_command = [\"{}\", \"a b\", \"$HOME\"]\n{more}[client]\nenable = false\n",
            self.server.url(),
            self.script.display()
        )
    }

    fn runs(&self) -> usize {
        let file = self.script.with_file_name("runs");
        std::fs::read_to_string(file).unwrap_or_default().lines().count()
    }
}

/// Gives tok-5ecret-1, then tok-5ecret-2, and so on.
const COUNTING: &str = "echo \"$FLYWHEEL_CACHE|$#|$1|$2\" >>runs\n\
    echo \"{\\\"token\\\":\\\"tok-5ecret-$(wc -l <runs)\\\",\\\"expires_at\\\":\\\"2099-01-01T00:00:00Z\\\"}\"";

#[test]
fn a_refused_token_is_replaced_by_another_one() {
    let nix = PrivateNix::new();
    let rig = Rig::new(&nix);
    rig.script(COUNTING);
    let daemon = Daemon::start(nix, &rig.config(""));
    let path = daemon.nix.make("first");
    daemon.flush();
    assert!(rig.cache.main().has(&path));
    assert_eq!(rig.runs(), 1);
    // No shell has read the arguments.
    let calls = std::fs::read_to_string(rig.script.with_file_name("runs")).unwrap();
    assert_eq!(calls, "main|2|a b|$HOME\n");
    assert_eq!(daemon.status()["cache"][0]["token_expires"], 4_070_908_800_i64);
    let doctor = daemon.ctl(&["doctor"]);
    assert!(doctor.out.contains("token_command") && doctor.out.contains("renewed before"), "{doctor:?}");
    *rig.good.lock().unwrap() = "tok-5ecret-2".to_owned();
    let path = daemon.nix.make("second");
    until("the path arrives with the next token", || rig.cache.main().has(&path));
    assert_eq!(rig.runs(), 2);
    // A reload asks for a new token as well.
    *rig.good.lock().unwrap() = "tok-5ecret-3".to_owned();
    let reload = daemon.ctl(&["reload"]);
    assert!(reload.out.contains("token_command is run again"), "{reload:?}");
    let path = daemon.nix.make("third");
    until("the path arrives after the reload", || rig.cache.main().has(&path));
    let all = format!("{}{doctor:?}{:?}{reload:?}", daemon.logs(), daemon.status());
    assert!(!all.contains("5ecret"), "{all}");
}

#[test]
fn a_program_that_fails_leaves_the_token_in_use() {
    let nix = PrivateNix::new();
    let rig = Rig::new(&nix);
    rig.script(COUNTING);
    let daemon = Daemon::start(nix, &rig.config(""));
    daemon.nix.make("before");
    daemon.flush();
    rig.script("echo tok-5ecret-9\necho 'vault: tok-5ecret-1 and tok-5ecret-9 are sealed' >&2\nexit 3");
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    until("the failure is said", || daemon.log().contains("gave no token"));
    let log = daemon.log();
    let said = log.lines().find(|line| line.contains("gave no token")).unwrap();
    assert!(said.contains("ended with status 3: vault: [token] and [token] are sealed"), "{said}");
    assert!(said.contains("the present token stays in use; it expires at 4070908800"), "{said}");
    let path = daemon.nix.make("after");
    daemon.flush();
    assert!(rig.cache.main().has(&path));
    let status = daemon.status();
    assert!(status["warnings"].to_string().contains("token_command gave no token"), "{status}");
    assert!(!format!("{log}{status}").contains("5ecret"), "{log}{status}");
}

#[test]
fn a_program_that_hangs_is_ended_with_all_that_it_started() {
    let nix = PrivateNix::new();
    let rig = Rig::new(&nix);
    rig.script("sleep 1000 &\necho $$ $! >pids\nwait");
    let daemon = Daemon::start(nix, &rig.config("token_command_timeout = \"2s\"\n"));
    let path = daemon.nix.make("waits");
    let pids = rig.script.with_file_name("pids");
    until("the program runs", || std::fs::read_to_string(&pids).is_ok_and(|text| text.ends_with('\n')));
    // The daemon answers meanwhile.
    assert_eq!(daemon.status()["queue"]["failed"], 0);
    until("the program is ended", || {
        daemon.log().contains("did not finish within 2 s (token_command_timeout)")
    });
    let pids = std::fs::read_to_string(pids).unwrap();
    for pid in pids.split_whitespace() {
        until("its processes are gone", || !std::path::Path::new("/proc").join(pid).exists());
    }
    assert!(!rig.cache.main().has(&path));
    rig.script("echo tok-5ecret-1");
    assert_eq!(daemon.ctl(&["reload"]).code, 0);
    until("the path arrives", || rig.cache.main().has(&path));
}

#[test]
fn the_program_is_checked_with_the_configuration() {
    let nix = PrivateNix::new();
    let rig = Rig::new(&nix);
    let daemon = Daemon::prepare(nix, &rig.config(""));
    let check = || {
        let mut command = daemon.program();
        command.arg("--config").arg(daemon.config()).arg("--check-config");
        let output = command.output().unwrap();
        assert!(output.status.success());
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    assert!(check().contains("token_command:"), "{}", check());
    assert!(check().contains("does not exist"), "{}", check());
    std::fs::write(&rig.script, "").unwrap();
    assert!(check().contains("is not executable"), "{}", check());
    rig.script("echo x");
    assert!(!check().contains("token_command"), "{}", check());
}
