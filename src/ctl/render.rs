//! Prints to standard output and standard error. Only this file prints. Must not
//! decide anything.
//!
//! Standard output has the result that was asked for and nothing else. It is no
//! error when nobody reads it.

use std::{
    fs::OpenOptions,
    io::{self, IsTerminal, Read, Write},
    os::unix::fs::OpenOptionsExt as _,
    path::Path,
    time::{Duration, Instant},
};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use serde::Serialize;

use super::{
    ci_log::{CiLog, Level},
    doctor::Finding,
    exit::{Exit, Failure},
    nix_conf::{Knows, Lines},
    pace::Pace,
    push_stdin::Settled,
    report,
    setup::Plan,
    text, variable,
    verify::Report,
};
use crate::control::messages::{
    ClientInfo, PathStory, Progress, SessionDetail, SessionEntry, Status, Summary,
};
use crate::types::Wall;

/// The time between two lines of progress where there is no terminal.
const LINE_EVERY: Duration = Duration::from_secs(10);
/// The time between two updates of the progress bar.
const BAR_EVERY: Duration = Duration::from_millis(100);
/// What a terminal sends for Ctrl-C.
const CTRL_C: u8 = 3;
/// The longest line that is not shown, in bytes: what a terminal takes for one.
const LONGEST_SECRET: usize = 4096;

/// The kind of a summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Heading {
    Session,
    Push,
    Flush,
}

/// How and where to print.
#[derive(Debug, Clone)]
pub(super) struct Render {
    json: bool,
    quiet: bool,
    terminal: bool,
    colour: bool,
    /// The CI system whose log standard error is.
    ci_log: CiLog,
    /// Results go to standard error, because standard output belongs to a command.
    to_stderr: bool,
}

/// Prints clap's message. Help and version are results, all others are errors.
/// With `json`, an error is also printed as an object.
pub(super) fn usage(e: &clap::Error, json: bool) -> Exit {
    let _ = e.print();
    if !e.use_stderr() {
        return Exit::Done;
    }
    if json {
        let failure = Failure::Usage(e.to_string().trim().to_owned());
        Render::new(true, true).failure_object(&failure);
    }
    Exit::Usage
}

impl Render {
    pub(super) fn new(json: bool, quiet: bool) -> Self {
        let terminal = io::stderr().is_terminal();
        let colour = terminal && variable("NO_COLOR").is_none();
        Self { json, quiet, terminal, colour, ci_log: CiLog::of(variable), to_stderr: false }
    }

    /// Returns a copy that prints results to standard error.
    pub(super) fn on_stderr(&self) -> Self {
        Self { to_stderr: true, ..self.clone() }
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    fn out(&self, text: &str) -> io::Result<()> {
        if self.to_stderr {
            return io::stderr().write_all(text.as_bytes());
        }
        let mut out = io::stdout().lock();
        out.write_all(text.as_bytes())?;
        out.flush()
    }

    fn object(&self, value: &impl Serialize) -> io::Result<()> {
        self.out(&format!("{}\n", text::printable_json(&serde_json::to_string(value)?)))
    }

    fn say(&self, level: Level, text: &str) {
        let (word, colour) = match level {
            Level::Note => ("note", "36"),
            Level::Warning => ("warning", "33"),
            Level::Error => ("error", "31"),
        };
        let text = text::printable(text);
        let line = if let Some(line) = self.log_format().annotation(level, &text) {
            line
        } else if self.colour {
            format!("\x1b[{colour}m{word}:\x1b[0m {text}\n")
        } else {
            format!("{word}: {text}\n")
        };
        let _ = io::stderr().write_all(line.as_bytes());
    }

    /// Prints a warning.
    pub(super) fn warn(&self, text: &str) {
        self.say(Level::Warning, text);
    }

    /// Prints a note, unless `--quiet` is set.
    pub(super) fn note(&self, text: &str) {
        if !self.quiet {
            self.say(Level::Note, text);
        }
    }

    /// Prints why a command did not do what it was asked to do.
    pub(super) fn failure(&self, failure: &Failure, exit: Exit) {
        if self.json {
            self.failure_object(failure);
        }
        self.outcome(&failure.to_string(), exit);
    }

    fn failure_object(&self, failure: &Failure) {
        let (outcome, error) = (failure.outcome(), failure.to_string());
        let _ = self.object(&serde_json::json!({ "outcome": outcome, "error": error }));
    }

    /// Prints why the HTML report of a session that has ended was not written. The
    /// summary is the JSON object of that command.
    pub(super) fn report_failure(&self, failure: &Failure, exit: Exit) {
        self.outcome(&failure.to_string(), exit);
    }

    fn outcome(&self, text: &str, exit: Exit) {
        self.say(level(exit), text);
    }

    /// Prints bytes to standard output without a change.
    pub(super) fn raw(&self, bytes: &[u8]) {
        let _ = io::stdout().write_all(bytes);
    }

    pub(super) fn started(&self, session: &str, cache: &str) {
        let _ = if self.json {
            self.object(&serde_json::json!({ "session": session, "cache": cache }))
        } else {
            self.out(&format!("{}\n", text::printable(session)))
        };
        if let Some(line) = self.ci_log.step_environment(session) {
            self.append("GITHUB_ENV", &line);
        }
    }

    pub(super) fn summary(&self, summary: &Summary, heading: Heading, exit: Exit) {
        if self.json {
            let _ = self.object(summary);
        } else if !self.quiet {
            let ci_log = self.log_format();
            let _ = self.out(&ci_log.collapsed(&text::summary(summary, heading), summary, now_s()));
            let _ = io::stderr().write_all(ci_log.failures(level(exit), summary).as_bytes());
        }
        if let (Some(table), false) = (self.ci_log.step_summary(summary), self.quiet) {
            self.append("GITHUB_STEP_SUMMARY", &table);
        }
        for warning in &summary.warnings {
            self.warn(warning);
        }
        if let Some(shortfall) = text::shortfall(summary) {
            self.outcome(&shortfall, exit);
        }
    }

    pub(super) fn sessions(&self, list: &[SessionEntry]) {
        let _ = if self.json { self.object(&list) } else { self.out(&text::sessions(list, Wall::now().0)) };
    }

    /// Prints a session; with `paths` also when each step of each path was.
    pub(super) fn session(&self, detail: &SessionDetail, paths: bool) {
        let _ = if self.json {
            self.object(detail)
        } else {
            self.out(&text::session(detail, paths, Wall::now().0))
        };
    }

    /// Writes the report of a session to a file, as Markdown when it is called `*.md` and
    /// else as HTML, or prints the page. With `--json` the printed form is JSON.
    pub(super) fn report(&self, detail: &SessionDetail, output: Option<&Path>) -> io::Result<()> {
        match output {
            Some(file) => {
                write(file, OpenOptions::new().create(true).truncate(true), &report::page(detail, Some(file)))
            }
            None if self.json => self.object(detail),
            None => self.out(&report::page(detail, None)),
        }
    }

    /// Returns the log format; with `--json` there are no decorations.
    fn log_format(&self) -> CiLog {
        if self.json { CiLog::Plain } else { self.ci_log }
    }

    /// Appends to a file by which a step passes values to its runner.
    fn append(&self, named_by: &str, text: &str) {
        let Some(file) = variable(named_by) else { return };
        if let Err(e) = write(Path::new(&file), OpenOptions::new().append(true).create(true), text) {
            self.warn(&format!("${named_by}: {file} cannot be written: {e}"));
        }
    }

    /// Whether a screen can be drawn: the result goes to a terminal that somebody types at.
    pub(super) fn has_screen(&self) -> bool {
        !self.json && !self.quiet && io::stdout().is_terminal() && io::stdin().is_terminal()
    }

    /// Prints the state of the daemon. An error means that nobody reads standard output.
    pub(super) fn status(&self, status: &Status) -> io::Result<()> {
        if self.json {
            return self.object(&status_json(status));
        }
        self.out(&text::status(status, Wall::now().0))?;
        for warning in &status.warnings {
            self.warn(warning);
        }
        Ok(())
    }

    /// Prints the attic client, the caches, and how this host's Nix is set up for each.
    pub(super) fn client(&self, info: &ClientInfo, known: &[Option<Knows>]) {
        if !self.json {
            let _ = self.out(&text::client_info(info, known, Wall::now().0));
            return;
        }
        let mut value = serde_json::json!(info);
        for (i, knows) in known.iter().enumerate() {
            value["servers"][i]["nix"] = serde_json::json!(knows);
        }
        let _ = self.object(&value);
    }

    /// Prints the stories of paths; as JSON one object with a list.
    pub(super) fn stories(&self, stories: &[PathStory]) {
        let _ = if self.json {
            self.object(&serde_json::json!({ "paths": stories }))
        } else {
            self.out(&text::stories(stories, Wall::now().0))
        };
    }

    /// Prints the findings of `doctor`, and why the daemon was not asked, if it was not.
    pub(super) fn findings(&self, findings: &[Finding], bad: bool, failure: Option<&Failure>) {
        let outcome = failure.map_or(if bad { "bad" } else { "good" }, Failure::outcome);
        let error = failure.map(ToString::to_string);
        let _ = if self.json {
            let version = env!("CARGO_PKG_VERSION");
            let mut object =
                serde_json::json!({ "outcome": outcome, "version": version, "findings": findings });
            if let Some(error) = &error {
                object["error"] = serde_json::json!(error);
            }
            self.object(&object)
        } else {
            self.out(&text::findings(findings))
        };
        if let Some(error) = error {
            self.say(Level::Error, &error);
        }
    }

    /// Prints what `setup` will do.
    pub(super) fn plan(&self, plan: &Plan, dry_run: bool) {
        if !self.json && !self.quiet {
            let _ = self.out(&text::plan(plan, dry_run));
        }
    }

    /// Prints what `setup` did and found as an object, if JSON was asked for.
    pub(super) fn plan_object(
        &self,
        plan: &Plan,
        findings: &[Finding],
        outcome: &str,
        failure: Option<&Failure>,
    ) {
        let error = failure.map(ToString::to_string);
        if self.json {
            let steps: Vec<String> = plan.steps.iter().map(crate::ctl::setup::Step::text).collect();
            let _ = self.object(&serde_json::json!({
                "outcome": outcome, "steps": steps, "kept": plan.kept, "findings": findings, "error": error
            }));
        }
        if let Some(error) = error {
            self.say(Level::Error, &error);
        }
    }

    /// Prints the findings at the end of `setup`, which are part of its JSON object.
    pub(super) fn setup_findings(&self, findings: &[Finding]) {
        if !self.json {
            let _ = self.out(&text::findings(findings));
        }
    }

    /// Whether a person can be asked.
    pub(super) fn can_ask(&self) -> bool {
        !self.json && io::stdin().is_terminal() && self.terminal
    }

    /// Asks a person for a line; none at the end of the input.
    pub(super) fn ask(&self, question: &str) -> Option<String> {
        let _ = io::stderr().write_all(format!("{question}: ").as_bytes());
        let mut line = String::new();
        let read = io::stdin().read_line(&mut line);
        read.is_ok_and(|bytes| bytes > 0).then(|| line.trim().to_owned())
    }

    /// Asks a person for a line that is not shown; none when it was not finished.
    pub(super) fn ask_secret(&self, question: &str) -> Option<zeroize::Zeroizing<String>> {
        use rustix::termios::{LocalModes, OptionalActions, SpecialCodeIndex, tcgetattr, tcsetattr};
        let stdin = io::stdin();
        let before = tcgetattr(&stdin).ok()?;
        let mut silent = before.clone();
        // A signal would end the program before it gives the terminal back, so Ctrl-C ends
        // the line instead.
        silent.local_modes.remove(LocalModes::ECHO | LocalModes::ISIG);
        silent.special_codes[SpecialCodeIndex::VEOL] = CTRL_C;
        tcsetattr(&stdin, OptionalActions::Flush, &silent).ok()?;
        let _ = io::stderr().write_all(format!("{question}: ").as_bytes());
        let mut line = zeroize::Zeroizing::new(Vec::with_capacity(LONGEST_SECRET));
        let ended = loop {
            let mut byte = [0];
            match stdin.lock().read(&mut byte) {
                Ok(1) if byte == [b'\n'] => break true,
                Ok(1) if byte != [CTRL_C] && line.len() < LONGEST_SECRET => line.push(byte[0]),
                _ => break false,
            }
        };
        let _ = tcsetattr(&stdin, OptionalActions::Flush, &before);
        let _ = io::stderr().write_all(b"\n");
        let text = std::str::from_utf8(&line).ok().filter(|_| ended)?;
        Some(zeroize::Zeroizing::new(text.trim().to_owned()))
    }

    /// Asks a person for a yes; anything else is a no.
    pub(super) fn confirm(&self, question: &str) -> bool {
        let answer = self.ask(&format!("{question} [y/N]"));
        answer.is_some_and(|answer| matches!(answer.to_ascii_lowercase().as_str(), "y" | "yes"))
    }

    /// Prints what became of one path: as JSON one object in a line.
    pub(super) fn settled(&self, settled: &Settled) {
        let _ = if self.json {
            self.object(settled)
        } else if !self.quiet || settled.error.is_some() {
            self.out(&text::settled(settled))
        } else {
            Ok(())
        };
    }

    /// Prints what a verification found.
    pub(super) fn verification(&self, report: &Report) {
        if self.json {
            let _ = self.object(report);
            return;
        }
        if !self.quiet || report.found.problems_total > 0 {
            let _ = self.out(&text::verification(report));
        }
        for error in &report.repair_errors {
            self.warn(&format!("not repaired: {error}"));
        }
    }

    pub(super) fn nix_conf(&self, lines: &Lines) {
        let _ = if self.json { self.object(lines) } else { self.out(&text::nix_conf(lines)) };
    }

    pub(super) fn done(&self, message: &str) {
        if self.json {
            let _ = self.object(&serde_json::json!({ "message": message }));
        } else if !self.quiet {
            let _ = self.out(&format!("{}\n", text::printable(message)));
        }
    }

    /// Returns a progress display for one wait.
    pub(super) fn bar(&self) -> Bar {
        let style = match (self.quiet, self.terminal) {
            (true, _) => Style::Nothing,
            (false, true) => Style::Bar,
            (false, false) => Style::Lines,
        };
        Bar { style, last: Instant::now(), drawn: false, note: None, pace: Pace::default() }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Style {
    Nothing,
    Bar,
    Lines,
}

/// The part of a reason that does not change while time passes: the cache and what it
/// does.
fn topic(note: &str) -> &str {
    note.split(" for ").next().unwrap_or(note)
}

/// Shows progress on standard error: a bar on a terminal, else a line every
/// [`LINE_EVERY`]. A shorter wait shows nothing.
#[derive(Debug)]
pub(super) struct Bar {
    style: Style,
    last: Instant,
    drawn: bool,
    /// The last reason why nothing is uploaded that was printed.
    note: Option<String>,
    pace: Pace,
}

impl Bar {
    /// Shows the progress of a wait, at intervals. The reason why nothing is uploaded is
    /// printed at once, when it is a new one.
    pub(super) fn show(&mut self, p: &Progress) {
        self.pace.take(Instant::now(), p.bytes_sent);
        let topic = p.note.as_deref().map(topic);
        if self.style != Style::Nothing
            && let (Some(topic), Some(note)) = (topic, &p.note)
            && self.note.as_deref() != Some(topic)
        {
            self.clear();
            self.note = Some(topic.to_owned());
            let waits = match p.total - p.settled.min(p.total) {
                0 => String::new(),
                1 => "1 path waits: ".to_owned(),
                n => format!("{n} paths wait: "),
            };
            let line = format!("flywheel: {waits}{}\n", text::printable(note));
            let _ = io::stderr().write_all(line.as_bytes());
        }
        let every = match self.style {
            Style::Nothing => return,
            Style::Bar => BAR_EVERY,
            Style::Lines => LINE_EVERY,
        };
        if self.last.elapsed() < every {
            return;
        }
        self.last = Instant::now();
        let line = if self.style == Style::Bar {
            self.drawn = true;
            let line = format!("{} {}", text::bar(p), text::progress(p, &self.pace));
            format!("\r\x1b[K{}", fit(&line, columns()))
        } else {
            format!("flywheel: {}\n", text::progress(p, &self.pace))
        };
        let _ = io::stderr().write_all(line.as_bytes());
    }

    /// Removes the bar from the terminal.
    pub(super) fn clear(&mut self) {
        if std::mem::take(&mut self.drawn) {
            let _ = io::stderr().write_all(b"\r\x1b[K");
        }
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Writes text to a file that the caller names. Fails for a pipe that nobody reads, since
/// opening it would wait for a reader.
fn write(file: &Path, how: &mut OpenOptions, text: &str) -> io::Result<()> {
    let flags = OFlags::NONBLOCK | OFlags::NOCTTY;
    let opened = how.write(true).custom_flags(i32::from_ne_bytes(flags.bits().to_ne_bytes())).open(file);
    let mut opened = opened.map_err(|e| match Errno::from_io_error(&e) {
        Some(Errno::NXIO) => io::Error::other("nobody reads this pipe"),
        _ => e,
    })?;
    // A pipe with a reader takes all of the text, however slowly it reads.
    fcntl_setfl(&opened, fcntl_getfl(&opened)? - OFlags::NONBLOCK)?;
    opened.write_all(text.as_bytes())
}

/// The width of the terminal that standard error is; 80 if it is not known.
fn columns() -> usize {
    let size = rustix::termios::tcgetwinsize(io::stderr());
    size.ok().map(|size| usize::from(size.ws_col)).filter(|columns| *columns > 0).unwrap_or(80)
}

/// Cuts a line that would not fit into a terminal of this width: what is in the next line
/// cannot be removed again.
fn fit(line: &str, columns: usize) -> String {
    let room = columns.saturating_sub(1);
    if line.chars().count() <= room {
        return line.to_owned();
    }
    line.chars().take(room.saturating_sub(1)).chain(['…']).collect()
}

/// Returns the documented JSON of a status. Earlier versions said `parked` for failed.
fn status_json(status: &Status) -> serde_json::Value {
    let mut value = serde_json::json!(status);
    value["queue"]["parked"] = value["queue"]["failed"].clone();
    value["parked"] = value["failed"].clone();
    value
}

fn level(exit: Exit) -> Level {
    if exit == Exit::Done { Level::Warning } else { Level::Error }
}

fn now_s() -> u64 {
    u64::try_from(Wall::now().0 / 1000).unwrap_or_default()
}
