//! The screen of `status --watch` on a real terminal.

use std::io::Read;
use std::process::Stdio;
use std::sync::{Arc, Mutex};

use crate::support::daemon::{Daemon, until};
use crate::support::terminal::{OnTerminal, resize};

#[test]
fn a_screen_that_follows_resizes_survives_a_restart_and_ends_by_q() {
    let mut daemon = Daemon::embedded();
    let session = daemon.session(&["--label", "watched"]);
    daemon.nix.make("seen");
    let mut screen = OnTerminal::start(daemon.client(&["status", "--watch"]), 24, 80);
    for part in ["Caches", " main online", "Sessions: 1", " watched", "Uploads: 0", "Last events"] {
        screen.until_shown(part);
    }
    assert!(screen.screen.lock().unwrap().screen().alternate_screen());

    // Wider: the emulator follows, and so does the program.
    screen.screen.lock().unwrap().screen_mut().set_size(30, 120);
    resize(&screen.ours, 30, 120);
    until("the whole width is used", || screen.text().lines().any(|line| line.chars().count() > 100));

    daemon.stop();
    screen.until_shown("no flywheel daemon at");
    daemon.up();
    until("the daemon's values are there again", || {
        let text = screen.text();
        text.contains("Sessions: 1") && !text.contains("no flywheel daemon at")
    });
    screen.press(b"q");
    assert_eq!(screen.ended().code(), Some(0));
    daemon.end(&session, &[]);
}

#[test]
fn ctrl_c_and_a_signal_give_the_terminal_back() {
    let daemon = Daemon::embedded();
    let mut screen = OnTerminal::start(daemon.client(&["status", "--watch"]), 24, 80);
    screen.until_shown("Caches");
    screen.press(b"\x03");
    assert_eq!(screen.ended().code(), Some(0));

    let mut screen = OnTerminal::start(daemon.client(&["status", "--watch"]), 10, 30);
    screen.until_shown("Caches");
    let pid = rustix::process::Pid::from_child(&screen.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(screen.ended().code(), Some(0));
    assert!(!screen.raw.lock().unwrap().is_empty());
}

/// Without a terminal it prints again and again, also over a restart of the daemon.
#[test]
fn without_a_terminal_it_prints_lines() {
    let mut daemon = Daemon::embedded();
    let mut child = daemon.client(&["status", "--watch"]);
    child.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = child.spawn().unwrap();
    let printed = Arc::new(Mutex::new(String::new()));
    let (mut out, to) = (child.stdout.take().unwrap(), Arc::clone(&printed));
    std::thread::spawn(move || {
        let mut buffer = [0; 4096];
        while let Ok(n @ 1..) = out.read(&mut buffer) {
            to.lock().unwrap().push_str(&String::from_utf8_lossy(&buffer[..n]));
        }
    });
    let times = || printed.lock().unwrap().matches("cache main: online").count();
    until("it is printed twice", || times() >= 2);
    assert!(!printed.lock().unwrap().contains('\u{1b}'), "no control sequences");
    daemon.restart();
    let before = times();
    until("it is printed after a restart", || times() > before);
    child.kill().unwrap();
    child.wait().unwrap();
}
