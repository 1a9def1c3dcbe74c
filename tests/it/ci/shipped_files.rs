//! The files of packaging/ci: shells accept them, and none of them fails a job, whatever the state
//! of the daemon.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use flywheel::control::messages::{ErrorCode, Reply, Request};

use crate::control::ScriptedDaemon;
use crate::support::ci::{Job, commands, file, text};

const SCRIPTS: [&str; 4] = [
    "github-hooks/job-started.sh",
    "github-hooks/job-completed.sh",
    "buildkite-hooks/environment",
    "buildkite-hooks/pre-exit",
];

#[test]
fn shellcheck_finds_nothing() {
    let mut shellcheck = Command::new("shellcheck");
    shellcheck.args(SCRIPTS.map(file));
    let Ok(said) = shellcheck.output() else {
        return eprintln!("skipped: shellcheck is not here (apt-get install shellcheck)");
    };
    assert!(said.status.success(), "{}", String::from_utf8_lossy(&said.stdout));
    // The one-line commands of the files that contain them for other programs.
    for (shell, script) in one_liners() {
        let mut shellcheck = Command::new("shellcheck");
        let mut child = shellcheck.args(["--shell", shell, "-"]);
        child = child.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = child.spawn().unwrap();
        std::io::Write::write_all(&mut child.stdin.take().unwrap(), script.as_bytes()).unwrap();
        let said = child.wait_with_output().unwrap();
        assert!(said.status.success(), "{script}\n{}", String::from_utf8_lossy(&said.stdout));
    }
}

/// The commands of the YAML, TOML and Groovy files, with the shell that runs them.
fn one_liners() -> Vec<(&'static str, String)> {
    let gitlab = text("gitlab-ci.yml");
    let toml: toml::Table = text("gitlab-runner-config.toml").parse().unwrap();
    let runner = |key: &str| toml["runners"][0][key].as_str().unwrap().to_owned();
    let mut all = vec![
        ("bash", commands(&gitlab, "before_script").join("\n")),
        ("bash", commands(&gitlab, "after_script").join("\n")),
        ("bash", format!("{}\n{}", runner("pre_build_script"), runner("post_build_script"))),
    ];
    for name in ["github-workflow.yml", "gitea-workflow.yml"] {
        let text = text(name);
        let steps = text.lines().filter_map(|l| l.split_once("run: ")).map(|(_, c)| c.to_owned());
        all.extend(steps.map(|c| ("bash", c)));
    }
    let jenkins = text("Jenkinsfile");
    let steps = jenkins.lines().filter_map(|l| l.trim().strip_prefix("sh "));
    all.extend(steps.map(|c| ("sh", c[1..c.len() - 1].to_owned())));
    assert_eq!(all.len(), 3 + 6 + 3, "every command is found");
    all
}

#[test]
fn no_file_fails_a_job() {
    let dir = tempfile::tempdir().unwrap();
    let dead = dir.path().join("dead");
    drop(UnixListener::bind(&dead).unwrap());
    let hanging = dir.path().join("hanging");
    let _never_answers = UnixListener::bind(&hanging).unwrap();
    // A daemon at its limits opens no session, so there is none to end either.
    let full = ScriptedDaemon::new(|incoming| {
        let code = match incoming.request {
            Request::SessionStart { .. } => ErrorCode::Busy,
            _ => ErrorCode::NotFound,
        };
        incoming.responder.reply(Reply::Error { code, message: "full".into() });
    });
    let sockets = [dir.path().join("absent"), dead, full.socket(), hanging];
    let mut jobs: Vec<Job> = sockets.iter().map(|s| Job::at(s, dir.path(), &[])).collect();
    // A host without flywheel.
    let mut stranger = Job::at(Path::new("/nonexistent"), dir.path(), &[]);
    stranger.set("PATH", "/usr/bin:/bin");
    jobs.push(stranger);
    std::thread::scope(|scope| {
        for job in &jobs {
            for script in SCRIPTS {
                // As GitHub and Buildkite run them, and stricter shells.
                let file = file(script);
                let strict = ["--noprofile", "--norc", "-e", "-u", "-o", "pipefail"];
                scope.spawn(move || {
                    let said = job.command("bash").args(strict).arg(&file).output().unwrap();
                    assert!(said.status.success(), "{script} {said:?}");
                    let said = job.command(file.to_str().unwrap()).output().unwrap();
                    assert!(said.status.success(), "{script} {said:?}");
                });
            }
            for (_, command) in one_liners().into_iter().filter(|(_, c)| !c.starts_with("nix-build")) {
                scope.spawn(move || {
                    let said = job.bash(&command);
                    assert_eq!(said.code, 0, "{command}: {said:?}");
                });
            }
        }
    });
}

/// The configuration in the Kubernetes manifest can be used.
#[test]
fn the_daemon_sets_configuration_is_good() {
    let manifest = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/kubernetes/daemonset.yaml");
    let manifest = std::fs::read_to_string(manifest).unwrap();
    let block = manifest.split("  flywheel.toml: |\n").nth(1).unwrap().split("\n---\n").next().unwrap();
    let config: String = block.lines().map(|line| format!("{}\n", line.trim_start_matches("    "))).collect();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("flywheel.toml");
    std::fs::write(&file, config).unwrap();
    let mut check = Command::new(env!("CARGO_BIN_EXE_flywheeld"));
    let checked = check.arg("--check-config").arg("--config").arg(&file).output().unwrap();
    let text = String::from_utf8_lossy(&checked.stderr);
    assert!(checked.status.success() && text.contains("the configuration is good"), "{text}");
}
