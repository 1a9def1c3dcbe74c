//! The screen of `status --watch` on a terminal: asks the daemon again and again, draws
//! what it says, and gives the terminal back. A restart of the daemon does not end it.

mod view;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use ratatui::DefaultTerminal;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use tokio::signal::unix::{SignalKind, signal};

use super::connection::{CONNECT_TIMEOUT, Connection, REPLY_TIMEOUT};
use super::end::unexpected;
use super::exit::{Exit, Failure};
use crate::control::messages::{Reply, Request, Status};
use crate::types::Wall;

/// The time between two questions to the daemon.
const INTERVAL: Duration = Duration::from_secs(1);
/// The longest time between two drawings, so that ages go on and a new size is noticed.
const TICK: Duration = Duration::from_millis(250);

/// What the screen shows.
#[derive(Debug, Default)]
struct Screen {
    /// The last status, if there was one.
    status: Option<Status>,
    /// Why there is no newer one.
    trouble: Option<String>,
    /// Bytes per second that were sent between the last two.
    rate: Option<u64>,
    /// The present time, in ms since 1970.
    now_ms: i64,
}

/// Shows the screen until the user or a signal ends it. `connection` is open.
pub(super) fn run(socket: &Path, connection: Connection) -> Result<Exit, Failure> {
    let (answers, questions) = ask_again_and_again(socket.to_owned(), connection);
    let stopped = stopped_by_signal();
    let cannot = |e: io::Error| Failure::Internal(format!("the terminal cannot be used: {e}"));
    let mut terminal = ratatui::try_init().map_err(cannot)?;
    let shown = show(&mut terminal, &answers, &stopped);
    drop(questions);
    ratatui::restore();
    // Nobody is left who reads an error when the terminal is closed.
    shown.map_err(cannot).map(|()| Exit::Done)
}

fn show(
    terminal: &mut DefaultTerminal,
    answers: &Receiver<Result<Status, String>>,
    stopped: &AtomicBool,
) -> io::Result<()> {
    let mut screen = Screen::default();
    let mut last = Instant::now();
    loop {
        for answer in answers.try_iter() {
            let now = Instant::now();
            screen.take(answer, now.duration_since(last));
            if screen.trouble.is_none() {
                last = now;
            }
        }
        screen.now_ms = Wall::now().0;
        terminal.draw(|frame| view::draw(frame, &screen))?;
        if stopped.load(Ordering::Relaxed) {
            return Ok(());
        }
        if event::poll(TICK)? && is_end(&event::read()?) {
            return Ok(());
        }
    }
}

/// Whether a key ends the screen: `q`, Esc or Ctrl-C, which is a key in raw mode.
fn is_end(event: &Event) -> bool {
    let Event::Key(key) = event else { return false };
    let is_control = key.modifiers.contains(KeyModifiers::CONTROL);
    key.kind == KeyEventKind::Press
        && match key.code {
            KeyCode::Char('q') | KeyCode::Esc => true,
            KeyCode::Char('c' | 'd') => is_control,
            _ => false,
        }
}

impl Screen {
    /// Takes an answer that came `after` the last good one.
    fn take(&mut self, answer: Result<Status, String>, after: Duration) {
        match answer {
            Ok(status) => {
                let sent = |status: &Status| status.sent_bytes;
                // After a restart the daemon counts from 0 again.
                let more = self.status.as_ref().and_then(|before| sent(&status).checked_sub(sent(before)));
                let ms = u64::try_from(after.as_millis()).unwrap_or(u64::MAX);
                self.rate = more.and_then(|more| more.saturating_mul(1000).checked_div(ms));
                self.trouble = None;
                self.status = Some(status);
            }
            Err(error) => {
                let age = super::text::duration(Duration::from_secs(after.as_secs()));
                self.rate = None;
                self.trouble = Some(match self.status {
                    Some(_) => format!("{age} old, because {error}"),
                    None => error,
                });
            }
        }
    }
}

/// Asks in a thread of its own, so that a daemon that hangs does not keep a key from
/// being read. Ends when the receiver of the answers or the sender is dropped.
fn ask_again_and_again(
    socket: PathBuf,
    connection: Connection,
) -> (Receiver<Result<Status, String>>, Sender<()>) {
    let (tell, answers) = channel();
    let (questions, stop) = channel::<()>();
    std::thread::spawn(move || {
        let mut connection = Some(connection);
        loop {
            let answer = ask(&socket, &mut connection);
            if answer.is_err() {
                connection = None;
            }
            if tell.send(answer.map_err(|e| e.to_string())).is_err() {
                return;
            }
            match stop.recv_timeout(INTERVAL) {
                Err(RecvTimeoutError::Timeout) => {}
                Ok(()) | Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    (answers, questions)
}

fn ask(socket: &Path, connection: &mut Option<Connection>) -> Result<Status, Failure> {
    let open = match connection {
        Some(open) => open,
        None => connection.insert(Connection::open(socket, CONNECT_TIMEOUT)?),
    };
    match open.ask(&Request::Status, REPLY_TIMEOUT, &mut |_| ())? {
        Reply::Status(status) => Ok(status),
        other => Err(unexpected(other)),
    }
}

/// Is set when a signal asks the program to end; the terminal must be given back before.
fn stopped_by_signal() -> Arc<AtomicBool> {
    let stopped = Arc::new(AtomicBool::new(false));
    let set_stopped = Arc::clone(&stopped);
    std::thread::spawn(move || {
        let Ok(runtime) = tokio::runtime::Builder::new_current_thread().enable_all().build() else { return };
        runtime.block_on(async {
            let of = |kind| signal(kind);
            let (Ok(mut term), Ok(mut hang_up), Ok(mut interrupt)) =
                (of(SignalKind::terminate()), of(SignalKind::hangup()), of(SignalKind::interrupt()))
            else {
                return;
            };
            tokio::select! {
                _ = term.recv() => {}
                _ = hang_up.recv() => {}
                _ = interrupt.recv() => {}
            }
            set_stopped.store(true, Ordering::Relaxed);
        });
    });
    stopped
}
