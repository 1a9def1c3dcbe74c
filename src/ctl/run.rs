//! `run`: a session around a command. The command comes first in everything:
//! it is started before the daemon is asked, gets the signals, and gives the
//! exit status; the cache never delays or fails it.

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
    end::{Ending, finish},
    render::Heading,
    session::{Opening, open},
    verdict::{Exit, Failure},
};
use crate::control::messages::ErrorCode;

pub(super) fn command(context: &Context, args: RunArgs) -> Result<Exit, Failure> {
    let runtime = Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|e| Failure::Internal(format!("no runtime: {e}")))?;
    let context = Context {
        socket: context.socket.clone(),
        strict: context.strict,
        render: context.render.aside(), // the command's output may be somebody's input
    };
    let exit = runtime.block_on(mind(context, args));
    runtime.shutdown_background(); // a wait that a signal cut short is left behind
    exit
}

async fn mind(context: Context, args: RunArgs) -> Result<Exit, Failure> {
    let Some((program, arguments)) = args.command.split_first() else {
        return Err(Failure::Usage("no command given".to_owned()));
    };
    // Before the command exists: none may arrive without a handler.
    let mut signals =
        Signals::listen().map_err(|e| Failure::Internal(format!("cannot handle signals: {e}")))?;
    let mut child = match Command::new(program).args(arguments).spawn() {
        Ok(child) => child,
        Err(e) => {
            // As a shell says it.
            let status = if e.kind() == io::ErrorKind::NotFound { 127 } else { 126 };
            let failure = Failure::Usage(format!("cannot run `{}`: {e}", program.display()));
            context.render.failure(&failure, Exit::Command(status));
            return Ok(Exit::Command(status));
        }
    };
    let anchor_pid = child.id();
    let opening = Opening {
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
        // The command may be over by now, which is no mistake.
        Err(Failure::Refused { code: ErrorCode::BadRequest, .. }) => {
            open(&starter, &Opening { anchor_pid: None, ..opening })
        }
        done => done,
    });
    let (status, cancelled) =
        attend(&mut child, &mut signals).await.map_err(|e| Failure::Internal(e.to_string()))?;
    let own = code(status);

    let ender = Arc::clone(&context);
    let broken = |e: JoinError| Failure::Internal(e.to_string());
    let ending = async move {
        let (session, _) = started.await.map_err(broken)??;
        // Who was told to stop should not wait for uploads; the daemon goes on.
        let ending =
            Ending { session: Some(session), push: args.push, timeout: args.timeout, wait: !cancelled };
        spawn_blocking(move || finish(&ender, ending)).await.map_err(broken)?
    };
    let ended = tokio::select! {
        ended = ending => ended,
        _ = signals.next() => {
            context.render.note("not waiting any longer; the daemon goes on");
            return Ok(own);
        }
    };
    let verdict = match ended {
        Ok(summary) => {
            let exit = Exit::of(&summary, strict, !cancelled);
            context.render.summary(&summary, Heading::Session, exit);
            exit
        }
        Err(failure) => {
            // A bad `--push` or a fault of ours must not turn a good command red unless asked.
            let exit = if strict { failure.exit(strict) } else { Exit::Done };
            context.render.failure(&failure, exit);
            exit
        }
    };
    // The command's own failure says more than ours.
    Ok(if own == Exit::Command(0) && verdict != Exit::Done { verdict } else { own })
}

/// Waits for the command, passing signals on; also whether there were any.
pub(super) async fn attend(child: &mut Child, signals: &mut Signals) -> io::Result<(ExitStatus, bool)> {
    let mut signalled = false;
    loop {
        tokio::select! {
            status = child.wait() => return Ok((status?, signalled)),
            signal = signals.next() => {
                signalled = true;
                // The terminal has given Ctrl-C to the whole foreground group already; twice would
                // mean "at once" to many programs.
                let delivered = signal == Signal::INT && in_foreground();
                let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
                if let (Some(pid), false) = (pid, delivered) {
                    let _ = kill_process(pid, signal); // it may have just ended, which `wait` tells next
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

/// As shells do: 128 and the signal's number.
pub(super) fn code(status: ExitStatus) -> Exit {
    let number = status.code().or_else(|| status.signal().map(|s| 128 + s)).unwrap_or(1);
    Exit::Command(u8::try_from(number & 0xff).unwrap_or(1))
}

/// Whether our process group is the foreground one of a terminal: fields 5 and 8 of proc_pid_stat(5).
fn in_foreground() -> bool {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // The second field is a name in parentheses and may hold anything, so counting starts after it.
    let Some((_, rest)) = stat.rsplit_once(')') else { return false };
    let fields: Vec<&str> = rest.split_whitespace().collect();
    matches!((fields.get(2), fields.get(5)), (Some(group), Some(foreground)) if group == foreground)
}
