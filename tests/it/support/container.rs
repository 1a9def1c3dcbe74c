//! A Debian with its own systemd, journald, logind, D-Bus and multi-user Nix, booted for one test
//! and deleted afterwards (`tests/container/`). Needs root. Without root or the programs that boot
//! a container, the test prints a line and ends.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime};

use serde_json::Value;

use super::daemon::CommandResult;
pub use super::daemon::until_some as until;

/// The longest that one step may take on a busy machine.
const MAX_WAIT: Duration = Duration::from_secs(120);

/// A running container.
pub struct Container {
    top: tempfile::TempDir,
    notified: Receiver<String>,
    child: Child,
    leader: u32,
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/container").join(name)
}

/// The image's directory, or the reason why there can be no container.
fn image() -> Result<PathBuf, String> {
    let possible = Command::new(script("boot.sh")).arg("--possible").output().unwrap();
    if !possible.status.success() {
        return Err(CommandResult::of(&possible).out.trim().to_owned());
    }
    let found = Command::new(script("image.sh")).arg("--find").output().unwrap();
    match found.status.success() {
        true => Ok(CommandResult::of(&found).out.trim().into()),
        false => Err("there is no image yet: tests/container/image.sh makes it, as tests/run.sh does".into()),
    }
}

/// The latest modification below a file or directory.
fn changed(path: &Path) -> SystemTime {
    let below = fs::read_dir(path).into_iter().flatten().map(|e| changed(&e.unwrap().path()));
    below.chain([fs::symlink_metadata(path).unwrap().modified().unwrap()]).max().unwrap()
}

/// The Debian package with the programs under test.
pub fn package() -> PathBuf {
    made_by("deb.sh")
}

/// The RPM package with the programs under test.
pub fn rpm_package() -> PathBuf {
    made_by("rpm.sh")
}

/// The package that a script of packaging/ makes of the programs under test.
fn made_by(script: &str) -> PathBuf {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR"));
    let target = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let programs = Path::new(env!("CARGO_BIN_EXE_flywheeld")).parent().unwrap();
    // The first test makes the package, and the others wait for it.
    let lock = fs::File::create(target.join(format!("{script}.lock"))).unwrap();
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).unwrap();
    let made = target.join(format!("{script}.path"));
    let inputs = ["packaging", "systemd", "docs", "README.md", "CHANGELOG.md", "SECURITY.md", "Cargo.toml"]
        .map(|p| sources.join(p));
    let programs_changed = ["flywheeld", "flywheelctl"].map(|p| changed(&programs.join(p)));
    let newest = inputs.iter().map(|p| changed(p)).chain(programs_changed).max().unwrap();
    if !fs::metadata(&made).is_ok_and(|m| m.modified().unwrap() > newest) {
        let mut command = Command::new(sources.join("packaging").join(script));
        command.arg("--binaries").arg(programs);
        // In a directory of its own, so that no package made for use is replaced; compressed
        // quickly rather than well.
        command.env("CARGO_TARGET_DIR", target).env("DPKG_DEB_COMPRESSOR_LEVEL", "0");
        command.env("FLYWHEEL_RPM_PAYLOAD", "w1.gzdio");
        let said = CommandResult::of(&command.output().unwrap());
        assert_eq!(said.code, 0, "{said:?}");
        fs::write(&made, said.out.trim()).unwrap();
    }
    fs::read_to_string(made).unwrap().into()
}

impl Container {
    /// Boots a container and waits until systemd reports that it runs. `None`, with a line that
    /// says why, where that is not possible.
    pub fn boot() -> Option<Self> {
        let image = match image() {
            Ok(image) => image,
            Err(why) => {
                eprintln!("skipped: {why}");
                return None;
            }
        };
        let top = tempfile::Builder::new().prefix("fwc").tempdir().unwrap();
        let (socket, root) = (top.path().join("notify"), top.path().join("c"));
        fs::create_dir(&root).unwrap();
        let notify = UnixDatagram::bind(&socket).unwrap();
        let (tell, notified) = channel();
        // Reads all the time, because a sender waits until somebody reads. Ends with the test's
        // process.
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(n) = notify.recv(&mut buffer) {
                for line in String::from_utf8_lossy(&buffer[..n]).lines() {
                    let _ = tell.send(line.to_owned());
                }
            }
        });
        let log = fs::File::create(top.path().join("console")).unwrap();
        // When this test is killed, the container is killed too, with all its mounts.
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "TERM"]).arg(script("boot.sh")).arg(image).arg(root);
        command.env("NOTIFY_SOCKET", socket).stdin(Stdio::null());
        command.stdout(log.try_clone().unwrap()).stderr(log);
        let child = command.spawn().unwrap();
        let mut container = Self { top, notified, child, leader: 0 };
        container.wait_until_up();
        // The container has a loopback interface only.
        container.write("/etc/nix/nix.conf", "sandbox = false\nsubstitute = false\n");
        container.ok(
            "systemctl restart nix-daemon && useradd -m -G nix-users job && useradd -m -G nix-users guest",
        );
        Some(container)
    }

    /// Boots a container and installs the package. The user `job` may use the daemon, `guest` may
    /// not.
    pub fn installed() -> Option<Self> {
        let container = Self::boot()?;
        container.install();
        container.ok("usermod -a -G flywheel job");
        Some(container)
    }

    /// Installs the package, or upgrades to it.
    pub fn install(&self) {
        let deb = package();
        fs::copy(deb, self.path("/root/flywheel.deb")).unwrap();
        self.ok("dpkg -i /root/flywheel.deb");
    }

    fn wait_until_up(&mut self) {
        self.leader = 0;
        loop {
            let line = self.notified.recv_timeout(MAX_WAIT).unwrap_or_else(|e| {
                panic!("no container: {e}\n{}", fs::read_to_string(self.top.path().join("console")).unwrap())
            });
            if let Some(pid) = line.strip_prefix("X_NSPAWN_LEADER_PID=") {
                self.leader = pid.parse().unwrap();
            }
            if line == "READY=1" && self.leader != 0 {
                let state = self.run("systemctl is-system-running --wait");
                assert_eq!(state.out.trim(), "running", "{}", self.run("systemctl --failed").out);
                return;
            }
        }
    }

    /// Reboots the container.
    pub fn reboot(&mut self) {
        self.ok("systemctl reboot");
        self.wait_until_up();
    }

    /// The path under which this process reaches a file of the container.
    pub fn path(&self, path: &str) -> PathBuf {
        format!("/proc/{}/root{path}", self.leader).into()
    }

    pub fn read(&self, path: &str) -> String {
        fs::read_to_string(self.path(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
    }

    /// Writes a file that every user may read, with its directories.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o644)).unwrap();
    }

    /// A shell script as root, not run yet.
    pub fn command(&self, script: &str) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["-t", &self.leader.to_string(), "-m", "-u", "-i", "-p", "-n", "-C", "--wdns=/", "--"]);
        command.args(["sh", "-c", script]).env_clear().stdin(Stdio::null());
        command.envs([("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"), ("HOME", "/root"), ("LC_ALL", "C.UTF-8")]);
        command
    }

    /// Runs a shell script as root to its end.
    pub fn run(&self, script: &str) -> CommandResult {
        CommandResult::of(&self.command(script).output().unwrap())
    }

    /// Runs a shell script as root, which must succeed; returns its output.
    pub fn ok(&self, script: &str) -> String {
        let said = self.run(script);
        assert_eq!(said.code, 0, "{script}: {said:?}\n{}", self.log());
        said.out.trim_end().to_owned()
    }

    /// Runs a shell script as another user, in that user's home directory.
    pub fn run_as(&self, user: &str, script: &str) -> CommandResult {
        self.run(&format!(
            "cd ~{user} && HOME=~{user} exec runuser -u {user} -- sh -c \"$(cat <<'END'\n{script}\nEND\n)\""
        ))
    }

    /// Runs a shell script as another user, which must succeed; returns its output.
    pub fn ok_as(&self, user: &str, script: &str) -> String {
        let said = self.run_as(user, script);
        assert_eq!(said.code, 0, "{script}: {said:?}\n{}", self.log());
        said.out.trim_end().to_owned()
    }

    /// Builds, as a user, a path with this shell script; returns the output path.
    pub fn build_as(&self, user: &str, name: &str, script: &str) -> String {
        let expression = super::nix::PrivateNix::shell(name, script);
        self.ok_as(user, &format!("nix-build --no-out-link - <<'EOF'\n{expression}\nEOF"))
    }

    /// A property of a unit.
    pub fn show(&self, unit: &str, property: &str) -> String {
        self.ok(&format!("systemctl show --value -p {property} {unit}"))
    }

    /// Waits until a property of flywheeld.service has this value.
    pub fn until_shown(&self, property: &str, value: &str) {
        until(&format!("{property} {value}\n{}", self.log()), || {
            (self.show("flywheeld.service", property) == value).then_some(())
        });
    }

    /// The output of `flywheelctl --json status`.
    pub fn status(&self) -> Value {
        serde_json::from_str(&self.ok("flywheelctl --json status")).unwrap()
    }

    /// Whether the built-in cache on a port serves this path.
    pub fn serves(&self, port: u16, path: &str) -> bool {
        let hash = &super::cache::base(path)[..32];
        let get = format!("GET /main/{hash}.narinfo HTTP/1.0\\r\\nHost: 127.0.0.1\\r\\n\\r\\n");
        let ask = format!("exec 3<>/dev/tcp/127.0.0.1/{port} && printf '{get}' >&3 && head -n 1 <&3");
        let said = self.run(&format!("bash -c \"{ask}\""));
        said.out.contains(" 200 ")
    }

    /// All journal entries of the unit.
    pub fn log(&self) -> String {
        self.run("journalctl --no-pager -u 'flywheeld*'").out
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if std::thread::panicking() && self.leader != 0 {
            eprintln!("--- the container's journal of flywheeld:\n{}---", self.log());
        }
        // A container that does not stop by itself is killed, with all its processes.
        if self.leader == 0 || self.run("systemctl poweroff --force --force").code == 127 {
            let _ = Command::new("kill").arg(self.child.id().to_string()).status();
        }
        let _ = self.child.wait();
    }
}
