//! The process between the daemon and a program that the daemon runs: it sets the
//! program's limits, writes its input, and kills it, with everything it started,
//! when the daemon has ended, also after a crash. This needs no `unsafe` and no
//! other program, and works where no systemd ends left-over processes.
//!
//! The daemon holds the other end of its standard input: first come lines for the
//! program, up to an empty one, and then nothing while the daemon lives. The end
//! of the input means that the daemon has ended.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Resource, Rlimit, Signal, getpgrp, kill_process_group, setrlimit};

/// The first argument that makes flywheeld run as a supervisor.
pub const CALLED_AS: &str = "supervise";

/// Supervises a command if the arguments (`PROGRAM supervise MEMORY COMMAND…`) ask
/// for that; none if they do not. Returns the command's exit status, or 128 and
/// the number of the signal that ended it.
pub fn supervise(args: &[OsString]) -> Option<ExitCode> {
    let [_, called, memory, program, arguments @ ..] = args else { return None };
    if called != CALLED_AS {
        return None;
    }
    // A core dump would hold the token.
    let _ = setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) });
    if let Some(bytes) = memory.to_str().and_then(|text| text.parse().ok()).filter(|bytes| *bytes > 0) {
        let _ = setrlimit(Resource::As, Rlimit { current: Some(bytes), maximum: Some(bytes) });
    }
    let mut child = match Command::new(program).args(arguments).stdin(Stdio::piped()).spawn() {
        Ok(child) => child,
        Err(error) => {
            // The message and the two statuses are those of a shell.
            let _ = writeln!(std::io::stderr(), "Error: {} cannot be run: {error}", program.display());
            return Some(ExitCode::from(if error.kind() == std::io::ErrorKind::NotFound {
                127
            } else {
                126
            }));
        }
    };
    if let Some(into) = child.stdin.take() {
        std::thread::spawn(move || feed(into));
    }
    let number = match child.wait() {
        Ok(status) => status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1),
        Err(_) => 1,
    };
    Some(ExitCode::from(u8::try_from(number & 0xff).unwrap_or(1)))
}

/// Writes the lines to the program, then waits for the end of the input.
fn feed(into: impl Write) {
    let mut into = Some(into);
    let mut lines = BufReader::new(std::io::stdin());
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) if line == b"\n" => into = None,
            // A write fails when the program has closed its input; such a program ends without our help.
            Ok(_) => into = into.and_then(|mut into| into.write_all(&line).is_ok().then_some(into)),
        }
    }
    // The group includes this process, so the call does not return.
    let _ = kill_process_group(getpgrp(), Signal::KILL);
}
