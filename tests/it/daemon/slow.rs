//! Something that the daemon reads is slow: it still answers everybody else.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use crate::daemon::notify::Stopped;
use crate::support::daemon::MAX_WAIT;
use crate::support::daemon::{Daemon, EMBEDDED, until};
use crate::support::nix::PrivateNix;
use crate::support::users::{as_nobody, can_switch_user, nobodys_client, open_to_all, replace_groups};

/// Takes a lease on the file in its first argument (F_SETLEASE in fcntl(2)): whoever
/// opens the file waits until the lease is given back, for 45 s at most. Prints
/// "held", then "wanted" when somebody opens it; gives it back at the end of input.
const LEASE: &str = r#"
$| = 1;
$SIG{IO} = sub { print "wanted\n" };
open(F, "+<", $ARGV[0]) or exit 3;
fcntl(F, 1024, 1) or exit 3;
print "held\n";
1 while !defined(sysread(STDIN, $x, 1));
fcntl(F, 1024, 2);
"#;

/// A process with a lease on a file.
struct Lease {
    process: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Lease {
    /// `None`: this machine has no perl, or its file system has no leases.
    fn take(file: &Path) -> Option<Self> {
        let mut perl = Command::new("perl");
        perl.args(["-e", LEASE]).arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = perl.spawn().ok()?;
        let (input, output) = (process.stdin.take(), BufReader::new(process.stdout.take()?));
        let mut lease = Self { process, input, output };
        (lease.line() == "held\n").then_some(lease)
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).unwrap();
        line
    }

    fn give_back(mut self) {
        self.input.take().unwrap().write_all(b"x").unwrap();
        self.process.wait().unwrap();
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn status_answers_while_a_token_file_is_slow() {
    let mut daemon = Daemon::embedded();
    // The cache has answered: nothing else reads the token from here on.
    daemon.nix.make("first");
    daemon.flush();
    let token = daemon.state_dir().join("embedded-push-token");
    let Some(mut lease) = Lease::take(&token) else {
        eprintln!("skipped: no lease on a file of this machine");
        return;
    };
    let mut reload = daemon.client(&["--strict", "reload"]).stdout(Stdio::null()).spawn().unwrap();
    assert_eq!(lease.line(), "wanted\n");
    // The reload waits for the token, and nobody waits for the reload.
    assert_eq!(daemon.status()["draining"], false);
    let session = daemon.session(&[]);
    assert_eq!(daemon.end(&session, &[])["outcome"], "complete");
    assert!(reload.try_wait().unwrap().is_none(), "the reload has not read the token");
    lease.give_back();
    assert!(reload.wait().unwrap().success());
    daemon.stop();
}

#[test]
fn status_answers_while_the_ledger_is_slow() {
    let mut daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    let Some(stopped) = Stopped::threads(&daemon, "ledger") else { return };
    // More often than there are places for reads that wait.
    for _ in 0..6 {
        let status = daemon.status();
        let warnings = status["warnings"].to_string();
        assert!(warnings.contains("the ledger does not answer"), "{status}");
        assert_eq!(status["cache"][0]["name"], "main");
    }
    drop(stopped);
    let status = daemon.status();
    assert_eq!(status["sessions"][0]["session"], session.as_str(), "{status}");
    daemon.stop();
}

#[test]
fn status_answers_while_the_nix_database_is_slow() {
    let nix = PrivateNix::new();
    let db = nix.without_wal();
    let mut daemon = Daemon::start(nix, EMBEDDED);
    let session = daemon.session(&[]);
    db.busy_timeout(MAX_WAIT).unwrap();
    db.execute_batch("BEGIN EXCLUSIVE").unwrap();
    // An end, the start of a session, and a push: each reads the database.
    let end =
        |args: &[&str]| daemon.client(args).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let mut waiting = vec![end(&["session", "end", &session]), end(&["session", "end", &session])];
    for _ in 0..4 {
        waiting.push(end(&["session", "start"]));
        waiting.push(end(&["push", "--wait", "/nix/store/0njnh3x9rb4hh40rpc0dwc3w75vjl545-x"]));
    }
    until("the intake is stuck", || {
        daemon.status()["store"]["problem"].as_str().is_some_and(|problem| problem.contains("locked"))
    });
    // The lock is still held, by this test.
    for _ in 0..4 {
        assert_eq!(daemon.status()["cache"][0]["name"], "main");
    }
    assert!(waiting[0].try_wait().unwrap().is_none(), "the session has not been looked through");
    db.execute_batch("ROLLBACK").unwrap();
    for mut caller in waiting {
        caller.wait().unwrap();
    }
    let summary = daemon.end(&session, &[]);
    assert_eq!(summary["outcome"], "complete", "{summary}");
    daemon.stop();
}

#[test]
fn status_answers_while_the_name_service_is_slow() {
    if !can_switch_user() {
        return;
    }
    if Path::new("/run/nscd/socket").exists() {
        eprintln!("skipped: nscd answers here, and does not read the daemon's /etc/group");
        return;
    }
    let routes = "[[route]]\ngroup = \"domain users\"\ncache = \"main\"\n";
    let mut daemon = Daemon::prepare(PrivateNix::new(), &format!("{EMBEDDED}{routes}"));
    let groups = daemon.nix.path().join("group");
    std::fs::copy("/etc/group", &groups).unwrap();
    if !replace_groups(&mut daemon, &groups) {
        return;
    }
    daemon.up();
    open_to_all(&daemon);
    let Some(mut lease) = Lease::take(&groups) else {
        eprintln!("skipped: no lease on a file of this machine");
        return;
    };
    let start = ["--strict", "session", "start"];
    let mut waiting = nobodys_client(&daemon, &start);
    let mut waiting = waiting.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    assert_eq!(lease.line(), "wanted\n");
    // The look-up of the caller's groups hangs, and nobody else waits for it.
    for _ in 0..4 {
        assert_eq!(daemon.status()["cache"][0]["name"], "main");
    }
    let session = daemon.session(&[]);
    assert_eq!(daemon.end(&session, &[])["outcome"], "complete");
    lease.give_back();
    // It has been refused if it has waited for too long.
    waiting.wait().unwrap();
    until("the name service answers", || as_nobody(&daemon, &start).code == 0);
    daemon.stop();
}
