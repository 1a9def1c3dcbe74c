//! The command `hook`, for Nix's `post-build-hook`: tells the daemon what was built.
//! Nix waits for the hook and fails the build when the hook fails. So it takes a
//! tenth of a second at most, prints nothing and always succeeds.
//!
//! Nix runs the hook without arguments. When the program is called by the name
//! `flywheel-hook` (a link), it is this command.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::{connection::Connection, variable};
use crate::control::messages::Request;

/// The limit for the connection, and again for the reply.
const CONNECT_TIMEOUT: Duration = Duration::from_millis(50);

/// Returns whether the program was called by the name `flywheel-hook`.
pub(super) fn is_called(args: &[OsString]) -> bool {
    args.first().and_then(|name| Path::new(name).file_name()).is_some_and(|name| name == "flywheel-hook")
}

pub(super) fn command(socket: Option<PathBuf>) -> ExitCode {
    let socket = socket.unwrap_or_else(|| super::DEFAULT_SOCKET.into());
    let outputs = variable("OUT_PATHS").unwrap_or_default();
    let request = Request::Hook {
        derivation: variable("DRV_PATH"),
        outputs: outputs.split_whitespace().map(str::to_owned).collect(),
    };
    // The daemon looks at this process until it replies, so the process waits for that.
    if let Ok(mut connection) = Connection::open(&socket, CONNECT_TIMEOUT) {
        let _ = connection.ask(&request, CONNECT_TIMEOUT, &mut |_| ());
    }
    ExitCode::SUCCESS
}
