//! A local-overlay store of Nix on a real overlay: what the lower store has is not new, although
//! Nix copies its rows into the upper database as it meets them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::below_a_root::chain;
use crate::attribution::sessions::evidence;
use crate::support::daemon::{CommandResult, Daemon, EMBEDDED, until};
use crate::support::nix::PrivateNix;

/// The directory of a Nix that has such stores (2.22): the host's own, else the one that
/// `tests/nix-version.sh` made.
fn programs() -> Option<PathBuf> {
    let version = |dir: &Path| {
        let out = Command::new(dir.join("nix")).arg("--version").output().ok()?;
        let text = String::from_utf8_lossy(&out.stdout).into_owned();
        let mut numbers = text.rsplit(' ').next()?.trim().split('.').map(|n| n.parse::<u32>().unwrap_or(0));
        Some((numbers.next()?, numbers.next()?))
    };
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let cache = std::env::var_os("FLYWHEEL_TEST_CACHE").map(PathBuf::from);
    let cache = cache.unwrap_or_else(|| home.join(".cache/flywheel-tests"));
    let path = std::env::var_os("PATH").unwrap_or_default();
    let own = std::env::split_paths(&path).find(|dir| dir.join("nix").exists());
    let others = ["trixie", "sid"].map(|suite| cache.join(format!("nix-{suite}/bin")));
    own.into_iter().chain(others).find(|dir| version(dir).is_some_and(|version| version >= (2, 22)))
}

/// Unmounts the overlay when it is dropped, which must be before its directory is removed.
struct Mount(PathBuf);

impl Drop for Mount {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

/// A daemon on such a store. The lower store has a chain of three.
struct Overlay {
    _mount: Mount,
    daemon: Daemon,
    programs: PathBuf,
    lower_path: String,
}

impl Overlay {
    fn start(knows_lower: bool) -> Option<Self> {
        let Some(programs) = programs() else {
            eprintln!(
                "skipped: no Nix with local-overlay stores (2.22) is here; tests/nix-version.sh trixie makes one"
            );
            return None;
        };
        let nix = PrivateNix::new();
        nix.configure(
            "sandbox-paths = /bin /lib /lib64 /usr\n\
             extra-experimental-features = local-overlay-store read-only-local-store",
        );
        let top = nix.path().to_owned();
        for dir in ["lower", "upper", "work-dir", "root/nix/store"] {
            std::fs::create_dir_all(top.join(dir)).unwrap();
        }
        let mut build = command(&nix, &programs, "nix-build");
        build.args(["--store", top.join("lower").to_str().unwrap(), "--no-out-link", "-E", &chain(3)]);
        let built = CommandResult::of(&build.output().unwrap());
        if built.code != 0 {
            eprintln!("skipped: Nix cannot build for a store below a root here: {}", built.err);
            return None;
        }
        let merged = top.join("root/nix/store");
        let options =
            format!("lowerdir={0}/lower/nix/store,upperdir={0}/upper,workdir={0}/work-dir", top.display());
        let mut mount = Command::new("mount");
        mount.args(["-t", "overlay", "overlay", "-o", &options]).arg(&merged).stderr(Stdio::null());
        if !mount.status().is_ok_and(|status| status.success()) {
            eprintln!("skipped: mounting an overlay needs root");
            return None;
        }
        let mount = Mount(merged);
        let mut daemon = Daemon::prepare(nix, EMBEDDED);
        let lower = if knows_lower {
            format!("lower_state_dir = \"{}/lower/nix/var/nix\"\n", top.display())
        } else {
            String::new()
        };
        let text = format!(
            "socket = \"{0}/s\"\nstate_dir = \"{0}/state\"\n{EMBEDDED}\n[nix]\nroot = \"{0}/root\"\n{lower}",
            top.display()
        );
        std::fs::write(daemon.config(), text).unwrap();
        let lower_path = built.out.trim().to_owned();
        let overlay_uri = uri(&top);
        let mut init = command(&daemon.nix, &programs, "nix-store");
        assert!(init.args(["--store", &overlay_uri, "--init"]).status().unwrap().success());
        daemon.up();
        Some(Self { _mount: mount, daemon, programs, lower_path })
    }

    /// Runs a Nix command on the store; returns what it printed.
    fn nix(&self, program: &str, args: &[&str]) -> String {
        let mut command = command(&self.daemon.nix, &self.programs, program);
        command.args(["--store", &uri(self.daemon.nix.path())]).args(args);
        let result = CommandResult::of(&command.output().unwrap());
        assert_eq!(result.code, 0, "{result:?}");
        result.out.trim().to_owned()
    }
}

/// A Nix command without the test's own store.
fn command(nix: &PrivateNix, programs: &Path, program: &str) -> Command {
    let mut command = nix.command(programs.join(program).to_str().unwrap());
    for variable in ["NIX_STORE_DIR", "NIX_STATE_DIR", "NIX_LOG_DIR", "NIX_REMOTE"] {
        command.env_remove(variable);
    }
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{}:{path}", programs.display()));
    command
}

fn uri(top: &Path) -> String {
    format!("local-overlay://?root={0}/root&lower-store={0}/lower&upper-layer={0}/upper", top.display())
}

/// A session in which a job looks at a path of the lower store; returns how many were pushed.
fn looked_at(overlay: &Overlay) -> u64 {
    let session = overlay.daemon.session(&[]);
    // Nix copies three rows into the upper database.
    overlay.nix("nix-store", &["--check-validity", &overlay.lower_path]);
    overlay.daemon.end(&session, &[])["pushed"].as_u64().unwrap()
}

#[test]
fn what_the_lower_store_has_is_not_new() {
    let Some(unaware) = Overlay::start(false) else { return };
    assert_eq!(looked_at(&unaware), 3, "the rows are copied: otherwise this test shows nothing");
    drop(unaware);
    let Some(overlay) = Overlay::start(true) else { return };
    assert_eq!(looked_at(&overlay), 0);
    assert!(overlay.daemon.main().names().is_empty());
    // What is built on it is new, and is pushed with its closure.
    let session = overlay.daemon.session(&[]);
    let built = overlay.nix("nix-build", &["--no-out-link", "-E", &chain(5)]);
    let summary = overlay.daemon.end(&session, &["--push", &built]);
    // The references of the lower store may be pushed before the session names them.
    let all = summary["pushed"].as_u64().unwrap() + summary["already_cached"].as_u64().unwrap();
    assert_eq!((&summary["outcome"], all), (&"complete".into(), 5), "{summary}");
    assert_eq!(overlay.daemon.main().names().iter().filter(|name| name.starts_with("c-")).count(), 5);
    let detail = overlay.daemon.json(&["session", "show", &session]);
    // A build of some milliseconds may be over before its lock is read.
    assert!(["-c-3", "-c-4"].iter().any(|end| evidence(&detail, end) == "process"), "{detail}");
    let warnings = overlay.daemon.status()["warnings"].clone();
    assert!(!warnings.to_string().contains("makers"), "{warnings}");
}

/// The nix-daemon of the store takes the row over, as it does for any question.
#[test]
fn a_named_path_of_the_lower_store_is_found() {
    let Some(overlay) = Overlay::start(true) else { return };
    let top = overlay.daemon.nix.path().to_owned();
    // Without a nix-daemon the path is not valid in the upper store.
    let refused = overlay.daemon.ctl(&["push", &overlay.lower_path, "--wait"]);
    assert_eq!(refused.code, 2, "{refused:?}");
    overlay.daemon.assert_logged(1, "in the lower store only");
    let socket = top.join("root/nix/var/nix/daemon-socket/socket");
    std::fs::create_dir_all(socket.parent().unwrap()).unwrap();
    let mut server = command(&overlay.daemon.nix, &overlay.programs, "nix-daemon");
    server.arg("--daemon").env("NIX_REMOTE", uri(&top)).env("NIX_DAEMON_SOCKET_PATH", &socket);
    let mut server = server.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    until("the nix-daemon listens", || std::os::unix::net::UnixStream::connect(&socket).is_ok());
    let pushed = overlay.daemon.json(&["push", &overlay.lower_path, "--wait"]);
    kill_process(Pid::from_child(&server), Signal::TERM).unwrap();
    server.wait().unwrap();
    assert_eq!((&pushed["outcome"], &pushed["pushed"]), (&"complete".into(), &3.into()), "{pushed}");
    assert!(overlay.daemon.main().has(&overlay.lower_path));
}
