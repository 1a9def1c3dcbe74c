//! Nothing is lost to a garbage collection: both kinds of temporary roots against a collection that
//! runs already, and the whole daemon.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Child, Stdio};

use flywheel::store::{NixDb, TempRoots};

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, MAX_WAIT, until};
use crate::support::nix::PrivateNix;
use flywheel::types::{StoreDir, StorePath};

const GARBAGE: usize = 400;

pub fn store_dir(nix: &PrivateNix) -> StoreDir {
    StoreDir::new(nix.store_dir().to_str().unwrap()).unwrap()
}

/// Builds many paths without GC roots.
pub fn garbage(nix: &PrivateNix, count: usize) -> Vec<StorePath> {
    let text =
        format!("builtins.genList (i: builtins.toFile \"g-${{toString i}}\" \"${{toString i}}\") {count}");
    let args = ["--eval", "--strict", "--read-write-mode", "--json", "-E", &text];
    let made = nix.run("nix-instantiate", &args);
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let paths: Vec<String> = serde_json::from_slice(&made.stdout).unwrap();
    paths.iter().map(|p| store_dir(nix).parse(p).unwrap()).collect()
}

/// Adds roots while a collection runs that has read the roots already: paths that were still there
/// when their root was added stay, the others are deleted.
fn added_late(nix: &PrivateNix, mut roots: TempRoots) {
    let paths = garbage(nix, GARBAGE);
    let journal = NixDb::open(&nix.state_dir(), &store_dir(nix)).unwrap();
    let mut collector =
        nix.command("nix-store").arg("--gc").stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let mut says = BufReader::new(collector.stderr.take().unwrap());
    let mut line = String::new();
    // The first path is being deleted, so the roots have been read. The pipe holds at most 64 KiB,
    // so the collector soon waits for this test.
    while !line.contains("deleting '") {
        line.clear();
        assert!(says.read_line(&mut line).unwrap() > 0, "the collector has ended");
    }
    let (wanted, others) = paths.split_at(GARBAGE / 2);
    roots.add(wanted).unwrap();
    let there = |paths: &[StorePath]| -> Vec<StorePath> {
        paths.iter().filter(|p| journal.info(p).unwrap().is_some()).cloned().collect()
    };
    let kept = there(wanted);
    let mut rest = String::new();
    says.read_to_string(&mut rest).unwrap();
    assert!(collector.wait().unwrap().success(), "{rest}");
    assert_eq!(there(wanted), kept);
    assert!(!kept.is_empty(), "the collection was over too soon to show anything");
    assert_eq!(there(others), []);
    // The next collection respects the roots too; then some of them are removed.
    assert!(nix.run("nix-store", &["--gc"]).status.success());
    assert_eq!(there(wanted), kept);
    assert!(roots.only(&kept[..1]).unwrap());
    // A closed connection takes a moment to end at the other side.
    let patience = std::time::Instant::now() + MAX_WAIT;
    while there(wanted) != kept[..1] {
        assert!(patience > std::time::Instant::now(), "what is not wanted is kept");
        assert!(nix.run("nix-store", &["--gc"]).status.success());
    }
    drop(roots);
    while !there(wanted).is_empty() {
        assert!(patience > std::time::Instant::now(), "what is not wanted is kept");
        assert!(nix.run("nix-store", &["--gc"]).status.success());
    }
}

#[test]
fn a_file_of_ours_protects_from_a_running_collection() {
    let nix = PrivateNix::new();
    let roots = TempRoots::open(&nix.state_dir(), &store_dir(&nix), Path::new("/nowhere")).unwrap();
    assert!(!roots.is_remote() && roots.is_alive());
    added_late(&nix, roots);
    assert_eq!(std::fs::read_dir(nix.state_dir().join("temproots")).unwrap().count(), 0, "it is cleaned up");
}

/// A nix-daemon of this test.
struct NixDaemon(Child);

impl NixDaemon {
    fn start(nix: &PrivateNix) -> Self {
        let socket = nix.path().join("d");
        let mut command = nix.command("nix-daemon");
        command.arg("--daemon").env("NIX_DAEMON_SOCKET_PATH", &socket).stderr(Stdio::null());
        let daemon = Self(command.spawn().unwrap());
        let patience = std::time::Instant::now() + MAX_WAIT;
        while std::os::unix::net::UnixStream::connect(&socket).is_err() {
            assert!(patience > std::time::Instant::now(), "the nix-daemon does not come up");
            std::thread::yield_now();
        }
        daemon
    }

    fn workers(&self) -> Vec<i32> {
        let pid = self.0.id();
        let children = std::fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
        children.split_whitespace().map(|pid| pid.parse().unwrap()).collect()
    }
}

impl Drop for NixDaemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn remote(nix: &PrivateNix) -> TempRoots {
    // The state directory is not writable, so only the nix-daemon can hold roots.
    TempRoots::open(Path::new("/nowhere"), &store_dir(nix), &nix.path().join("d")).unwrap()
}

#[test]
fn the_nix_daemon_protects_from_a_running_collection() {
    let nix = PrivateNix::new();
    let _daemon = NixDaemon::start(&nix);
    let roots = remote(&nix);
    assert!(roots.is_remote() && roots.is_alive());
    added_late(&nix, roots);
}

#[test]
fn a_worker_that_ends_is_noticed() {
    let nix = PrivateNix::new();
    let daemon = NixDaemon::start(&nix);
    let path = store_dir(&nix).parse(&nix.build(&PrivateNix::shell("kept", "echo 1 > $out"))[0]).unwrap();
    let mut roots = remote(&nix);
    roots.add([&path]).unwrap();
    assert!(roots.is_alive());
    for pid in daemon.workers() {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
    }
    let patience = std::time::Instant::now() + MAX_WAIT;
    while roots.is_alive() {
        assert!(patience > std::time::Instant::now(), "its end is not noticed");
        std::thread::yield_now();
    }
    assert!(roots.add([&path]).is_err());
    remote(&nix).add([&path]).unwrap();
}

#[test]
fn a_daemon_without_any_root_says_both_reasons() {
    let nix = PrivateNix::new();
    let error =
        TempRoots::open(Path::new("/nowhere"), &store_dir(&nix), Path::new("/nowhere/s")).unwrap_err();
    let text = error.to_string();
    assert!(
        text.contains("/nowhere/temproots: ") && text.contains("the nix-daemon at /nowhere/s: "),
        "{text}"
    );
}

fn gc(nix: &PrivateNix) {
    let done = nix.run("nix-store", &["--gc"]);
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn a_pending_path_is_kept_until_it_is_in_the_cache_also_over_restarts() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.close();
    let mut daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let path = daemon.nix.build(&PrivateNix::shell("slow", "echo slow > $out")).remove(0);
    let there = || Path::new(&path).exists();
    gate.until_came(1);
    gc(&daemon.nix);
    assert!(there(), "collected while it was pending");
    // The daemon was killed: only the file in gcroots protects the path.
    daemon.kill();
    gc(&daemon.nix);
    assert!(there(), "collected while the daemon was away");
    // A root of an earlier run that is not needed is removed at the start.
    let links = daemon.nix.state_dir().join("gcroots/flywheel");
    let stale = "0njnh3x9rb4hh40rpc0dwc3w75vjl545-stale";
    std::os::unix::fs::symlink(daemon.nix.store_dir().join(stale), links.join(stale)).unwrap();
    daemon.up();
    gate.until_came(2);
    gc(&daemon.nix);
    assert!(there(), "collected after the restart");
    gate.open();
    daemon.flush();
    assert!(cache.main().has(&path));
    daemon.stop();
    let left: Vec<_> = std::fs::read_dir(&links).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left, [".seed"], "its protection has ended");
    gc(&daemon.nix);
    assert!(!there());
}

#[test]
fn a_path_deleted_despite_its_roots_is_counted_as_collected() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.rule(|_| Some(503));
    let mut daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let session = daemon.session(&[]);
    let gone = daemon.nix.build(&PrivateNix::shell("gone", "echo 1 > $out")).remove(0);
    let kept = daemon.nix.build(&PrivateNix::shell("kept", "echo 2 > $out")).remove(0);
    gate.until_came(2);
    daemon.kill();
    // The path is deleted by force, past all roots.
    std::fs::remove_file(
        daemon.nix.state_dir().join("gcroots/flywheel").join(crate::support::cache::base(&gone)),
    )
    .unwrap();
    let deleted = daemon.nix.run("nix-store", &["--delete", &gone]);
    assert!(deleted.status.success(), "{}", String::from_utf8_lossy(&deleted.stderr));
    gate.rule(|_| None);
    daemon.up();
    let summary = daemon.end(&session, &[]);
    assert_eq!(
        (summary["pushed"].as_u64(), summary["outcome"].as_str()),
        (Some(1), Some("complete")),
        "{summary}"
    );
    assert!(cache.main().has(&kept) && !cache.main().has(&gone));
}

/// A path is deleted while the daemon retries it.
#[test]
fn a_path_deleted_while_it_waits_is_counted_as_collected() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    gate.rule(|name| name.ends_with("-gone").then_some(503));
    let daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let session = daemon.session(&[]);
    let gone = daemon.nix.build(&PrivateNix::shell("gone", "echo 1 > $out")).remove(0);
    until("it has been tried", || daemon.log().contains("an upload of "));
    let db = rusqlite::Connection::open(daemon.nix.state_dir().join("db/db.sqlite")).unwrap();
    db.busy_timeout(MAX_WAIT).unwrap();
    assert_eq!(db.execute("delete from ValidPaths where path = ?1", [&gone]).unwrap(), 1);
    std::fs::remove_file(&gone).unwrap();
    let kept = daemon.nix.build(&PrivateNix::shell("kept", "echo 2 > $out")).remove(0);
    let summary = daemon.end(&session, &[]);
    let counts = ["pushed", "collected", "failed_total", "pending"].map(|key| summary[key].as_u64());
    assert_eq!(counts, [Some(1), Some(1), Some(0), Some(0)], "{summary}");
    assert!(cache.main().has(&kept) && !cache.main().has(&gone));
}
