//! The process between us and a program that we run: it gives the program its
//! limits, feeds it, and kills it with everything it started when we are gone,
//! however we went. No `unsafe` and no helper from outside is needed for that,
//! and it holds also where no systemd cleans up behind us.
//!
//! Its standard input is ours: lines for the program until an empty one, and
//! then nothing more as long as we live. Its end means that we do not.

use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Command, ExitCode, Stdio};

use rustix::process::{Resource, Rlimit, Signal, getpgrp, kill_process_group, setrlimit};

/// The first argument by which a program of ours knows that it is meant.
pub const CALLED_AS: &str = "supervise";

/// Does it, when the arguments (`PROGRAM supervise MEMORY COMMAND…`) say so:
/// the command's exit status, or 128 and the signal that ended it.
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
            // As a shell says it.
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

/// Hands the lines on, then waits for the end.
fn feed(into: impl Write) {
    let mut into = Some(into);
    let mut lines = BufReader::new(std::io::stdin());
    let mut line = Vec::new();
    loop {
        line.clear();
        match lines.read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => break,
            Ok(_) if line == b"\n" => into = None,
            // A program that reads no further ends by itself.
            Ok(_) => into = into.and_then(|mut into| into.write_all(&line).is_ok().then_some(into)),
        }
    }
    // Ourselves among them.
    let _ = kill_process_group(getpgrp(), Signal::KILL);
}
