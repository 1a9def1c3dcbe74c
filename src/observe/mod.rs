//! The log: to journald with fields, or as lines to standard error. Must not know
//! any other room.
//!
//! [`events`] lists all kinds of entries. `event!` gives an entry its `MESSAGE_ID`
//! and its fields the prefix `FLYWHEEL_`; journald makes the names upper case. Lines
//! on standard error have neither.

pub mod events;
mod recent;

use std::fmt::{self, Debug, Display};
use std::io;

use tracing::field::Field;
use tracing_journald::{Priority, PriorityMappings};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::fmt::format::{FieldFn, Format, Writer, debug_fn};
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::{Layer, Registry};

pub(crate) use events::{detail, event};
pub(crate) use recent::recent;

/// The environment variable with the levels to log, such as `info,flywheel::flow=debug`.
pub const LEVEL: &str = "FLYWHEEL_LOG";

/// Where the log is to go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// To journald when standard error leads there, else to standard error.
    Auto,
    /// To standard error.
    Stderr,
}

/// Where the log goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sink {
    /// To journald, with fields.
    Journal,
    /// To standard error, as lines.
    Stderr,
    /// An earlier call has set up the log; this call has changed nothing.
    Earlier,
}

/// Sets up the log of this process. Does not fail: without journald, lines go to
/// standard error, with the reason.
pub fn init(target: Target) -> Sink {
    let under_journald = leads_to_journald();
    let (filter, bad_filter) = filter(std::env::var(LEVEL).ok().as_deref());
    let mut no_journal = None;

    let mut journal = None;
    if target == Target::Auto && under_journald {
        match tracing_journald::layer() {
            Ok(layer) => journal = Some(layer.with_field_prefix(None).with_priority_mappings(priorities())),
            Err(error) => no_journal = Some(error),
        }
    }
    let (sink, set) = match journal {
        Some(layer) => (Sink::Journal, install(layer, filter)),
        // Under systemd the reader of standard error adds the time.
        None if under_journald => (Sink::Stderr, install(lines().without_time(), filter)),
        None => (Sink::Stderr, install(lines(), filter)),
    };
    if set.is_err() {
        return Sink::Earlier;
    }
    if let Some(error) = no_journal {
        event!(JOURNALD_AWAY, error = %error, "journald cannot be reached ({error}), the log goes to standard error");
    }
    if let Some(reason) = bad_filter {
        event!(LOG_LEVEL_UNKNOWN, error = reason, "${LEVEL} is not understood, logging from level info on");
    }
    sink
}

fn install<L>(layer: L, filter: Targets) -> Result<(), tracing::subscriber::SetGlobalDefaultError>
where
    L: Layer<Registry> + Send + Sync,
{
    let layers = vec![layer.with_filter(filter).boxed(), recent::Keep.with_filter(LevelFilter::INFO).boxed()];
    tracing::subscriber::set_global_default(tracing_subscriber::registry().with(layers))
}

type Fields = FieldFn<fn(&mut Writer<'_>, &Field, &dyn Debug) -> fmt::Result>;
type Lines = tracing_subscriber::fmt::Layer<Registry, Fields, Format, fn() -> io::Stderr>;

fn lines() -> Lines {
    // With a closed standard error the line is lost, without a panic.
    tracing_subscriber::fmt::layer()
        .fmt_fields(debug_fn(field as fn(&mut Writer<'_>, &Field, &dyn Debug) -> fmt::Result))
        .with_writer(io::stderr as fn() -> io::Stderr)
        .with_ansi(false)
        .log_internal_errors(false)
}

/// Writes one field of a line: without its prefix, and without the id.
fn field(line: &mut Writer<'_>, field: &Field, value: &dyn Debug) -> fmt::Result {
    use fmt::Write as _;
    let mut line = OneLine(line);
    match field.name() {
        "message" => write!(line, "{value:?}"),
        "MESSAGE_ID" => Ok(()),
        name => write!(line, " {}={value:?}", name.strip_prefix("FLYWHEEL_").unwrap_or(name)),
    }
}

/// Writes text of any origin as a part of one line: a space stands for each character that
/// would begin another line, move the cursor of a terminal or change the direction of text.
/// journald keeps entries apart by itself.
struct OneLine<W>(W);

impl<W: fmt::Write> fmt::Write for OneLine<W> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let is_unfit = |c: char| {
            c.is_control()
                || matches!(c, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
        };
        let mut parts = text.split(is_unfit);
        self.0.write_str(parts.next().unwrap_or_default())?;
        for part in parts {
            self.0.write_char(' ')?;
            self.0.write_str(part)?;
        }
        Ok(())
    }
}

/// Logs that the configuration cannot be used.
pub fn configuration_refused(error: &dyn Display) {
    event!(CONFIG_REFUSED, "{error}");
}

/// Logs the result of a check that found no error, with the warnings.
pub fn configuration_good(warnings: &[String], caches: usize) {
    for warning in warnings {
        event!(CONFIG_WARNING, "{warning}");
    }
    let plural = if caches == 1 { "" } else { "s" };
    event!(CONFIG_GOOD, "the configuration is good: {caches} cache{plural}");
}

/// Logs why the daemon could not start or had to end.
pub fn failed(error: &dyn Display) {
    event!(FAILED, "{error}");
}

/// Maps tracing's levels to journald's. Level info becomes "informational", because
/// "notice" marks a line as unusual.
fn priorities() -> PriorityMappings {
    PriorityMappings { info: Priority::Informational, debug: Priority::Debug, ..PriorityMappings::new() }
}

/// Reads the levels to log: a level, or a list such as `info,flywheel::ledger=debug`. When they
/// cannot be read, uses `info` and also returns the reason.
fn filter(levels: Option<&str>) -> (Targets, Option<String>) {
    let info = || Targets::new().with_default(LevelFilter::INFO);
    let Some(levels) = levels.map(str::trim).filter(|levels| !levels.is_empty()) else {
        return (info(), None);
    };
    match levels.parse() {
        Ok(filter) => (filter, None),
        Err(error) => (info(), Some(format!("{error}"))),
    }
}

/// Returns whether standard error leads to journald. `$JOURNAL_STREAM` has device and
/// inode of the stream (systemd.exec(5)). A child inherits the variable, so standard
/// error is compared with it.
fn leads_to_journald() -> bool {
    let Some(stream) = std::env::var("JOURNAL_STREAM").ok() else { return false };
    rustix::fs::fstat(io::stderr()).is_ok_and(|stat| is_stream(&stream, stat.st_dev, stat.st_ino))
}

fn is_stream(stream: &str, device: u64, inode: u64) -> bool {
    let number = |text: &str| text.parse::<u64>().ok();
    stream.split_once(':').is_some_and(|(d, i)| number(d) == Some(device) && number(i) == Some(inode))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_stream_is_the_journal() {
        for (stream, yes) in [
            ("8:1234", true),
            ("8:1235", false),
            ("9:1234", false),
            ("8:", false),
            (":", false),
            ("", false),
            ("1234", false),
            ("8:1234:1", false),
            ("-8:1234", false),
        ] {
            assert_eq!(is_stream(stream, 8, 1234), yes, "{stream:?}");
        }
    }

    #[test]
    fn text_of_strangers_stays_in_its_line() {
        use std::fmt::Write as _;
        let mut line = String::new();
        let forged = "2026 ERROR forged\u{202e}\r";
        write!(OneLine(&mut line), "a\n{forged}\u{1b}[31m").unwrap();
        assert_eq!(line, "a 2026 ERROR forged   [31m");
    }

    #[test]
    fn levels() {
        for (wish, level, understood) in [
            (None, "info", true),
            (Some(""), "info", true),
            (Some(" debug "), "debug", true),
            (Some("warn,flywheel::flow=trace"), "flywheel::flow=trace,warn", true),
            (Some("flywheel=loud"), "info", false),
        ] {
            let (filter, reason) = filter(wish);
            assert_eq!((filter.to_string().as_str(), reason.is_none()), (level, understood), "{wish:?}");
        }
    }
}
