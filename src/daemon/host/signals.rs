//! The signals: two end the daemon, one has it read its configuration again.

use crate::observe::event;
use anyhow::Result;

/// SIGHUP, to be listened to from the beginning: else it ends the process.
pub(in crate::daemon) fn hangup() -> Result<tokio::signal::unix::Signal> {
    use tokio::signal::unix::{SignalKind, signal};
    Ok(signal(SignalKind::hangup())?)
}

/// SIGTERM or SIGINT: the first begins the end, a second ends at once.
pub(in crate::daemon) fn signals() -> Result<(tokio::task::JoinHandle<()>, tokio::sync::mpsc::Receiver<()>)> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut term = signal(SignalKind::terminate())?;
    let mut int = signal(SignalKind::interrupt())?;
    let (begin, stop) = tokio::sync::mpsc::channel(1);
    let push = tokio::spawn(async move {
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        let _ = begin.send(()).await;
        tokio::select! { _ = term.recv() => {} _ = int.recv() => {} }
        event!(SECOND_SIGNAL, "a second signal: ending at once; what is pending stays in the ledger");
        std::process::exit(1);
    });
    Ok((push, stop))
}
