//! A private Nix, a built-in cache in this process, and the daemon between them as a process of its
//! own.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use flywheel::embedded::{self, Running};
use tokio_util::sync::CancellationToken;

use crate::nix::PrivateNix;

/// Processor time and memory of a process, from `/proc`.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub cpu_s: f64,
    pub rss_mib: f64,
    pub anon_mib: f64,
    pub peak_mib: f64,
    pub threads: f64,
}

/// The cache, served by this process.
pub struct Cache {
    runtime: tokio::runtime::Runtime,
    stop: CancellationToken,
    running: Option<Running>,
    pub dir: PathBuf,
}

impl Cache {
    pub fn start(dir: &Path, store_dir: &Path) -> Self {
        Self::start_at("127.0.0.1:0", dir, store_dir)
    }

    pub fn start_at(address: &str, dir: &Path, store_dir: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let stop = CancellationToken::new();
        let settings = embedded::Settings {
            dir: dir.join("cache"),
            listen: address.parse().unwrap(),
            host_names: Vec::new(),
            caches: vec!["main".to_owned()],
            public: true,
            store_dir: store_dir.to_str().unwrap().to_owned(),
            max_size: None,
            max_nar_size: 1 << 40,
            token_dir: dir.to_owned(),
            priority: 40,
            upstream_cache_key_names: Vec::new(),
        };
        std::fs::create_dir_all(dir).unwrap();
        let running = runtime.block_on(embedded::start(settings, None, stop.clone())).unwrap();
        Self { runtime, stop, running: Some(running), dir: dir.join("cache") }
    }

    fn running(&self) -> &Running {
        self.running.as_ref().unwrap()
    }

    pub fn endpoint(&self) -> String {
        format!("http://{}", self.running().addr)
    }

    pub fn address(&self) -> std::net::SocketAddr {
        self.running().addr
    }

    pub fn token_file(&self) -> &Path {
        &self.running().push_token_file
    }
}

impl Drop for Cache {
    fn drop(&mut self) {
        self.stop.cancel();
        if let Some(running) = self.running.take() {
            let _ = self.runtime.block_on(running.task);
        }
    }
}

/// The path of one of the programs that are measured: of this build, or in the directory that
/// `FLYWHEEL_BIN_DIR` names, so that two builds can be compared with one benchmark.
pub fn program(name: &str) -> PathBuf {
    match (std::env::var_os("FLYWHEEL_BIN_DIR"), name) {
        (Some(dir), _) => Path::new(&dir).join(name),
        (None, "flywheelctl") => env!("CARGO_BIN_EXE_flywheelctl").into(),
        (None, _) => env!("CARGO_BIN_EXE_flywheeld").into(),
    }
}

/// The daemon and how to reach it.
pub struct Daemon {
    child: Child,
    dir: PathBuf,
}

impl Daemon {
    /// Starts with an empty ledger in `dir` and returns when the daemon answers. `cache`: endpoint
    /// and token file.
    pub fn start(nix: &PrivateNix, dir: &Path, cache: (&str, &Path), extra: &str) -> Self {
        std::fs::create_dir_all(dir).unwrap();
        let socket = dir.join("socket");
        let config = dir.join("flywheel.toml");
        let (endpoint, token) = (cache.0, cache.1.display());
        let text = format!(
            "socket = {socket:?}\nstate_dir = {state:?}\n[nix]\nstore_dir = {store:?}\nstate_dir = {nix_state:?}\n\
             [caches.main]\nendpoints = [\"{endpoint}\"]\ntoken_file = \"{token}\"\n{extra}\n",
            state = dir.join("state"),
            store = nix.store_dir(),
            nix_state = nix.state_dir(),
        );
        std::fs::write(&config, text).unwrap();
        Self::run(dir)
    }

    /// Starts again with what [`Self::start`] has left in `dir`.
    pub fn run(dir: &Path) -> Self {
        let child = Self::command(dir).spawn().unwrap();
        let mut daemon = Self { child, dir: dir.to_owned() };
        let began = Instant::now();
        while !daemon.ctl(&["--strict", "status", "--json"]).status.success() {
            let ended = daemon.child.try_wait().unwrap();
            assert!(ended.is_none() && began.elapsed() < Duration::from_secs(60), "{}", daemon.log());
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    /// The program with its configuration, not started.
    pub fn command(dir: &Path) -> Command {
        let log = std::fs::File::create(dir.join("log")).unwrap();
        let mut command = Command::new(program("flywheeld"));
        command.arg("--config").arg(dir.join("flywheel.toml"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        command
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    pub fn ctl(&self, args: &[&str]) -> Output {
        Self::ask(&self.dir, args)
    }

    /// Runs flywheelctl for the daemon of this directory.
    pub fn ask(dir: &Path, args: &[&str]) -> Output {
        Command::new(program("flywheelctl"))
            .args(args)
            .env("FLYWHEEL_SOCKET", dir.join("socket"))
            .output()
            .unwrap()
    }

    /// Runs a command that must succeed; returns its JSON.
    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let out = self.ctl(&[&["--strict", "--json"], args].concat());
        assert!(out.status.success(), "{args:?}: {}\n{}", String::from_utf8_lossy(&out.stderr), self.log());
        serde_json::from_slice(&out.stdout).unwrap()
    }

    pub fn usage(&self) -> Usage {
        usage(self.child.id())
    }

    /// Processor time of the current threads, in seconds, to the nanosecond: the clock ticks of 10
    /// ms are too coarse for a daemon that does next to nothing.
    pub fn threads_cpu_s(&self) -> f64 {
        self.tasks().map(|task| cpu_s(&task)).sum()
    }

    /// The same of the threads with this name.
    pub fn thread_cpu_s(&self, name: &str) -> f64 {
        // Some threads end meanwhile.
        let is_named = |task: &PathBuf| {
            std::fs::read_to_string(task.join("comm")).is_ok_and(|comm| comm.trim_end() == name)
        };
        self.tasks().filter(is_named).map(|task| cpu_s(&task)).sum()
    }

    fn tasks(&self) -> impl Iterator<Item = PathBuf> {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.child.id())).unwrap();
        tasks.map(|task| task.unwrap().path())
    }
}

/// Processor time of a thread, in seconds.
fn cpu_s(task: &Path) -> f64 {
    // The first number is the time on a processor, in nanoseconds; see sched-stats.rst of Linux.
    let text = std::fs::read_to_string(task.join("schedstat")).unwrap();
    text.split(' ').next().unwrap().parse::<f64>().unwrap() / 1e9
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.child),
            rustix::process::Signal::TERM,
        );
        let _ = self.child.wait();
    }
}

/// The sum of two neighbouring fields of `/proc/PID/stat` that count ticks, in seconds.
fn ticks(pid: u32, field: usize) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    // Starts after the name, which may contain anything: field 3 follows it (proc(5)).
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let both: f64 = fields[field - 3..field - 1].iter().map(|n| n.parse::<f64>().unwrap()).sum();
    both / rustix::param::clock_ticks_per_second() as f64
}

/// Processor time of the children that this process has waited for, and of their children.
pub fn children_cpu_s() -> f64 {
    ticks(std::process::id(), 16)
}

pub fn usage(pid: u32) -> Usage {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let number = |key: &str| -> f64 {
        let line = status.lines().find(|l| l.starts_with(key)).unwrap_or("x 0");
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    };
    Usage {
        cpu_s: ticks(pid, 14),
        rss_mib: number("VmRSS:") / 1024.0,
        anon_mib: number("RssAnon:") / 1024.0,
        peak_mib: number("VmHWM:") / 1024.0,
        threads: number("Threads:"),
    }
}

pub fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
