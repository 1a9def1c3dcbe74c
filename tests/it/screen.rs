//! The screen of `status --watch` on a real terminal: a pseudo-terminal whose other side is read as
//! a terminal emulator reads it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use crate::support::daemon::{Daemon, until};

/// A program on a terminal.
struct OnTerminal {
    child: Child,
    /// Our side of the terminal.
    ours: OwnedFd,
    /// The program's side, kept open so that its modes can be read afterwards.
    theirs: OwnedFd,
    screen: Arc<Mutex<vt100::Parser>>,
    /// Everything that the program wrote.
    raw: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    fn start(mut command: Command, rows: u16, columns: u16) -> Self {
        let ours = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&ours).unwrap();
        unlockpt(&ours).unwrap();
        let name = ptsname(&ours, Vec::new()).unwrap();
        let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
        let theirs = rustix::fs::open(name.as_c_str(), flags, Mode::empty()).unwrap();
        resize(&ours, rows, columns);
        let side = || Stdio::from(theirs.try_clone().unwrap());
        command.stdin(side()).stdout(side()).stderr(side()).env("TERM", "xterm-256color");
        let child = command.spawn().unwrap();
        let screen = Arc::new(Mutex::new(vt100::Parser::new(rows, columns, 0)));
        let raw = Arc::new(Mutex::new(Vec::new()));
        let (mut reader, to_screen, to_raw) =
            (File::from(ours.try_clone().unwrap()), Arc::clone(&screen), Arc::clone(&raw));
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                to_screen.lock().unwrap().process(&buffer[..n]);
                to_raw.lock().unwrap().extend_from_slice(&buffer[..n]);
            }
        });
        Self { child, ours, theirs, screen, raw }
    }

    fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    fn until_shown(&self, what: &str) {
        until(&format!("the screen shows {what:?}"), || self.text().contains(what));
    }

    fn press(&self, keys: &[u8]) {
        File::from(self.ours.try_clone().unwrap()).write_all(keys).unwrap();
    }

    /// The program's end, and that it has given the terminal back.
    fn ended(&mut self) -> ExitStatus {
        let status = self.child.wait().unwrap();
        let modes = tcgetattr(&self.theirs).unwrap().local_modes;
        assert!(modes.contains(LocalModes::ICANON | LocalModes::ECHO | LocalModes::ISIG), "{modes:?}");
        until("the screen before is back", || {
            let screen = self.screen.lock().unwrap();
            !screen.screen().alternate_screen() && !screen.screen().hide_cursor()
        });
        status
    }
}

impl Drop for OnTerminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- the screen:\n{}\n---", self.text());
        }
    }
}

fn resize(terminal: &impl AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}

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
