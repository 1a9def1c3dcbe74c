//! What systemd is told (sd_notify(3)). Without `$NOTIFY_SOCKET` nothing is.
//!
//! A full socket makes the sender wait for its reader, so a thread of its own
//! does the telling: the driver never waits for somebody who does not listen.

use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use crate::daemon::host::parts::Part;
use crate::daemon::host::watchdog::{INTAKE, Watchdog};

/// The way to systemd.
#[derive(Debug)]
pub(in crate::daemon) struct Notify {
    last: Option<(Instant, String)>,
    out: Option<SyncSender<Note>>,
    told: Receiver<()>,
}

/// Status lines are at least this far apart.
const APART: Duration = Duration::from_secs(1);
/// Notes that may wait to be told; one too many is dropped.
const NOTES: usize = 32;
/// How long the last ones may take at the end.
const GOODBYE: Duration = Duration::from_millis(500);

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
    /// Opens the way, when there is one.
    pub(in crate::daemon) fn new() -> Self {
        let (ended, told) = channel();
        let out = std::env::var_os("NOTIFY_SOCKET").and_then(|_| {
            let (out, notes) = sync_channel(NOTES);
            let thread = std::thread::Builder::new().name("notify".to_owned());
            match thread.spawn(move || tell(&notes, ended)) {
                Ok(_) => Some(out),
                Err(error) => {
                    crate::observe::event!(SYSTEMD_NOT_TOLD, error = %error, "systemd is not told anything: no thread for it");
                    None
                }
            }
        });
        Self { last: None, out, told }
    }

    /// The socket is served and the ledger is open.
    pub(in crate::daemon) fn ready(&mut self) {
        self.send(Note::Ready);
    }

    /// Configuration and tokens are being read; `ready` follows.
    pub(in crate::daemon) fn reloading(&self) {
        self.send(Note::Reloading);
    }

    /// The parts whose standing still is to end the daemon, when the unit has
    /// a watchdog (`WatchdogSec=`).
    pub(in crate::daemon) fn watch(&self, parts: Vec<Part>) {
        self.send(Note::Watch(parts));
    }

    /// The end has begun.
    pub(in crate::daemon) fn stopping(&mut self) {
        self.send(Note::Stopping);
    }

    /// The end takes this long yet, from now.
    pub(in crate::daemon) fn extend(&mut self, rest: Duration) {
        self.send(Note::Extend(u32::try_from(rest.as_micros()).unwrap_or(u32::MAX)));
    }

    /// Whether the last line is old enough for another.
    pub(in crate::daemon) fn is_due(&self) -> bool {
        self.last.as_ref().is_none_or(|(at, _)| at.elapsed() >= APART)
    }

    /// A line for `systemctl status`, told when it differs from the last.
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
            crate::observe::detail!("systemd does not listen; a note to it is dropped");
        }
    }
}

impl Drop for Notify {
    fn drop(&mut self) {
        if self.out.take().is_some() {
            // Ends when all is told.
            let _ = self.told.recv_timeout(GOODBYE);
        }
    }
}

fn tell(notes: &Receiver<Note>, ended: Sender<()>) {
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
            Ok(Note::Ready) => say(&[NotifyState::Ready]),
            // Both in one message: systemd takes READY for the reload's only
            // when it is later than this time.
            Ok(Note::Reloading) => match NotifyState::monotonic_usec_now() {
                Ok(now) => say(&[NotifyState::Reloading, now]),
                Err(error) => crate::observe::detail!(error = %error, "no time to tell systemd"),
            },
            Ok(Note::Stopping) => {
                say(&[NotifyState::Stopping]);
                // Nothing is taken in any more.
                watchdog.iter_mut().for_each(|watchdog| watchdog.leave_out(INTAKE));
            }
            Ok(Note::Extend(micros)) => say(&[NotifyState::ExtendTimeoutUsec(micros)]),
            Ok(Note::Status(line)) => say(&[NotifyState::Status(&line)]),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => break,
        }
        if let Some(watchdog) = watchdog.as_mut().filter(|watchdog| watchdog.next <= Instant::now())
            && watchdog.all_moved()
        {
            say(&[NotifyState::Watchdog]);
        }
    }
    drop(ended);
}

fn say(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        crate::observe::detail!(error = %error, "systemd could not be told");
    }
}
