//! The real `flywheeld` as a process on a private Nix, and the real `flywheelctl`. Waits for events
//! and never for a time to pass. Everything that it starts ends with it, and a failing test prints
//! the daemon's log.

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

/// The longest wait for an event. Only a broken daemon makes a test wait so long.
pub const MAX_WAIT: Duration = Duration::from_secs(90);

/// Configuration: the built-in cache on a free port.
pub const EMBEDDED: &str = "[caches.main]\nendpoints = \"embedded\"\n[embedded]\nlisten = \"127.0.0.1:0\"\n[client]\nenable = false\n";

/// A daemon, its store and its socket. Started by [`Daemon::start`].
pub struct Daemon {
    pub nix: PrivateNix,
    child: Option<Child>,
    /// Kept open so that the daemon can send when nobody reads.
    _notify: UnixDatagram,
    notified: Arc<Notifications>,
    starts: u32,
    /// Environment variables beside `PATH` and `NOTIFY_SOCKET`.
    pub env: Vec<(String, String)>,
    /// A command that executes its last arguments; the daemon is started through it.
    pub wrapper: Vec<String>,
    /// The `flywheeld` to start.
    pub program: PathBuf,
}

/// What the daemon sent to the notify socket since its last start.
#[derive(Default)]
struct Notifications {
    lines: Mutex<Vec<String>>,
    more: Condvar,
    deaf: AtomicBool,
}

/// Reads everything from the notify socket at once, as systemd does.
fn listen(socket: &UnixDatagram, notified: &Notifications) {
    let mut buffer = [0; 4096];
    while let Ok(n) = socket.recv(&mut buffer) {
        let text = String::from_utf8_lossy(&buffer[..n]).into_owned();
        notified.lines.lock().unwrap().extend(text.lines().map(str::to_owned));
        notified.more.notify_all();
        // Only this message ends the reading, not one that the daemon happens to send.
        if text == "deaf" {
            return;
        }
    }
}

/// How a command ended and what it printed.
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
    /// Starts a daemon with the built-in cache on an empty store.
    pub fn embedded() -> Self {
        Self::start(PrivateNix::new(), EMBEDDED)
    }

    /// Starts a daemon with this configuration (see [`Self::configure`]) and waits until it is
    /// ready.
    pub fn start(nix: PrivateNix, config: &str) -> Self {
        let mut daemon = Self::prepare(nix, config);
        daemon.up();
        daemon
    }

    /// Prepares a daemon with this configuration and does not start it.
    pub fn prepare(nix: PrivateNix, config: &str) -> Self {
        let socket = nix.path().join("notify");
        let notify = UnixDatagram::bind(&socket).unwrap();
        let (env, notified) = (Vec::new(), Arc::new(Notifications::default()));
        let (reader, lines) = (notify.try_clone().unwrap(), Arc::clone(&notified));
        // The thread ends with the test's process.
        std::thread::spawn(move || listen(&reader, &lines));
        let daemon = Self {
            nix,
            child: None,
            _notify: notify,
            notified,
            starts: 0,
            env,
            wrapper: Vec::new(),
            program: env!("CARGO_BIN_EXE_flywheeld").into(),
        };
        daemon.configure(config);
        daemon
    }

    /// Writes the configuration. The keys of the test's directories surround `config`, which may
    /// begin with keys of no table.
    pub fn configure(&self, config: &str) {
        self.configure_nix(config, "");
    }

    /// As [`Self::configure`], with further keys of `[nix]`. `min_free` is 0 unless they set it,
    /// so that a full disk of the machine changes no test.
    pub fn configure_nix(&self, config: &str, nix: &str) {
        let top = self.nix.path().display();
        let min_free = if nix.contains("min_free") { "" } else { "min_free = 0\n" };
        let text = format!(
            "socket = \"{top}/s\"\nstate_dir = \"{top}/state\"\n{config}\n[nix]\nstore_dir = \"{top}/store\"\nstate_dir = \"{top}/var/nix\"\n{min_free}{nix}"
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

    /// `flywheeld` with this daemon's environment and no other variable.
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

    /// Starts the daemon and waits until it reports that it is ready.
    pub fn up(&mut self) {
        self.spawn();
        self.until_notified(|line| line == "READY=1");
    }

    /// Starts the daemon and does not wait.
    pub fn spawn(&mut self) {
        assert!(self.child.is_none(), "the daemon runs already");
        self.starts += 1;
        if !self.notified.deaf.load(Ordering::Acquire) {
            // Messages of an earlier start may still be in the socket: this marker comes after
            // them.
            let mark = format!("start {}", self.starts);
            let socket = self.nix.path().join("notify");
            UnixDatagram::unbound().unwrap().send_to(mark.as_bytes(), socket).unwrap();
            self.until_line(&mark);
        }
        self.notified.lines.lock().unwrap().clear();
        let log = File::create(self.log_file(self.starts)).unwrap();
        let mut command = self.program();
        command.arg("--config").arg(self.config()).env("NOTIFY_SOCKET", self.nix.path().join("notify"));
        command.stdout(log.try_clone().unwrap()).stderr(log);
        self.child = Some(command.spawn().unwrap());
    }

    fn log_file(&self, start: u32) -> PathBuf {
        self.nix.path().join(format!("log.{start}"))
    }

    /// The log since the last start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.log_file(self.starts)).unwrap_or_default()
    }

    /// The logs of all starts.
    pub fn logs(&self) -> String {
        (1..=self.starts).filter_map(|n| std::fs::read_to_string(self.log_file(n)).ok()).collect()
    }

    /// Asserts that the text occurs this number of times in the log since the last start.
    pub fn assert_logged(&self, times: usize, what: &str) {
        let log = self.log();
        assert_eq!(log.lines().filter(|line| line.contains(what)).count(), times, "{what}\n{log}");
    }

    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the daemon runs").id()
    }

    /// The messages on the notify socket since the last start.
    pub fn notified(&self) -> Vec<String> {
        self.notified.lines.lock().unwrap().clone()
    }

    /// Waits for a message that satisfies the condition; returns it.
    pub fn until_notified(&mut self, wanted: impl Fn(&str) -> bool) -> String {
        let patience = Instant::now() + MAX_WAIT;
        let notified = Arc::clone(&self.notified);
        let mut lines = notified.lines.lock().unwrap();
        loop {
            if let Some(line) = lines.iter().find(|line| wanted(line)) {
                return line.clone();
            }
            // Waits in short turns, so that the end of the daemon is noticed; a message ends the
            // wait at once.
            let turn = notified.more.wait_timeout(lines, Duration::from_millis(200)).unwrap();
            lines = turn.0;
            if turn.1.timed_out() {
                let ended = self.child.as_mut().and_then(|child| child.try_wait().unwrap());
                assert!(ended.is_none(), "the daemon ended: {ended:?}");
                assert!(patience > Instant::now(), "not notified: {lines:?}");
            }
        }
    }

    /// Stops reading the notify socket and fills it.
    pub fn deafen(&self) {
        self.notified.deaf.store(true, Ordering::Release);
        let socket = self.nix.path().join("notify");
        let filler = UnixDatagram::unbound().unwrap();
        // Wakes the reading thread, which ends.
        filler.send_to(b"deaf", &socket).unwrap();
        self.until_line("deaf");
        filler.set_nonblocking(true).unwrap();
        while filler.send_to(b"more", &socket).is_ok() {}
    }

    fn until_line(&self, wanted: &str) {
        let lines = self.notified.lines.lock().unwrap();
        let wait = self
            .notified
            .more
            .wait_timeout_while(lines, MAX_WAIT, |lines| !lines.iter().any(|l| l == wanted));
        assert!(!wait.unwrap().1.timed_out(), "not notified: {wanted}");
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_raw(i32::try_from(self.pid()).unwrap()).unwrap(), signal).unwrap();
    }

    /// Waits for the daemon's end.
    pub fn ended(&mut self) -> ExitStatus {
        self.child.take().expect("the daemon runs").wait().unwrap()
    }

    /// Stops the daemon with SIGTERM; it must end with success.
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.ended();
        assert!(status.success(), "{status}");
    }

    /// Kills the daemon with SIGKILL.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.ended();
    }

    /// Stops the daemon and starts it again.
    pub fn restart(&mut self) {
        self.stop();
        self.up();
    }

    /// `flywheelctl` with this socket, in the scratch directory; not run yet.
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

    /// Runs `flywheelctl --json`, which must succeed; returns the JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let said = self.ctl(&[&["--json"], args].concat());
        assert_eq!(said.code, 0, "{args:?}: {said:?}");
        said.json()
    }

    /// Runs `flywheelctl --json`, which must fail with status 3 because of failed paths; returns
    /// the JSON.
    pub fn json_of_failed(&self, args: &[&str]) -> Value {
        let result = self.ctl(&[&["--json"], args].concat());
        assert_eq!(result.code, 3, "{args:?}: {result:?}");
        result.json()
    }

    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// Opens a session; returns its id.
    pub fn session(&self, args: &[&str]) -> String {
        let said = self.ctl(&[&["session", "start"], args].concat());
        assert_eq!((said.code, said.err.as_str()), (0, ""), "{said:?}");
        said.out.trim_end().to_owned()
    }

    /// Ends a session and waits; returns its summary.
    pub fn end(&self, session: &str, args: &[&str]) -> Value {
        self.json(&[&["session", "end", session], args].concat())
    }

    /// Waits until everything that is valid now is in the cache or has failed.
    pub fn flush(&self) -> Value {
        let said = self.ctl(&["--json", "flush"]);
        assert!(said.code == 0 || said.code == 3, "{said:?}");
        let summary = said.json();
        assert_eq!(summary["pending"], 0, "{summary}");
        summary
    }

    /// A view of this cache, at the address that the daemon reports now.
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

    /// A view of the cache named `main`.
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

/// Waits until `look` returns a value, for what can only be polled; returns it.
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

/// Waits until a condition holds, for what can only be polled.
pub fn until(what: &str, mut happened: impl FnMut() -> bool) {
    until_some(what, || happened().then_some(()));
}

/// Writes a file with a secret that only its owner may read.
pub fn secret_file(path: &Path, text: &str) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::write(path, text).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600)).unwrap();
}
