//! The first process of a container: it starts the daemon as its child, passes signals
//! on to it, and removes the entries of ended processes that nobody else waits for.
//!
//! The kernel makes process 1 the parent of every orphan in its process namespace, and
//! gives it no signal for which it has no handler. The daemon itself waits for its own
//! children only, so orphans that have ended (of `docker exec`, or of the attic client)
//! would fill the table of processes. Must not know what the daemon does.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::{Command, ExitCode};

use rustix::io::Errno;
use rustix::process::{Pid, Signal, WaitOptions, WaitStatus, kill_process, wait};
use tokio::signal::unix::{SignalKind, signal};

/// Runs as the first process if this process has the number 1; none otherwise. `args`
/// are this process's own arguments, and its environment is passed on. Returns the
/// daemon's exit status, or 128 and the number of the signal that ended it.
///
/// A first process that a service manager has passed sockets to runs as the daemon
/// itself, because the sockets are for the process with this number.
pub fn as_first_process(args: &[OsString]) -> Option<ExitCode> {
    let passed = std::env::var_os("LISTEN_PID").is_some();
    if std::process::id() != 1 || passed {
        return None;
    }
    Some(run(args).unwrap_or_else(|error| {
        crate::observe::failed(&format_args!("flywheeld cannot be started as a child of process 1: {error}"));
        ExitCode::FAILURE
    }))
}

fn run(args: &[OsString]) -> io::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        // The handlers come first, so that no signal is lost while the child starts.
        let mut ended = signal(SignalKind::child())?;
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let mut hang_up = signal(SignalKind::hangup())?;
        let mut command = Command::new(std::env::current_exe()?);
        let (name, rest) = args.split_first().ok_or(io::ErrorKind::InvalidInput)?;
        let child = command.arg0(name).args(rest).spawn()?;
        let daemon = Pid::from_child(&child);
        loop {
            if let Some(status) = reap(daemon)? {
                return Ok(exit_code(status));
            }
            let signal = tokio::select! {
                _ = ended.recv() => continue,
                _ = terminate.recv() => Signal::TERM,
                _ = interrupt.recv() => Signal::INT,
                _ = hang_up.recv() => Signal::HUP,
            };
            // A daemon that has just ended gets no signal; the next turn takes its status.
            let _ = kill_process(daemon, signal);
        }
    })
}

/// Takes the status of every process that has ended. Returns the daemon's, if it is
/// among them.
fn reap(daemon: Pid) -> io::Result<Option<WaitStatus>> {
    loop {
        match wait(WaitOptions::NOHANG) {
            Ok(Some((pid, status))) if pid == daemon => return Ok(Some(status)),
            Ok(Some(_)) | Err(Errno::INTR) => {}
            Ok(None) => return Ok(None),
            Err(error) => return Err(error.into()),
        }
    }
}

fn exit_code(status: WaitStatus) -> ExitCode {
    let number = status.exit_status().or_else(|| status.terminating_signal().map(|signal| 128 + signal));
    ExitCode::from(number.and_then(|number| u8::try_from(number).ok()).unwrap_or(1))
}
