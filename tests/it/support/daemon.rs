//! The real `flywheeld` as a process on a private Nix, and the real
//! `flywheelctl` that talks to it. Waits for what happens, never for the clock;
//! what it started ends with it, and a test that fails prints the daemon's log.

use std::fs::File;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use super::cache::CacheView;
use super::nix::PrivateNix;

/// Longest wait for something that must come: only a broken daemon gets there.
pub const MAX_WAIT: Duration = Duration::from_secs(90);

/// The built-in cache on a port of its own.
pub const EMBEDDED: &str = "[caches.main]\nendpoints = \"embedded\"\n[embedded]\nlisten = \"127.0.0.1:0\"\n[client]\nenable = false\n";

/// A daemon, its store and its socket. Started by [`Daemon::start`].
pub struct Daemon {
    pub nix: PrivateNix,
    child: Option<Child>,
    /// Held open also when nobody reads it any more.
    _notify: UnixDatagram,
    told: Arc<Notifications>,
    starts: u32,
    /// Environment beside `PATH` and `NOTIFY_SOCKET`.
    pub env: Vec<(String, String)>,
    /// A command that executes its last arguments; the daemon is started through it.
    pub wrapper: Vec<String>,
    /// The `flywheeld` to start.
    pub program: PathBuf,
}

/// What came on the notify socket since the last start.
#[derive(Default)]
struct Notifications {
    lines: Mutex<Vec<String>>,
    more: Condvar,
    deaf: AtomicBool,
}

/// Reads the notify socket, as systemd does: at once and all of it.
fn listen(socket: &UnixDatagram, told: &Notifications) {
    let mut buffer = [0; 4096];
    while let Ok(n) = socket.recv(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        told.lines.lock().unwrap().extend(text.lines().map(str::to_owned));
        told.more.notify_all();
        // By its own word, not by whatever the daemon happens to tell just then.
        if text == "deaf" {
            return;
        }
    }
}

/// How a command ended and what it said.
#[derive(Debug)]
pub struct CommandResult {
    pub code: i32,
    pub out: String,
    pub err: String,
}

impl CommandResult {
    pub fn of(output: &Output) -> Self {
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Self {
            code: output.status.code().unwrap_or(-1),
            out: text(&output.stdout),
            err: text(&output.stderr),
        }
    }

    /// Standard output as one JSON value.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.out).unwrap_or_else(|e| panic!("{e}: {self:?}"))
    }
}

impl Daemon {
    /// With the built-in cache, on an empty store.
    pub fn embedded() -> Self {
        Self::start(PrivateNix::new(), EMBEDDED)
    }

    /// With this configuration (see [`Self::configure`]), until READY.
    pub fn start(nix: PrivateNix, config: &str) -> Self {
        let mut daemon = Self::prepare(nix, config);
        daemon.up();
        daemon
    }

    /// Configured and not started.
    pub fn prepare(nix: PrivateNix, config: &str) -> Self {
        let socket = nix.path().join("notify");
        let notify = UnixDatagram::bind(&socket).unwrap();
        let (env, told) = (Vec::new(), Arc::new(Notifications::default()));
        let (reader, lines) = (notify.try_clone().unwrap(), Arc::clone(&told));
        // Ends with the test's process.
        std::thread::spawn(move || listen(&reader, &lines));
        let daemon = Self {
            nix,
            child: None,
            _notify: notify,
            told,
            starts: 0,
            env,
            wrapper: Vec::new(),
            program: env!("CARGO_BIN_EXE_flywheeld").into(),
        };
        daemon.configure(config);
        daemon
    }

    /// Writes the configuration: socket, state and store first and last, so
    /// that `config` may begin with keys that stand in no table.
    pub fn configure(&self, config: &str) {
        self.configure_nix(config, "");
    }

    /// The same, with further keys of `[nix]`.
    pub fn configure_nix(&self, config: &str, nix: &str) {
        let top = self.nix.path().display();
        let text = format!(
            "socket = \"{top}/s\"\nstate_dir = \"{top}/state\"\n{config}\n[nix]\nstore_dir = \"{top}/store\"\nstate_dir = \"{top}/var/nix\"\n{nix}"
        );
        std::fs::write(self.config(), text).unwrap();
    }

    pub fn config(&self) -> PathBuf {
        self.nix.path().join("flywheel.toml")
    }

    pub fn socket(&self) -> PathBuf {
        self.nix.path().join("s")
    }

    pub fn state_dir(&self) -> PathBuf {
        self.nix.path().join("state")
    }

    /// `flywheeld` with this daemon's environment and nothing else.
    pub fn program(&self) -> Command {
        let mut command = match self.wrapper.split_first() {
            Some((wrapper, args)) => {
                let mut command = Command::new(wrapper);
                command.args(args).arg(&self.program);
                command
            }
            None => Command::new(&self.program),
        };
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.envs(self.env.iter().map(|(k, v)| (k, v))).stdin(Stdio::null());
        command
    }

    /// Starts it and waits until it says that it is ready.
    pub fn up(&mut self) {
        self.spawn();
        self.until_notified(|line| line == "READY=1");
    }

    /// Starts it and waits for nothing.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the daemon runs already");
        self.starts += 1;
        if !self.told.deaf.load(Ordering::Acquire) {
            // What an earlier life has told is not this one's word: this comes after all of it.
            let mark = format!("start {}", self.starts);
            let socket = self.nix.path().join("notify");
            UnixDatagram::unbound().unwrap().send_to(mark.as_bytes(), socket).unwrap();
            self.until_line(&mark);
        }
        self.told.lines.lock().unwrap().clear();
        let log = File::create(self.log_file(self.starts)).unwrap();
        let mut command = self.program();
        command.arg("--config").arg(self.config()).env("NOTIFY_SOCKET", self.nix.path().join("notify"));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn log_file(&self, start: u32) -> PathBuf {
        self.nix.path().join(format!("log.{start}"))
    }

    /// What it has logged since the last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file(self.starts)).unwrap_or_default()
    }

    /// All logs of all starts.
    pub fn logs(&self) -> String {
        (1..=self.starts).filter_map(|n| std::fs::read_to_string(self.log_file(n)).ok()).collect()
    }

    /// It has logged this so often since the last start.
    pub fn assert_logged(&self, times: usize, what: &str) {
        let log = self.log();
        assert_eq!(log.lines().filter(|line| line.contains(what)).count(), times, "{what}\n{log}");
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// What was told to the notify socket so far.
    pub fn told(&self) -> Vec<String> {
        self.told.lines.lock().unwrap().clone()
    }

    /// Waits until a line that is wanted was told; the line.
    pub fn until_notified(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let patience = Instant::now() + MAX_WAIT;
        let told = Arc::clone(&self.told);
        let mut lines = told.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            // Short turns, so that a daemon that ended is noticed; the line itself ends the wait.
            let turn = told.more.wait_timeout(lines, Duration::from_millis(200)).unwrap();
            lines = turn.0;
            if turn.1.timed_out() {
                let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
                assert!(ended.is_none(), "the daemon ended: {ended:?}");
                assert!(patience > Instant::now(), "not told: {lines:?}");
            }
        }
    }

    /// From here on nobody reads the notify socket, which is full already.
    pub fn deafen(&self) {
        self.told.deaf.store(true, Ordering::Release);
        let socket = self.nix.path().join("notify");
        let filler = UnixDatagram::unbound().unwrap();
        // Wakes the reader, which leaves.
        filler.send_to(b"deaf", &socket).unwrap();
        self.until_line("deaf");
        filler.set_nonblocking(true).unwrap();
        while filler.send_to(b"more", &socket).is_ok() {}
    }

    fn until_line(&self, wanted: &str) {
        let lines = self.told.lines.lock().unwrap();
        let wait =
            self.told.more.wait_timeout_while(lines, MAX_WAIT, |lines| !lines.iter().any(|l| l == wanted));
        assert!(!wait.unwrap().1.timed_out(), "not told: {wanted}");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits for its end.
    pub fn ended(&mut self) -> ExitStatus {
        self.child.take().expect("the daemon runs").wait().unwrap()
    }

    /// SIGTERM, then its end, which must be a good one.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}");
    }

    /// SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended();
    }

    /// Stopped and started.
    pub fn restart(&mut self) {
        self.stop();
        self.up();
    }

    /// `flywheelctl`, not run yet: in the scratch directory, with this socket.
    pub fn client(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_flywheelctl"));
        command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
        command.env("FLYWHEEL_SOCKET", self.socket()).current_dir(self.nix.work_dir());
        command.args(args).stdin(Stdio::null());
        command
    }

    /// Runs `flywheelctl` to its end.
    pub fn ctl(&self, args: &[&str]) -> CommandResult {
        CommandResult::of(&self.client(args).output().unwrap())
    }

    /// The same, which must succeed and print JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let said = self.ctl(&[&["--json"], args].concat());
        assert_eq!(said.code, 0, "{args:?}: {said:?}");
        said.json()
    }

    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// Opens a session; its id.
    pub fn session(&self, args: &[&str]) -> String {
        let said = self.ctl(&[&["session", "start"], args].concat());
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
        said.out.trim_end().to_owned()
    }

    /// Ends a session and waits; its summary.
    pub fn end(&self, session: &str, args: &[&str]) -> Value {
        self.json(&[&["session", "end", session], args].concat())
    }

    /// Waits until all that is valid now is in the cache or has failed.
    pub fn flush(&self) -> Value {
        let summary = self.json(&["flush"]);
        assert_eq!(summary["pending"], 0, "{summary}");
        summary
    }

    /// The built-in cache's contents, as it serves them now.
    pub fn cache(&self, name: &str) -> CacheView {
        let log = self.log();
        let line = log
            .lines()
            .find(|l| l.contains("the built-in cache serves") && l.contains(&format!("cache=\"{name}\"")))
            .unwrap_or_else(|| panic!("no address of the cache {name} in the log"));
        let field = |key: &str| {
            let rest = line.split_once(&format!("{key}=")).unwrap_or_else(|| panic!("{line}")).1;
            rest.split(' ').next().unwrap().trim_matches('"').to_owned()
        };
        CacheView::new(&field("address"), name, &field("public_key"), &self.state_dir().join("cache"))
    }

    /// The cache named main.
    pub fn main(&self) -> CacheView {
        self.cache("main")
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        if std::thread::panicking() {
            for n in 1..=self.starts {
                let log = std::fs::read_to_string(self.log_file(n)).unwrap_or_default();
                eprintln!("--- flywheeld, start {n}:\n{log}---");
            }
        }
    }
}

/// Waits for what can only be looked at; what it was.
pub fn until_some<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let patience = Instant::now() + MAX_WAIT;
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(patience > Instant::now(), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// The same, for what is so or not.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    until_some(what, || happened().then_some(()));
}

/// A file with a secret, as an operator would make it.
pub fn secret_file(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
