//! The GitHub action, the GitLab component, and the recipes of the systems that have no other test:
//! their commands, run as their runners run them, on a real daemon and a real Nix.

use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;

use super::gitlab::{pipeline, project, pushed, runner};
use crate::support::ci::{Job, commands, expression, file, text};
use crate::support::daemon::{CommandResult, Daemon};

fn root(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root(name)).unwrap()
}

fn has(program: &str) -> bool {
    let has = Command::new(program).arg("--version").output().is_ok();
    if !has {
        eprintln!("skipped: {program} is not installed");
    }
    has
}

/// The value of a key at any depth of a YAML file.
fn value(yaml: &str, key: &str) -> String {
    let line = yaml.lines().find_map(|l| l.trim().strip_prefix(&format!("{key}: ")));
    line.unwrap_or_else(|| panic!("no {key}")).to_owned()
}

/// Runs a part of the action as GitHub's runner does.
fn part(job: &Job, key: &str) -> CommandResult {
    let script = root(&value(&read("action.yml"), key));
    CommandResult::of(&job.command("node").arg(script).output().unwrap())
}

fn github(run: &str) -> Vec<(&str, &str)> {
    vec![
        ("GITHUB_ACTIONS", "true"),
        ("GITHUB_RUN_ID", run),
        ("GITHUB_JOB", "build"),
        ("GITHUB_REPOSITORY", "o/r"),
        ("RUNNER_TRACKING_ID", "github_u"),
        ("INPUT_TIMEOUT", "240s"),
        ("INPUT_STRICT", "false"),
    ]
}

#[test]
fn the_github_action_begins_with_its_step_and_ends_with_the_job() {
    if !has("node") {
        return;
    }
    let action = read("action.yml");
    // `post` runs in every case, also after a cancellation.
    assert_eq!(value(&action, "post-if"), "always()");
    let daemon = Daemon::embedded();
    let mut job = Job::on(&daemon, &github("7"));
    let (state, env) = (job.dir.join("state"), job.dir.join("env"));
    job.set("GITHUB_STATE", state.to_str().unwrap());
    job.set("GITHUB_ENV", env.to_str().unwrap());
    job.set("INPUT_LABEL", "a label");
    let before = daemon.nix.make("before-the-job");
    daemon.flush();
    let started = part(&job, "main");
    assert_eq!(started.code, 0, "{started:?}");
    let session = std::fs::read_to_string(&state).unwrap();
    let session = session.trim().strip_prefix("session=").unwrap();
    assert!(std::fs::read_to_string(&env).unwrap().contains(&format!("FLYWHEEL_SESSION={session}")));
    // A later step is another process; the runner has read GITHUB_ENV.
    job.set("FLYWHEEL_SESSION", session);
    let nix = expression(&job.dir, "action", 2);
    let built = job.bash(&format!("nix-build --no-out-link {}", nix.display()));
    assert_eq!(built.code, 0, "{built:?}");
    // The runner passes the state, and not what other steps have set.
    job.env.retain(|(name, _)| name != "FLYWHEEL_SESSION");
    job.set("STATE_session", session);
    job.set("INPUT_PUSH", &format!("\n {before} \n"));
    let report = job.dir.join("report.md");
    job.set("INPUT_REPORT", report.to_str().unwrap());
    let ended = part(&job, "post");
    assert_eq!(ended.code, 0, "{ended:?}");
    assert!(ended.out.contains("watch-store pushed 2 store paths incrementally"), "{ended:?}");
    assert!(ended.out.contains("already cached: 1"), "{ended:?}");
    assert!(report.exists());
    let shown = daemon.json(&["session", "show", session]);
    assert_eq!(shown["session"]["label"], "a label", "{shown}");
}

#[test]
fn the_github_action_fails_a_job_only_when_asked() {
    if !has("node") {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let mut job = Job::at(&dir.path().join("absent"), dir.path(), &github("8"));
    for key in ["main", "post"] {
        let result = part(&job, key);
        assert_eq!(result.code, 0, "{result:?}");
    }
    job.set("INPUT_STRICT", "true");
    assert_eq!(part(&job, "post").code, 1);
    // A runner without flywheel.
    job.set("PATH", "/nonexistent");
    let node = CommandResult::of(&Command::new("sh").args(["-c", "command -v node"]).output().unwrap());
    let run = |job: &Job| {
        let script = root(&value(&read("action.yml"), "main"));
        CommandResult::of(&job.command(node.out.trim()).arg(script).output().unwrap())
    };
    let strict = run(&job);
    assert!(strict.code == 1 && strict.out.contains("::error title=flywheel::"), "{strict:?}");
    job.set("INPUT_STRICT", "false");
    let lenient = run(&job);
    assert!(lenient.code == 0 && lenient.out.contains("::warning title=flywheel::"), "{lenient:?}");
}

/// The component with the values of its inputs, as GitLab puts them in.
fn component(inputs: &[(&str, &str)]) -> String {
    let template = read("templates/flywheel.yml");
    let (spec, content) = template.split_once("\n---\n").unwrap();
    let mut content = content.to_owned();
    let mut names = Vec::new();
    for (at, line) in spec.lines().enumerate() {
        let Some(name) = line.strip_prefix("    ").filter(|l| !l.starts_with(' ')) else { continue };
        let name = name.trim_end_matches(':');
        let default = spec.lines().skip(at).find_map(|l| l.trim().strip_prefix("default: ")).unwrap();
        let given = inputs.iter().find(|(n, _)| *n == name).map(|(_, v)| *v);
        content =
            content.replace(&format!("$[[ inputs.{name} ]]"), given.unwrap_or(default.trim_matches('"')));
        names.push(name.to_owned());
    }
    assert_eq!(names, ["job", "cache", "push", "timeout"]);
    assert!(!content.contains("$[["), "every input is declared: {content}");
    content
}

#[test]
fn the_gitlab_component_in_a_pipeline() {
    let Some(runner) = runner() else { return };
    let daemon = Daemon::embedded();
    let before = daemon.nix.make("before-the-job");
    daemon.flush();
    let jobs = "good:\n  extends: .nix\n  script:\n    - nix-build --no-out-link good.nix\nbad:\n  extends: .nix\n  script:\n    - nix-build --no-out-link bad.nix\n    - exit 7\n";
    let content = component(&[("job", ".nix"), ("push", &before), ("cache", "main")]);
    let job = project(&daemon, &format!("{content}\n{jobs}"));
    expression(&job.dir, "good", 3);
    expression(&job.dir, "bad", 2);
    let said = pipeline(&job, &runner, &["good"]);
    assert_eq!(said.code, 0, "{said:?}");
    pushed(&said, "good", 3);
    let said = pipeline(&job, &runner, &["bad"]);
    assert_eq!(said.code, 1, "{said:?}");
    pushed(&said, "bad", 2);
}

/// Runs each command in a shell of its own, as the steps of a job.
fn steps(job: &Job, commands: &[String], nix: &Path) -> String {
    let mut out = String::new();
    for command in commands {
        let command = command.replace("nix-build", &format!("nix-build {}", nix.display()));
        let said = job.bash(&command);
        assert_eq!(said.code, 0, "{command}: {said:?}");
        out += &said.out;
    }
    out
}

/// A system's name, the variables of its job, and the commands of its recipe.
type System = (&'static str, &'static [(&'static str, &'static str)], Vec<String>);

#[test]
fn steps_of_other_systems_find_their_session() {
    let systems: [System; 4] = [
        (
            "woodpecker",
            &[
                ("CI", "woodpecker"),
                ("CI_REPO", "o/r"),
                ("CI_PIPELINE_NUMBER", "8"),
                ("CI_WORKFLOW_NAME", "nix"),
            ],
            text("woodpecker.yml")
                .lines()
                .filter_map(|l| l.trim().strip_prefix("- ").filter(|c| !c.contains(':')))
                .map(str::to_owned)
                .collect(),
        ),
        (
            "azure",
            &[
                ("TF_BUILD", "True"),
                ("BUILD_BUILDID", "9"),
                ("SYSTEM_JOBID", "j"),
                ("SYSTEM_TEAMPROJECT", "p"),
            ],
            text("azure-pipelines.yml")
                .lines()
                .filter_map(|l| l.trim().strip_prefix("- script: "))
                .map(str::to_owned)
                .collect(),
        ),
        (
            "teamcity",
            &[("TEAMCITY_VERSION", "2025.11"), ("TEAMCITY_PROJECT_NAME", "p"), ("BUILD_NUMBER", "12")],
            text("teamcity.kts")
                .lines()
                .filter_map(|l| l.split_once("scriptContent = \"")?.1.split('"').next())
                .map(str::to_owned)
                .collect(),
        ),
        (
            "buildbot",
            &[("BUILDBOT_BUILDER", "nix"), ("BUILDBOT_BUILD_NUMBER", "3")],
            text("buildbot.py")
                .lines()
                .filter_map(|l| {
                    let command = l.split_once("command=")?.1;
                    command.trim_start_matches('[').split('"').nth(1)
                })
                .map(str::to_owned)
                .collect(),
        ),
    ];
    let daemon = Daemon::embedded();
    for (system, env, commands) in systems {
        assert_eq!(commands.len(), 3, "{system}: {commands:?}");
        // Another job of the same system at the same time, so that the only open session is no answer.
        let other: Vec<_> = env.iter().map(|(k, v)| (*k, if v.len() == 1 { "5" } else { *v })).collect();
        let mut other = Job::on(&daemon, &other);
        other.set("CI_WORKSPACE", "/other");
        assert_eq!(other.bash("flywheelctl session start --label other").code, 0);
        let job = Job::on(&daemon, env);
        let nix = expression(&job.dir, system, 2);
        let out = steps(&job, &commands, &nix);
        assert!(out.contains("watch-store pushed 2 store paths incrementally"), "{system}: {out}");
        let all = daemon.json(&["session", "list", "--all"]);
        let found =
            all.as_array().unwrap().iter().filter(|s| s["ci"]["system"] == system && s["label"] != "other");
        assert_eq!(found.count(), 1, "{system}: {all}");
    }
}

#[test]
fn drivers_get_one_answer_for_each_path() {
    let daemon = Daemon::embedded();
    let paths = daemon.nix.build(&crate::support::nix::PrivateNix::shell("driven", "echo driven > $out"));
    let job = Job::on(&daemon, &[]);
    let answers = |said: &CommandResult| -> Vec<Value> {
        said.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let said = job.bash(&format!("printf '%s\\n' {} | {}", paths.join(" "), file("uploader.sh").display()));
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(answers(&said).len(), paths.len(), "{said:?}");
    if !has("jq") {
        return;
    }
    let outputs: Vec<_> =
        paths.iter().map(|path| serde_json::json!({ "name": "out", "path": path })).collect();
    let hydra = job.dir.join("hydra.json");
    std::fs::write(&hydra, serde_json::json!({ "outputs": outputs }).to_string()).unwrap();
    let mut job = Job::on(&daemon, &[]);
    job.set("HYDRA_JSON", hydra.to_str().unwrap());
    let said = job.bash(file("hydra-runcommand.sh").to_str().unwrap());
    assert_eq!(said.code, 0, "{said:?}");
    assert_eq!(answers(&said)[0]["outcome"], "pushed", "{said:?}");
    // A session around many builds.
    let bin = job.dir.join("bin");
    std::fs::create_dir(&bin).unwrap();
    let nix = expression(&job.dir, "fast", 2);
    crate::support::ci::named_script(
        &bin,
        "nix-fast-build",
        &format!("[ \"$*\" = '--no-nom --skip-cached -f .#x' ] && nix-build --no-out-link {}", nix.display()),
    );
    let path = job.env.iter().find(|(k, _)| k == "PATH").unwrap().1.clone();
    job.set("PATH", &format!("{}:{path}", bin.display()));
    let said = job.bash(&format!("{} -f .#x", file("nix-fast-build.sh").display()));
    assert_eq!(said.code, 0, "{said:?}");
    assert!(format!("{}{}", said.out, said.err).contains("watch-store pushed 2"), "{said:?}");
}

#[test]
fn shellcheck_reads_the_scripts_for_drivers() {
    if !has("shellcheck") {
        return;
    }
    let mut shellcheck = Command::new("shellcheck");
    shellcheck.args(["nix-fast-build.sh", "hydra-runcommand.sh", "uploader.sh"].map(file));
    let said = CommandResult::of(&shellcheck.output().unwrap());
    assert_eq!(said.code, 0, "{said:?}");
    let template = read("templates/flywheel.yml");
    for key in ["before_script", "after_script"] {
        assert_eq!(commands(&template, key).len(), 1);
    }
}
