//! The command `hook`, for Nix's `post-build-hook`: tells the daemon what was built.
//! Nix waits for the hook and fails the build when the hook fails. So it takes a
//! tenth of a second at most, prints nothing and always succeeds, unless another hook
//! runs after it.
//!
//! Nix runs the hook without arguments. When the program is called by the name
//! `flywheel-hook` (a link), it is this command.
//!
//! Nix knows one post-build hook. A host that has another one keeps it: after the daemon
//! has answered, the programs in `/etc/flywheel/hook.d` run in the order of their names, and
//! then the command behind `--then`. Each has the environment that Nix gave, and the first
//! status that is not 0 is the hook's.

use std::{
    ffi::OsString,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::{Path, PathBuf},
    process::{Command, ExitCode},
    time::Duration,
};

use super::{connection::Connection, render::Render, variable};
use crate::control::messages::Request;

/// The limit for the connection, and again for the reply.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(50);
/// Where other hooks are, unless `$FLYWHEEL_HOOK_DIR` names another directory.
const HOOK_DIR: &str = "/etc/flywheel/hook.d";

/// Returns the command behind `--then` if the program was called by the name
/// `flywheel-hook`; it is empty without one.
pub(super) fn is_called(args: &[OsString]) -> Option<&[OsString]> {
    let (name, rest) = args.split_first()?;
    if Path::new(name).file_name().is_none_or(|name| name != "flywheel-hook") {
        return None;
    }
    Some(match rest.split_first() {
        Some((first, then)) if first == "--then" => then,
        _ => &[],
    })
}

/// Tells the daemon, then runs the other hooks and `then`.
pub(super) fn command(socket: Option<PathBuf>, then: &[OsString]) -> ExitCode {
    tell(&socket.unwrap_or_else(|| super::DEFAULT_SOCKET.into()));
    let dir = variable("FLYWHEEL_HOOK_DIR").map_or_else(|| HOOK_DIR.into(), PathBuf::from);
    let mut status = 0;
    let mut run = |mut command: Command| {
        let ended = match command.status() {
            // A hook that a signal ended has no status.
            Ok(ended) => ended.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1),
            Err(error) => {
                warn(&format!("the hook {} cannot be started: {error}", command.get_program().display()));
                1
            }
        };
        if status == 0 {
            status = ended;
        }
    };
    for program in programs(&dir) {
        run(Command::new(program));
    }
    if let Some((program, args)) = then.split_first() {
        let mut command = Command::new(program);
        command.args(args);
        run(command);
    }
    ExitCode::from(status)
}

fn tell(socket: &Path) {
    let outputs = variable("OUT_PATHS").unwrap_or_default();
    let request = Request::Hook {
        derivation: variable("DRV_PATH"),
        outputs: outputs.split_whitespace().map(str::to_owned).collect(),
    };
    // The daemon looks at this process until it replies, so the process waits for that.
    if let Ok(mut connection) = Connection::open(socket, CONNECT_TIMEOUT) {
        let _ = connection.ask(&request, CONNECT_TIMEOUT, &mut |_| ());
    }
}

/// Returns the programs of a directory, sorted by name. Left out are hidden files, those
/// of editors and package managers (`x~`, `x.dpkg-old`), and with a warning those that
/// somebody else than root and this user may change.
fn programs(dir: &Path) -> Vec<PathBuf> {
    let Ok(entries) = std::fs::read_dir(dir) else { return Vec::new() };
    if !is_trusted(dir) {
        warn(&format!("{} is left alone: others than root may write it", dir.display()));
        return Vec::new();
    }
    let mut programs: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).collect();
    programs.retain(|path| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let Ok(meta) = std::fs::metadata(path) else { return false };
        let is_program = meta.is_file() && meta.permissions().mode() & 0o111 != 0;
        if name.starts_with('.') || name.ends_with('~') || name.contains(".dpkg-") || !is_program {
            return false;
        }
        let trusted = is_trusted(path);
        if !trusted {
            warn(&format!("the hook {} is left out: others than root may write it", path.display()));
        }
        trusted
    });
    programs.sort();
    programs
}

/// Returns whether only root and this user may change a file or directory.
fn is_trusted(path: &Path) -> bool {
    let own = rustix::process::geteuid().as_raw();
    std::fs::metadata(path)
        .is_ok_and(|meta| (meta.uid() == 0 || meta.uid() == own) && meta.permissions().mode() & 0o022 == 0)
}

/// Writes to standard error, which Nix shows in the build's log.
fn warn(text: &str) {
    Render::new(false, false).warn(text);
}
