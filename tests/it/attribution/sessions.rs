//! How sessions end: with their job, after it, by another user, over a restart, many at once; and
//! Nix's post-build hook.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Instant;

use flywheel::control::codec::{self, ClientHello, PROTOCOL};
use flywheel::control::dial::dial;
use flywheel::control::messages::{Progress, Reply, Request};
use rustix::process::{Pid, Signal, kill_process_group};
use serde_json::Value;

use crate::support::cache::StandaloneCache;
use crate::support::daemon::{CommandResult, Daemon, EMBEDDED, MAX_WAIT, until};
use crate::support::multiuser::NixDaemon;
use crate::support::nix::{PrivateNix, in_chroot};
use crate::support::users::{as_nobody, can_switch_user, nobodys_client, open_to_all};

/// Starts a shell in a process group of its own, as a job.
pub fn job(daemon: &Daemon, script: &str, env: &[(&str, &str)]) -> Child {
    let mut shell = daemon.nix.command("sh");
    shell.args(["-c", script]).env("FLYWHEEL_SOCKET", daemon.socket()).envs(env.iter().copied());
    shell.env("CTL", env!("CARGO_BIN_EXE_flywheelctl")).process_group(0);
    shell.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap()
}

pub fn until_state(daemon: &Daemon, session: &str, state: &str) -> Value {
    let mut detail = Value::Null;
    until(state, || {
        detail = daemon.json(&["session", "show", session]);
        detail["session"]["state"] == state
    });
    detail
}

/// The evidence for the session's path whose name ends like this.
pub fn evidence(detail: &Value, end: &str) -> String {
    let paths = detail["paths"].as_array().unwrap();
    let path = paths.iter().find(|p| p["path"].as_str().unwrap().ends_with(end));
    path.unwrap_or_else(|| panic!("no {end}: {detail}"))["evidence"].as_str().unwrap().to_owned()
}

fn has_lock(daemon: &Daemon, name: &str) -> bool {
    let files = std::fs::read_dir(daemon.nix.store_dir()).unwrap().filter_map(Result::ok);
    files.into_iter().any(|f| f.file_name().to_string_lossy().ends_with(&format!("-{name}.lock")))
}

#[test]
fn a_killed_job_is_abandoned_and_its_paths_are_pushed() {
    let daemon = Daemon::embedded();
    let script = "id=$(\"$CTL\" session start); echo $id
        nix-build --no-out-link -E \"$ONE\"; nix-build --no-out-link -E \"$TWO\"; true";
    let (one, two) = (PrivateNix::shell("made", "echo 1 > $out"), PrivateNix::shell("never", "sleep 600"));
    let mut killed = job(&daemon, script, &[("ONE", &one), ("TWO", &two)]);
    let mut lines = BufReader::new(killed.stdout.take().unwrap()).lines();
    let session = lines.next().unwrap().unwrap();
    let made = lines.next().unwrap().unwrap();
    until("the second build", || has_lock(&daemon, "never"));
    assert_eq!(daemon.json(&["session", "show", &session])["session"]["state"], "open");
    kill_process_group(Pid::from_child(&killed), Signal::KILL).unwrap();
    killed.wait().unwrap();
    let detail = until_state(&daemon, &session, "abandoned");
    assert_eq!(detail["summary"]["pushed"], 1, "{detail}");
    assert_eq!(evidence(&detail, "-made"), "process");
    assert!(daemon.main().has(&made));
}

/// As GitLab's shell executor does it: the job's shell has ended when another one runs
/// `after_script`, which knows only the job's variables.
#[test]
fn a_job_that_ends_its_session_from_another_shell_is_not_abandoned() {
    let daemon = Daemon::embedded();
    let one = PrivateNix::shell("made", "echo 1 > $out");
    let ci = [("GITLAB_CI", "true"), ("CI_JOB_ID", "77"), ("ONE", one.as_str())];
    let first = job(&daemon, "\"$CTL\" session start; nix-build -o result -E \"$ONE\" >/dev/null 2>&1", &ci);
    let session = String::from_utf8(first.wait_with_output().unwrap().stdout).unwrap().trim().to_owned();
    until_state(&daemon, &session, "abandoned");
    for _ in 0..2 {
        let after = job(&daemon, "exec \"$CTL\" --json session end --push 'result*'", &ci);
        let said = CommandResult::of(&after.wait_with_output().unwrap());
        let summary = said.json();
        assert_eq!((&summary["session"], &summary["state"]), (&session.as_str().into(), &"closed".into()));
        assert_eq!((&summary["pushed"], &summary["outcome"]), (&1.into(), &"complete".into()), "{summary}");
    }
    // Another job's `session end` takes the only open session.
    let other = [("GITLAB_CI", "true"), ("CI_JOB_ID", "78")];
    let open = daemon.session(&[]);
    let after = job(&daemon, "exec \"$CTL\" --strict session end", &other);
    assert_eq!(after.wait_with_output().unwrap().status.code(), Some(0), "that is the only open one");
    assert_eq!(daemon.json(&["session", "show", &open])["session"]["state"], "closed");
}

#[test]
fn a_job_that_died_while_the_daemon_was_away_is_abandoned() {
    let mut daemon = Daemon::embedded();
    let mut shell = job(&daemon, "\"$CTL\" session start; read end", &[]);
    let mut lines = BufReader::new(shell.stdout.take().unwrap()).lines();
    let session = lines.next().unwrap().unwrap();
    let mut lives = job(&daemon, "\"$CTL\" session start; read end", &[]);
    let mut lines = BufReader::new(lives.stdout.take().unwrap()).lines();
    let other = lines.next().unwrap().unwrap();
    daemon.kill();
    shell.kill().unwrap();
    shell.wait().unwrap();
    daemon.up();
    until_state(&daemon, &session, "abandoned");
    assert_eq!(daemon.json(&["session", "show", &other])["session"]["state"], "open");
    // The daemon watches the anchor again.
    lives.stdin.take().unwrap().write_all(b"\n").unwrap();
    lives.wait().unwrap();
    until_state(&daemon, &other, "abandoned");
}

#[test]
fn an_anchor_must_be_the_callers_own() {
    let daemon = Daemon::embedded();
    let gone = daemon.ctl(&["session", "start", "--anchor-pid", "2147483647"]);
    assert_eq!(gone.code, 2, "{gone:?}");
    assert!(gone.err.contains("there is no process 2147483647"), "{gone:?}");
    if !can_switch_user() {
        return;
    }
    open_to_all(&daemon);
    let mine = std::process::id().to_string();
    let theirs = as_nobody(&daemon, &["session", "start", "--anchor-pid", &mine]);
    assert_eq!(theirs.code, 2, "{theirs:?}");
    assert!(theirs.err.contains("belongs to user"), "{theirs:?}");
}

#[test]
fn another_user_cannot_end_a_session() {
    if !can_switch_user() {
        return;
    }
    let daemon = Daemon::embedded();
    open_to_all(&daemon);
    let session = daemon.session(&[]);
    let theirs = as_nobody(&daemon, &["--strict", "session", "end", &session]);
    assert_eq!(theirs.code, 5, "{theirs:?}");
    assert!(theirs.err.contains("belongs to"), "{theirs:?}");
    let only = as_nobody(&daemon, &["--strict", "session", "end"]);
    assert_eq!(only.code, 5, "{only:?}");
    assert_eq!(daemon.json(&["session", "show", &session])["session"]["state"], "open");
    // The session's own user may end it, from any shell, by the variable.
    let mut mine = job(&daemon, "exec \"$CTL\" --json session end", &[("FLYWHEEL_SESSION", &session)]);
    assert!(mine.wait().unwrap().success());
    assert_eq!(daemon.json(&["session", "show", &session])["session"]["state"], "closed");
}

#[test]
fn a_small_flush_passes_a_large_backlog() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| ());
    let gate = cache.gate();
    let daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    // The backlog is never pushed: each of its uploads is held by the gate's rule.
    gate.close();
    let large = "let d = n: derivation { name = \"large-${toString n}\"; system = builtins.currentSystem; builder = \"/bin/sh\"; args = [ \"-c\" \"echo $name > $out\" ]; }; in builtins.genList d 60";
    let first = job(
        &daemon,
        "id=$(\"$CTL\" session start); nix-build --no-out-link -E \"$LARGE\" >/dev/null 2>&1; echo $id; read end",
        &[("LARGE", large)],
    );
    let mut first = first;
    let mut lines = BufReader::new(first.stdout.take().unwrap()).lines();
    let backlog = lines.next().unwrap().unwrap();
    gate.until_came(1);
    let small = PrivateNix::shell("small", "echo small > $out");
    let second = job(
        &daemon,
        "id=$(\"$CTL\" session start); nix-build --no-out-link -E \"$SMALL\" >/dev/null 2>&1; exec \"$CTL\" --json session end $id",
        &[("SMALL", &small)],
    );
    // The small path is queued; from now on one upload after another passes.
    until("the small session's end", || {
        let list = daemon.json(&["session", "list"]);
        list.as_array().unwrap().iter().any(|s| s["state"] == "draining")
    });
    gate.open();
    let summary = CommandResult::of(&second.wait_with_output().unwrap()).json();
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &1.into()), "{summary}");
    let came = gate.came();
    let place = came.iter().position(|base| base.ends_with("-small")).unwrap();
    assert!(place < 40, "behind {place} of the backlog");
    first.stdin.take().unwrap().write_all(b"\n").unwrap();
    first.wait().unwrap();
    until_state(&daemon, &backlog, "abandoned");
}

#[test]
fn a_waiting_client_goes_on_after_a_restart() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| ());
    let gate = cache.gate();
    let mut daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    gate.close();
    let session = daemon.session(&[]);
    daemon.nix.build(&PrivateNix::shell("made", "echo 1 > $out"));
    let mut client = daemon.client(&["--json", "session", "end", &session]);
    let client = client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until_state(&daemon, &session, "draining");
    gate.until_came(1);
    daemon.kill();
    daemon.up();
    gate.open();
    let said = CommandResult::of(&client.wait_with_output().unwrap());
    assert_eq!(said.json()["outcome"], "complete", "{said:?}");
    assert_eq!(said.json()["pushed"], 1, "{said:?}");
    assert!(said.err.contains("the connection to the daemon was lost"), "{said:?}");
}

#[test]
fn a_killed_caller_ends_nothing_and_a_second_end_joins() {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| ());
    let gate = cache.gate();
    let daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    gate.close();
    let session = daemon.session(&[]);
    daemon.nix.build(&PrivateNix::shell("made", "echo 1 > $out"));
    let mut gone = daemon.client(&["session", "end", &session]).spawn().unwrap();
    until_state(&daemon, &session, "draining");
    gone.kill().unwrap();
    gone.wait().unwrap();
    let client = || {
        let mut client = daemon.client(&["--json", "session", "end", &session]);
        client.stdout(Stdio::piped()).spawn().unwrap()
    };
    let (one, two) = (client(), client());
    gate.until_came(1);
    gate.open();
    let answers = [one, two].map(|c| CommandResult::of(&c.wait_with_output().unwrap()).json());
    for summary in &answers {
        assert_eq!((&summary["pushed"], &summary["outcome"]), (&1.into(), &"complete".into()), "{summary}");
    }
    assert_eq!(daemon.end(&session, &[])["pushed"], 1, "the result is the same later");
}

/// One job builds a path that another job waits for.
#[test]
fn a_path_that_two_jobs_want_belongs_to_the_one_that_builds_it() {
    let nix = PrivateNix::new();
    let started = NixDaemon::start(&nix, &[]);
    let daemon = Daemon::start(nix, EMBEDDED);
    let slow = PrivateNix::shell("slow", "while ! [ -e go ]; do sleep 0.02; done; echo 1 > $out")
        .replace("[ -e go ]", &format!("[ -e {}/go ]", daemon.nix.work_dir().display()));
    let remote = started.remote();
    let script =
        "id=$(\"$CTL\" session start); echo $id; nix-build -o result-$K -E \"$SLOW\" 2>log-$K >/dev/null
        exec \"$CTL\" --json session end $id --push result-$K";
    let start = |k| job(&daemon, script, &[("K", k), ("SLOW", &slow), ("NIX_REMOTE", &remote)]);
    let a = start("a");
    until("A's build", || has_lock(&daemon, "slow"));
    let b = start("b");
    let log = daemon.nix.work_dir().join("log-b");
    until("B's waiting", || std::fs::read_to_string(&log).is_ok_and(|text| text.contains("lock")));
    std::fs::write(daemon.nix.work_dir().join("go"), "").unwrap();
    let summary = |child: Child| {
        let said = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        serde_json::from_str::<Value>(said.lines().last().unwrap()).unwrap()
    };
    let (a, b) = (summary(a), summary(b));
    assert_eq!(a["pushed"], 1, "{a}");
    let of_a = daemon.json(&["session", "show", a["session"].as_str().unwrap()]);
    assert_eq!(evidence(&of_a, "-slow"), "process");
    assert_eq!((&b["pushed"], &b["already_cached"]), (&0.into(), &1.into()), "{b}");
    assert_eq!(b["attributed"]["closure"], 1, "{b}");
}

#[test]
fn run_is_its_commands_session_and_ends_with_it() {
    let daemon = Daemon::embedded();
    let expr = PrivateNix::shell("made", "echo 1 > $out");
    let mut run =
        daemon.client(&["--json", "run", "--", "sh", "-c", "nix-build --no-out-link -E \"$E\"; exit 3"]);
    let said = CommandResult::of(&run.envs(daemon.nix.env()).env("E", &expr).output().unwrap());
    assert_eq!(said.code, 3, "{said:?}");
    let list = daemon.json(&["session", "list", "--all"]);
    assert_eq!(list[0]["state"], "closed", "{list}");
    let detail = daemon.json(&["session", "show", list[0]["session"].as_str().unwrap()]);
    assert_eq!(evidence(&detail, "-made"), "process");

    // When `flywheelctl run` is killed with its command, the command's end ends the session.
    let mut run = daemon.client(&["run", "--label", "killed", "--", "sh", "-c", "read end"]);
    let mut run = run.process_group(0).stdin(Stdio::piped()).spawn().unwrap();
    let mut session = String::new();
    until("the session of the command", || {
        let list = daemon.json(&["session", "list"]);
        let found = list.as_array().unwrap().iter().find(|s| s["label"] == "killed");
        session = found.map(|s| s["session"].as_str().unwrap().to_owned()).unwrap_or_default();
        !session.is_empty()
    });
    kill_process_group(Pid::from_child(&run), Signal::KILL).unwrap();
    run.wait().unwrap();
    until_state(&daemon, &session, "abandoned");
}

#[test]
fn the_hook_tells_who_built() {
    if in_chroot() {
        return eprintln!("skipped: Nix runs no post-build hook in a chroot");
    }
    let nix = PrivateNix::new();
    let hook = nix.path().join("flywheel-hook");
    symlink(env!("CARGO_BIN_EXE_flywheelctl"), &hook).unwrap();
    nix.configure(&format!("post-build-hook = {}", hook.display()));
    let socket = nix.path().join("s");
    let started = NixDaemon::start(&nix, &[("FLYWHEEL_SOCKET", &socket)]);
    // The hook succeeds without a daemon.
    let expr = PrivateNix::shell("before", "echo 1 > $out");
    let mut alone = nix.command("nix-build");
    alone.args(["--no-out-link", "-E", &expr]).env("NIX_REMOTE", started.remote());
    let alone = CommandResult::of(&alone.output().unwrap());
    assert_eq!(alone.code, 0, "{alone:?}");
    // The hook succeeds with a daemon that does not answer.
    let deaf = UnixListener::bind(&socket).unwrap();
    let mut call = Command::new(&hook);
    call.env("FLYWHEEL_SOCKET", &socket).env("OUT_PATHS", "/nix/store/x");
    let begun = Instant::now();
    let said = CommandResult::of(&call.output().unwrap());
    eprintln!("the hook and a deaf daemon: {:?}", begun.elapsed());
    assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""));
    drop(deaf);
    std::fs::remove_file(&socket).unwrap();

    let daemon = Daemon::start(nix, EMBEDDED);
    let remote = started.remote();
    let script = "id=$(\"$CTL\" session start); nix-build --no-out-link -E \"$E\" >/dev/null 2>&1
        exec \"$CTL\" --json session end $id";
    let jobs: Vec<Child> = (0..3)
        .map(|k| {
            let expr = PrivateNix::shell(&format!("hooked-{k}"), "echo 1 > $out");
            job(&daemon, script, &[("E", &expr), ("NIX_REMOTE", &remote)])
        })
        .collect();
    // The hook waits only briefly: on a busy machine the lock's holder may be the evidence
    // instead. No path is another job's.
    let mut hooked = 0;
    for job in jobs {
        let summary = CommandResult::of(&job.wait_with_output().unwrap()).json();
        let attributed = |why: &str| summary["attributed"][why].as_u64().unwrap();
        assert!(summary["pushed"] == 1 && attributed("hook") + attributed("process") >= 1, "{summary}");
        hooked += attributed("hook");
    }
    assert!((1..=3).contains(&hooked), "{hooked} of 3 by their hook");
    // The daemon does not believe a hook of a user who builds nothing in this
    // store, and the hook succeeds anyway.
    if !can_switch_user() {
        return;
    }
    open_to_all(&daemon);
    let mut call = nobodys_client(&daemon, &["hook"]);
    call.env("OUT_PATHS", daemon.nix.store_dir().join("00000000000000000000000000000000-x"));
    assert_eq!(CommandResult::of(&call.output().unwrap()).code, 0);
}

/// One connection that sends its hello and then one request after another.
pub struct Client(std::os::unix::net::UnixStream);

impl Client {
    pub fn open(daemon: &Daemon) -> Self {
        let mut stream = dial(&daemon.socket(), MAX_WAIT).unwrap();
        let hello = ClientHello { protocol: PROTOCOL, version: "test".into() };
        stream.write_all(&hello.frame()).unwrap();
        codec::read_body(&mut stream, codec::MAX_HELLO).unwrap().unwrap();
        Self(stream)
    }

    /// Asks, and does not wait for the answer.
    pub fn send(&mut self, request: &Request) {
        codec::write(&mut self.0, request).unwrap();
    }

    pub fn ask(&mut self, request: &Request) -> Reply {
        self.ask_with(request, |_| ())
    }

    /// Asks, and hands on each report of the progress.
    pub fn ask_with(&mut self, request: &Request, mut progress: impl FnMut(Progress)) -> Reply {
        codec::write(&mut self.0, request).unwrap();
        loop {
            match codec::read::<Reply>(&mut self.0).unwrap().unwrap() {
                Reply::Progress(report) => progress(report),
                reply => return reply,
            }
        }
    }
}

/// What a job waits for is its own: its paths and bytes, and the uploads that take long.
#[test]
fn progress_has_the_bytes_of_the_job_and_names_slow_uploads() {
    const SIZE: u64 = 1_200_000;
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let daemon = Daemon::start(nix, &format!("{}\n[push]\nmax_rate = \"150KiB\"\n", cache.config()));
    let session = daemon.session(&[]);
    daemon.nix.build(&PrivateNix::shell("slow", &format!("head -c {SIZE} /dev/urandom > $out")));
    let end = Request::SessionEnd {
        session: Some(session),
        ci_job: None,
        push: Vec::new(),
        timeout_ms: 120_000,
        wait: true,
        patient: true,
    };
    let mut reports = Vec::new();
    let reply = Client::open(&daemon).ask_with(&end, |report| reports.push(report));
    let Reply::Ended(summary) = reply else { panic!("{reply:?}") };
    assert_eq!((summary.pushed, summary.pending), (1, 0));
    assert!(reports.iter().any(|r| r.bytes_sent > 0 && r.bytes_left > 0), "{reports:?}");
    for report in &reports {
        assert!(report.bytes_sent + report.bytes_left <= SIZE + 4096, "{report:?}");
    }
    let slow = reports.iter().find_map(|r| r.slow.first()).expect("a slow upload is named");
    assert!(slow.path.ends_with("-slow") && slow.nar_size >= SIZE && slow.running_ms >= 5000, "{slow:?}");
}

#[test]
fn a_thousand_short_sessions() {
    let daemon = Daemon::embedded();
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let mut client = Client::open(&daemon);
                for _ in 0..125 {
                    let start = Request::SessionStart {
                        label: None,
                        cache: None,
                        anchor_pid: Some(std::process::id()),
                        strict: false,
                        ci: None,
                        log_paths: false,
                    };
                    let Reply::Started { session, .. } = client.ask(&start) else { panic!("not started") };
                    let end = Request::SessionEnd {
                        session: Some(session),
                        ci_job: None,
                        push: Vec::new(),
                        timeout_ms: 60_000,
                        wait: true,
                        patient: true,
                    };
                    let Reply::Ended(summary) = client.ask(&end) else { panic!("not ended") };
                    assert_eq!(summary.pending, 0);
                }
            });
        }
    });
    eprintln!("a thousand sessions: {:?}", begun.elapsed());
    assert_eq!(daemon.status()["sessions"].as_array().unwrap().len(), 0);
    // No descriptors and no watches are left.
    let open = || std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count();
    until("the descriptors to be closed", || open() < 64);
}

/// More clients than one user may have connections: each of them either has its whole session, or
/// is refused with the limit's name and runs again. How many are refused depends on the machine.
#[test]
fn two_hundred_clients_at_once() {
    let daemon = Daemon::embedded();
    let begun = Instant::now();
    let (mut left, mut rounds) = (200, 0);
    while left > 0 {
        let children: Vec<Child> = (0..left)
            .map(|_| {
                let mut client = daemon.client(&["--strict", "run", "--", "true"]);
                client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
            })
            .collect();
        for child in children {
            let said = CommandResult::of(&child.wait_with_output().unwrap());
            match said.code {
                0 => left -= 1,
                5 => assert!(said.err.contains("has 64 connections open, the most allowed"), "{said:?}"),
                _ => panic!("{said:?}"),
            }
        }
        rounds += 1;
        eprintln!("round {rounds}: {left} of 200 were refused");
    }
    eprintln!("two hundred clients: {:?}", begun.elapsed());
    let sessions = daemon.json(&["session", "list", "--all"]);
    // A client that was refused at its end has an abandoned session.
    let closed = sessions.as_array().unwrap().iter().filter(|session| session["state"] == "closed");
    assert_eq!(closed.count(), 200);
}
