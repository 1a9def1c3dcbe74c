//! Runs a program through `supervise`: passes its output on line by line, says
//! how it ended, and limits every wait. Must not know what the program is for.

use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use tokio::io::{AsyncBufReadExt as _, AsyncRead, AsyncWriteExt as _, BufReader};
use tokio::process::Command;
use tokio::sync::mpsc;

use super::supervise::CALLED_AS;

/// Longest line in bytes; the rest of a longer line is dropped. It must not become a line of its own: half a
/// token could not be recognized in it.
const LINE: usize = 4096;
/// Number of lines that may wait for the reader; when they are there, the program's next write blocks.
const LINES: usize = 256;

/// Runs programs under a supervisor with a fixed environment.
#[derive(Debug, Clone)]
pub struct Runner {
    /// The program that handles [`CALLED_AS`] as its first argument: flywheeld itself.
    pub supervisor: PathBuf,
    /// The whole environment of the program.
    pub env: Vec<(OsString, OsString)>,
    /// Removes tokens from what the program writes, which may repeat what a server said.
    pub scrub: Scrub,
}

/// A function that removes tokens from a text.
#[derive(Clone)]
pub struct Scrub(Arc<dyn Fn(&str) -> String + Send + Sync>);

impl Scrub {
    /// Wraps the function.
    pub fn new(scrub: impl Fn(&str) -> String + Send + Sync + 'static) -> Self {
        Self(Arc::new(scrub))
    }

    /// Removes control characters and tokens from a line. In this order, because a control character may be
    /// in the middle of a token.
    fn line(&self, line: &str) -> String {
        let plain: String =
            line.chars().map(|c| if c == '\t' { ' ' } else { c }).filter(|c| !c.is_control()).collect();
        (self.0)(&plain)
    }
}

impl std::fmt::Debug for Scrub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Scrub")
    }
}

/// Limits of one run of a program.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Largest address space in bytes; `None` means no limit.
    pub memory: Option<u64>,
    /// Longest duration of the run.
    pub time: Duration,
    /// Longest time without a line of output and without use of the processor. With `None` only `time` applies.
    pub stall: Option<Duration>,
}

/// How a program ended.
#[derive(Debug)]
pub enum Ended {
    /// It ended with this status; 128 + N means that signal N ended it.
    Exited(i32),
    /// The runner killed it because it wrote nothing and used no processor time for this long.
    Stalled(Duration),
    /// The runner killed it because it took longer than this.
    TimedOut(Duration),
    /// The runner could not start it, or could not wait for its end.
    NotRun(io::Error),
}

impl Ended {
    /// Whether it ended with status 0.
    pub fn is_good(&self) -> bool {
        matches!(self, Self::Exited(0))
    }
}

impl std::fmt::Display for Ended {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exited(status @ 129..=192) => write!(f, "it was ended by signal {}", status - 128),
            Self::Exited(status) => write!(f, "it ended with status {status}"),
            Self::Stalled(after) => write!(f, "it made no progress for {} s", after.as_secs_f32()),
            Self::TimedOut(after) => write!(f, "it did not finish within {} s", after.as_secs_f32()),
            Self::NotRun(error) => write!(f, "it could not be run: {error}"),
        }
    }
}

/// The stream that a line came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Stream {
    Out,
    Err,
}

/// Kills a program and everything that it started.
struct Group(Option<Pid>);

impl Drop for Group {
    fn drop(&mut self) {
        if let Some(group) = self.0 {
            let _ = kill_process_group(group, Signal::KILL);
        }
    }
}

impl Runner {
    /// Runs `command` (a program and its arguments) with `env` added to the
    /// environment, writes `input` to it line by line, and calls back with each
    /// line of its output. Kills the program when the future is dropped.
    pub(super) async fn run(
        &self,
        command: &[OsString],
        env: &[(&str, OsString)],
        input: &[String],
        limits: Limits,
        mut said: impl FnMut(Stream, &str),
    ) -> Ended {
        let mut child = Command::new(&self.supervisor);
        child.arg(CALLED_AS).arg(limits.memory.unwrap_or(0).to_string()).args(command);
        child.env_clear().envs(self.env.iter().map(|(k, v)| (k, v))).envs(env.iter().map(|(k, v)| (k, v)));
        child.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).process_group(0);
        let mut child = match child.spawn() {
            Ok(child) => child,
            Err(error) => return Ended::NotRun(error),
        };
        let group = child.id().and_then(|id| Pid::from_raw(i32::try_from(id).ok()?));
        let _killed_with_us = Group(group);
        let (Some(mut lifeline), Some(out), Some(err)) =
            (child.stdin.take(), child.stdout.take(), child.stderr.take())
        else {
            return Ended::NotRun(io::Error::other("it has no standard streams"));
        };
        let text: String = input.iter().flat_map(|line| [line.as_str(), "\n"]).chain(["\n"]).collect();
        let (sender, mut lines) = mpsc::channel(LINES);
        let readers = [
            tokio::spawn(read(out, Stream::Out, sender.clone())),
            tokio::spawn(read(err, Stream::Err, sender)),
        ];
        let begun = Instant::now();
        let mut moved = (begun, 0_u64);
        let feeding = async move {
            // If the program does not read its input, its exit status says why.
            let _ = lifeline.write_all(text.as_bytes()).await;
            lifeline
        };
        tokio::pin!(feeding);
        let mut held = None;
        let mut pulse = tokio::time::interval(limits.stall.unwrap_or(limits.time).min(limits.time) / 8);
        pulse.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        let ended = loop {
            tokio::select! {
                line = lines.recv() => match line {
                    Some((stream, line)) => {
                        moved.0 = Instant::now();
                        said(stream, &self.scrub.line(&line));
                    }
                    // Both streams are closed, so only the exit status is missing.
                    None => match tokio::time::timeout(limits.time, child.wait()).await {
                        Ok(Ok(status)) => break Ended::Exited(status.code().unwrap_or(128 + 9)),
                        Ok(Err(error)) => break Ended::NotRun(error),
                        Err(_) => break Ended::TimedOut(limits.time),
                    },
                },
                line = &mut feeding, if held.is_none() => held = Some(line),
                _ = pulse.tick() => {
                    let ticks = group.map_or(0, processor_time);
                    if ticks != moved.1 {
                        moved = (Instant::now(), ticks);
                    }
                    if begun.elapsed() >= limits.time {
                        break Ended::TimedOut(limits.time);
                    }
                    if let Some(stall) = limits.stall.filter(|stall| moved.0.elapsed() >= *stall) {
                        break Ended::Stalled(stall);
                    }
                }
            }
        };
        readers.iter().for_each(tokio::task::JoinHandle::abort);
        ended
    }
}

/// Reads lines of a stream and cuts those that are too long. Bytes that are not
/// UTF-8 become replacement characters.
async fn read(from: impl AsyncRead + Unpin, stream: Stream, sender: mpsc::Sender<(Stream, String)>) {
    let mut from = BufReader::with_capacity(LINE, from);
    let mut line = Vec::new();
    loop {
        let Ok(piece) = from.fill_buf().await else { return };
        if piece.is_empty() {
            break;
        }
        let end = piece.iter().position(|b| matches!(b, b'\n' | b'\r'));
        let take = end.unwrap_or(piece.len());
        line.extend_from_slice(&piece[..take.min(LINE - line.len())]);
        let used = end.map_or(take, |end| end + 1);
        from.consume(used);
        if end.is_some() && !tell(&mut line, stream, &sender).await {
            return;
        }
    }
    tell(&mut line, stream, &sender).await;
}

async fn tell(line: &mut Vec<u8>, stream: Stream, sender: &mpsc::Sender<(Stream, String)>) -> bool {
    let text = String::from_utf8_lossy(line).into_owned();
    line.clear();
    text.trim().is_empty() || sender.send((stream, text)).await.is_ok()
}

/// Returns the processor time of a process group in clock ticks, which shows whether
/// the program makes progress. Reads fields 5, 14 and 15 of proc_pid_stat(5).
fn processor_time(group: Pid) -> u64 {
    let Ok(entries) = std::fs::read_dir("/proc") else { return 0 };
    let stat = |entry: io::Result<std::fs::DirEntry>| {
        let name = entry.ok()?.file_name();
        name.to_str()?.bytes().all(|b| b.is_ascii_digit()).then_some(())?;
        std::fs::read_to_string(std::path::Path::new("/proc").join(name).join("stat")).ok()
    };
    entries.filter_map(stat).filter_map(|stat| ticks(&stat, group)).sum()
}

fn ticks(stat: &str, group: Pid) -> Option<u64> {
    // The second field is a name in parentheses, which may contain spaces and parentheses.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |n: usize| fields.get(n)?.parse::<u64>().ok();
    (number(2)? == u64::from(group.as_raw_nonzero().get().unsigned_abs())).then_some(())?;
    Some(number(11)? + number(12)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_time_of_a_group_is_read() {
        let group = Pid::from_raw(42).unwrap();
        let stat = "7 (a) b) S 1 42 42 0 -1 4194304 1 0 0 0 30 12 0 0 20 0 1 0 5 0 0";
        assert_eq!(ticks(stat, group), Some(42));
        assert_eq!(ticks(&stat.replace(" 1 42 42", " 1 43 42"), group), None);
        assert_eq!(ticks("7 (a", group), None);
        assert_eq!(ticks("7 (a) S 1 42", group), None);
    }

    #[tokio::test]
    async fn lines_have_a_longest() {
        let (sender, mut lines) = mpsc::channel(16);
        let text = ["x".repeat(5000), "\r\n\n".into(), "short\n".into(), "\u{fffd}end".into()].concat();
        read(text.as_bytes(), Stream::Err, sender).await;
        let mut lengths = Vec::new();
        while let Some((stream, line)) = lines.recv().await {
            assert_eq!(stream, Stream::Err);
            lengths.push(line.chars().count());
        }
        assert_eq!(lengths, [LINE, 5, 4]);
    }

    #[test]
    fn tokens_are_removed_before_anything_else() {
        let scrub = Scrub::new(|text| text.replace("secret", "[token]"));
        assert_eq!(scrub.line("a\tse\u{1b}cret\u{7}!"), "a [token]!");
    }
}
