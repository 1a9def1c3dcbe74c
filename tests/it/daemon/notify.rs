//! The daemon as systemd sees it: its notifications, the watchdog, a passed socket, and that a
//! second daemon is refused.

use std::os::unix::net::UnixListener;
use std::path::PathBuf;

use nix::sys::ptrace;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::support::daemon::{CommandResult, Daemon, EMBEDDED, until};
use crate::support::nix::PrivateNix;

/// An address on which nothing listens.
const ABSENT: &str = "[caches.main]\nendpoints = \"http://127.0.0.1:9\"\n[client]\nenable = false\n";

#[test]
fn ready_says_that_it_serves_whether_or_not_a_cache_answers() {
    let mut daemon = Daemon::prepare(PrivateNix::new(), ABSENT);
    daemon.up();
    let notified = daemon.notified();
    assert_eq!(notified[0], "READY=1", "nothing before it: {notified:?}");
    assert!(daemon.state_dir().join("ledger.sqlite").exists());
    assert_eq!(daemon.ctl(&["status"]).code, 0);
    // The status line says something useful, also when something is wrong.
    daemon.session(&[]);
    daemon.nix.build(&PrivateNix::shell("waits", "echo hi > $out"));
    daemon.until_notified(|line| line == "STATUS=1 session, 1 queued, 0 uploading, main offline");
    daemon.stop();
    let notified = daemon.notified();
    assert!(notified.iter().any(|line| line == "STOPPING=1"), "{notified:?}");
}

/// Threads of the daemon, found by name and stopped one by one as SIGSTOP stops a process. They go
/// on when this is dropped.
pub(super) struct Stopped(Vec<Pid>);

impl Stopped {
    /// `None`, with a line that says so, where ptrace is forbidden.
    pub(super) fn threads(daemon: &Daemon, name: &str) -> Option<Self> {
        let mut stopped = Self(Vec::new());
        for entry in std::fs::read_dir(format!("/proc/{}/task", daemon.pid())).unwrap() {
            let task = entry.unwrap();
            if std::fs::read_to_string(task.path().join("comm")).unwrap().trim() != name {
                continue;
            }
            let tid = Pid::from_raw(task.file_name().to_str().unwrap().parse().unwrap());
            if let Err(error) = ptrace::seize(tid, ptrace::Options::empty()) {
                eprintln!("skipped: threads cannot be stopped here (ptrace: {error})");
                return None;
            }
            ptrace::interrupt(tid).unwrap();
            waitpid(tid, Some(WaitPidFlag::__WALL)).unwrap();
            stopped.0.push(tid);
        }
        assert!(!stopped.0.is_empty(), "there is no thread {name}");
        Some(stopped)
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        for tid in &self.0 {
            let _ = ptrace::detach(*tid, None);
        }
    }
}

#[test]
fn a_stopped_thread_ends_the_watchdog_messages() {
    let mut daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    daemon.env.push(("FLYWHEEL_LOG".to_owned(), "debug".to_owned()));
    daemon.env.push(("WATCHDOG_USEC".to_owned(), "2000000".to_owned()));
    daemon.up();
    let pings = |daemon: &Daemon| daemon.notified().iter().filter(|line| *line == "WATCHDOG=1").count();
    until("it pings", || pings(&daemon) >= 2);
    for (thread, part) in [("intake", "intake"), ("tokio-rt-worker", "driver, socket")] {
        let said = |what: &str| {
            let wanted = format!("part=\"{part}\"");
            daemon.log().lines().filter(|l| l.contains(what) && l.contains(&wanted)).count()
        };
        let Some(stopped) = Stopped::threads(&daemon, thread) else { return };
        until("it is seen", || said("does not respond") == 1);
        let before = pings(&daemon);
        until("it is looked at again", || said("still no response") >= 2);
        assert_eq!(pings(&daemon), before, "{part} did not respond");
        drop(stopped);
        until("it is seen to move", || said("responds again") == 1);
        until("it pings again", || pings(&daemon) > before);
    }
    // A thread that waits is not stuck: the Nix database is locked for a while.
    let (db, away) = (daemon.nix.state_dir().join("db"), daemon.nix.state_dir().join("away"));
    std::fs::rename(&db, &away).unwrap();
    until("the intake waits", || daemon.log().contains("cannot be taken in for the moment"));
    let before = pings(&daemon);
    until("it pings anyway", || pings(&daemon) >= before + 3);
    std::fs::rename(&away, &db).unwrap();
    daemon.stop();
}

/// Without `WatchdogSec=`, or with one that is meant for another process.
#[test]
fn no_watchdog_message_without_a_watchdog() {
    let mut daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    for (name, value) in [("WATCHDOG_USEC", "4000"), ("WATCHDOG_PID", "1")] {
        daemon.env.push((name.to_owned(), value.to_owned()));
    }
    daemon.up();
    daemon.nix.build(&PrivateNix::shell("one", "echo hi > $out"));
    daemon.flush();
    daemon.stop();
    assert!(!daemon.notified().iter().any(|line| line.starts_with("WATCHDOG")), "{:?}", daemon.notified());
}

/// Binds a socket and executes the remaining arguments with it as file descriptor 3.
const PASS: &str = r#"use Socket; use POSIX (); $^F = 10;
my ($type, $path, $pid) = splice(@ARGV, 0, 3);
socket(my $s, PF_UNIX, $type eq "stream" ? SOCK_STREAM : SOCK_DGRAM, 0) or die $!;
bind($s, sockaddr_un($path)) or die $!; listen($s, 128) if $type eq "stream";
POSIX::dup2(fileno($s), 3); $ENV{LISTEN_PID} = $pid || $$; $ENV{LISTEN_FDS} = 1;
$ENV{LISTEN_FDNAMES} = "flywheeld.socket"; exec @ARGV or die $!;"#;

/// As [`PASS`], with a TCP socket for the built-in cache as file descriptor 4. Prints its port first.
const PASS_TWO: &str = r#"use Socket; use POSIX (); $^F = 10;
my $path = shift(@ARGV);
socket(my $s, PF_UNIX, SOCK_STREAM, 0) or die $!;
bind($s, sockaddr_un($path)) or die $!; listen($s, 128);
socket(my $t, PF_INET, SOCK_STREAM, 0) or die $!;
bind($t, pack_sockaddr_in(0, inet_aton("127.0.0.1"))) or die $!; listen($t, 128);
my ($port) = unpack_sockaddr_in(getsockname($t));
my ($a, $b) = (POSIX::dup(fileno($s)), POSIX::dup(fileno($t)));
POSIX::dup2($a, 3); POSIX::dup2($b, 4); $ENV{LISTEN_PID} = $$; $ENV{LISTEN_FDS} = 2;
$ENV{LISTEN_FDNAMES} = "flywheeld.socket:cache"; exec @ARGV or die $!;"#;

/// The built-in cache serves on the passed socket; `listen` in the configuration does not count then.
#[test]
fn a_socket_for_the_built_in_cache_is_taken_over() {
    let nix = PrivateNix::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let config = EMBEDDED.replace("127.0.0.1:0", &taken.local_addr().unwrap().to_string());
    let mut daemon = Daemon::prepare(nix, &config);
    let path = daemon.nix.path().join("passed");
    daemon.wrapper = ["perl", "-e", PASS_TWO, path.to_str().unwrap()].map(str::to_owned).to_vec();
    daemon.up();
    let built = daemon.nix.make("passed");
    let pushed = daemon.client(&["push", "--wait", &built]).env("FLYWHEEL_SOCKET", &path).output().unwrap();
    assert!(pushed.status.success(), "{pushed:?}");
    assert!(daemon.main().has(&built));
    assert_ne!(daemon.main().address(), taken.local_addr().unwrap().to_string());
}

fn passed(kind: &str, pid: &str) -> (Daemon, PathBuf) {
    let mut daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    let path = daemon.nix.path().join("passed");
    daemon.wrapper = ["perl", "-e", PASS, kind, path.to_str().unwrap(), pid].map(str::to_owned).to_vec();
    (daemon, path)
}

#[test]
fn a_passed_socket_is_served_and_left_in_its_place() {
    let (mut daemon, path) = passed("stream", "");
    daemon.up();
    assert!(!daemon.socket().exists(), "no other one is made");
    let status =
        CommandResult::of(&daemon.client(&["status"]).env("FLYWHEEL_SOCKET", &path).output().unwrap());
    assert_eq!(status.code, 0, "{status:?}");
    assert!(daemon.log().contains("activated=true"), "{}", daemon.log());
    daemon.stop();
    assert!(path.exists(), "it is systemd's");
}

#[test]
fn what_is_passed_must_be_a_listening_socket_and_meant_for_it() {
    let (daemon, _) = passed("datagram", "");
    let out = CommandResult::of(&daemon.program().arg("--config").arg(daemon.config()).output().unwrap());
    assert_eq!(out.code, 1, "{out:?}");
    assert!(out.err.contains("LISTEN_FDS") && out.err.contains("ListenStream="), "{out:?}");

    let (mut daemon, _) = passed("stream", "1");
    daemon.up();
    assert_eq!(daemon.ctl(&["status"]).code, 0, "it has made its own");
}

#[test]
fn a_dead_daemons_socket_is_replaced_and_a_live_ones_is_not() {
    let mut daemon = Daemon::embedded();
    daemon.kill();
    assert!(UnixListener::bind(daemon.socket()).is_err(), "it is still there");
    daemon.up();
    let session = daemon.session(&[]);

    // The same socket again.
    let start =
        |config: PathBuf| CommandResult::of(&daemon.program().arg("--config").arg(config).output().unwrap());
    let second = start(daemon.config());
    assert_eq!(second.code, 1, "{second:?}");
    let pid = format!("(process {})", daemon.pid());
    assert!(second.err.contains(&pid) && second.err.contains("state_dir"), "{second:?}");

    // A daemon with another state directory.
    let text = std::fs::read_to_string(daemon.config()).unwrap();
    let other = daemon.nix.path().join("other.toml");
    std::fs::write(&other, text.replacen("/state\"", "/state2\"", 1)).unwrap();
    let second = start(other);
    assert_eq!(second.code, 1, "{second:?}");
    assert!(second.err.contains(&pid) && second.err.contains("is listening on"), "{second:?}");

    assert_eq!(daemon.end(&session, &[])["outcome"], "complete", "the first is not disturbed");
    daemon.stop();
    assert!(!daemon.socket().exists(), "it takes its own away");
}
