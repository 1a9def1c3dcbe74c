//! `hook`, for Nix's `post-build-hook`: tells the daemon what was built. A
//! builder waits for it and fails with it, so it takes a tenth of a second at
//! most, says nothing, and succeeds whatever happens.
//!
//! Nix runs the hook without arguments: called by the name `flywheel-hook`
//! (a link), the program is this command.

use std::{
    ffi::OsString,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use super::{link::Link, variable};
use crate::control::messages::Request;

/// For all of it there is twice that.
const PATIENCE: Duration = Duration::from_millis(50);

/// Whether the program was called by its other name.
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
    // The answer is waited for: until it comes, the daemon can see who asked.
    if let Ok(mut link) = Link::open(&socket, PATIENCE) {
        let _ = link.ask(&request, PATIENCE, &mut |_| ());
    }
    ExitCode::SUCCESS
}
