//! Memory and descriptors of the daemon stay within bounds after a long uptime, with many jobs and
//! with large paths.

use flywheel::control::messages::{Reply, Request};
use flywheel::ledger::{
    Admit, Evidence, Ledger, NewPushRow, NewSession, PushState, SessionKind, SessionState, Settle, Steps,
};

use crate::attribution::sessions::Client;
use crate::support::cache::StandaloneCache;
use crate::support::daemon::{Daemon, until};
use crate::support::nix::PrivateNix;

const MIB: u64 = 1 << 20;

/// One of the numbers of /proc/PID/status, in bytes.
fn memory(daemon: &Daemon, field: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", daemon.pid())).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap();
    let kib: u64 = line.trim_matches([':', ' ', '\t']).split(' ').next().unwrap().parse().unwrap();
    kib * 1024
}

/// Asserts that the daemon's peak memory is not far above what it was without work.
fn stayed_small(daemon: &Daemon, alone: u64) {
    let peak = memory(daemon, "VmHWM");
    let said = format!("peak {} MiB, with nothing {} MiB", peak / MIB, alone / MIB);
    eprintln!("{said}");
    assert!(peak < alone + 16 * MIB, "{said}");
}

fn descriptors(daemon: &Daemon) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", daemon.pid())).unwrap().count()
}

/// Writes a month of a busy host into the ledger: this number of closed sessions with this number
/// of paths each.
fn history(ledger: &Ledger, jobs: usize, paths: usize) {
    let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let at = i64::try_from(at.as_millis()).unwrap() - 86_400_000;
    for job in 0..jobs {
        let new = NewSession {
            log_paths: false,
            route: None,
            id: format!("past-{job}"),
            kind: SessionKind::Job,
            label: None,
            cache: "main".into(),
            uid: 0,
            gid: 0,
            anchor_pid: None,
            strict: false,
            ci: None,
            started_at: at,
            after: 0,
        };
        let row = ledger.session_open(new).unwrap();
        let push = |n: usize| NewPushRow {
            valid_at: 0,
            needed_by: None,
            route: None,
            cache: "main".into(),
            path: format!("{:032}-past", job * paths + n),
            nar_size: 1000,
            state: PushState::Pending,
            retry_failed: false,
            sessions: vec![(row, Evidence::Process)],
        };
        let pushes = (0..paths).map(push).collect();
        for (id, ..) in ledger.admit(Admit { cursor: None, pushes, at }).unwrap().pushes {
            let (state, error_class, error) = (PushState::Pushed, None, None);
            ledger.settle(id, Settle { state, error_class, error, attempts: 1, steps: Steps::default(), at });
        }
        ledger.session_state(row, SessionState::Closed, at, Some(1));
    }
    ledger.sync().unwrap();
}

#[test]
fn a_month_of_history_and_a_thousand_sessions() {
    const JOBS: usize = 500;
    const PATHS: usize = 100;
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| {});
    let gate = cache.gate();
    let mut daemon = Daemon::start(nix, &cache.config_at(&gate.url()));
    let alone = memory(&daemon, "VmRSS");
    daemon.stop();
    let (ledger, _) = Ledger::open(&daemon.state_dir().join("ledger.sqlite")).unwrap();
    history(&ledger, JOBS, PATHS);
    drop(ledger);

    gate.close();
    daemon.up();
    let listed = daemon.json(&["session", "list", "--all"]);
    assert_eq!(listed.as_array().unwrap().len(), JOBS);
    let paths = daemon.nix.build(&crate::faults::set("waits", 4, 25, 100));
    until("they wait", || {
        let queue = &daemon.status()["queue"];
        queue["pending"].as_u64() >= Some(90) && queue["uploading"].as_u64() >= Some(1)
    });
    let mut client = Client::open(&daemon);
    let mut start = || {
        let anchor_pid = Some(std::process::id());
        let start = Request::SessionStart {
            label: None,
            cache: None,
            anchor_pid,
            strict: false,
            ci: None,
            log_paths: false,
        };
        match client.ask(&start) {
            Reply::Started { session, .. } => Ok(session),
            other => Err(format!("{other:?}")),
        }
    };
    // The highest number of sessions that one user may have open; they are ended and wait for
    // their uploads, so that more can be opened.
    let mut sessions = Vec::new();
    for _ in 0..4 {
        let open: Vec<String> = (0..256).map(|_| start().unwrap()).collect();
        let refused = start().unwrap_err();
        assert!(refused.contains("has 256 open sessions"), "{refused}");
        let mut other = Client::open(&daemon);
        for session in &open {
            let end = Request::SessionEnd {
                session: Some(session.clone()),
                ci_job: None,
                push: paths.clone(),
                timeout_ms: 60_000,
                wait: false,
                patient: true,
            };
            let reply = other.ask(&end);
            assert!(matches!(&reply, Reply::Ended(summary) if summary.pending > 0), "{reply:?}");
        }
        sessions.extend(open);
    }
    // With the one above, the highest number of connections that one user may have.
    let callers: Vec<Client> = (1..60).map(|_| Client::open(&daemon)).collect();
    let open = descriptors(&daemon);
    assert!(open < 1_000, "{open} descriptors");
    gate.open();
    drop((callers, client));
    daemon.flush();
    until("they have ended", || daemon.json(&["session", "list"]).as_array().unwrap().is_empty());
    assert!(cache.main().having(&paths).iter().all(|there| *there));
    let last = daemon.json(&["session", "show", sessions.last().unwrap()]);
    assert_eq!(last["summary"]["pending"], 0, "{last}");
    stayed_small(&daemon, alone);
    until("the descriptors are closed", || descriptors(&daemon) < 64);
}

#[test]
fn a_path_larger_than_all_memory_that_is_used() {
    const SIZE: u64 = 1 << 30;
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |settings| settings.max_nar_size = 2 * SIZE);
    let daemon = Daemon::start(nix, &cache.config_at(&format!("http://{}", cache.address())));
    let alone = memory(&daemon, "VmRSS");
    // A sparse file: it needs no blocks on the disk, and Nix and the daemon read it like any
    // other.
    let path = daemon.nix.build(&PrivateNix::shell("large", &format!("truncate -s {SIZE} $out"))).remove(0);
    daemon.flush();
    assert!(cache.main().has(&path));
    stayed_small(&daemon, alone);
}
