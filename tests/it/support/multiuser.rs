//! The multi-user half of a private Nix: `nix-daemon --daemon` on a socket in the store's
//! directory. Its workers end with it.

use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::nix::PrivateNix;

/// A nix-daemon on a [`PrivateNix`].
pub struct NixDaemon {
    child: Child,
    command: Command,
    socket: PathBuf,
}

impl NixDaemon {
    /// Starts it. `env`: further variables for it and for the hooks that it runs.
    pub fn start(nix: &PrivateNix, env: &[(&str, &Path)]) -> Self {
        let socket = nix.path().join("nix.sock");
        // `NIX_REMOTE=local` is in the store's environment: without it the daemon may connect to
        // itself without end.
        let mut command = nix.command("nix-daemon");
        command.arg("--daemon").env("NIX_DAEMON_SOCKET_PATH", &socket).envs(env.iter().copied());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let child = command.spawn().expect("nix-daemon runs");
        let daemon = Self { child, command, socket };
        daemon.wait();
        daemon
    }

    fn wait(&self) {
        let until = Instant::now() + Duration::from_secs(60);
        while UnixStream::connect(&self.socket).is_err() {
            assert!(Instant::now() < until, "nix-daemon does not listen");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Kills it with all its workers and starts it again.
    pub fn restart(&mut self) {
        self.kill();
        self.child = self.command.spawn().expect("nix-daemon runs");
        self.wait();
    }

    /// `NIX_REMOTE` for its clients.
    pub fn remote(&self) -> String {
        format!("unix://{}", self.socket.display())
    }
}

/// The processes whose parent is this one.
pub fn children(parent: u32) -> Vec<i32> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().filter_map(Result::ok) {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse().ok()) else { continue };
        let stat = std::fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let ppid = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        if ppid == Some(parent) {
            found.push(pid);
        }
    }
    found
}

impl NixDaemon {
    fn kill(&mut self) {
        let kill = |pid: i32| {
            if let Some(pid) = Pid::from_raw(pid) {
                let _ = kill_process(pid, Signal::KILL);
            }
        };
        // Stopped first, so that it starts no new workers; the workers stay its children until it
        // is waited for.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::STOP);
        }
        children(self.child.id()).into_iter().for_each(kill);
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Drop for NixDaemon {
    fn drop(&mut self) {
        self.kill();
    }
}
