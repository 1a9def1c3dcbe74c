//! What `flywheelctl` writes into the log of each CI system, and into the files through which a
//! step talks to its runner. Runs against a scripted daemon.

use std::fs;
use std::io::Write;
use std::os::unix::net::UnixListener;

use flywheel::control::{
    codec::{self, ServerHello},
    messages::*,
};

use crate::control::{ScriptedDaemon, ctl, partial, run, summary};

const GITLAB: [(&str, &str); 2] = [("GITLAB_CI", "true"), ("CI_JOB_ID", "42")];
const GITHUB: [(&str, &str); 3] =
    [("GITHUB_ACTIONS", "true"), ("GITHUB_RUN_ID", "7"), ("GITHUB_JOB", "build")];
const BUILDKITE: [(&str, &str); 2] = [("BUILDKITE", "true"), ("BUILDKITE_JOB_ID", "u")];
const FIRST: &str = "watch-store pushed 47 store paths incrementally\n";

fn plain(summary: &Summary) -> String {
    let daemon = ScriptedDaemon::saying(Reply::Ended(summary.clone()));
    run(&mut daemon.ctl(&["session", "end"])).1
}

#[test]
fn gitlab_folds_the_details() {
    for (ended, collapsed) in [(summary(), true), (partial(), false)] {
        let daemon = ScriptedDaemon::saying(Reply::Ended(ended.clone()));
        let (code, out, _) = run(daemon.ctl(&["session", "end"]).envs(GITLAB));
        assert_eq!(code, 0);
        let (stamp, _) = out.split_once("section_start:").unwrap().1.split_once(':').unwrap();
        assert!(stamp.parse::<u64>().unwrap() > 1_600_000_000, "unix time in seconds: {stamp}");
        let details = plain(&ended).strip_prefix(FIRST).unwrap().to_owned();
        let expected = format!(
            "{FIRST}section_start:{stamp}:flywheel_s1[collapsed={collapsed}]\r\x1b[0Kflywheel: details\n{details}section_end:{stamp}:flywheel_s1\r\x1b[0K\n"
        );
        assert_eq!(out, expected);
    }
}

#[test]
fn github_groups_annotates_and_tells_the_runner() {
    let dir = tempfile::tempdir().unwrap();
    let (env, step) = (dir.path().join("env"), dir.path().join("summary"));
    fs::write(&env, "OTHER=1\n").unwrap();
    let with = |daemon: &ScriptedDaemon, args: &[&str]| {
        let mut command = daemon.ctl(args);
        command.envs(GITHUB).env("GITHUB_ENV", &env).env("GITHUB_STEP_SUMMARY", &step);
        run(&mut command)
    };
    let daemon = ScriptedDaemon::saying(Reply::Started { session: "s1".into(), cache: "main".into() });
    assert_eq!(with(&daemon, &["session", "start"]), (0, "s1\n".into(), String::new()));
    assert_eq!(fs::read_to_string(&env).unwrap(), "OTHER=1\nFLYWHEEL_SESSION=s1\n");

    let mut ended = partial();
    ended.label = Some("a|b <i>".into());
    ended.failed[0].error = "100% ##[error]wrong\n::error::no|`x`".into();
    let daemon = ScriptedDaemon::saying(Reply::Ended(ended.clone()));
    let (code, out, err) = with(&daemon, &["session", "end"]);
    assert_eq!(code, 0);
    let group = out.strip_prefix(FIRST).unwrap();
    let group = group.strip_prefix("::group::flywheel: details\n").unwrap();
    let group = group.strip_suffix("::endgroup::\n").unwrap();
    assert!(group.contains("  failed:         1\n") && !group.contains("\n::"), "{group}");
    assert!(!out.contains("##["), "no command of the runner's old kind comes from a reason: {out}");
    let path = &ended.failed[0].path;
    let annotations = [
        format!("::warning title=flywheel::{path}: 100%25 # #[error]wrong%0A: :error::no|`x`\n"),
        "::warning title=flywheel::token ends soon\n".to_owned(),
        "::warning title=flywheel::pushing 1 path to cache main failed\n".to_owned(),
    ];
    assert_eq!(err, annotations.concat());
    let table = fs::read_to_string(&step).unwrap();
    assert!(table.starts_with("### flywheel: a&#124;b &lt;i&gt;\n"), "{table}");
    assert!(table.contains("| pushed | 47 |\n| already cached | 3 |\n"), "{table}");
    let reason = "100% # #&#91;error&#93;wrong ::error::no&#124;&#96;x&#96;";
    assert!(table.contains(&format!("| <code>{path}</code> | {reason} &#91;too-large&#93; |\n")), "{table}");
    assert!(table.lines().all(|l| !l.starts_with("::")), "{table}");

    let (code, _, err) = with(&daemon, &["session", "end", "--strict"]);
    assert_eq!(code, 3);
    assert!(err.ends_with("::error title=flywheel::pushing 1 path to cache main failed\n"), "{err}");
    assert_eq!(fs::read_to_string(&step).unwrap(), table.repeat(2), "appended");

    // With --json or --quiet nothing is added.
    let (_, out, err) = with(&daemon, &["session", "end", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(json, serde_json::json!(ended));
    assert!(!out.contains("##"), "a runner looks for commands in any line: {out}");
    assert!(err.starts_with("warning: "), "{err}");
    let (_, out, _) = with(&daemon, &["session", "end", "--quiet"]);
    assert_eq!(out, "");
}

/// What a server writes into a reason is a command for no runner, whichever format it has.
#[test]
fn no_reason_is_a_command_of_any_runner() {
    const AZURE: [(&str, &str); 2] = [("TF_BUILD", "True"), ("SYSTEM_JOBID", "j")];
    const TEAMCITY: [(&str, &str); 2] = [("TEAMCITY_VERSION", "2025.1"), ("BUILD_NUMBER", "1")];
    let mut ended = partial();
    let forged =
        "##vso[task.setvariable variable=PATH]/x ##teamcity[setParameter name='a'] ##[set-env name=a;]b";
    ended.failed[0].error = format!("{forged}\n::set-env name=a::b\nsection_start:1:a\r\u{1b}[0K");
    ended.warnings = vec![format!("::stop-commands::x\n{forged}")];
    for runner in [&AZURE[..], &TEAMCITY, &GITLAB, &BUILDKITE, &GITHUB, &[]] {
        for args in [&["session", "end"][..], &["--json", "session", "end"]] {
            let daemon = ScriptedDaemon::saying(Reply::Ended(ended.clone()));
            let (_, out, err) = run(daemon.ctl(args).envs(runner.iter().copied()));
            for text in [out, err] {
                assert!(!text.contains("##"), "{runner:?} {args:?}: {text}");
                let own = ["::group::flywheel", "::endgroup::", "::warning title=flywheel::"];
                let commands = text.lines().map(str::trim_start).filter(|line| line.starts_with("::"));
                for line in commands {
                    assert!(own.iter().any(|own| line.starts_with(own)), "{runner:?} {args:?}: {line}");
                }
                assert!(!text.contains("section_start:1:a\r"), "{runner:?} {args:?}: {text}");
            }
        }
    }
}

#[test]
fn gitea_and_forgejo_get_githubs_commands() {
    for own in ["GITEA_ACTIONS", "FORGEJO_ACTIONS"] {
        let daemon = ScriptedDaemon::saying(Reply::Ended(summary()));
        let (_, out, _) = run(daemon.ctl(&["session", "end"]).envs(GITHUB).env(own, "true"));
        assert!(out.contains("\n::group::flywheel: details\n"), "{out}");
    }
}

#[test]
fn a_runners_file_that_cannot_be_written_is_a_warning() {
    let daemon = ScriptedDaemon::saying(Reply::Started { session: "s1".into(), cache: "main".into() });
    let mut start = daemon.ctl(&["session", "start", "--strict"]);
    let (code, out, err) = run(start.envs(GITHUB).env("GITHUB_ENV", "/nonexistent/env"));
    assert_eq!((code, out.as_str()), (0, "s1\n"));
    assert!(err.starts_with("::warning title=flywheel::$GITHUB_ENV: /nonexistent/env cannot"), "{err}");
}

#[test]
fn an_id_cannot_smuggle_a_variable() {
    let dir = tempfile::tempdir().unwrap();
    let env = dir.path().join("env");
    let daemon =
        ScriptedDaemon::saying(Reply::Started { session: "s1\nPATH=/evil".into(), cache: "main".into() });
    let (code, ..) = run(daemon.ctl(&["session", "start"]).envs(GITHUB).env("GITHUB_ENV", &env));
    assert_eq!((code, env.exists()), (0, false));
}

#[test]
fn buildkite_gets_a_section() {
    for (ended, heading) in [
        (summary(), "--- flywheel: 47 pushed, 3 already cached\n"),
        (partial(), "+++ flywheel: 47 pushed, 3 already cached, 1 failed\n"),
    ] {
        let daemon = ScriptedDaemon::saying(Reply::Ended(ended.clone()));
        let (_, out, _) = run(daemon.ctl(&["session", "end"]).envs(BUILDKITE));
        assert_eq!(out, format!("{heading}{}", plain(&ended)));
    }
}

#[test]
fn jenkins_and_others_stay_plain_and_nothing_is_coloured() {
    let daemon = ScriptedDaemon::saying(Reply::Ended(partial()));
    let jenkins = [("JENKINS_URL", "https://j"), ("BUILD_TAG", "t")];
    let (_, out, err) = run(daemon.ctl(&["session", "end"]).envs(jenkins));
    assert_eq!(out, plain(&partial()));
    assert!(!format!("{out}{err}").contains('\x1b'), "{out}{err}");
}

/// The same on a terminal, which `script` (util-linux) provides.
#[test]
fn no_color_is_honoured_on_a_terminal() {
    let daemon = ScriptedDaemon::saying(Reply::Ended(partial()));
    for (no_color, coloured) in [("", true), ("1", false)] {
        let line = format!("{} session end", env!("CARGO_BIN_EXE_flywheelctl"));
        let mut script = std::process::Command::new("script");
        script.args(["-qec", &line, "/dev/null"]).env("FLYWHEEL_SOCKET", daemon.socket());
        for ci in ["GITLAB_CI", "GITHUB_ACTIONS", "BUILDKITE", "JENKINS_URL", "GITEA_ACTIONS"] {
            script.env_remove(ci);
        }
        let (_, out, _) = run(script.env("NO_COLOR", no_color));
        assert_eq!(out.contains("\x1b[33mwarning:"), coloured, "{out:?}");
    }
}

/// No state of the daemon fails a job; it costs the job a wait at most.
#[test]
fn no_dead_hanging_or_full_daemon_fails_a_job_unless_asked() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    let dead = dir.path().join("dead");
    drop(UnixListener::bind(&dead).unwrap());
    let full = ScriptedDaemon::saying(Reply::Error { code: ErrorCode::Busy, message: "full".into() });
    // A daemon that sends its hello and then nothing.
    let mute = dir.path().join("mute");
    let listener = UnixListener::bind(&mute).unwrap();
    std::thread::spawn(move || {
        let mut open = Vec::new();
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let _ = codec::read_body(&mut stream, codec::MAX_HELLO);
            let hello = ServerHello {
                protocol: codec::PROTOCOL,
                minimum: codec::MINIMUM,
                version: "0".into(),
                store_dir: "/nix/store".into(),
                store_files: "/nix/store".into(),
            };
            let _ = stream.write_all(&hello.frame());
            open.push(stream);
        }
    });
    let commands: [&[&str]; 3] = [
        &["session", "start"],
        &["session", "end", "--timeout", "0s"],
        &["run", "--timeout", "0s", "--", "true"],
    ];
    for socket in [&absent, &dead, &full.socket(), &mute] {
        // All at once, because each waits for the silent daemon.
        let both = |args: &[&str]| {
            [false, true].map(|strict| {
                let mut command = ctl(socket, args);
                if strict {
                    command = ctl(socket, &[&["--strict"], args].concat());
                }
                command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
                command.spawn().unwrap()
            })
        };
        let started: Vec<_> = commands.iter().map(|args| (args, both(args))).collect();
        for (args, [lenient, strict]) in started {
            let [lenient, strict] = [lenient, strict].map(|c| c.wait_with_output().unwrap());
            let err = String::from_utf8_lossy(&lenient.stderr);
            assert_eq!((lenient.status.code(), lenient.stdout.len()), (Some(0), 0), "{args:?}: {err}");
            assert!(err.starts_with("warning: "), "{args:?} {}: {err}", socket.display());
            assert_eq!(strict.status.code(), Some(5), "{args:?} {}", socket.display());
        }
    }
}

fn detail() -> SessionDetail {
    let path = |name: &str, state: &str, evidence: &str| PathEntry {
        path: format!("/nix/store/00000000000000000000000000000000-{name}"),
        state: state.into(),
        evidence: evidence.into(),
        bytes: 1536,
        seen_at: Some(1_700_000_000_100),
        begun_at: Some(1_700_000_000_200),
        settled_at: Some(1_700_000_002_500),
        ..PathEntry::default()
    };
    let ci = CiJob {
        system: "gitlab".into(),
        id: "42".into(),
        url: Some("javascript:alert(1)".into()),
        project: Some("g/<p>".into()),
        git_ref: None,
    };
    SessionDetail {
        session: SessionEntry {
            session: "s1".into(),
            label: Some("<script>\"&'".into()),
            cache: "main".into(),
            ci: Some(ci),
            started_at: 1_700_000_000_000,
            ended_at: Some(1_700_000_001_000),
            ..SessionEntry::default()
        },
        summary: partial(),
        paths: vec![path("b", "already_cached", "closure"), path("a", "failed", "process")],
        paths_total: 3,
        host: "builder<7>".into(),
        user: Some("c\u{202e}i".into()),
    }
}

#[test]
fn a_report_is_one_page_that_needs_and_runs_nothing() {
    let daemon = ScriptedDaemon::new(move |incoming| {
        let reply = match &incoming.request {
            Request::SessionShow { session } if session == "s1" => Reply::Session(detail()),
            Request::SessionEnd { .. } => Reply::Ended(partial()),
            _ => Reply::Error { code: ErrorCode::NotFound, message: "no such session".into() },
        };
        incoming.responder.reply(reply);
    });
    let dir = tempfile::tempdir().unwrap();
    let (to_end, to_report) = (dir.path().join("end.html"), dir.path().join("report.html"));
    let (code, out, _) = run(daemon.ctl(&["session", "end", "--report"]).arg(&to_end));
    assert_eq!((code, out.starts_with(FIRST)), (0, true));
    let (code, out, _) = run(daemon.ctl(&["session", "report", "s1", "--output"]).arg(&to_report));
    assert_eq!((code, out.as_str()), (0, ""));
    let page = fs::read_to_string(&to_end).unwrap();
    assert_eq!(page, fs::read_to_string(&to_report).unwrap());
    assert_eq!(page, run(&mut daemon.ctl(&["session", "report", "s1"])).1);
    for wanted in [
        "<!DOCTYPE html>",
        "<title>flywheel: &lt;script&gt;&quot;&amp;&#39;</title>",
        "g/&lt;p&gt;",
        "<b class=\"pushed\">47</b>pushed",
        "413 too [31m large",
        "<td data-name=\"evidence\">process</td><td class=\"n\" data-name=\"size\">1.5 KiB</td>",
        "<td class=\"already_cached\">already cached</td><td data-name=\"evidence\">closure</td>",
        "host builder&lt;7&gt;, user c i",
        "What delayed the end",
        "1.5 KiB, 1.5 s after the job",
        "seen 100 ms, upload 200 ms, failed 2.5 s",
        "<div class=\"lane\">",
        "1 path more, not listed",
    ] {
        assert!(page.contains(wanted), "{wanted} is not in {page}");
    }
    for bad in ["\u{202e}", "<script", "javascript:alert(1)\"", " src=", "<link", "@import", "url("] {
        assert!(!page.contains(bad), "{bad} is in {page}");
    }
    let all = page.split_once("All paths").unwrap().1;
    assert!(all.find("-a</code>").unwrap() < all.find("-b</code>").unwrap(), "what failed comes first");

    // A second file, in Markdown.
    let comment = dir.path().join("comment.md");
    let mut end = daemon.ctl(&["session", "end", "--report"]);
    assert_eq!(run(end.arg(&to_end).arg("--report").arg(&comment)).0, 0);
    let comment = fs::read_to_string(&comment).unwrap();
    assert!(comment.starts_with("### flywheel"), "{comment}");
    assert!(comment.contains("What delayed the end") && !comment.contains("<script"), "{comment}");

    // A report that cannot be written fails only the caller that asked for it.
    let nowhere = "/nonexistent/page.html";
    let (code, _, err) = run(&mut daemon.ctl(&["session", "end", "--report", nowhere]));
    assert_eq!(code, 0);
    assert!(err.contains("warning: the report cannot be written to /nonexistent/page.html"), "{err}");
    assert_eq!(run(&mut daemon.ctl(&["session", "report", "s1", "--output", nowhere])).0, 2);
    assert_eq!(run(&mut daemon.ctl(&["session", "report", "other"])).0, 2);
}
