//! Several jobs at once on one store, each a process tree of its own: every built path belongs to
//! the job that built it, with evidence `process`, and to no other. Nix itself says who built what:
//! it tells the client whose goal it was.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::Value;

use crate::support::daemon::{Daemon, EMBEDDED};
use crate::support::multiuser::NixDaemon;
use crate::support::nix::PrivateNix;

/// The number of builds of each job alone, and of builds that all jobs want.
const OWN: usize = 4;
const COMMON: usize = 3;

/// The shortest time that a build takes, in milliseconds: `REAL` for one that takes as long as real
/// builds, which start some hundred processes, `TINY` for one that ends almost at once.
const REAL: u32 = 300;
const TINY: u32 = 10;

/// An expression: a chain of the job's own derivations, each of which needs a common one, and a
/// source for each.
fn expression(job: usize, round: usize, ms: u32) -> String {
    format!(
        r#"let
  made = name: inputs: derivation {{
    inherit name inputs; system = builtins.currentSystem; builder = "/bin/sh"; PATH = "/usr/bin:/bin";
    text = builtins.toFile "text-${{name}}" "of ${{name}}";
    args = [ "-c" "sleep {ms}e-3; echo $name $inputs > $out" ];
  }};
  common = n: made "common-{round}-${{toString n}}" [ ];
in builtins.foldl' (before: n: made "own-{job}-{round}-${{toString n}}" [ before (common (builtins.sub n (n / {COMMON} * {COMMON}))) ])
  (common 0) (builtins.genList (n: n) {OWN})"#
    )
}

const SCRIPT: &str = r#"
set -e
id=$("$CTL" session start --label "job-$K")
echo "$id"
read go
nix-build --no-out-link -E "$FIRST" >/dev/null 2>"log-$K-1" &
echo "source of job $K" > "source-$K"; nix-store --add "source-$K" >/dev/null
nix-store --realise "$SUBSTITUTE" --option substitute true --option substituters "$BINARY" >/dev/null 2>&1
wait $!
nix-build --no-out-link -E "$SECOND" >/dev/null 2>"log-$K-2"
echo built
read end
"$CTL" --json session end "$id"
"#;

struct Job {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
    session: String,
}

impl Job {
    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    fn say(&mut self) {
        self.stdin.write_all(b"\n").unwrap();
    }
}

/// How the jobs reach the store.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Access {
    Direct,
    /// Through a nix-daemon that forks a worker for each connection.
    Daemon,
    /// Through a nix-daemon that is started for each connection, as systemd does for a socket unit
    /// with `Accept=yes`.
    PerConnection,
}

struct Site {
    daemon: Daemon,
    remote: String,
    _nix_daemon: Option<NixDaemon>,
}

/// Starts `nix-daemon --stdio` for each connection to this socket, until the tests end.
fn serve_each_connection(nix: &PrivateNix) -> String {
    let socket = nix.path().join("each.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let (env, dir) = (nix.env(), nix.work_dir());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let Ok(stream) = stream else { continue };
            let mut worker = Command::new("nix-daemon");
            worker.arg("--stdio").current_dir(&dir).envs(env.iter().cloned()).env_remove("NIX_PATH");
            worker.stdin(OwnedFd::from(stream.try_clone().unwrap())).stdout(OwnedFd::from(stream));
            let mut worker = worker.stderr(Stdio::null()).spawn().unwrap();
            std::thread::spawn(move || worker.wait());
        }
    });
    format!("unix://{}", socket.display())
}

impl Site {
    fn new(access: Access, prepare: impl FnOnce(&PrivateNix)) -> Self {
        let nix = PrivateNix::new();
        nix.configure("require-sigs = false\ntrusted-users = *");
        prepare(&nix);
        let started = (access == Access::Daemon).then(|| NixDaemon::start(&nix, &[]));
        let each = (access == Access::PerConnection).then(|| serve_each_connection(&nix));
        let config = format!(
            "{EMBEDDED}\n[push.filter]\norigins = [\"built\", \"substituted\", \"source\", \"derivation\"]\n"
        );
        let daemon = Daemon::start(nix, &config);
        let remote = started.as_ref().map(NixDaemon::remote).or(each).unwrap_or_else(|| "local".to_owned());
        Self { daemon, remote, _nix_daemon: started }
    }

    fn job(&self, k: usize, substitute: &str, ms: u32) -> Job {
        let mut child = self
            .daemon
            .nix
            .command("sh")
            .args(["-c", SCRIPT])
            .env("NIX_REMOTE", &self.remote)
            .env("FLYWHEEL_SOCKET", self.daemon.socket())
            .env("CTL", env!("CARGO_BIN_EXE_flywheelctl"))
            .env("K", k.to_string())
            .env("FIRST", expression(k, 1, ms))
            .env("SECOND", expression(k, 2, ms))
            .env("SUBSTITUTE", substitute)
            .env("BINARY", format!("file://{}", self.binary().display()))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let stdin = child.stdin.take().unwrap();
        let stdout = BufReader::new(child.stdout.take().unwrap());
        let mut job = Job { child, stdin, stdout, session: String::new() };
        job.session = job.line();
        job
    }

    fn binary(&self) -> PathBuf {
        self.daemon.nix.path().join("binary")
    }

    /// The outputs that Nix reported to job `k` it builds.
    fn built_for(&self, k: usize) -> BTreeSet<String> {
        let mut outputs = BTreeSet::new();
        for round in 1..=2 {
            let log =
                std::fs::read_to_string(self.daemon.nix.work_dir().join(format!("log-{k}-{round}"))).unwrap();
            for drv in log.lines().filter_map(|l| l.strip_prefix("building '")) {
                let drv = drv.split('\'').next().unwrap();
                let said = self.daemon.nix.run("nix-store", &["-q", "--outputs", drv]);
                outputs.insert(String::from_utf8(said.stdout).unwrap().trim().to_owned());
            }
        }
        outputs
    }
}

/// Makes the paths that each job will substitute: builds them, copies them into a binary cache
/// and deletes them.
fn substitutes(nix: &PrivateNix, jobs: usize) -> Vec<String> {
    let binary = format!("file://{}", nix.path().join("binary").display());
    (0..jobs)
        .map(|k| {
            let path = nix.build(&PrivateNix::shell(&format!("fetched-{k}"), "echo $name > $out")).remove(0);
            let copied = nix.run("nix", &["copy", "--to", &binary, &path]);
            assert!(copied.status.success(), "{}", String::from_utf8_lossy(&copied.stderr));
            assert!(nix.run("nix-store", &["--delete", &path]).status.success());
            path
        })
        .collect()
}

/// Kind of path → counts: by `process`, by other evidence in its own job, in no session.
type Shares = BTreeMap<&'static str, [usize; 3]>;

fn many_jobs(jobs: usize, access: Access, ms: u32) {
    let mut fetched = Vec::new();
    let site = Site::new(access, |nix| fetched = substitutes(nix, jobs));
    let mut running: Vec<Job> = (0..jobs).map(|k| site.job(k, &fetched[k], ms)).collect();
    running.iter_mut().for_each(Job::say);
    for (k, job) in running.iter_mut().enumerate() {
        assert_eq!(job.line(), "built", "job {k}");
    }
    let mut members: BTreeMap<String, Vec<(usize, String)>> = BTreeMap::new();
    for (k, job) in running.iter_mut().enumerate() {
        job.say();
        let summary: Value = serde_json::from_str(&job.line()).unwrap();
        assert_eq!(
            (&summary["outcome"], &summary["state"]),
            (&"complete".into(), &"closed".into()),
            "{summary}"
        );
        assert!(job.child.wait().unwrap().success());
        let detail = site.daemon.json(&["session", "show", &job.session]);
        for path in detail["paths"].as_array().unwrap() {
            let text = |key: &str| path[key].as_str().unwrap().to_owned();
            members.entry(text("path")).or_default().push((k, text("evidence")));
        }
    }
    let mut shares = Shares::new();
    let mut count = |kind: &'static str, path: &str, job: usize, name_tells: bool| {
        let none = Vec::new();
        let all = members.get(path).unwrap_or(&none);
        let by_process: Vec<usize> = all.iter().filter(|(_, e)| e == "process").map(|(k, _)| *k).collect();
        if name_tells || !by_process.is_empty() {
            assert!(by_process.iter().all(|k| *k == job), "{path} of job {job}: {all:?}");
        }
        let place = match by_process.len() {
            1 => 0,
            _ if all.iter().any(|(k, _)| *k == job) => 1,
            _ => 2,
        };
        shares.entry(kind).or_insert([0; 3])[place] += 1;
    };
    let mut built = BTreeSet::new();
    for (k, fetched) in fetched.iter().enumerate().take(jobs) {
        for path in site.built_for(k) {
            let kind = if path.contains("-common-") { "built, wanted by all" } else { "built" };
            count(kind, &path, k, true);
            assert!(built.insert(path));
        }
        count("substituted", fetched, k, true);
        let source = site.daemon.nix.run("sh", &["-c", &format!("ls -d ../store/*-source-{k}")]);
        let name = String::from_utf8(source.stdout).unwrap();
        let path = site.daemon.nix.store_dir().join(name.trim().rsplit('/').next().unwrap());
        count("source (file)", path.to_str().unwrap(), k, true);
        for entry in std::fs::read_dir(site.daemon.nix.store_dir()).unwrap() {
            let path = entry.unwrap().path().to_str().unwrap().to_owned();
            let kind = match path.contains(&format!("-own-{k}-")) {
                true if path.ends_with(".drv") => "derivation",
                true if path.contains("-text-own-") => "source (text)",
                _ => continue,
            };
            count(kind, &path, k, true);
        }
    }
    assert_eq!(built.len(), 2 * (jobs * OWN + COMMON), "{built:?}");
    for (what, [process, other, nobody]) in &shares {
        eprintln!(
            "{access:?}, {jobs} jobs, builds of {ms} ms, {what}: {process} process, {other} window or shared, {nobody} nobody's"
        );
    }
    // On a busy machine, reading the kernel's table of locks can take ten times as long as a tiny
    // build. Where many processes wait for one build, the holder may have ended when the
    // daemon looks for it. A path of an unknown maker is shared, and never attributed to another
    // job alone.
    assert!(shares.values().all(|[_, _, nobody]| *nobody == 0), "{shares:?}");
    if ms >= REAL {
        assert_eq!(shares["built"], [2 * jobs * OWN, 0, 0], "{shares:?}");
    }
}

#[test]
fn two_jobs_of_one_user() {
    many_jobs(2, Access::Direct, REAL);
}

#[test]
fn two_jobs_through_the_nix_daemon() {
    many_jobs(2, Access::Daemon, REAL);
}

/// A worker that names its client nowhere: the kernel does.
#[test]
fn two_jobs_through_a_nix_daemon_for_each_connection() {
    many_jobs(2, Access::PerConnection, REAL);
}

#[test]
fn ten_jobs_of_one_user() {
    many_jobs(10, Access::Direct, REAL);
}

#[test]
fn ten_jobs_through_the_nix_daemon() {
    many_jobs(10, Access::Daemon, REAL);
}

/// A build that ends before the daemon sees its process is never attributed to another job.
#[test]
fn ten_jobs_whose_builds_take_milliseconds() {
    many_jobs(10, Access::Daemon, TINY);
}

/// A path that another process builds while a session is open does not belong to the session.
#[test]
fn a_path_built_outside_of_all_sessions_belongs_to_none() {
    let site = Site::new(Access::Daemon, |_| {});
    let mut job = site.job(0, "", TINY);
    let strange = |name: &str| {
        let expr = PrivateNix::shell(name, "sleep 0.1; echo $name > $out");
        let mut build = site.daemon.nix.command("nix-build");
        build.args(["--no-out-link", "-E", &expr]).env("NIX_REMOTE", &site.remote);
        String::from_utf8(build.output().unwrap().stdout).unwrap().trim().to_owned()
    };
    let path = strange("strange");
    site.daemon.flush();
    let detail = site.daemon.json(&["session", "show", &job.session]);
    let has = detail["paths"].as_array().unwrap().iter().any(|p| p["path"] == path.as_str());
    assert!(!has, "{detail}");
    assert!(site.daemon.main().has(&path), "it is pushed anyway");
    job.child.kill().unwrap();
    job.child.wait().unwrap();
}
