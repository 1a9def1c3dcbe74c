//! The command `run`: opens a session around another command. The other command
//! starts before the daemon is asked, receives the signals and gives the exit
//! status. The cache neither delays nor fails it.

use std::{io, os::unix::process::ExitStatusExt, process::ExitStatus, sync::Arc};

use rustix::process::{Pid, Signal, kill_process};
use tokio::{
    process::{Child, Command},
    runtime::Builder,
    signal::unix::{Signal as Stream, SignalKind, signal},
    task::{JoinError, spawn_blocking},
};

use super::{
    Context,
    args::RunArgs,
    end::{DEFAULT_TIMEOUT, EndRequest, end_session},
    exit::{Exit, Failure},
    render::Heading,
    session::{StartRequest, open},
};
use crate::control::messages::ErrorCode;

pub(super) fn command(context: &Context, args: RunArgs) -> Result<Exit, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Internal(format!("no runtime: {e}")))?;
    let context = Context {
        socket: context.socket.clone(),
        strict: context.strict,
        render: context.render.on_stderr(), // standard output belongs to the command
    };
    let exit = runtime.block_on(run_in_session(context, args));
    runtime.shutdown_background(); // a wait that a signal ended is left behind
    exit
}

async fn run_in_session(context: Context, args: RunArgs) -> Result<Exit, Failure> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::Usage("no command given".to_owned()));
    };
    // The handlers are set before the command exists, so that no signal is missed.
    let mut signals =
        Signals::listen().map_err(|e| Failure::Internal(format!("cannot handle signals: {e}")))?;
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(e) => {
            // The status that a shell would give.
            let status = if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            let failure = Failure::Usage(format!("cannot run `{}`: {e}", program.display()));
            context.render.failure(&failure, Exit::Command(status));
            return Ok(Exit::Command(status));
        }
    };
    let anchor_pid = child.id();
    let opening = StartRequest {
        log_paths: args.log_paths,
        label: args
            .label
            .or_else(|| Some(program.to_string_lossy().into_owned()).filter(|_| !super::in_ci())),
        cache: args.cache,
        anchor_pid,
    };
    let strict = context.strict;
    let context = Arc::new(context);
    let starter = Arc::clone(&context);
    let started = spawn_blocking(move || match open(&starter, &opening) {
        // The command may have ended already; then the session has no anchor.
        Err(Failure::Refused { code: ErrorCode::BadRequest, .. }) => {
            open(&starter, &StartRequest { anchor_pid: None, ..opening })
        }
        done => done,
    });
    let (status, cancelled) = wait_forwarding_signals(&mut child, &mut signals)
        .await
        .map_err(|e| Failure::Internal(e.to_string()))?;
    let own = code(status);

    let ender = Arc::clone(&context);
    let broken = |e: JoinError| Failure::Internal(e.to_string());
    let ending = async move {
        let (session, _) = started.await.map_err(broken)??;
        // After a signal the program does not wait for uploads; the daemon goes on.
        let ending = EndRequest {
            session: Some(session),
            push: args.push,
            timeout: args.timeout.unwrap_or(DEFAULT_TIMEOUT),
            wait: !cancelled,
            patient: args.timeout.is_some(),
        };
        spawn_blocking(move || end_session(&ender, ending)).await.map_err(broken)?
    };
    let ended = tokio::select! {
        ended = ending => ended,
        _ = signals.next() => {
            context.render.note("flywheelctl no longer waits for uploads; the daemon continues");
            return Ok(own);
        }
    };
    let exit = match ended {
        Ok((summary, unmatched)) => {
            let exit = Exit::of_session(&summary, strict, !cancelled, unmatched || summary.invalid > 0);
            context.render.summary(&summary, Heading::Session, exit);
            exit
        }
        Err(failure) => {
            // A wrong `--push` or a fault of flywheelctl fails a good command only with --strict.
            let exit = if strict { failure.exit(strict) } else { Exit::Done };
            context.render.failure(&failure, exit);
            exit
        }
    };
    // The failure of the command counts more than that of the session.
    Ok(if own == Exit::Command(0) && exit != Exit::Done { exit } else { own })
}

/// Waits for the command and forwards signals to it. Also returns whether there
/// were any.
pub(super) async fn wait_forwarding_signals(
    child: &mut Child,
    signals: &mut Signals,
) -> io::Result<(ExitStatus, bool)> {
    let mut signalled = false;
    loop {
        tokio::select! {
            status = child.wait() => return Ok((status?, signalled)),
            signal = signals.next() => {
                signalled = true;
                // The terminal sends Ctrl-C to the whole foreground group. Many programs take
                // a second one for "end at once".
                let delivered = signal == Signal::INT && in_foreground();
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                if let (Some(pid), false) = (pid, delivered) {
                    let _ = kill_process(pid, signal); // an error means that it has just ended
                }
            }
        }
    }
}

pub(super) struct Signals {
    term: Stream,
    int: Stream,
    hup: Stream,
}

impl Signals {
    pub(super) fn listen() -> io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            int: signal(SignalKind::interrupt())?,
            hup: signal(SignalKind::hangup())?,
        })
    }

    async fn next(&mut self) -> Signal {
        tokio::select! {
            _ = self.term.recv() => Signal::TERM,
            _ = self.int.recv() => Signal::INT,
            _ = self.hup.recv() => Signal::HUP,
        }
    }
}

/// Returns the exit status as a shell does: 128 and the signal's number after a signal.
pub(super) fn code(status: ExitStatus) -> Exit {
    let number = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    Exit::Command(u8::try_from(number & 0xff).unwrap_or(1))
}

/// Returns whether this process group is the foreground one of a terminal: fields 5
/// and 8 of proc_pid_stat(5).
fn in_foreground() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is a name in parentheses that may contain anything.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    matches!((fields.get(2), fields.get(5)), (Some(group), Some(foreground)) if group == foreground)
}
