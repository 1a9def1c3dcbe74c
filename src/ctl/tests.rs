//! The pure parts of flywheelctl.

use std::{
    cell::RefCell,
    collections::HashMap,
    os::unix::fs::symlink,
    path::Path,
    time::{Duration, Instant},
};

use clap::{CommandFactory, Parser};

use super::{
    args::{Cli, Command},
    ci,
    ci_log::{CiLog, Level},
    exit::{Exit, Failure},
    pace::Pace,
    paths, text,
};
use crate::control::messages::{ErrorCode, Failed, Progress, Summary, UploadStatus};

#[test]
fn the_command_line_is_consistent() {
    Cli::command().debug_assert();
    let cli = Cli::try_parse_from([
        "flywheelctl",
        "run",
        "--push",
        "result*",
        "out",
        "--strict",
        "--",
        "nix",
        "--json",
    ])
    .unwrap();
    assert!(cli.strict && !cli.json, "what follows -- is the command's");
    let Command::Run(run) = cli.command else { panic!("not run") };
    assert_eq!((run.push.len(), run.command.len()), (2, 2));
    for wrong in [
        &["session", "end", "--timeout", "soon"][..],
        &["flush", "--timeout", "8d"],
        &["run", "nix"],
        &["push"],
        &["session", "start", "--anchor-pid", "0"],
    ] {
        assert!(Cli::try_parse_from([&["flywheelctl"], wrong].concat()).is_err(), "{wrong:?}");
    }
}

#[test]
fn exit_statuses() {
    let of = |failed_total, pending, started_strict, strict, waited| {
        Exit::of(
            &Summary { failed_total, pending, strict: started_strict, ..Summary::default() },
            strict,
            waited,
        )
    };
    let table = [
        ((0, 0, true, true, true), Exit::Done),
        ((1, 1, false, false, true), Exit::Done),
        ((1, 1, false, true, true), Exit::Failed),
        ((1, 0, true, false, true), Exit::Failed),
        ((0, 1, true, false, true), Exit::Pending),
        ((0, 1, false, true, false), Exit::Done),
    ];
    for ((f, p, started, strict, waited), exit) in table {
        assert_eq!(of(f, p, started, strict, waited), exit, "{f} failed, {p} pending");
    }
    let refused = |code| Failure::Refused { code, message: String::new() };
    for (code, lenient, strict) in [
        (ErrorCode::BadRequest, Exit::Usage, Exit::Usage),
        (ErrorCode::NotFound, Exit::Usage, Exit::Usage),
        (ErrorCode::Denied, Exit::Done, Exit::Refused),
        (ErrorCode::Busy, Exit::Done, Exit::Refused),
        (ErrorCode::Draining, Exit::Done, Exit::Refused),
        (ErrorCode::Version, Exit::Done, Exit::Refused),
        (ErrorCode::Internal, Exit::Done, Exit::Internal),
    ] {
        assert_eq!((refused(code).exit(false), refused(code).exit(true)), (lenient, strict), "{code:?}");
    }
}

/// Label, key, address.
type Expected = Option<(&'static str, &'static str, Option<&'static str>)>;

#[test]
fn ci_systems() {
    let table: [(&[(&str, &str)], Expected); 15] = [
        (&[], None),
        (
            &[
                ("GITLAB_CI", "true"),
                ("CI_JOB_ID", "42"),
                ("CI_PROJECT_PATH", "g/p"),
                ("CI_JOB_NAME", "build\x1b[1m"),
                ("CI_JOB_URL", "https://x/42"),
            ],
            Some(("g/p build[1m #42", "gitlab:42", Some("https://x/42"))),
        ),
        (&[("GITLAB_CI", "true")], None),
        (
            &[
                ("GITHUB_ACTIONS", "true"),
                ("GITHUB_RUN_ID", "7"),
                ("GITHUB_RUN_ATTEMPT", "2"),
                ("GITHUB_JOB", "test"),
                ("RUNNER_TRACKING_ID", "github_u"),
                ("RUNNER_NAME", "r1"),
                ("GITHUB_REPOSITORY", "o/r"),
                ("GITHUB_SERVER_URL", "https://github.com"),
            ],
            Some(("o/r test #7", "github:7/2/test/github_u", Some("https://github.com/o/r/actions/runs/7"))),
        ),
        (
            &[
                ("GITHUB_ACTIONS", "true"),
                ("GITEA_ACTIONS", "true"),
                ("GITHUB_RUN_ID", "7"),
                ("GITHUB_RUN_NUMBER", "3"),
                ("GITHUB_JOB", "test"),
                ("RUNNER_NAME", "r1"),
                ("GITHUB_REPOSITORY", "o/r"),
                ("GITHUB_SERVER_URL", "https://git.example/"),
            ],
            Some(("o/r test #7", "gitea:7/test/r1", Some("https://git.example/o/r/actions/runs/3"))),
        ),
        (
            &[("GITHUB_ACTIONS", "true"), ("FORGEJO_ACTIONS", "true"), ("GITHUB_RUN_ID", "7")],
            Some(("#7", "forgejo:7", None)),
        ),
        (
            &[
                ("BUILDKITE", "true"),
                ("BUILDKITE_JOB_ID", "uuid"),
                ("BUILDKITE_ORGANIZATION_SLUG", "o"),
                ("BUILDKITE_PIPELINE_SLUG", "p"),
                ("BUILDKITE_LABEL", "nix"),
                ("BUILDKITE_BUILD_NUMBER", "9"),
                ("BUILDKITE_BUILD_URL", "https://b/9"),
            ],
            Some(("o/p nix #9", "buildkite:uuid", Some("https://b/9#uuid"))),
        ),
        (
            &[("JENKINS_URL", "https://j"), ("BUILD_TAG", "jenkins-p-1"), ("BUILD_URL", "https://j/1")],
            Some(("jenkins-p-1", "jenkins:jenkins-p-1", Some("https://j/1"))),
        ),
        (&[("GITHUB_ACTIONS", "false"), ("GITHUB_RUN_ID", "7")], None),
        (
            &[
                ("CI", "woodpecker"),
                ("CI_REPO", "o/r"),
                ("CI_PIPELINE_NUMBER", "8"),
                ("CI_WORKFLOW_NAME", "nix"),
                ("CI_WORKSPACE", "/w/1"),
                ("CI_PIPELINE_URL", "https://ci/repos/7/pipeline/8"),
            ],
            Some(("o/r nix #8", "woodpecker:o/r/8/nix//w/1", Some("https://ci/repos/7/pipeline/8"))),
        ),
        (&[("CI", "woodpecker")], None),
        (
            &[
                ("TF_BUILD", "True"),
                ("BUILD_BUILDID", "9"),
                ("SYSTEM_JOBID", "uuid"),
                ("SYSTEM_JOBATTEMPT", "2"),
                ("SYSTEM_TEAMPROJECT", "our project"),
                ("BUILD_DEFINITIONNAME", "nix"),
                ("BUILD_BUILDNUMBER", "20261128.1"),
                ("SYSTEM_COLLECTIONURI", "https://dev.azure.com/o/"),
            ],
            Some((
                "our project nix #20261128.1",
                "azure:9/uuid/2",
                Some("https://dev.azure.com/o/our%20project/_build/results?buildId=9&view=logs&j=uuid"),
            )),
        ),
        (&[("TF_BUILD", "True"), ("BUILD_BUILDID", "9")], None),
        (
            &[
                ("TEAMCITY_VERSION", "2025.11"),
                ("TEAMCITY_PROJECT_NAME", "p"),
                ("TEAMCITY_BUILDCONF_NAME", "nix"),
                ("BUILD_NUMBER", "12"),
                ("BUILD_URL", "https://t/build/12"),
            ],
            Some(("p nix #12", "teamcity:p/nix/12", Some("https://t/build/12"))),
        ),
        (
            &[
                ("BUILDBOT_BUILDER", "nix"),
                ("BUILDBOT_BUILD_NUMBER", "3"),
                ("BUILDBOT_BUILD_URL", "https://b/#/builders/1/builds/3"),
            ],
            Some(("nix #3", "buildbot:nix/3", Some("https://b/#/builders/1/builds/3"))),
        ),
    ];
    let asked = RefCell::new(Vec::new());
    for (variables, expected) in table {
        let variables: HashMap<_, _> = variables.iter().copied().collect();
        let found = ci::detect(|name| {
            asked.borrow_mut().push(name.to_owned());
            variables.get(name).map(|v| (*v).to_owned())
        });
        let found = found.as_ref().map(|d| (d.label.as_str(), d.job.key(), d.job.url.as_deref()));
        assert_eq!(found, expected.map(|(l, k, u)| (l, k.to_owned(), u)), "{variables:?}");
    }
    // Each log format reads no more than that.
    for own in ["GITLAB_CI", "GITHUB_ACTIONS", "BUILDKITE", "JENKINS_URL", "TF_BUILD", "TEAMCITY_VERSION"] {
        CiLog::of(|name| {
            asked.borrow_mut().push(name.to_owned());
            (name == own).then(|| "true".to_owned())
        });
    }
    for name in asked.into_inner() {
        assert!(READ.contains(&name.as_str()), "{name} is read: add it to READ if it is no secret");
    }
}

/// Every variable that flywheelctl reads. None holds a credential.
const READ: [&str; 69] = [
    "AGENT_JOBNAME",
    "BRANCH_NAME",
    "BUILDBOT_BRANCH",
    "BUILDBOT_BUILDER",
    "BUILDBOT_BUILD_NUMBER",
    "BUILDBOT_BUILD_URL",
    "BUILDBOT_PROJECT",
    "BUILDKITE",
    "BUILDKITE_BRANCH",
    "BUILDKITE_BUILD_NUMBER",
    "BUILDKITE_BUILD_URL",
    "BUILDKITE_JOB_ID",
    "BUILDKITE_LABEL",
    "BUILDKITE_ORGANIZATION_SLUG",
    "BUILDKITE_PIPELINE_SLUG",
    "BUILD_BUILDID",
    "BUILD_BUILDNUMBER",
    "BUILD_DEFINITIONNAME",
    "BUILD_NUMBER",
    "BUILD_SOURCEBRANCHNAME",
    "BUILD_TAG",
    "BUILD_URL",
    "CI",
    "CI_COMMIT_BRANCH",
    "CI_COMMIT_REF_NAME",
    "CI_JOB_ID",
    "CI_JOB_NAME",
    "CI_JOB_URL",
    "CI_PIPELINE_NUMBER",
    "CI_PIPELINE_URL",
    "CI_PROJECT_PATH",
    "CI_REPO",
    "CI_WORKFLOW_NAME",
    "CI_WORKSPACE",
    "DRV_PATH",
    "FLYWHEEL_HOOK_DIR",
    "FLYWHEEL_SESSION",
    "FLYWHEEL_SOCKET",
    "FORGEJO_ACTIONS",
    "GITEA_ACTIONS",
    "GITHUB_ACTIONS",
    "GITHUB_ENV",
    "GITHUB_JOB",
    "GITHUB_REF_NAME",
    "GITHUB_REPOSITORY",
    "GITHUB_RUN_ATTEMPT",
    "GITHUB_RUN_ID",
    "GITHUB_RUN_NUMBER",
    "GITHUB_SERVER_URL",
    "GITHUB_STEP_SUMMARY",
    "GITLAB_CI",
    "GIT_BRANCH",
    "HOME",
    "JENKINS_URL",
    "JOB_NAME",
    "NO_COLOR",
    "OUT_PATHS",
    "RUNNER_NAME",
    "RUNNER_TRACKING_ID",
    "SYSTEM_COLLECTIONURI",
    "SYSTEM_JOBATTEMPT",
    "SYSTEM_JOBID",
    "SYSTEM_TEAMPROJECT",
    "TEAMCITY_BUILDCONF_NAME",
    "TEAMCITY_PROJECT_NAME",
    "TEAMCITY_VERSION",
    "TF_BUILD",
    "XDG_CONFIG_HOME",
    "XDG_RUNTIME_DIR",
];

/// One function reads the environment, so its callers name all variables that are read.
#[test]
fn the_environment_is_read_in_one_place() {
    let mut readers = Vec::new();
    let mut dirs = vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("src/ctl")];
    let mut files = Vec::new();
    while let Some(dir) = dirs.pop() {
        for path in std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()) {
            if path.is_dir() { dirs.push(path) } else { files.push(path) }
        }
    }
    assert!(files.iter().any(|file| file.ends_with("doctor/mod.rs")), "{files:?}");
    for file in files.iter().filter(|file| !file.ends_with("tests.rs")) {
        let name = file.file_name().unwrap().to_str().unwrap().to_owned();
        let text = std::fs::read_to_string(file).unwrap();
        readers.extend(vec![name; text.matches("env::var").count()]);
        // Other variables are named where they are read.
        for call in ["variable(\"", "append(\""] {
            for (at, _) in text.match_indices(call) {
                let name = text[at + call.len()..].split('"').next().unwrap();
                assert!(READ.contains(&name), "{name} is read: add it to READ if it is no secret");
            }
        }
    }
    assert_eq!(readers, ["mod.rs"]);
}

#[test]
fn the_log_format_follows_the_ci_system() {
    let of = |pairs: &[(&str, &str)]| {
        let pairs: HashMap<_, _> = pairs.iter().copied().collect();
        CiLog::of(|name| pairs.get(name).map(|v| (*v).to_owned()))
    };
    assert_eq!(of(&[]), CiLog::Plain);
    // As gitlab-ci-local sets it.
    assert_eq!(of(&[("GITLAB_CI", "false"), ("CI_JOB_ID", "1")]), CiLog::GitLab);
    assert_eq!(of(&[("GITHUB_ACTIONS", "true"), ("GITHUB_RUN_ID", "1")]), CiLog::Actions);
    assert_eq!(of(&[("GITEA_ACTIONS", "true"), ("GITHUB_RUN_ID", "1")]), CiLog::Actions);
    assert_eq!(of(&[("BUILDKITE", "true"), ("BUILDKITE_JOB_ID", "1")]), CiLog::Buildkite);
    assert_eq!(of(&[("JENKINS_URL", "j"), ("BUILD_TAG", "1")]), CiLog::Plain);
}

#[test]
fn annotations_have_a_bound_and_summaries_too() {
    let failed = |n: u64| Failed { path: format!("/nix/store/{n}"), error: "e".into(), class: None };
    let summary =
        Summary { failed: (0..1000).map(failed).collect(), failed_total: 5000, ..Summary::default() };
    assert_eq!(CiLog::Actions.failures(Level::Error, &summary).lines().count(), 9);
    assert_eq!(CiLog::GitLab.failures(Level::Error, &summary), "");
    let table = CiLog::Actions.step_summary(&summary).unwrap();
    assert!(table.contains("4900 paths more, not listed"), "{table}");
    assert_eq!(CiLog::Actions.step_environment("a\nb=c"), None);
    assert_eq!(CiLog::GitLab.step_environment("s1"), None);
}

const A: &str = "00000000000000000000000000000000-a";
const B: &str = "11111111111111111111111111111111-b?x=1";

fn resolve(patterns: &[&str], cwd: &Path, store: &Path) -> Result<paths::Resolved, String> {
    let patterns: Vec<String> = patterns.iter().map(|p| (*p).to_owned()).collect();
    let store = paths::Store { dir: store.to_str().unwrap().to_owned(), files: store.to_owned() };
    paths::resolve(&patterns, cwd, &store)
}

/// Out-links of a store below a root have the name that the path has inside.
#[test]
fn paths_of_a_store_below_a_root_have_two_names() {
    let dir = tempfile::tempdir().unwrap();
    let files = dir.path().join("root/nix/store");
    std::fs::create_dir_all(files.join(A).join("bin")).unwrap();
    let logical = format!("/nix/store/{A}");
    symlink(&logical, dir.path().join("result")).unwrap();
    symlink(files.join(A), dir.path().join("physical")).unwrap();
    let store = paths::Store { dir: "/nix/store".to_owned(), files: files.clone() };
    let physical = files.join(A).join("bin").to_str().unwrap().to_owned();
    let gone = files.join("22222222222222222222222222222222-gone").to_str().unwrap().to_owned();
    for (pattern, expected) in [
        ("result", logical.as_str()),
        ("res*", &logical),
        ("physical", &logical),
        ("root/nix/store/0*", &logical),
        (&physical, &logical),
        (&logical, &logical),
        ("/nix/store/0*-a", &logical),
        (&gone, "/nix/store/22222222222222222222222222222222-gone"),
    ] {
        let found = paths::resolve(&[pattern.to_owned()], dir.path(), &store).unwrap();
        assert_eq!((found.paths, found.unmatched), (vec![expected.to_owned()], vec![]), "{pattern}");
    }
}

#[test]
fn patterns_lead_into_the_store() {
    let dir = tempfile::tempdir().unwrap();
    let (store, work) = (dir.path().join("store"), dir.path().join("w[1]"));
    std::fs::create_dir_all(store.join(A).join("bin")).unwrap();
    std::fs::create_dir(&work).unwrap();
    std::fs::write(store.join(B), "").unwrap();
    symlink(store.join(A), work.join("result")).unwrap();
    symlink(store.join(B), work.join("result-2")).unwrap();
    symlink("result", work.join("chain")).unwrap();
    symlink(format!("../store/{A}/bin"), work.join("relative")).unwrap();
    symlink("loop", work.join("loop")).unwrap();
    symlink(store.join("22222222222222222222222222222222-gone"), work.join("dangling")).unwrap();
    symlink(work.join("result"), store.join("33333333333333333333333333333333-link")).unwrap();
    std::fs::write(work.join("file"), "").unwrap();

    let full = |base: &str| store.join(base).to_str().unwrap().to_owned();
    let literal = full("44444444444444444444444444444444-never-there?");
    let table: [(&[&str], Vec<String>); 9] = [
        (&["result*"], vec![full(A), full(B)]),
        (&["result", "chain", "relative", "result/bin"], vec![full(A)]),
        (&["dangling"], vec![full("22222222222222222222222222222222-gone")]),
        (&[&literal], vec![literal.clone()]),
        (&[&full(B)], vec![full(B)]),
        (&[&full("0*-a")], vec![full(A)]),
        (&[&format!("{}/bin/x", full(A))], vec![full(A)]),
        (
            &[&full("33333333333333333333333333333333-link")],
            vec![full("33333333333333333333333333333333-link")],
        ),
        (&["./result"], vec![full(A)]),
    ];
    for (patterns, expected) in table {
        let found = resolve(patterns, &work, &store).unwrap();
        assert_eq!((found.paths, found.unmatched), (expected, vec![]), "{patterns:?}");
    }
    let none = resolve(&["nothing*", "nope"], &work, &store).unwrap();
    assert_eq!((none.paths.len(), none.unmatched), (0, vec!["nothing*".to_owned(), "nope".to_owned()]));
    for wrong in ["file", "loop", "f*", "***", "../store"] {
        assert!(resolve(&[wrong], &work, &store).is_err(), "{wrong}");
    }
    let outside = resolve(&["file"], &work, &store).unwrap_err();
    assert!(outside.contains("file` is neither in"), "{outside}");
}

#[test]
fn a_store_reached_by_another_name_is_the_same_store() {
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir_all(dir.path().join("real").join(A)).unwrap();
    symlink("real", dir.path().join("alias")).unwrap();
    symlink(dir.path().join("real").join(A), dir.path().join("result")).unwrap();
    let found = resolve(&["result"], dir.path(), &dir.path().join("alias")).unwrap();
    assert_eq!(found.paths, [dir.path().join("alias").join(A).to_str().unwrap()]);
}

#[test]
fn numbers_for_people() {
    for (n, text) in [(0, "0 B"), (1023, "1023 B"), (1536, "1.5 KiB"), (117_440_512, "112.0 MiB")] {
        assert_eq!(text::bytes(n), text);
    }
    for (ms, text) in [
        (312, "312 ms"),
        (61_234, "1 min 1 s"),
        (1500, "1.5 s"),
        (7_500_000, "2 h 5 min"),
        (90_000_000, "1 d 1 h"),
    ] {
        assert_eq!(text::duration(Duration::from_millis(ms)), text);
    }
    let p = Progress {
        settled: 5,
        total: 10,
        uploading: 2,
        bytes_sent: 2048,
        note: Some("offline\x1b".into()),
        ..Progress::default()
    };
    let mut pace = Pace::default();
    assert_eq!(text::progress(&p, &pace), "5/10 paths, 2 uploading, 2.0 KiB sent, offline ");
    let start = Instant::now();
    pace.take(start, 0);
    pace.take(start + Duration::from_secs(2), 2048);
    let upload = UploadStatus {
        path: "/nix/store/00000000000000000000000000000000-glibc".into(),
        nar_size: 4096,
        sent: 1024,
        running_ms: 7400,
        measured: true,
        ..UploadStatus::default()
    };
    let p = Progress { bytes_left: 3072, slow: vec![upload], note: None, ..p };
    assert_eq!(
        text::progress(&p, &pace),
        "5/10 paths, 2 uploading, 2.0 KiB of 5.0 KiB sent, 1.0 KiB/s, about 3.0 s left; \
         slow: glibc (1.0 KiB of 4.0 KiB, 7.0 s)"
    );
    assert_eq!(text::bar(&p), "[##########----------]");
    assert_eq!(text::bar(&Progress::default()), "[--------------------]");
}
