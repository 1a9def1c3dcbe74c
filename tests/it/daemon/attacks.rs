//! What one user can do to the daemon by asking for much: it answers the others in time and stays
//! small. The tests print what they measured.

use std::time::{Duration, Instant};

use flywheel::control::messages::{CiJob, Outcome, Reply, Request, Summary};
use serde_json::Value;

use crate::attribution::sessions::Client;
use crate::daemon::notify::Stopped;
use crate::support::daemon::{Daemon, EMBEDDED, until};
use crate::support::nix::PrivateNix;
use crate::support::users::{as_nobody, can_switch_user, open_to_all};

const MIB: u64 = 1 << 20;

/// A daemon with the built-in cache. `FLYWHEEL_ATTACK_DAEMON`: another `flywheeld`, such as a release
/// build for figures.
fn daemon() -> Daemon {
    let mut daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    if let Some(program) = std::env::var_os("FLYWHEEL_ATTACK_DAEMON") {
        daemon.program = program.into();
    }
    daemon.up();
    daemon
}

/// The peak of the daemon's memory in bytes.
fn peak(daemon: &Daemon) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().split(' ').next().unwrap().parse::<u64>().unwrap() * 1024
}

/// How many connections the daemon's socket has, by proc_net(5). The type is that of a stream, the
/// state that of a connection; the name may be the one before the socket was put in its place.
fn connections(daemon: &Daemon) -> usize {
    let socket = daemon.socket().display().to_string();
    let all = std::fs::read_to_string("/proc/net/unix").unwrap();
    let is_connection = |line: &&str| line.contains(" 0001 03 ") && line.contains(&format!(" {socket}"));
    all.lines().filter(is_connection).count()
}

/// How many pushes the daemon has recorded.
fn pushes(daemon: &Daemon) -> usize {
    let listed = daemon.json(&["session", "list", "--all"]);
    let is_push = |entry: &&Value| entry["session"].as_str().unwrap().starts_with("push-");
    listed.as_array().unwrap().iter().filter(is_push).count()
}

/// 40 connections of a user push the same cached paths, while another user's session of one path
/// ends. The 40 are answered together, and the other user does not wait for them.
/// `FLYWHEEL_ATTACK_PATHS`: how many paths, in hundreds; Nix needs a second for each to build them.
#[test]
fn forty_pushes_of_many_cached_paths_do_not_hold_up_another_users_end() {
    if !can_switch_user() {
        return;
    }
    let daemon = daemon();
    open_to_all(&daemon);
    let hundreds = std::env::var("FLYWHEEL_ATTACK_PATHS").map_or(20, |n| n.parse().unwrap());
    daemon.nix.build(&crate::faults::set("cached", hundreds, 100, 10));
    let store = daemon.nix.store_dir();
    let all: Vec<String> = std::fs::read_dir(&store)
        .unwrap()
        .map(|entry| entry.unwrap().path().display().to_string())
        .filter(|path| path.contains("-cached-") && !path.ends_with(".drv"))
        .collect();
    assert_eq!(all.len(), hundreds * 100);
    daemon.flush();
    let one = daemon.nix.make("one");
    let session = as_nobody(&daemon, &["session", "start"]).out.trim().to_owned();
    let push = Request::Push { paths: all, cache: None, wait: true, timeout_ms: 240_000 };
    let before = peak(&daemon);
    // All of them ask before the first push is recorded.
    let stopped = Stopped::threads(&daemon, "ledger");
    let together = stopped.is_some();
    let idle = connections(&daemon);
    let (took, begun, under_way) = std::thread::scope(|scope| {
        let ask = || Client::open(&daemon).ask(&push);
        let pushes: Vec<_> = (0..40).map(|_| scope.spawn(ask)).collect();
        until("all of them are connected", || connections(&daemon) >= idle + 40);
        // The daemon still answers, so it has heard them.
        let _ = daemon.status();
        drop(stopped);
        let begun = Instant::now();
        let end = as_nobody(&daemon, &["--json", "session", "end", &session, "--push", &one]);
        let took = begun.elapsed();
        let under_way = pushes.iter().filter(|push| !push.is_finished()).count();
        let summary = end.json();
        // It may have been pushed before the session named it.
        let there = summary["pushed"].as_u64().unwrap() + summary["already_cached"].as_u64().unwrap();
        assert_eq!((&summary["outcome"], there), (&"complete".into(), 1), "{summary}");
        for push in pushes {
            let Reply::Pushed(summary) = push.join().unwrap() else { panic!("no summary") };
            let there = summary.pushed + summary.already_cached;
            assert_eq!((summary.outcome, there), (Outcome::Complete, hundreds as u64 * 100), "{summary:?}");
        }
        (took, begun, under_way)
    });
    assert!(daemon.main().has(&one));
    let pushes = pushes(&daemon);
    let cost = peak(&daemon).saturating_sub(before);
    eprintln!(
        "session end: {took:?} with {under_way} pushes of another user under way; all of them: {:?}, as {pushes} sessions; memory {} MiB more",
        begun.elapsed(),
        cost / MIB
    );
    // One whose request came late is a session of its own, or joins that one.
    assert!(pushes <= if together { 4 } else { 40 }, "40 equal pushes were {pushes} sessions");
    assert!(cost < 64 * MIB, "{} MiB", cost / MIB);
}

/// Equal pushes that share a naming have their own deadlines, and one whose caller leaves takes
/// nothing from the others.
#[test]
fn each_of_equal_pushes_has_its_own_deadline_and_answer() {
    let nix = PrivateNix::new();
    let db = nix.without_wal();
    let daemon = Daemon::start(nix, EMBEDDED);
    let path = daemon.nix.make("p");
    daemon.flush();
    db.busy_timeout(crate::support::daemon::MAX_WAIT).unwrap();
    db.execute_batch("BEGIN EXCLUSIVE").unwrap();
    let push = |timeout_ms| Request::Push { paths: vec![path.clone()], cache: None, wait: true, timeout_ms };
    let ask = |timeout_ms: u64| -> Summary {
        let Reply::Pushed(summary) = Client::open(&daemon).ask(&push(timeout_ms)) else {
            panic!("no summary")
        };
        summary
    };
    std::thread::scope(|scope| {
        // The intake has the first, and one of each user at a time.
        let first = scope.spawn(|| ask(60_000));
        until("the intake is stuck with it", || {
            pushes(&daemon) == 1
                && daemon.status()["store"]["problem"].as_str().is_some_and(|p| p.contains("locked"))
        });
        let second = scope.spawn(|| ask(60_000));
        until("the second waits", || pushes(&daemon) == 2);
        Client::open(&daemon).send(&push(60_000));
        let late = ask(1);
        assert_eq!((late.outcome, late.pending), (Outcome::Pending, 0), "{late:?}");
        assert!(late.warnings[0].contains("could not be looked through in time"), "{late:?}");
        assert_eq!(pushes(&daemon), 2, "equal ones are one session");
        db.execute_batch("ROLLBACK").unwrap();
        for answer in [first, second] {
            let summary = answer.join().unwrap();
            let counts = (summary.outcome, summary.already_cached, summary.session);
            assert_eq!(counts, (Outcome::Complete, 1, None));
        }
    });
}

/// 256 sessions with the longest CI fields there may be, and 24 `status` at once.
#[test]
fn sessions_with_large_fields_cost_little_memory() {
    let mut daemon = daemon();
    let before = peak(&daemon);
    let mut client = Client::open(&daemon);
    let field = || "x".repeat(2048);
    for n in 0..256 {
        let ci = CiJob {
            system: field(),
            id: format!("{n:02048}"),
            url: Some(field()),
            project: Some(field()),
            git_ref: Some(field()),
        };
        let anchor_pid = Some(std::process::id());
        let label = Some(field());
        let start = Request::SessionStart {
            label,
            cache: None,
            anchor_pid,
            strict: false,
            ci: Some(ci),
            log_paths: false,
        };
        let reply = client.ask(&start);
        assert!(matches!(reply, Reply::Started { .. }), "{reply:?}");
    }
    let opened = peak(&daemon);
    let ask = |daemon: &Daemon| {
        let begun = Instant::now();
        let asking: Vec<Client> = (0..24).map(|_| Client::open(daemon)).collect();
        let threads: Vec<_> = asking
            .into_iter()
            .map(|mut client| std::thread::spawn(move || client.ask(&Request::Status)))
            .collect();
        for thread in threads {
            let Reply::Status(status) = thread.join().unwrap() else { panic!("no status") };
            assert!(status.sessions.len() <= 1000);
        }
        begun.elapsed()
    };
    let took: Duration = ask(&daemon);
    let asked = peak(&daemon);
    daemon.restart();
    let alone = peak(&daemon);
    let again = ask(&daemon);
    eprintln!(
        "256 sessions: {} MiB more; 24 status: {} MiB more, {took:?}; after a restart {} MiB more, {again:?}",
        (opened - before) / MIB,
        asked.saturating_sub(opened) / MIB,
        peak(&daemon).saturating_sub(alone) / MIB,
    );
    assert!(asked - before < 64 * MIB, "{} MiB", (asked - before) / MIB);
    assert!(peak(&daemon) - alone < 64 * MIB);
}
