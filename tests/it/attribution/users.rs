//! Two users of one host who do not trust each other build at the same time through the nix-daemon.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::process::CommandExt as _;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use serde_json::Value;

use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::multiuser::NixDaemon;
use crate::support::nix::PrivateNix;
use crate::support::users::{NOBODY, can_switch_user, copy_program, open_to_all, set_mode};

/// A user without an entry in `/etc/passwd`.
const OTHER: u32 = 61_234;

/// A job: it opens a session, builds, and ends the session, each when it is let.
const JOB: &str = r#"
set -e
id=$("$CTL" session start --label "$NAME")
echo "$id"
read go
nix-build --no-out-link -E "$EXPR" 2>/dev/null
read foreign
"$CTL" --json session end "$foreign" || true
read end
"$CTL" --json session end
"#;

struct Job {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Job {
    fn start(daemon: &Daemon, nix_daemon: &NixDaemon, uid: u32, name: &str) -> Self {
        let ctl = copy_program(env!("CARGO_BIN_EXE_flywheelctl"), daemon.nix.path());
        let mut command = daemon.nix.command("sh");
        command.args(["-c", JOB]).env("CTL", ctl).env("NAME", name).env("USER", name);
        command.env("EXPR", PrivateNix::shell(name, "sleep 0.5; echo $name > $out"));
        command.env("NIX_REMOTE", nix_daemon.remote()).env("FLYWHEEL_SOCKET", daemon.socket());
        command.env("HOME", daemon.nix.work_dir()).env_remove("CI").uid(uid).gid(uid);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        Self { child, stdin, stdout }
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn say(&mut self, text: &str) {
        writeln!(self.stdin, "{text}").unwrap();
    }
}

#[test]
fn two_users_get_what_each_of_them_built_and_nothing_of_the_other() {
    if !can_switch_user() {
        return;
    }
    let nix = PrivateNix::new();
    let nix_daemon = NixDaemon::start(&nix, &[]);
    let daemon = Daemon::start(nix, EMBEDDED);
    open_to_all(&daemon);
    set_mode(&daemon.nix.work_dir(), 0o777);
    let mut jobs = [(NOBODY, "of-nobody"), (OTHER, "of-other")]
        .map(|(uid, name)| Job::start(&daemon, &nix_daemon, uid, name));
    let sessions = [jobs[0].line(), jobs[1].line()];
    jobs.iter_mut().for_each(|job| job.say("go"));
    let built = [jobs[0].line(), jobs[1].line()];
    for (job, other) in [(0, 1), (1, 0)] {
        // The other's session can be named and is not ended.
        jobs[job].say(&sessions[other]);
        let refused: Value = serde_json::from_str(&jobs[job].line()).unwrap();
        assert_eq!(refused["outcome"], "denied", "{refused}");
    }
    for (n, job) in jobs.iter_mut().enumerate() {
        job.say("end");
        let summary: Value = serde_json::from_str(&job.line()).unwrap();
        assert_eq!(
            (&summary["session"], &summary["outcome"]),
            (&sessions[n].as_str().into(), &"complete".into()),
            "{summary}"
        );
        assert!(job.child.wait().unwrap().success());
        let shown = daemon.json(&["session", "show", &sessions[n]]);
        let paths = shown["paths"].as_array().unwrap();
        let of = |path: &str| paths.iter().find(|entry| entry["path"] == path);
        assert_eq!(of(&built[n]).unwrap()["evidence"], "process", "{shown}");
        assert!(of(&built[1 - n]).is_none(), "{shown}");
        assert!(daemon.main().has(&built[n]));
    }
}
