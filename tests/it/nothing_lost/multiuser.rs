//! The service as it is installed: a user of its own, not root, on a Nix whose store belongs to
//! root and is reached through the nix-daemon. Pending paths are protected from collection.

use std::io::{BufRead as _, BufReader, Read as _};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Stdio;

use flywheel::store::{NixDb, TempRoots};

use crate::nothing_lost::gc_roots::{garbage, store_dir};
use crate::support::cache::{StandaloneCache, UploadGate, base};
use crate::support::daemon::{Daemon, MAX_WAIT, until};
use crate::support::multiuser::NixDaemon;
use crate::support::nix::PrivateNix;
use crate::support::users::{NOBODY, can_switch_user, copy_program, set_mode};

/// The service's user.
const USER: u32 = NOBODY;

struct Host {
    daemon: Daemon,
    gate: UploadGate,
    cache: StandaloneCache,
    nix_daemon: NixDaemon,
    /// Keeps the database's write-ahead log: older versions of Nix remove it with the last writer,
    /// and then a reader without write permission cannot open the database.
    _busy: TempRoots,
}

impl Host {
    /// `rooted`: whether the directory for GC roots exists, as tmpfiles.d makes it.
    fn start(rooted: bool) -> Option<Self> {
        if !can_switch_user() {
            return None;
        }
        let nix = PrivateNix::new();
        let nix_daemon = NixDaemon::start(&nix, &[]);
        let socket = nix.path().join("nix.sock");
        let mut busy = TempRoots::open(Path::new("/nowhere"), &store_dir(&nix), &socket).unwrap();
        busy.add(&garbage(&nix, 1)).unwrap();
        let cache = StandaloneCache::start(&nix, |_| {});
        let gate = cache.gate();
        let mut daemon = Daemon::prepare(nix, &cache.config_at(&gate.url()));
        let theirs = |path: &Path| chown(path, Some(USER), Some(USER)).unwrap();
        let top = daemon.nix.path().to_owned();
        theirs(&top);
        theirs(&cache.token_file());
        set_mode(cache.token_file().parent().unwrap(), 0o755);
        set_mode(&top.join("notify"), 0o666);
        daemon.program = copy_program(env!("CARGO_BIN_EXE_flywheeld"), &top);
        if rooted {
            let links = daemon.nix.state_dir().join("gcroots/flywheel");
            std::fs::create_dir_all(&links).unwrap();
            theirs(&links);
        }
        daemon.env.push(("NIX_DAEMON_SOCKET_PATH".to_owned(), socket.display().to_string()));
        let user = USER.to_string();
        daemon.wrapper =
            ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups", "--"].map(str::to_owned).into();
        daemon.up();
        let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
        assert!(status.contains(&format!("Uid:\t{USER}\t{USER}\t{USER}\t{USER}")), "{status}");
        Some(Self { daemon, gate, cache, nix_daemon, _busy: busy })
    }

    /// Builds through the nix-daemon; its client has ended when this returns. Returns the output
    /// path.
    fn build(&self, name: &str) -> String {
        let expression = PrivateNix::shell(name, &format!("echo {name} > $out"));
        let out = self
            .daemon
            .nix
            .command("nix-build")
            .args(["--no-out-link", "-E", &expression])
            .env("NIX_REMOTE", self.nix_daemon.remote())
            .output()
            .unwrap();
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8_lossy(&out.stdout).trim().to_owned()
    }

    fn collect(&self) {
        let done = self
            .daemon
            .nix
            .command("nix-collect-garbage")
            .env("NIX_REMOTE", self.nix_daemon.remote())
            .output()
            .unwrap();
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Collects until a path is deleted: a closed connection takes a moment to end at the other
    /// side.
    fn collect_away(&self, path: &str) {
        let patience = std::time::Instant::now() + MAX_WAIT;
        while Path::new(path).exists() {
            assert!(patience > std::time::Instant::now(), "{path} is kept for ever");
            self.collect();
        }
    }
}

#[test]
fn a_pending_path_is_kept_without_root_also_over_a_kill() {
    let Some(mut host) = Host::start(true) else { return };
    host.gate.close();
    let path = host.build("pending");
    host.gate.until_came(1);
    host.collect();
    assert!(Path::new(&path).exists(), "collected while it was pending");
    host.daemon.kill();
    host.collect();
    assert!(Path::new(&path).exists(), "collected while the daemon was away");
    host.daemon.up();
    host.gate.until_came(2);
    host.collect();
    assert!(Path::new(&path).exists(), "collected after the restart");
    host.gate.open();
    host.daemon.flush();
    assert!(host.cache.main().has(&path));
    host.collect_away(&path);
    assert_eq!(host.daemon.status()["warnings"], serde_json::json!([]));
}

/// Without a directory for GC roots the nix-daemon protects pending paths as long as the service
/// runs.
#[test]
fn the_nix_daemon_alone_protects_while_the_service_runs() {
    let Some(mut host) = Host::start(false) else { return };
    assert!(host.daemon.log().contains("not while it is stopped; for that, make"), "{}", host.daemon.log());
    host.gate.close();
    let path = host.build("pending");
    host.gate.until_came(1);
    host.collect();
    assert!(Path::new(&path).exists(), "collected while it was pending");
    // After a kill without that directory the path is no longer protected, and the next start
    // reports that it was collected.
    host.daemon.kill();
    host.collect_away(&path);
    host.gate.open();
    host.daemon.up();
    let summary = host.daemon.flush();
    assert_eq!(summary["failed"], serde_json::json!([]), "{summary}");
    assert!(!host.cache.main().has(&path));
    let next = host.build("next");
    host.daemon.flush();
    assert!(host.cache.main().has(&next));
}

/// The nix-daemon is restarted, as by an upgrade: its workers, which hold the roots, end with it.
#[test]
fn the_nix_daemon_is_restarted() {
    let Some(mut host) = Host::start(false) else { return };
    host.gate.close();
    let path = host.build("pending");
    host.gate.until_came(1);
    host.nix_daemon.restart();
    let times = |what: &str| host.daemon.log().lines().filter(|line| line.contains(what)).count();
    let patience = std::time::Instant::now() + MAX_WAIT;
    while times("pending paths have temporary roots again") == 0 {
        assert!(patience > std::time::Instant::now(), "{}", host.daemon.log());
        std::thread::yield_now();
    }
    host.collect();
    assert!(Path::new(&path).exists(), "collected after the restart of the nix-daemon");
    assert_eq!(times("the temporary roots of pending paths were lost"), 1);
    host.gate.open();
    host.daemon.flush();
    assert!(host.cache.main().has(&path));
    assert_eq!(times("temporary roots"), 2, "once each");
}

/// A collection has read all roots already and will delete these paths.
#[test]
fn what_is_named_while_a_collection_runs_is_kept() {
    let Some(host) = Host::start(true) else { return };
    let nix = &host.daemon.nix;
    let paths = garbage(nix, 2000);
    host.daemon.flush();
    let mut collector =
        nix.command("nix-collect-garbage").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut says = BufReader::new(collector.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("deleting '") {
        line.clear();
        assert!(says.read_line(&mut line).unwrap() > 0, "the collector has ended");
    }
    // The import goes on until the pipe is full, and then waits for this test.
    until("the pipe is full", || rustix::io::ioctl_fionread(says.get_ref()).unwrap() > 60_000);
    let journal = NixDb::open(&nix.state_dir(), &store_dir(nix)).unwrap();
    let there = |paths: &[String]| -> Vec<String> {
        paths.iter().filter(|p| Path::new(p).exists()).cloned().collect()
    };
    host.gate.close();
    let dir = store_dir(nix);
    let some: Vec<String> = paths
        .iter()
        .rev()
        .filter(|p| journal.info(p).unwrap().is_some())
        .take(20)
        .map(|p| dir.full(p))
        .collect();
    let mut args = vec!["push"];
    args.extend(some.iter().map(String::as_str));
    // The collector may have removed some of them since: then the status is 2.
    let code = host.daemon.ctl(&args).code;
    assert!(matches!(code, 0 | 2), "{code}");
    // The daemon has taken the paths in and protects them: the first one is being uploaded.
    host.gate.until_came(1);
    let kept = there(&some);
    assert!(kept.len() > 10, "the collection was over too soon to show anything: {}", kept.len());
    let mut rest = String::new();
    says.read_to_string(&mut rest).unwrap();
    assert!(collector.wait().unwrap().success(), "{rest}");
    assert_eq!(there(&kept), kept);
    let others =
        paths.iter().filter(|p| !some.contains(&dir.full(p)) && journal.info(p).unwrap().is_some()).count();
    assert!(others <= 1, "{others} others are left");
    host.gate.open();
    host.daemon.flush();
    assert!(kept.iter().all(|path| host.cache.main().has(base(path))));
}
