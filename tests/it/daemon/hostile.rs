//! What a member of the group sends who does not mean well: text that looks like lines of a log or
//! commands of a CI runner, frames that never end, names that lead elsewhere, anchors that are no
//! processes. The callers are a real other user.

use std::io::{Read as _, Write as _};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt as _;
use std::process::{Child, Command, Stdio};

use flywheel::control::codec::{self, ClientHello, PROTOCOL};
use flywheel::control::messages::{CiJob, ErrorCode, Reply, Request, VerifyScope};

use crate::attribution::sessions::Client;
use crate::support::daemon::{CommandResult, Daemon, until_some};
use crate::support::multiuser::children;
use crate::support::users::{NOBODY, as_nobody, as_user, can_switch_user, open_to_all, set_mode};

/// Lines of a log, an escape sequence, a right-to-left mark, and commands of GitHub's, Azure's,
/// TeamCity's and GitLab's runners.
const FORGED: &str = "::set-output name=a::forged\n2026-11-28T00:00:00Z ERROR flywheel: forged\r\n<3>forged\u{1b}[31m\
    \u{9b}2J\u{202e}##[error]forged\n##vso[task.setvariable variable=A]forged\u{2028}##teamcity[forged]\n  ::add-mask::a\n\
    section_start:1:a\r\u{1b}[0K";

/// 2,048 bytes, of characters that have four.
fn wide() -> String {
    "🦀".repeat(512)
}

/// Asserts that text of [`FORGED`] has become no line of its own and no command.
fn assert_harmless(what: &str, text: &str) {
    let is_unfit = |c: char| {
        c.is_control() && c != '\n' || matches!(c, '\u{2028}' | '\u{202e}') // of those that are in it
    };
    assert!(!text.contains(is_unfit), "{what}: {text:?}");
    assert!(
        !text.contains("##[") && !text.contains("##vso[") && !text.contains("##teamcity["),
        "{what}: {text}"
    );
    for line in text.lines() {
        let line = line.trim_start();
        let begins = ["::", "2026-11-28T00:00:00Z ERROR", "<3>", "section_start:", "forged"];
        assert!(!begins.iter().any(|begin| line.starts_with(begin)), "{what}: {line}");
    }
}

#[test]
fn text_of_strangers_forges_no_line_and_no_command() {
    if !can_switch_user() {
        return;
    }
    let daemon = Daemon::embedded();
    open_to_all(&daemon);
    let path = daemon.nix.make("one");
    daemon.flush();
    let mut sessions = Vec::new();
    for text in [FORGED.to_owned(), wide()] {
        let mut client = as_user(NOBODY, || Client::open(&daemon));
        let field = || Some(text.clone());
        let ci = CiJob {
            system: text.clone(),
            id: text.clone(),
            url: field(),
            project: field(),
            git_ref: field(),
        };
        let start = |cache| Request::SessionStart {
            label: field(),
            cache,
            anchor_pid: None,
            strict: false,
            ci: Some(ci.clone()),
            log_paths: true,
        };
        let Reply::Started { session, .. } = client.ask(&start(None)) else { panic!("no session") };
        sessions.push(session.clone());
        let short: String = text.chars().take(120).collect();
        let end = |session| Request::SessionEnd {
            session,
            ci_job: field(),
            push: vec![short.clone(), path.clone()],
            timeout_ms: 30_000,
            wait: true,
            patient: true,
        };
        for request in [
            start(field()),
            end(field()),
            Request::SessionShow { session: text.clone() },
            Request::Push { paths: vec![short.clone()], cache: None, wait: true, timeout_ms: 30_000 },
            Request::Push { paths: vec![path.clone()], cache: field(), wait: true, timeout_ms: 30_000 },
            Request::Why { paths: vec![short.clone()] },
            Request::Hook { derivation: Some(short.clone()), outputs: vec![short.clone()] },
            Request::Verify { scope: VerifyScope::Session(text.clone()), cache: field(), timeout_ms: 9_000 },
            Request::Verify {
                scope: VerifyScope::Paths(vec![short.clone()]),
                cache: None,
                timeout_ms: 9_000,
            },
            end(Some(session.clone())),
        ] {
            let reply = client.ask(&request);
            assert!(!matches!(reply, Reply::Progress(_)), "{request:?}");
        }
    }
    let [forged, wide] = &sessions[..] else { unreachable!() };
    for args in [
        &["session", "list", "--all"][..],
        &["session", "show", forged],
        &["session", "show", wide],
        &["session", "show", forged, "--paths"],
        &["session", "report", forged],
        &["status"],
        &["why", &path],
        &["session", "end", forged],
    ] {
        let said = daemon.ctl(args);
        assert_eq!(said.code, 0, "{said:?}");
        assert_harmless(&format!("{args:?}"), &format!("{}{}", said.out, said.err));
        let said = daemon.ctl(&[&["--json"], args].concat());
        said.json();
        assert_harmless(&format!("{args:?} as JSON"), &said.out);
    }
    assert_eq!(
        daemon.json(&["session", "show", forged])["session"]["ci"]["url"],
        FORGED[..128 - 3].to_owned() + "…"
    );
    assert_harmless("the log", &daemon.log());
    assert!(daemon.log().contains("forged"), "the label is in the log");
}

#[test]
fn callers_that_never_finish_cost_others_nothing_and_the_log_a_line() {
    if !can_switch_user() {
        return;
    }
    let daemon = Daemon::embedded();
    open_to_all(&daemon);
    let greet = || {
        let mut stream = UnixStream::connect(daemon.socket()).unwrap();
        stream.write_all(&ClientHello { protocol: PROTOCOL, version: String::new() }.frame()).unwrap();
        codec::read_body(&mut stream, codec::MAX_HELLO).unwrap().unwrap();
        stream
    };
    let half: Vec<UnixStream> = as_user(NOBODY, || {
        let begin = |_| {
            let mut stream = greet();
            stream.write_all(&[0, 0, 16, 0, 1]).unwrap();
            stream
        };
        (0..64).map(begin).collect()
    });
    as_user(NOBODY, || {
        for _ in 0..500 {
            let mut answer = Vec::new();
            let _ = UnixStream::connect(daemon.socket()).unwrap().read_to_end(&mut answer);
            assert!(String::from_utf8_lossy(&answer).contains("has 64 connections open"), "{answer:?}");
        }
    });
    daemon.assert_logged(1, "a connection of user 65534 is refused");
    assert_eq!(daemon.ctl(&["--strict", "session", "start"]).code, 0, "root is served");
    let another = as_user(12_345, greet);
    drop((half, another));
    // A length of 4 GiB is an answer and the end of the connection, not memory.
    let said = as_user(NOBODY, || {
        let mut stream = until_some("there is a place again", || {
            let mut stream = UnixStream::connect(daemon.socket()).unwrap();
            stream.write_all(&ClientHello { protocol: PROTOCOL, version: String::new() }.frame()).ok()?;
            codec::read_body(&mut stream, codec::MAX_HELLO).ok()??;
            // A refusal follows the hello at once, and a place has nothing more to say.
            stream.set_nonblocking(true).unwrap();
            let is_silent = stream.read(&mut [0]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            stream.set_nonblocking(false).unwrap();
            is_silent.then_some(stream)
        });
        stream.write_all(&[0xff; 8]).unwrap();
        let mut said = Vec::new();
        stream.read_to_end(&mut said).unwrap();
        String::from_utf8_lossy(&said).into_owned()
    });
    assert!(said.contains("4294967295 bytes is more than"), "{said}");
}

/// Anybody may call the hook; only the store's owner and root are believed.
#[test]
fn a_hook_of_a_user_who_owns_no_store_claims_nothing() {
    if !can_switch_user() {
        return;
    }
    let daemon = Daemon::embedded();
    open_to_all(&daemon);
    let session = daemon.session(&[]);
    let path = daemon.nix.make("made");
    let mut client = as_user(NOBODY, || Client::open(&daemon));
    let start = Request::SessionStart {
        label: None,
        cache: None,
        anchor_pid: None,
        strict: false,
        ci: None,
        log_paths: false,
    };
    let Reply::Started { session: theirs, .. } = client.ask(&start) else { panic!("no session") };
    let claim = Request::Hook { derivation: None, outputs: vec![path.clone()] };
    let reply = client.ask(&claim);
    assert!(matches!(&reply, Reply::Error { code: ErrorCode::Denied, .. }), "{reply:?}");
    assert_eq!(
        Client::open(&daemon).ask(&claim),
        Reply::Done { message: "noted".into() },
        "root is believed"
    );
    daemon.flush();
    assert_eq!(daemon.end(&session, &[])["pushed"], 1);
    let shown = daemon.json(&["session", "show", &theirs]);
    assert_eq!(shown["paths"], serde_json::json!([]), "{shown}");
}

/// `flywheelctl` resolves names with its caller's rights, and hands store paths only to the daemon.
#[test]
fn names_that_lead_elsewhere_are_refused_at_once() {
    if !can_switch_user() {
        return;
    }
    let daemon = Daemon::embedded();
    open_to_all(&daemon);
    let dir = daemon.nix.path().join("names");
    std::fs::create_dir(&dir).unwrap();
    let secret = dir.join("secret");
    std::fs::create_dir(&secret).unwrap();
    std::fs::write(secret.join("file"), "secret").unwrap();
    set_mode(&secret, 0o700);
    set_mode(&dir, 0o755);
    assert!(Command::new("mkfifo").arg(dir.join("fifo")).status().unwrap().success());
    symlink("loop", dir.join("loop")).unwrap();
    symlink(secret.join("file"), dir.join("link")).unwrap();
    symlink("/dev/zero", dir.join("device")).unwrap();
    for name in ["fifo", "loop", "link", "device", "secret", "../state", "../../../etc/passwd"] {
        let said = as_nobody(&daemon, &["push", dir.join(name).to_str().unwrap()]);
        assert_eq!(said.code, 2, "{name}: {said:?}");
        assert!(said.err.contains("nor a link into it"), "{name}: {said:?}");
        assert!(!said.err.contains("secret\n"), "{said:?}");
    }
    // The link is read once: what it leads to afterwards is not what was named.
    let (one, two) = (daemon.nix.make("one"), daemon.nix.make("two"));
    daemon.flush();
    symlink(&one, dir.join("result")).unwrap();
    let named = as_nobody(&daemon, &["--json", "why", dir.join("result").to_str().unwrap()]).json();
    std::fs::remove_file(dir.join("result")).unwrap();
    symlink(&two, dir.join("result")).unwrap();
    assert_eq!(named["paths"][0]["path"], one);
}

/// A pipe that nobody reads would keep `flywheelctl`, and so the job, waiting for a reader.
#[test]
fn a_report_for_a_pipe_without_a_reader_is_an_error() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    let pipe = daemon.nix.work_dir().join("report.html");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let end = daemon.ctl(&["session", "end", &session, "--report", "report.html"]);
    assert_eq!(end.code, 0, "{end:?}");
    assert!(end.err.contains("cannot be written to report.html: nobody reads this pipe"), "{end:?}");
    let mut reader = Command::new("cat").arg(&pipe).stdout(Stdio::piped()).spawn().unwrap();
    until_some("the reader is there", || {
        let said = daemon.ctl(&["session", "report", &session, "--output", "report.html"]);
        assert!(said.code == 0 || said.err.contains("nobody reads this pipe"), "{said:?}");
        (said.code == 0).then_some(())
    });
    let mut page = String::new();
    reader.stdout.take().unwrap().read_to_string(&mut page).unwrap();
    reader.wait().unwrap();
    assert!(page.starts_with("<!") && page.trim_end().ends_with("</html>"), "{page}");
    let device = daemon.ctl(&["session", "report", &session, "--output", "/dev/null"]);
    assert_eq!(device.code, 0, "{device:?}");
}

/// A process of this user that is killed when this is dropped.
struct Theirs(Child);

impl Theirs {
    fn start(script: &str) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script]).uid(NOBODY).gid(NOBODY).current_dir("/").stdin(Stdio::null());
        Self(command.spawn().unwrap())
    }
}

impl Drop for Theirs {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn an_anchor_that_is_no_process_of_the_caller_is_refused() {
    if !can_switch_user() {
        return;
    }
    let daemon = Daemon::embedded();
    open_to_all(&daemon);
    // Its child has ended, and nobody waits for it.
    let parent = Theirs::start("true & exec sleep 600");
    let is_zombie = |pid: &i32| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        stat.contains(") Z ")
    };
    let zombie = until_some("a zombie", || children(parent.0.id()).into_iter().find(is_zombie));
    let start = |pid: &str| -> CommandResult {
        as_nobody(&daemon, &["--strict", "session", "start", "--anchor-pid", pid])
    };
    for pid in ["0", "1", "4294967295", &zombie.to_string(), &daemon.pid().to_string()] {
        let said = start(pid);
        assert_eq!(said.code, 2, "{pid}: {said:?}");
    }
    let own = start(&parent.0.id().to_string());
    assert_eq!(own.code, 0, "{own:?}");
}
