//! The end of a session when the daemon is stopped, halted or asked again meanwhile; and the
//! progress that is shown.

use std::process::{Child, Command, Stdio};

use rustix::process::Signal;
use serde_json::Value;

use crate::attribution::sessions::until_state;
use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{CommandResult, Daemon, until};
use crate::support::nix::PrivateNix;
use crate::support::terminal::OnTerminal;

/// A daemon whose uploads are held by a closed gate, and a session with one built path that waits
/// there.
fn held() -> (Daemon, StandaloneCache, UploadGate, String) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |_| ());
    let gate = cache.gate();
    // An upload that runs when the daemon is stopped does not end by itself in this test.
    let config = format!("{}\n[drain]\ntimeout = \"1s\"\n", cache.config_at(&gate.url()));
    let daemon = Daemon::start(nix, &config);
    gate.close();
    let session = daemon.session(&["--label", "held"]);
    daemon.nix.build(&PrivateNix::shell("held", "echo 1 > $out"));
    gate.until_came(1);
    (daemon, cache, gate, session)
}

fn ends(daemon: &Daemon, args: &[&str]) -> Child {
    let mut client = daemon.client(&[&["--json", "session", "end"], args].concat());
    client.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn said(child: Child) -> CommandResult {
    CommandResult::of(&child.wait_with_output().unwrap())
}

/// The warnings are the same too, also after a restart.
#[test]
fn ending_twice_says_the_same() {
    let mut daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    daemon.nix.build(&PrivateNix::shell("made", "echo 1 > $out"));
    let gone = format!("{}/00000000000000000000000000000000-gone", daemon.nix.store_dir().display());
    let first = daemon.end(&session, &["--push", &gone]);
    assert!(first["warnings"][0].as_str().unwrap().contains("is not valid"), "{first}");
    assert_eq!(daemon.end(&session, &[]), first);
    daemon.restart();
    assert_eq!(daemon.end(&session, &[]), first);
}

/// After SIGSTOP the daemon does not answer.
#[test]
fn a_daemon_that_is_halted_meanwhile_fails_no_job_and_goes_on_afterwards() {
    let (daemon, cache, gate, session) = held();
    let short = [
        ends(&daemon, &[&session, "--timeout", "1s"]),
        ends(&daemon, &["--strict", &session, "--timeout", "1s"]),
    ];
    let patient = ends(&daemon, &[&session]);
    until_state(&daemon, &session, "draining");
    daemon.signal(Signal::STOP);
    let [lenient, strict] = short.map(said);
    // They may have received an answer just before.
    let outcome = lenient.json()["outcome"].as_str().unwrap().to_owned();
    assert!(["pending", "unreachable"].contains(&outcome.as_str()), "{lenient:?}");
    assert_eq!(lenient.code, 0, "{lenient:?}");
    assert!(matches!(strict.code, 4 | 5), "{strict:?}");
    daemon.signal(Signal::CONT);
    gate.open();
    let patient = said(patient);
    assert_eq!((patient.code, &patient.json()["outcome"]), (0, &Value::from("complete")), "{patient:?}");
    assert_eq!(daemon.end(&session, &[])["pushed"], 1);
    assert!(cache.main().names().contains(&"held".to_owned()));
}

/// After SIGTERM the waiting callers learn what is pending, and the daemon goes on after its
/// next start.
#[test]
fn a_daemon_that_is_stopped_meanwhile_tells_the_truth_and_goes_on_afterwards() {
    let (mut daemon, _cache, gate, session) = held();
    for n in 0..3 {
        daemon.nix.build(&PrivateNix::shell(&format!("more-{n}"), "echo 1 > $out"));
    }
    let first = ends(&daemon, &[&session]);
    until_state(&daemon, &session, "draining");
    // The daemon may stop before it reads this request; then nothing answers it.
    let second = ends(&daemon, &["--strict", &session, "--timeout", "5s"]);
    daemon.stop();
    let first = said(first);
    assert_eq!((first.code, &first.json()["outcome"]), (0, &"pending".into()), "{first:?}");
    let second = said(second);
    let outcome = second.json()["outcome"].as_str().unwrap().to_owned();
    assert!(matches!((second.code, outcome.as_str()), (4, "pending") | (5, _)), "{second:?}");
    gate.open();
    daemon.up();
    let summary = daemon.end(&session, &[]);
    assert_eq!((&summary["outcome"], &summary["pushed"]), (&"complete".into(), &4.into()), "{summary}");
}

/// A progress bar on a terminal. Elsewhere only one line every ten seconds, so none in a shorter
/// wait.
/// A bar that is longer than the terminal is wide would leave a line behind each time.
#[test]
fn the_bar_stays_in_its_line() {
    let (daemon, _cache, gate, session) = held();
    let mut terminal = OnTerminal::start(daemon.client(&["session", "end", &session]), 24, 40);
    let drawn = |terminal: &OnTerminal| {
        String::from_utf8_lossy(&terminal.raw.lock().unwrap()).matches("[--------------------] 0/1").count()
    };
    until("it was drawn three times", || drawn(&terminal) >= 3);
    let bars = terminal.text().lines().filter(|line| line.contains("[---")).count();
    assert_eq!(bars, 1, "{}", terminal.text());
    gate.open();
    assert!(terminal.ended().success());
    terminal.until_shown("flush:");
    assert!(!terminal.text().contains("[---"), "{}", terminal.text());
}

#[test]
fn progress_is_a_bar_on_a_terminal_only() {
    let (daemon, _cache, gate, session) = held();
    let piped = ends(&daemon, &[&session]);
    until_state(&daemon, &session, "draining");
    // `script` provides the terminal; the bar's first output opens the gate.
    let ctl = env!("CARGO_BIN_EXE_flywheelctl");
    let mut script = Command::new("script");
    script.args(["-qfec", &format!("{ctl} session end {session}"), "/dev/null"]);
    script.env("FLYWHEEL_SOCKET", daemon.socket()).env("TERM", "xterm").env_remove("GITLAB_CI");
    let mut terminal = script.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
    let mut out = terminal.stdout.take().unwrap();
    let mut seen = String::new();
    let mut buffer = [0; 256];
    while let Ok(n @ 1..) = std::io::Read::read(&mut out, &mut buffer) {
        seen.push_str(&String::from_utf8_lossy(&buffer[..n]));
        if seen.contains("[----------") {
            gate.open();
        }
    }
    assert!(terminal.wait().unwrap().success());
    assert!(seen.contains("[--------------------]"), "{seen:?}");
    assert!(seen.contains("watch-store pushed 1 store paths incrementally"), "{seen:?}");
    let piped = said(piped);
    assert_eq!((piped.code, &piped.json()["pushed"]), (0, &1.into()), "{piped:?}");
    assert!(!piped.err.contains("[---"), "{piped:?}");
}
