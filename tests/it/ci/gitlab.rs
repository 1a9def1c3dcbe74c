//! packaging/ci/gitlab-ci.yml in a pipeline that gitlab-ci-local (npm) runs. tests/run.sh installs
//! it in its cache.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::ci::{Job, expression, text};
use crate::support::daemon::{CommandResult, Daemon};
use crate::support::documents::blocks;

/// Newer versions need a newer Node; tests/run.sh has the same number.
const VERSION: &str = "4.61.0";

/// The program, when it is installed; otherwise prints what is missing.
pub fn runner() -> Option<PathBuf> {
    let home = std::env::var_os("HOME").map(PathBuf::from)?;
    let cache = std::env::var_os("FLYWHEEL_TEST_CACHE");
    let cache = cache.map_or_else(|| home.join(".cache/flywheel-tests"), PathBuf::from);
    let program = cache.join(format!("gitlab-ci-local-{VERSION}/node_modules/.bin/gitlab-ci-local"));
    let needed = ["node", "git", "rsync", "ssh"];
    let missing: Vec<_> =
        needed.iter().filter(|p| Command::new(p).arg("--version").output().is_err()).collect();
    if program.exists() && missing.is_empty() {
        return Some(program);
    }
    eprintln!("skipped: no {} ({missing:?} missing); tests/run.sh installs it", program.display());
    None
}

/// The copied file with jobs below it, in a git repository with an origin.
fn repository(daemon: &Daemon, jobs: &str) -> Job {
    project(daemon, &format!("{}\n{jobs}", text("gitlab-ci.yml")))
}

/// A git repository with an origin and this pipeline.
pub fn project(daemon: &Daemon, pipeline: &str) -> Job {
    let mut job = Job::on(daemon, &[]);
    let dir = job.dir.join("project");
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join(".gitlab-ci.yml"), pipeline).unwrap();
    job.dir = dir;
    for args in [
        &["init", "-q"][..],
        &["remote", "add", "origin", "git@gitlab.example.com:group/project.git"],
        &["add", "."],
        &["-c", "user.name=n", "-c", "user.email=n@example.com", "commit", "-qm", "jobs"],
    ] {
        let said = CommandResult::of(&job.command("git").args(args).output().unwrap());
        assert_eq!(said.code, 0, "{said:?}");
    }
    job
}

pub fn pipeline(job: &Job, runner: &Path, jobs: &[&str]) -> CommandResult {
    let program = runner.to_str().unwrap();
    let mut command = job.command(program);
    command.arg("--shell-executor-no-image").arg("--no-color").args(jobs);
    CommandResult::of(&command.output().unwrap())
}

/// The output lines of one job.
fn lines<'a>(said: &'a CommandResult, job: &str) -> Vec<&'a str> {
    let all = said.out.lines().chain(said.err.lines());
    let own = all.filter_map(|l| l.split_once(" > ").filter(|(name, _)| name.trim() == job));
    own.map(|(_, text)| text).collect()
}

pub fn pushed(said: &CommandResult, job: &str, count: usize) {
    let line = format!("watch-store pushed {count} store paths incrementally");
    assert!(lines(said, job).contains(&line.as_str()), "{job}: {said:?}");
}

#[test]
fn a_passing_job_and_a_failing_one() {
    let Some(runner) = runner() else { return };
    let daemon = Daemon::embedded();
    let job = repository(
        &daemon,
        "good:\n  script:\n    - nix-build --no-out-link good.nix\nbad:\n  script:\n    - nix-build --no-out-link bad.nix\n    - exit 7\n",
    );
    expression(&job.dir, "good", 3);
    expression(&job.dir, "bad", 2);
    let said = pipeline(&job, &runner, &["good"]);
    assert_eq!(said.code, 0, "{said:?}");
    pushed(&said, "good", 3);
    assert!(lines(&said, "good").iter().any(|l| l.starts_with("section_start:")), "{said:?}");
    let said = pipeline(&job, &runner, &["bad"]);
    assert_eq!(said.code, 1, "{said:?}");
    pushed(&said, "bad", 2);
    assert_eq!(daemon.main().all().len(), 5);
    let all = daemon.json(&["session", "list", "--all"]);
    let labels: Vec<_> = all.as_array().unwrap().iter().map(|s| s["label"].as_str().unwrap()).collect();
    assert!(labels.iter().all(|l| l.starts_with("group/project ")), "{labels:?}");
    assert_eq!(labels.len(), 2);
}

#[test]
fn two_jobs_at_once() {
    let Some(runner) = runner() else { return };
    let daemon = Daemon::embedded();
    // Each job waits for the other's session, so that both are open while they build.
    let one = |name: &str, other: &str| {
        format!(
            "{name}:\n  script:\n    - touch $MEET/{name}; until test -e $MEET/{other}; do sleep 0.05; done\n    - nix-build --no-out-link $CI_PROJECT_DIR/{name}.nix\n"
        )
    };
    let mut job = repository(&daemon, &format!("{}{}", one("left", "right"), one("right", "left")));
    let meet = daemon.nix.work_dir().join("meet");
    fs::create_dir(&meet).unwrap();
    job.set("MEET", meet.to_str().unwrap());
    let (left, right) = (expression(&job.dir, "left", 3), expression(&job.dir, "right", 2));
    assert!(left.exists() && right.exists());
    let said = pipeline(&job, &runner, &["left", "right"]);
    assert_eq!(said.code, 0, "{said:?}");
    pushed(&said, "left", 3);
    pushed(&said, "right", 2);
    let all = daemon.json(&["session", "list", "--all"]);
    let all = all.as_array().unwrap();
    assert_eq!(all.len(), 2, "{all:?}");
    assert_ne!(all[0]["ci"]["id"], all[1]["ci"]["id"]);
    for session in all {
        assert_eq!((&session["pending"], &session["failed"]), (&0.into(), &0.into()), "{session}");
    }
    assert_eq!(daemon.main().all().len(), 5);
}

/// The lines that the README shows, copied above a job.
#[test]
fn the_pipeline_of_the_readme() {
    let Some(runner) = runner() else { return };
    let daemon = Daemon::embedded();
    let shown = blocks("README.md", "yaml").remove(0);
    let job = project(&daemon, &format!("{shown}\ngood:\n  script:\n    - nix-build good.nix\n"));
    expression(&job.dir, "good", 3);
    let said = pipeline(&job, &runner, &["good"]);
    assert_eq!(said.code, 0, "{said:?}");
    pushed(&said, "good", 3);
    assert_eq!(daemon.main().all().len(), 3);
}
