//! Messages to systemd (sd_notify(3)). Without `$NOTIFY_SOCKET` nothing is sent.
//!
//! Writing to a full socket blocks until its reader has read, so a thread of its
//! own writes. The driver only puts notes into a bounded queue.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::parts::Part;
use super::watchdog::{INTAKE, Watchdog};

/// The queue of the thread that writes to systemd. Dropping it waits up to
/// [`FAREWELL`] for queued notes to be written.
#[derive(Debug)]
pub(in crate::daemon) struct Notify {
    /// The last status line, and when it was queued.
    last: Option<(Instant, String)>,
    out: Option<SyncSender<Note>>,
    written: Receiver<()>,
}

/// Least time between two status lines.
const APART: Duration = Duration::from_secs(1);
/// Notes that may wait in the queue; further ones are dropped.
const NOTES: usize = 32;
/// How long writing the last notes may take at the end.
const FAREWELL: Duration = Duration::from_millis(500);

/// A message that waits to be written.
#[derive(Debug)]
enum Note {
    Watch(Vec<Part>),
    Ready,
    Reloading,
    Stopping,
    Extend(u32),
    Status(String),
}

impl Notify {
    /// Starts the thread, if systemd has passed a socket.
    pub(in crate::daemon) fn new() -> Self {
        let (ended, written) = channel();
        let out = std::env::var_os("NOTIFY_SOCKET").and_then(|_| {
            let (out, notes) = sync_channel(NOTES);
            let thread = std::thread::Builder::new().name("notify".to_owned());
            match thread.spawn(move || write(&notes, ended)) {
                Ok(_) => Some(out),
                Err(error) => {
                    crate::observe::event!(SYSTEMD_NOT_TOLD, error = %error, "the thread that reports to systemd cannot be started ({error}): systemd gets no messages");
                    None
                }
            }
        });
        Self { last: None, out, written }
    }

    /// Reports that the daemon is ready: the socket is served, the ledger is open.
    pub(in crate::daemon) fn ready(&mut self) {
        self.send(Note::Ready);
    }

    /// Reports that a reload has begun; [`Self::ready`] reports its end.
    pub(in crate::daemon) fn reloading(&self) {
        self.send(Note::Reloading);
    }

    /// Observes these parts, if the unit has a watchdog (`WatchdogSec=`).
    pub(in crate::daemon) fn watch(&self, parts: Vec<Part>) {
        self.send(Note::Watch(parts));
    }

    /// Reports that the daemon is stopping.
    pub(in crate::daemon) fn stopping(&mut self) {
        self.send(Note::Stopping);
    }

    /// Reports that stopping may take this long, counted from now.
    pub(in crate::daemon) fn extend(&mut self, rest: Duration) {
        self.send(Note::Extend(u32::try_from(rest.as_micros()).unwrap_or(u32::MAX)));
    }

    /// Whether the last status line is old enough for another one.
    pub(in crate::daemon) fn is_due(&self) -> bool {
        self.last.as_ref().is_none_or(|(at, _)| at.elapsed() >= APART)
    }

    /// Sets the line that `systemctl status` shows, if it differs from the last.
    pub(in crate::daemon) fn status(&mut self, line: String) {
        if self.last.as_ref().is_none_or(|(_, last)| *last != line) {
            self.send(Note::Status(line.clone()));
        }
        self.last = Some((Instant::now(), line));
    }

    fn send(&self, note: Note) {
        if let Some(out) = &self.out
            && out.try_send(note).is_err()
        {
            crate::observe::detail!("systemd does not read its socket; a message to it is dropped");
        }
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            // The thread ends when it has written every note.
            let _ = self.written.recv_timeout(FAREWELL);
        }
    }
}

/// Writes notes, and the watchdog's pings in between, until the queue is closed.
fn write(notes: &Receiver<Note>, ended: Sender<()>) {
    let mut watchdog: Option<Watchdog> = None;
    loop {
        let note = match &watchdog {
            None => notes.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(watchdog) => notes.recv_timeout(watchdog.next.saturating_duration_since(Instant::now())),
        };
        match note {
            Ok(Note::Watch(parts)) => {
                watchdog = sd_notify::watchdog_enabled().map(|limit| Watchdog::new(parts, limit));
            }
            Ok(Note::Ready) => send(&[NotifyState::Ready]),
            // Both go in one message: systemd takes a READY as the end of this
            // reload only if it is later than the time in the message.
            Ok(Note::Reloading) => match NotifyState::monotonic_usec_now() {
                Ok(now) => send(&[NotifyState::Reloading, now]),
                Err(error) => {
                    crate::observe::detail!(error = %error, "the monotonic clock cannot be read for the message to systemd");
                }
            },
            Ok(Note::Stopping) => {
                send(&[NotifyState::Stopping]);
                // The intake ends now, so it takes no turns any more.
                watchdog.iter_mut().for_each(|watchdog| watchdog.leave_out(INTAKE));
            }
            Ok(Note::Extend(micros)) => send(&[NotifyState::ExtendTimeoutUsec(micros)]),
            Ok(Note::Status(line)) => send(&[NotifyState::Status(&line)]),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some(watchdog) = watchdog.as_mut().filter(|watchdog| watchdog.next <= Instant::now())
            && watchdog.all_moved()
        {
            send(&[NotifyState::Watchdog]);
        }
    }
    drop(ended);
}

fn send(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        crate::observe::detail!(error = %error, "a message to systemd could not be sent");
    }
}
