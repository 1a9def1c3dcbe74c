//! Commands that run as another user. Starting them needs root.

use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use super::daemon::{CommandResult, Daemon};

/// The user and group id of `nobody`, who has no rights of its own.
pub const NOBODY: u32 = 65_534;

/// Whether commands can be started as another user; prints why not.
pub fn can_switch_user() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: starting commands as another user needs root");
    }
    root
}

/// Sets the mode of a file or directory.
pub fn set_mode(path: &Path, mode: u32) {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Copies a program of this build into a directory that every user can enter,
/// because the build directory may be below one that only root can enter, such as
/// `/root`. Returns the copy's path.
pub fn copy_program(program: &str, dir: &Path) -> PathBuf {
    let copy = dir.join(Path::new(program).file_name().unwrap());
    if !copy.exists() {
        std::fs::copy(program, &copy).unwrap();
        set_mode(&copy, 0o755);
    }
    copy
}

/// Lets every user reach the daemon's socket, as membership in its group does.
pub fn open_to_all(daemon: &Daemon) {
    set_mode(daemon.nix.path(), 0o755);
    set_mode(&daemon.socket(), 0o666);
}

/// `flywheelctl` as `nobody`, not run yet. The daemon must be open to all.
pub fn nobodys_client(daemon: &Daemon, args: &[&str]) -> Command {
    let program = copy_program(env!("CARGO_BIN_EXE_flywheelctl"), daemon.nix.path());
    let mut command = Command::new(program);
    command.env_clear().env("PATH", std::env::var_os("PATH").unwrap_or_default());
    command.env("FLYWHEEL_SOCKET", daemon.socket()).args(args).stdin(std::process::Stdio::null());
    command.current_dir("/").uid(NOBODY).gid(NOBODY);
    command
}

/// Runs `flywheelctl` as `nobody` to its end.
pub fn as_nobody(daemon: &Daemon, args: &[&str]) -> CommandResult {
    CommandResult::of(&nobodys_client(daemon, args).output().unwrap())
}

/// Does this work in a thread of another user, whom the kernel reports as the caller of the
/// connections that are made there. Needs root.
pub fn as_user<T: Send>(uid: u32, work: impl FnOnce() -> T + Send) -> T {
    let switched = move || {
        let (user, group) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(uid));
        rustix::thread::set_thread_groups(&[]).unwrap();
        rustix::thread::set_thread_res_gid(group, group, group).unwrap();
        rustix::thread::set_thread_res_uid(user, user, user).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(switched).join().unwrap())
}

/// Has the daemon start with another `/etc/group`. Returns false where that is not possible,
/// and prints it.
pub fn replace_groups(daemon: &mut Daemon, file: &Path) -> bool {
    replace_etc(daemon, "group", file)
}

/// Has the daemon start with another file in `/etc`. Returns false where that is not possible,
/// and prints it.
pub fn replace_etc(daemon: &mut Daemon, name: &str, file: &Path) -> bool {
    let script = format!("mount --bind '{}' /etc/{name} && exec \"$@\"", file.display());
    let possible = Command::new("unshare").args(["-m", "sh", "-c", &script, "sh", "true"]).output();
    let possible = possible.is_ok_and(|output| output.status.success());
    if !possible {
        eprintln!("skipped: another /etc/{name} for one process needs a mount namespace");
    }
    let wrapper = ["unshare", "-m", "sh", "-c", &script, "sh"];
    daemon.wrapper = wrapper.map(str::to_owned).to_vec();
    possible
}
