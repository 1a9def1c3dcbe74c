//! Jobs of each CI system, run as its runner runs them, with the files of packaging/ci, on a real
//! daemon and a real Nix.

use std::fs;

use serde_json::Value;

use crate::support::ci::{Job, commands, expression, file, named_script, text};
use crate::support::daemon::{CommandResult, Daemon};

/// The variables of a GitLab job, with one that must not be sent to the daemon.
fn gitlab(id: &str) -> Vec<(&str, &str)> {
    vec![
        ("CI", "true"),
        ("GITLAB_CI", "true"),
        ("CI_JOB_ID", id),
        ("CI_JOB_NAME", "build"),
        ("CI_PROJECT_PATH", "group/project"),
        ("CI_COMMIT_REF_NAME", "main"),
        ("CI_JOB_URL", "https://gitlab.example.com/group/project/-/jobs/1"),
        ("CI_JOB_TOKEN", "a-secret-of-the-job"),
    ]
}

/// The only session with this label.
fn labelled(daemon: &Daemon, label: &str) -> Value {
    let all = daemon.json(&["session", "list", "--all"]);
    let mut found: Vec<_> = all.as_array().unwrap().iter().filter(|s| s["label"] == label).collect();
    assert_eq!(found.len(), 1, "{all}");
    found.remove(0).clone()
}

fn pushed(said: &CommandResult, count: usize) {
    let line = format!("watch-store pushed {count} store paths incrementally\n");
    assert!(said.out.contains(&line), "{said:?}");
    assert!(!format!("{}{}", said.out, said.err).contains("a-secret-of-the-job"), "{said:?}");
}

#[test]
fn gitlab_before_script_and_script_in_one_shell_after_script_in_another() {
    let daemon = Daemon::embedded();
    let yaml = text("gitlab-ci.yml");
    let (before, after) = (commands(&yaml, "before_script"), commands(&yaml, "after_script"));
    for (id, name, last, status) in [("41", "good", "true", 0), ("42", "bad", "exit 7", 7)] {
        let mut job = Job::on(&daemon, &gitlab(id));
        let nix = expression(&job.dir, name, 3);
        let script = format!("{}\nnix-build --no-out-link {}\n{last}", before.join("\n"), nix.display());
        let said = job.bash(&script);
        assert_eq!(said.code, status, "the job's own status: {said:?}");
        job.set("CI_JOB_STATUS", if status == 0 { "success" } else { "failed" });
        let said = job.bash(&after.join("\n"));
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
        pushed(&said, 3);
        assert!(said.out.contains("section_start:") && said.out.contains("[collapsed=true]"), "{said:?}");
        let session = labelled(&daemon, &format!("group/project build #{id}"));
        assert_eq!((&session["settled"], &session["pending"]), (&3.into(), &0.into()), "{session}");
        assert_eq!(session["ci"]["id"], id);
        assert_eq!(session["ci"]["url"], "https://gitlab.example.com/group/project/-/jobs/1");
    }
    assert_eq!(daemon.main().all().len(), 6);
}

#[test]
fn gitlab_runner_wide_scripts() {
    let daemon = Daemon::embedded();
    let toml: toml::Table = text("gitlab-runner-config.toml").parse().unwrap();
    let runner = |key: &str| toml["runners"][0][key].as_str().unwrap();
    for (id, name, last, status) in [("51", "good", "true", 0), ("52", "bad", "exit 7", 7)] {
        let job = Job::on(&daemon, &gitlab(id));
        let nix = expression(&job.dir, name, 2);
        let script = format!(
            "{}\nnix-build --no-out-link {}\n{last}\n{}",
            runner("pre_build_script"),
            nix.display(),
            runner("post_build_script")
        );
        let said = job.bash(&script);
        assert_eq!(said.code, status, "{said:?}");
        pushed(&said, 2);
        assert_eq!(said.out.matches("watch-store pushed").count(), 1, "once: {said:?}");
    }
}

#[test]
fn only_strict_jobs_fail() {
    let daemon = Daemon::embedded();
    let job = Job::on(&daemon, &gitlab("61"));
    let nix = expression(&job.dir, "strict", 1);
    let said = job.bash(&format!(
        "flywheelctl session start --strict\nnix-build --no-out-link {}\nflywheelctl session end --strict\n",
        nix.display()
    ));
    assert_eq!(said.code, 0, "{said:?}");
    pushed(&said, 1);
    let strict = "flywheelctl --socket /nonexistent session end --strict";
    assert_eq!(CommandResult::of(&job.command("bash").args(["-c", strict]).output().unwrap()).code, 5);
    // The runner's way of evaluating a script keeps the fact of a failure, but not its status
    // (FF_USE_NEW_BASH_EVAL_STRATEGY keeps both).
    let said = job.bash(strict);
    assert_ne!(said.code, 0, "{said:?}");
}

/// A worker that runs hooks and steps one after the other, each as a process, and between them
/// reads the file named by GITHUB_ENV, as runners do.
const WORKER: &str = r#"
step() {
    : >"$RUNNER_TEMP/env"
    GITHUB_ENV=$RUNNER_TEMP/env GITHUB_STEP_SUMMARY=$RUNNER_TEMP/summary \
        bash --noprofile --norc -e -o pipefail "$1" || echo "step $1: $?"
    while read -r line; do export "${line?}"; done <"$RUNNER_TEMP/env"
}
step "$STARTED"
step "$RUNNER_TEMP/build.sh"
step "$COMPLETED"
exit 0
"#;

fn actions(daemon: &Daemon, worker: &str, own: &[(&str, &str)]) {
    let mut env = vec![
        ("GITHUB_ACTIONS", "true"),
        ("GITHUB_RUN_ID", "7"),
        ("GITHUB_RUN_ATTEMPT", "1"),
        ("GITHUB_RUN_NUMBER", "3"),
        ("GITHUB_JOB", "build"),
        ("GITHUB_REPOSITORY", "o/r"),
        ("GITHUB_SERVER_URL", "https://git.example"),
        ("RUNNER_NAME", "r1"),
        ("GITHUB_TOKEN", "a-secret-of-the-job"),
    ];
    env.extend(own);
    let mut job = Job::on(daemon, &env);
    let temp = job.dir.join(worker);
    fs::create_dir(&temp).unwrap();
    let nix = expression(&temp, &worker.replace('.', "-"), 3);
    let build = format!("test -n \"$FLYWHEEL_SESSION\"\nnix-build --no-out-link {}\nexit 1\n", nix.display());
    fs::write(temp.join("build.sh"), build).unwrap();
    job.set("RUNNER_TEMP", temp.to_str().unwrap());
    job.set("STARTED", file("github-hooks/job-started.sh").to_str().unwrap());
    job.set("COMPLETED", file("github-hooks/job-completed.sh").to_str().unwrap());
    let program = named_script(&temp, worker, WORKER);
    let said = CommandResult::of(&job.command(program.to_str().unwrap()).output().unwrap());
    assert_eq!(said.code, 0);
    pushed(&said, 3);
    assert!(said.out.contains("step") && said.out.contains("build.sh: 1"), "the build failed: {said:?}");
    assert!(said.out.contains("\n::group::flywheel: details\n"), "{said:?}");
    let summary = fs::read_to_string(temp.join("summary")).unwrap();
    assert!(summary.contains("| pushed | 3 |"), "{summary}");
    let session = labelled(daemon, "o/r build #7");
    assert_eq!(session["settled"], 3, "{session}");
}

#[test]
fn github_hooks() {
    actions(&Daemon::embedded(), "Runner.Worker", &[("RUNNER_TRACKING_ID", "github_0f0f")]);
}

#[test]
fn gitea_hooks() {
    actions(&Daemon::embedded(), "act_runner", &[("GITEA_ACTIONS", "true")]);
}

/// Sources the hooks in shells of their own and passes on what they export, as the agent does.
const AGENT: &str = r#"
hook() { bash -c 'source "$1" && env -0 >"$2"' hook "$1" "$TMPDIR/env" || echo "hook $1: $?"; }
hook "$HOOKS/environment"
while IFS= read -r -d '' line; do
    case $line in FLYWHEEL_*) export "${line?}" ;; esac
done <"$TMPDIR/env"
bash -c "$BUILDKITE_COMMAND" || echo "command: $?"
hook "$HOOKS/pre-exit"
"#;

#[test]
fn buildkite_hooks() {
    let daemon = Daemon::embedded();
    let env = [
        ("BUILDKITE", "true"),
        ("BUILDKITE_JOB_ID", "0190-uuid"),
        ("BUILDKITE_BUILD_URL", "https://buildkite.example/o/p/builds/9"),
        ("BUILDKITE_BUILD_NUMBER", "9"),
        ("BUILDKITE_ORGANIZATION_SLUG", "o"),
        ("BUILDKITE_PIPELINE_SLUG", "p"),
        ("BUILDKITE_AGENT_ACCESS_TOKEN", "a-secret-of-the-job"),
    ];
    let mut job = Job::on(&daemon, &env);
    let nix = expression(&job.dir, "bk", 2);
    let command =
        format!("test -n \"$FLYWHEEL_SESSION\" && nix-build --no-out-link {} && exit 3", nix.display());
    job.set("BUILDKITE_COMMAND", &command);
    job.set("HOOKS", file("buildkite-hooks").to_str().unwrap());
    job.set("TMPDIR", job.dir.clone().to_str().unwrap());
    // The name of the agent's process for a job is `buildkite-agent bootstrap`.
    named_script(&job.dir, "bootstrap", AGENT);
    let agent = "exec -a buildkite-agent bash bootstrap";
    let said = CommandResult::of(&job.command("bash").args(["-c", agent]).output().unwrap());
    assert!(said.out.contains("command: 3\n") && !said.out.contains("hook /"), "{said:?}");
    pushed(&said, 2);
    assert!(said.out.contains("--- flywheel: 2 pushed, 0 already cached\n"), "{said:?}");
    assert_eq!(labelled(&daemon, "o/p #9")["settled"], 2);
}

#[test]
fn jenkins_steps() {
    let daemon = Daemon::embedded();
    let env = [
        ("JENKINS_URL", "https://jenkins.example/"),
        ("BUILD_TAG", "jenkins-p-1"),
        ("BUILD_URL", "https://jenkins.example/job/p/1/"),
    ];
    let job = Job::on(&daemon, &env);
    let nix = expression(&job.dir, "default", 2);
    fs::rename(nix, job.dir.join("default.nix")).unwrap();
    let file = text("Jenkinsfile");
    let steps: Vec<&str> = file.lines().filter_map(|l| l.trim().strip_prefix("sh ")).collect();
    assert_eq!(steps.len(), 3);
    let mut said = None;
    for step in steps {
        // Each `sh` step is a script of its own, run by `sh -xe`.
        let output = job.command("sh").args(["-xe", "-c", &step[1..step.len() - 1]]).output().unwrap();
        said = Some(CommandResult::of(&output));
        assert_eq!(said.as_ref().unwrap().code, 0, "{step}: {said:?}");
    }
    pushed(&said.unwrap(), 2);
    assert_eq!(labelled(&daemon, "jenkins-p-1")["settled"], 2);
}
