//! What one user can do to the daemon by asking for much: it answers the others in time and stays
//! small. The tests print what they measured.

use std::process::Child;
use std::time::{Duration, Instant};

use flywheel::control::messages::{CiJob, Reply, Request};

use crate::attribution::sessions::Client;
use crate::support::daemon::{Daemon, EMBEDDED, until};
use crate::support::nix::PrivateNix;
use crate::support::users::{can_switch_user, nobodys_client, open_to_all};

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

/// 40 connections of a user push the same cached paths, while another user's session of one path
/// ends. The other user does not wait for the 40. `FLYWHEEL_ATTACK_PATHS`: how many paths, in
/// hundreds; Nix needs a second for each to build them.
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
    let session = daemon.session(&[]);
    let one = daemon.nix.make("one");
    let before = peak(&daemon);
    let args: Vec<&str> = ["push", "--wait"].into_iter().chain(all.iter().map(String::as_str)).collect();
    let mut attackers: Vec<Child> = (0..40)
        .map(|_| {
            let mut push = nobodys_client(&daemon, &args);
            push.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            push.spawn().unwrap()
        })
        .collect();
    until("many of them wait", || daemon.status()["session_counts"]["draining"].as_u64() >= Some(30));
    let begun = Instant::now();
    let summary = daemon.end(&session, &[]);
    let took = begun.elapsed();
    let under_way =
        attackers.iter_mut().filter_map(|push| push.try_wait().unwrap().is_none().then_some(())).count();
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &1.into()), "{summary}");
    assert!(daemon.main().has(&one));
    for push in &mut attackers {
        assert!(push.wait().unwrap().success());
    }
    let cost = peak(&daemon).saturating_sub(before);
    eprintln!(
        "session end: {took:?} with {under_way} pushes of another user under way; all of them: {:?}; memory {} MiB more",
        begun.elapsed(),
        cost / MIB
    );
    assert!(under_way >= 20, "the end waited for {} of 40 pushes", 40 - under_way);
    assert!(cost < 64 * MIB, "{} MiB", cost / MIB);
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
