//! `flywheelctl` as jobs call it, against a scripted daemon behind the real server.

use std::{
    io::{BufRead, BufReader, Read, Write},
    os::unix::{
        fs::PermissionsExt,
        net::{UnixListener, UnixStream},
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
    sync::{Arc, Mutex, mpsc},
    time::Duration,
};

use flywheel::control::{
    codec::{self, ClientHello, ServerHello},
    messages::*,
    server::{self, BindError, Incoming, Limits},
};
use flywheel::types::{Heartbeat, StoreDir};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

const STORE: &str = "/nix/store";
const PATH: &str = "/nix/store/00000000000000000000000000000000-a";

/// A server whose daemon is a closure.
pub struct ScriptedDaemon {
    dir: TempDir,
    runtime: Option<tokio::runtime::Runtime>,
    shutdown: CancellationToken,
    server: Option<tokio::task::JoinHandle<()>>,
    seen: Arc<Mutex<Vec<(Request, server::Peer)>>>,
}

impl ScriptedDaemon {
    pub fn new(script: impl FnMut(Incoming) + Send + 'static) -> Self {
        Self::at(tempfile::tempdir().unwrap(), Limits::default(), script)
    }

    fn at(dir: TempDir, limits: Limits, mut script: impl FnMut(Incoming) + Send + 'static) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let shutdown = CancellationToken::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let listener = server::bind(&dir.path().join("s")).unwrap();
        let _guard = runtime.enter();
        let (store_dir, heartbeat) = (StoreDir::new(STORE).unwrap(), Heartbeat::default());
        let (mut incoming, server) =
            server::start(listener, &store_dir, limits, shutdown.clone(), heartbeat).unwrap();
        let log = Arc::clone(&seen);
        runtime.spawn(async move {
            while let Some(next) = incoming.recv().await {
                log.lock().unwrap().push((next.request.clone(), next.peer));
                script(next);
            }
        });
        drop(_guard);
        Self { dir, runtime: Some(runtime), shutdown, server: Some(server), seen }
    }

    /// Always sends the same reply.
    pub fn saying(reply: Reply) -> Self {
        Self::new(move |incoming| incoming.responder.reply(reply.clone()))
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.path().join("s")
    }

    pub fn requests(&self) -> Vec<Request> {
        self.seen.lock().unwrap().iter().map(|(r, _)| r.clone()).collect()
    }

    pub fn ctl(&self, args: &[&str]) -> Command {
        ctl(&self.socket(), args)
    }

    /// Ends at once and leaves its socket file behind.
    fn die(mut self) -> TempDir {
        self.runtime.take().unwrap().shutdown_timeout(Duration::from_secs(10));
        std::mem::replace(&mut self.dir, tempfile::tempdir().unwrap())
    }

    /// A raw connection after its hello.
    fn dial(&self) -> UnixStream {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let _ = stream.write_all(&ClientHello::ours().frame());
        let hello = codec::read_body(&mut stream, codec::MAX_HELLO).unwrap().unwrap();
        assert_eq!(ServerHello::parse(&hello).unwrap().store_dir, STORE);
        stream
    }
}

impl Drop for ScriptedDaemon {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

pub fn ctl(socket: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flywheelctl"));
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("FLYWHEEL_SOCKET", socket).args(args).stdin(Stdio::null());
    command
}

/// Exit status, standard output, standard error.
pub fn run(command: &mut Command) -> (i32, String, String) {
    said(&command.output().unwrap())
}

pub fn said(out: &Output) -> (i32, String, String) {
    let text = |b: &[u8]| String::from_utf8(b.to_vec()).unwrap();
    (out.status.code().unwrap(), text(&out.stdout), text(&out.stderr))
}

pub fn summary() -> Summary {
    Summary {
        session: Some("s1".into()),
        cache: "main".into(),
        pushed: 47,
        already_cached: 3,
        bytes: 117_440_512,
        flush_ms: 312,
        duration_ms: 61_234,
        ..Summary::default()
    }
}

pub fn partial() -> Summary {
    let failed = vec![Failed {
        path: PATH.into(),
        error: "413 too\u{1b}[31m large".into(),
        class: Some("too-large".into()),
    }];
    Summary {
        outcome: Outcome::of(1, 0),
        failed,
        failed_total: 1,
        warnings: vec!["token ends soon".into()],
        ..summary()
    }
}

#[test]
fn start_prints_only_the_id_and_says_who_asks() {
    let daemon = ScriptedDaemon::saying(Reply::Started { session: "s1".into(), cache: "main".into() });
    let mut command = daemon.ctl(&["session", "start", "--strict", "--anchor-pid", "7"]);
    command.envs([
        ("GITLAB_CI", "true"),
        ("CI_JOB_ID", "42"),
        ("CI_JOB_NAME", "build"),
        ("CI_PROJECT_PATH", "g/p"),
        ("CI_JOB_TOKEN", "secret"),
    ]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let pid = i32::try_from(child.id()).unwrap();
    assert_eq!(said(&child.wait_with_output().unwrap()), (0, "s1\n".into(), String::new()));
    let seen = daemon.seen.lock().unwrap();
    let (request, peer) = &seen[0];
    let ci = CiJob {
        system: "gitlab".into(),
        id: "42".into(),
        url: None,
        project: Some("g/p".into()),
        git_ref: None,
    };
    assert_eq!(
        *request,
        Request::SessionStart {
            label: Some("g/p build #42".into()),
            cache: None,
            anchor_pid: Some(7),
            strict: true,
            ci: Some(ci),
            log_paths: false,
        }
    );
    let ours = (rustix::process::getuid().as_raw(), rustix::process::getgid().as_raw());
    assert_eq!((peer.pid, peer.uid, peer.gid), (Some(pid), ours.0, ours.1), "from the kernel");
}

#[test]
fn start_as_json() {
    let daemon = ScriptedDaemon::saying(Reply::Started { session: "s1".into(), cache: "main".into() });
    let (code, out, err) = run(&mut daemon.ctl(&["session", "start", "--json"]));
    assert_eq!((code, out.as_str(), err.as_str()), (0, "{\"cache\":\"main\",\"session\":\"s1\"}\n", ""));
}

#[test]
fn end_prints_the_summary() {
    let daemon = ScriptedDaemon::saying(Reply::Ended(summary()));
    let (code, out, err) = run(daemon.ctl(&["session", "end"]).env("FLYWHEEL_SESSION", "s1"));
    let expected = "\
watch-store pushed 47 store paths incrementally
  already cached: 3
  in upstream:    0
  failed:         0
  pending:        0
  bytes:          117440512 (112.0 MiB)
  flush:          312 ms
";
    assert_eq!((code, out.as_str(), err.as_str()), (0, expected, ""));
    let requests = daemon.requests();
    let [Request::SessionEnd { session, timeout_ms, wait: true, .. }] = &requests[..] else {
        panic!("{requests:?}")
    };
    assert_eq!(session.as_deref(), Some("s1"));
    assert!(*timeout_ms <= 240_000);
}

#[test]
fn end_tells_failures_and_the_exit_status_follows_strict() {
    let daemon = ScriptedDaemon::saying(Reply::Ended(partial()));
    let (code, out, err) = run(&mut daemon.ctl(&["session", "end"]));
    assert_eq!(code, 0);
    let end = format!(
        "failed: {PATH}: 413 too [31m large [too-large]\nhelp: `man flywheel-errors` (docs/errors.md) explains too-large\n"
    );
    assert!(out.ends_with(&end), "{out}");
    assert_eq!(err, "warning: token ends soon\nwarning: pushing 1 path to cache main failed\n");
    let (code, _, err) = run(&mut daemon.ctl(&["session", "end", "--strict"]));
    assert_eq!(code, 3);
    assert!(err.ends_with("error: pushing 1 path to cache main failed\n"), "{err}");
    let (code, out, _) = run(&mut daemon.ctl(&["session", "end", "--quiet"]));
    assert_eq!((code, out.as_str()), (0, ""));
    let (code, out, _) = run(&mut daemon.ctl(&["session", "end", "--json"]));
    assert_eq!((code, out), (0, format!("{}\n", serde_json::to_string(&partial()).unwrap())));
}

#[test]
fn strict_may_have_been_said_at_the_start() {
    let failed = ScriptedDaemon::saying(Reply::Ended(Summary { strict: true, ..partial() }));
    assert_eq!(run(&mut failed.ctl(&["session", "end"])).0, 3);
    let pending = ScriptedDaemon::saying(Reply::Ended(Summary {
        strict: true,
        pending: 2,
        outcome: Outcome::Pending,
        ..summary()
    }));
    let (code, _, err) = run(&mut pending.ctl(&["session", "end"]));
    assert_eq!(
        (code, err.as_str()),
        (4, "error: pushing 2 paths to cache main is not finished: the daemon continues\n")
    );
    assert_eq!(run(&mut pending.ctl(&["session", "end", "--no-wait"])).0, 0, "no deadline was missed");
}

#[test]
fn end_finds_what_to_push() {
    let daemon = ScriptedDaemon::saying(Reply::Ended(summary()));
    let work = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(PATH, work.path().join("result")).unwrap();
    std::fs::write(work.path().join("file"), "").unwrap();
    let end = |push: &[&str]| {
        run(daemon.ctl(&["session", "end", "x", "--push"]).args(push).current_dir(work.path()))
    };
    let (code, _, err) = end(&["result*", "none*", PATH]);
    assert_eq!(code, 0);
    assert!(err.starts_with("warning: `none*` matches nothing in "), "{err}");
    let strict =
        run(daemon.ctl(&["session", "end", "x", "--strict", "--push", "none*"]).current_dir(work.path()));
    assert_eq!(strict.0, 2, "the session has ended, and the pattern is bad input: {strict:?}");
    let (code, out, err) = end(&["f*"]);
    assert_eq!((code, out.as_str()), (2, ""));
    assert!(err.contains("file` is neither in /nix/store nor a link into it"), "{err}");
    let requests = daemon.requests();
    let [Request::SessionEnd { push, .. }, Request::SessionEnd { push: none, .. }] = &requests[..] else {
        panic!("two requests only: {requests:?}")
    };
    assert_eq!((push.as_slice(), none.len()), (&[PATH.to_owned()][..], 0));
}

#[test]
fn without_a_daemon_only_what_jobs_call_in_passing_succeeds() {
    let dir = tempfile::tempdir().unwrap();
    let absent = dir.path().join("absent");
    let dead = dir.path().join("dead");
    drop(UnixListener::bind(&dead).unwrap());
    for socket in [&absent, &dead] {
        for args in [
            &["session", "start"][..],
            &["session", "end"],
            &["session", "list"],
            &["session", "show", "x"],
            &["session", "report", "x"],
            &["push", PATH],
            &["flush"],
            &["status"],
            &["status", "--watch"],
            &["metrics"],
            &["nix-conf"],
            &["doctor"],
            &["reload"],
            &["client", "status"],
        ] {
            let lenient = args[0] == "session" && matches!(args[1], "start" | "end");
            let (code, out, err) = run(&mut ctl(socket, args));
            // `doctor` checks what it can without a daemon, and fails anyway.
            let out =
                if args == ["doctor"] { out.contains("not checked").then(String::new).unwrap() } else { out };
            assert_eq!((code, out.as_str()), (if lenient { 0 } else { 5 }, ""), "{args:?}");
            let level = if lenient { "warning" } else { "error" };
            assert!(
                err.starts_with(&format!("{level}: no flywheel daemon at "))
                    && err.contains("`systemctl start flywheeld`"),
                "{err}"
            );
            let (code, _, err) = run(ctl(socket, args).arg("--strict"));
            assert_eq!(code, 5, "{args:?}");
            assert!(err.starts_with("error: no flywheel daemon at "), "{err}");
            let (_, out, _) = run(ctl(socket, args).arg("--json"));
            let object: serde_json::Value = serde_json::from_str(&out).unwrap();
            assert_eq!(object["outcome"], "unreachable", "{args:?}");
            assert!(object["error"].as_str().unwrap().contains("no flywheel daemon at "), "{out}");
        }
    }
}

/// Failed and pending paths are exit statuses of `push` and `flush`, also without `--strict`.
#[test]
fn push_and_flush_fail_with_their_paths() {
    for (reply, code) in [(partial(), 3), (Summary { pending: 2, outcome: Outcome::Pending, ..summary() }, 4)]
    {
        let daemon = ScriptedDaemon::saying(Reply::Pushed(reply));
        assert_eq!(run(&mut daemon.ctl(&["push", "--wait", PATH])).0, code);
        assert_eq!(run(&mut daemon.ctl(&["flush"])).0, code);
    }
    let daemon = ScriptedDaemon::saying(Reply::Pushed(summary()));
    assert_eq!(run(&mut daemon.ctl(&["push", "--wait", PATH, "none*"])).0, 2, "a pattern matches nothing");
    let daemon = ScriptedDaemon::saying(Reply::Pushed(Summary { invalid: 1, ..summary() }));
    assert_eq!(run(&mut daemon.ctl(&["push", PATH])).0, 2, "a path that is not valid");
}

#[test]
fn a_socket_that_one_may_not_use_names_its_group() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("not root: acting as another user cannot be tried, this test is left out");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let program = dir.path().join("flywheelctl");
    std::fs::copy(env!("CARGO_BIN_EXE_flywheelctl"), &program).unwrap();
    let socket = dir.path().join("s");
    let _listener = UnixListener::bind(&socket).unwrap();
    std::os::unix::fs::chown(&socket, None, Some(1)).unwrap();
    for (path, mode) in [(dir.path(), 0o755), (&program, 0o755), (&socket, 0o660)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }
    let nobody = |args: &[&str]| {
        let mut command = Command::new("setpriv");
        command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&program).args(args);
        run(command.env("FLYWHEEL_SOCKET", &socket).current_dir("/"))
    };
    let (code, out, err) = nobody(&["status", "--json"]);
    assert_eq!(code, 5, "{err}");
    let named = "is open to root and the group daemon; add the user";
    assert!(
        err.starts_with("error: you may not use the flywheel daemon at ") && err.contains(named),
        "{err}"
    );
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(object["outcome"], "unreachable");
    assert_eq!(nobody(&["session", "start"]).0, 0, "a job goes on");
}

#[test]
fn a_hanging_daemon_is_no_daemon() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let _never_accepts = UnixListener::bind(&socket).unwrap();
    let (code, out, err) = run(&mut ctl(&socket, &["session", "end"]));
    assert_eq!((code, out.as_str()), (0, ""));
    assert!(err.contains("does not answer within 5.0 s"), "{err}");
}

#[test]
fn a_daemon_of_another_version_is_recognized() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("s");
    let listener = UnixListener::bind(&socket).unwrap();
    let theirs = ServerHello {
        protocol: 9,
        minimum: 8,
        version: "9.9.9".into(),
        store_dir: STORE.into(),
        store_files: STORE.into(),
    };
    for answer in
        [theirs.frame(), b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(), b"\0\0\0\x08GARBAGE!".to_vec()]
    {
        std::thread::scope(|scope| {
            scope.spawn(|| listener.accept().unwrap().0.write_all(&answer).unwrap());
            let (code, _, err) = run(&mut ctl(&socket, &["session", "start", "--strict"]));
            assert_eq!(code, 5);
            let expected = if answer == theirs.frame() { "is flywheel 9.9.9" } else { "" };
            assert!(err.starts_with("error: ") && err.contains(expected), "{err}");
        });
    }
}

#[test]
fn a_client_of_another_version_gets_an_error_that_says_so() {
    let daemon = ScriptedDaemon::saying(Reply::Done { message: String::new() });
    let mut stream = UnixStream::connect(daemon.socket()).unwrap();
    stream.write_all(&ClientHello { protocol: 0, version: "0.0.1".into() }.frame()).unwrap();
    codec::read_body(&mut stream, codec::MAX_HELLO).unwrap().unwrap();
    let Some(Reply::Error { code, message }) = codec::read(&mut stream).unwrap() else { panic!("no error") };
    assert_eq!(code, ErrorCode::Version);
    assert!(message.contains("0.0.1"), "{message}");
    assert!(codec::read::<Reply>(&mut stream).unwrap().is_none(), "and that is the end");
}

#[test]
fn too_much_and_nonsense_are_refused_and_the_rest_goes_on() {
    let daemon = ScriptedDaemon::saying(Reply::Done { message: "fine".into() });
    for bytes in [&(codec::MAX_FRAME + 1).to_be_bytes()[..], b"\0\0\0\x02\xff\xff"] {
        let mut stream = daemon.dial();
        stream.write_all(bytes).unwrap();
        let reply = codec::read(&mut stream).unwrap();
        assert!(matches!(reply, Some(Reply::Error { code: ErrorCode::BadRequest, .. })), "{reply:?}");
    }
    // A string that is too long is refused by its name, and the connection goes on.
    let mut stream = daemon.dial();
    let label = Some("x".repeat(3000));
    let long = Request::SessionStart {
        label,
        cache: None,
        anchor_pid: None,
        strict: false,
        ci: None,
        log_paths: false,
    };
    codec::write(&mut stream, &long).unwrap();
    let reply: Option<Reply> = codec::read(&mut stream).unwrap();
    let Some(Reply::Error { code: ErrorCode::BadRequest, message }) = reply else { panic!("{reply:?}") };
    assert_eq!(message, "label has 3000 bytes, at most 2048 are allowed");
    codec::write(&mut stream, &Request::Reload).unwrap();
    assert_eq!(codec::read(&mut stream).unwrap(), Some(Reply::Done { message: "fine".into() }));
    let mut stranger = UnixStream::connect(daemon.socket()).unwrap();
    stranger.write_all(b"\0\0\0\x04GET ").unwrap();
    let mut rest = Vec::new();
    let _ = stranger.read_to_end(&mut rest);
    assert!(rest.is_empty(), "strangers get no answer");
    // Several requests on one connection, in sequence.
    let mut stream = daemon.dial();
    for _ in 0..3 {
        codec::write(&mut stream, &Request::Reload).unwrap();
        assert_eq!(codec::read(&mut stream).unwrap(), Some(Reply::Done { message: "fine".into() }));
    }
}

#[test]
fn the_65th_connection_of_a_user_is_refused() {
    let daemon = ScriptedDaemon::saying(Reply::Done { message: "fine".into() });
    let open: Vec<_> = (0..64).map(|_| daemon.dial()).collect();
    let (code, _, err) = run(&mut daemon.ctl(&["reload", "--strict"]));
    assert_eq!(code, 5);
    assert!(err.contains("has 64 connections open"), "{err}");
    drop(open);
    // The server learns of the closed ones in its own time; then there is room again.
    while run(&mut daemon.ctl(&["reload", "--strict"])).0 != 0 {}
}

#[test]
fn a_request_that_the_daemon_drops_is_answered() {
    let daemon = ScriptedDaemon::new(drop);
    let (code, _, err) = run(&mut daemon.ctl(&["session", "end"]));
    assert_eq!(code, 0);
    assert!(err.contains("without an answer"), "{err}");
    assert_eq!(run(&mut daemon.ctl(&["session", "end", "--strict"])).0, 1);
}

#[test]
fn refusals_and_their_exit_statuses() {
    for (code, named, unnamed, strict) in
        [(ErrorCode::NotFound, 2, 0, 5), (ErrorCode::BadRequest, 2, 2, 2), (ErrorCode::Denied, 0, 0, 5)]
    {
        let daemon = ScriptedDaemon::saying(Reply::Error { code, message: "no\u{1b}".into() });
        let (status, _, err) = run(&mut daemon.ctl(&["session", "end", "x"]));
        assert_eq!(status, named, "{code:?} {err}");
        assert_eq!(err, format!("{}: no \n", if named == 0 { "warning" } else { "error" }));
        assert_eq!(run(&mut daemon.ctl(&["session", "end"])).0, unnamed, "{code:?}");
        assert_eq!(run(&mut daemon.ctl(&["session", "end", "--strict"])).0, strict, "{code:?}");
    }
}

#[test]
fn the_daemon_learns_that_a_caller_left() {
    let (left, result) = mpsc::channel();
    let daemon = ScriptedDaemon::new(move |incoming| {
        let left = left.clone();
        tokio::spawn(async move {
            incoming.responder.progress(Progress { total: 1, ..Progress::default() });
            incoming.responder.gone().await;
            left.send(incoming.responder.is_gone()).unwrap();
        });
    });
    let mut stream = daemon.dial();
    codec::write(&mut stream, &Request::Flush { timeout_ms: 1 }).unwrap();
    assert!(matches!(codec::read(&mut stream).unwrap(), Some(Reply::Progress(_))));
    drop(stream);
    assert!(result.recv_timeout(Duration::from_secs(30)).unwrap());
}

#[test]
fn a_restarted_daemon_is_asked_again() {
    let (asked, first) = mpsc::channel();
    let held = Mutex::new(Vec::new());
    let daemon = ScriptedDaemon::new(move |incoming| {
        let session = Some("s7".to_owned());
        incoming.responder.progress(Progress { total: 1, session, ..Progress::default() });
        held.lock().unwrap().push(incoming.responder);
        asked.send(()).unwrap();
    });
    let mut child = daemon.ctl(&["session", "end", "--timeout", "60s"]);
    let child = child.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    first.recv_timeout(Duration::from_secs(30)).unwrap();
    // The progress is on its way when the server has had a turn; a second client makes sure of that.
    drop(daemon.dial());
    // The old one dies without a word; its successor takes the socket over.
    let next = ScriptedDaemon::at(daemon.die(), Limits::default(), |incoming| {
        incoming.responder.reply(Reply::Ended(summary()));
    });
    let (code, out, err) = said(&child.wait_with_output().unwrap());
    assert_eq!(code, 0, "{err}");
    assert!(out.starts_with("watch-store pushed 47 store paths incrementally\n"), "{out}");
    assert!(err.contains("waiting until the daemon runs again"), "{err}");
    let requests = next.requests();
    let [Request::SessionEnd { session, .. }] = &requests[..] else { panic!("asked once") };
    assert_eq!(session.as_deref(), Some("s7"), "by the id that the first one printed");
}

#[test]
fn pending_replies_go_out_when_the_server_stops() {
    let (hold, held) = mpsc::channel();
    let mut daemon = ScriptedDaemon::new(move |incoming| hold.send(incoming.responder).unwrap());
    let mut waiting = daemon.dial();
    let mut idle = daemon.dial();
    codec::write(&mut waiting, &Request::Status).unwrap();
    let responder = held.recv_timeout(Duration::from_secs(30)).unwrap();
    daemon.shutdown.cancel();
    assert!(codec::read::<Reply>(&mut idle).unwrap().is_none(), "idle connections end");
    responder.reply(Reply::Done { message: "last".into() });
    assert_eq!(codec::read(&mut waiting).unwrap(), Some(Reply::Done { message: "last".into() }));
    assert!(codec::read::<Reply>(&mut waiting).unwrap().is_none());
    let server = daemon.server.take().unwrap();
    daemon.runtime.as_ref().unwrap().block_on(server).unwrap();
    assert!(UnixStream::connect(daemon.socket()).is_err(), "nothing listens any more");
}

#[test]
fn only_a_dead_daemons_socket_is_taken_over() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("s");
    let first = server::bind(&path).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
    assert!(matches!(server::bind(&path), Err(BindError::Live { .. })));
    drop(first);
    drop(server::bind(&path).unwrap());
    std::fs::remove_file(&path).unwrap();
    std::fs::write(&path, "mine").unwrap();
    assert!(matches!(server::bind(&path), Err(BindError::NotASocket(_))));
    assert_eq!(std::fs::read(&path).unwrap(), b"mine");
    assert!(matches!(server::bind(&dir.path().join("no/s")), Err(BindError::Io { .. })));
}

#[test]
fn status_push_flush_list_and_show() {
    let entry = SessionEntry {
        session: "s1".into(),
        label: Some("job".into()),
        cache: "main".into(),
        ..SessionEntry::default()
    };
    let cache = CacheStatus {
        name: "main".into(),
        endpoint: Some("https://c".into()),
        state: CacheState::Online,
        engine: "native".into(),
        ..CacheStatus::default()
    };
    let status = Status {
        version: "0.1.0".into(),
        cache: vec![cache],
        sessions: vec![entry.clone()],
        ..Status::default()
    };
    let mut json = serde_json::json!(status);
    json["queue"]["parked"] = 0.into();
    json["parked"] = serde_json::json!([]);
    let json = json.to_string();
    let daemon = ScriptedDaemon::new(move |incoming| {
        let reply = match &incoming.request {
            Request::Status => Reply::Status(status.clone()),
            Request::SessionList { .. } => Reply::Sessions(vec![entry.clone()]),
            Request::SessionShow { .. } => Reply::Session(SessionDetail {
                session: entry.clone(),
                summary: summary(),
                ..SessionDetail::default()
            }),
            Request::Push { wait: false, .. } => Reply::Done { message: "1 path queued".into() },
            _ => Reply::Pushed(Summary { session: None, ..summary() }),
        };
        incoming.responder.reply(reply);
    });
    let table: [(&[&str], &str); 7] = [
        (&["status"], "cache main: online, https://c, engine native\n"),
        (&["status", "--json"], &json),
        (&["session", "list"], "SESSION  STATE  USER  CACHE  SETTLED"),
        (&["session", "show", "s1"], "watch-store pushed 47"),
        (&["push", PATH], "1 path queued\n"),
        (&["push", "--wait", PATH], "pushed 47 store paths\n"),
        (&["flush"], "flushed: pushed 47 store paths\n"),
    ];
    for (args, expected) in table {
        let (code, out, err) = run(&mut daemon.ctl(args));
        assert_eq!((code, err.as_str()), (0, ""), "{args:?}");
        assert!(out.contains(expected), "{args:?}: {out}");
    }
    // `--watch` ends when its reader leaves.
    let mut watch = daemon.ctl(&["status", "--watch", "--json"]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(watch.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, format!("{json}\n"));
    assert!(watch.wait().unwrap().success());
}

#[test]
fn usage_and_completions() {
    let none = Path::new("/nonexistent");
    assert_eq!(run(&mut ctl(none, &["session", "end", "--timeout", "soon"])).0, 2);
    assert_eq!(run(&mut ctl(none, &["nonsense"])).0, 2);
    let (code, out, _) = run(&mut ctl(none, &["--json", "nonsense"]));
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((code, &object["outcome"]), (2, &"invalid".into()), "{object}");
    assert_eq!(run(&mut ctl(none, &["--help"])).0, 0);
    assert!(run(&mut ctl(none, &["completions", "bash"])).1.contains("flywheelctl"));
}

/// A daemon for `run`: starts and ends sessions.
fn for_run(ended: Summary) -> ScriptedDaemon {
    ScriptedDaemon::new(move |incoming| {
        let reply = match &incoming.request {
            Request::SessionStart { .. } => Reply::Started { session: "s1".into(), cache: "main".into() },
            _ => Reply::Ended(ended.clone()),
        };
        incoming.responder.reply(reply);
    })
}

#[test]
fn run_keeps_the_commands_output_and_status() {
    let daemon = for_run(partial());
    let (code, out, err) =
        run(&mut daemon.ctl(&["run", "--label", "l", "--", "sh", "-c", "echo $$; exit 7"]));
    assert_eq!(code, 7, "{err}");
    assert!(err.contains("watch-store pushed 47 store paths incrementally\n"), "{err}");
    let requests = daemon.requests();
    let [Request::SessionStart { anchor_pid, label, .. }, Request::SessionEnd { session, wait, .. }] =
        &requests[..]
    else {
        panic!("a start and an end: {requests:?}")
    };
    assert_eq!((anchor_pid.unwrap().to_string(), label.as_deref()), (out.trim().to_owned(), Some("l")));
    assert_eq!((session.as_deref(), *wait), (Some("s1"), true));
    assert_eq!(run(&mut daemon.ctl(&["run", "--", "true"])).0, 0, "a failed path fails no command");
    assert_eq!(run(&mut daemon.ctl(&["run", "--strict", "--", "true"])).0, 3);
    assert_eq!(
        run(&mut daemon.ctl(&["run", "--strict", "--", "false"])).0,
        1,
        "the command's own status first"
    );
    assert_eq!(run(&mut daemon.ctl(&["run", "--", "sh", "-c", "kill -KILL $$"])).0, 137);
    assert_eq!(run(&mut daemon.ctl(&["run", "--", "/nonexistent"])).0, 127);
}

#[test]
fn run_needs_no_daemon() {
    let (code, out, err) =
        run(&mut ctl(Path::new("/nonexistent/s"), &["run", "--", "sh", "-c", "echo hello; exit 3"]));
    assert_eq!((code, out.as_str()), (3, "hello\n"));
    assert!(err.starts_with("warning: no flywheel daemon"), "{err}");
}

#[test]
fn run_passes_signals_on() {
    for (name, signal) in [("TERM", Signal::TERM), ("INT", Signal::INT), ("HUP", Signal::HUP)] {
        let daemon = for_run(summary());
        // The command says when it listens, and which signal it got.
        let script =
            format!("trap 'echo got {name}; exit 9' {name}; echo ready; while :; do sleep 0.05; done");
        let mut child: Child = daemon
            .ctl(&["run", "--", "sh", "-c", &script])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert_eq!(lines.next().unwrap().unwrap(), "ready");
        kill_process(Pid::from_child(&child), signal).unwrap();
        assert_eq!(lines.next().unwrap().unwrap(), format!("got {name}"));
        assert_eq!(child.wait().unwrap().code(), Some(9));
        let last = daemon.requests().pop();
        assert!(
            matches!(last, Some(Request::SessionEnd { wait: false, .. })),
            "a program that is asked to stop does not wait: {last:?}"
        );
    }
}

/// Without root: below a directory. The token is read from standard input and shown nowhere.
#[test]
fn setup_writes_below_a_root_and_says_what_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().to_str().unwrap();
    let setup = |args: &[&str]| {
        let mut command = ctl(Path::new("/no/socket"), &["setup", "--root", root]);
        command.args(args).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped());
        let mut child = command.stderr(std::process::Stdio::piped()).spawn().unwrap();
        // A command that refuses its options does not read it.
        let _ = child.stdin.take().unwrap().write_all(b"very-secret-token\n");
        let output = child.wait_with_output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let all = ["--server", "https://attic.example.com", "--cache", "ci", "--token-stdin"];
    let fragment = dir.path().join("etc/flywheel/flywheel.toml.d/60-setup.toml");
    let (code, out, _) = setup(&[&all[..], &["--dry-run"]].concat());
    assert!(code == 0 && out.starts_with("This would be done:"), "{out}");
    assert!(!fragment.exists());
    let (code, out, err) = setup(&all);
    assert_eq!(code, 0, "{out}{err}");
    assert!(!format!("{out}{err}").contains("very-secret-token"), "{out}{err}");
    assert!(
        std::fs::read_to_string(&fragment).unwrap().contains("endpoints = [\"https://attic.example.com\"]")
    );
    let (code, out, _) = setup(&[&all[..], &["--json"]].concat());
    let object: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!(
        (code, &object["steps"], object["kept"].as_array().unwrap().len()),
        (0, &serde_json::json!([]), 2)
    );
    // A program in the place of the token; everything after it belongs to it.
    let command = [
        "--server",
        "https://attic.example.com",
        "--token-command",
        "/usr/bin/vault",
        "read",
        "-f",
        "--json",
    ];
    let (code, out, err) = setup(&command);
    assert_eq!(code, 0, "{out}{err}");
    let written: toml::Table = std::fs::read_to_string(&fragment).unwrap().parse().unwrap();
    let cache = &written["caches"]["main"];
    assert_eq!(cache["token_command"], toml::Value::from(vec!["/usr/bin/vault", "read", "-f", "--json"]));
    assert!(cache.get("token_file").is_none());
    for wrong in [
        &["--token-command", "/usr/bin/vault"][..],
        &["--built-in", "--token-command", "/usr/bin/vault"],
        &["--server", "https://a", "--token-stdin", "--token-command", "/usr/bin/vault"],
        &["--cache", "ci"],
        &["--server", "attic.example.com"],
        &["--server", "https://a", "--cache", "a b"],
        &["--built-in", "--token-stdin"],
        &["--user", "-G"],
    ] {
        let (code, out, err) = setup(wrong);
        assert!(code == 2 && err.starts_with("error: "), "{wrong:?}: {code} {out} {err}");
    }
}
