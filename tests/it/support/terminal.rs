//! A program on a real terminal: a pseudo-terminal whose other side is read as a terminal
//! emulator reads it.

use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};

use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{LocalModes, Winsize, tcgetattr, tcsetwinsize};

use super::daemon::until;

/// A program on a terminal.
pub struct OnTerminal {
    pub child: Child,
    /// Our side of the terminal.
    pub ours: OwnedFd,
    /// The program's side, kept open so that its modes can be read afterwards.
    theirs: OwnedFd,
    pub screen: Arc<Mutex<vt100::Parser>>,
    /// Everything that the program wrote.
    pub raw: Arc<Mutex<Vec<u8>>>,
}

impl OnTerminal {
    /// Starts it on a terminal of this size.
    pub fn start(mut command: Command, rows: u16, columns: u16) -> Self {
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

    /// What the screen shows.
    pub fn text(&self) -> String {
        self.screen.lock().unwrap().screen().contents()
    }

    /// Waits until the screen shows this.
    pub fn until_shown(&self, what: &str) {
        until(&format!("the screen shows {what:?}"), || self.text().contains(what));
    }

    /// Types these keys.
    pub fn press(&self, keys: &[u8]) {
        File::from(self.ours.try_clone().unwrap()).write_all(keys).unwrap();
    }

    /// The program's end, and that it has given the terminal back.
    pub fn ended(&mut self) -> ExitStatus {
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

/// Changes the size of a terminal.
pub fn resize(terminal: &impl AsFd, rows: u16, columns: u16) {
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    tcsetwinsize(terminal, size).unwrap();
}
