//! The log of a separate process: what arrives at its standard error.

use std::fs::File;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::Command;

use flywheel::observe::{self, Sink, Target};

const CHILD: &str = "FLYWHEEL_TEST_OBSERVE_CHILD";

/// Runs only in the child process: logs a line of each level.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    assert_ne!(observe::init(Target::Auto), Sink::Earlier);
    tracing::debug!("a detail");
    tracing::info!(session = "s1", "a line");
    assert_eq!(observe::init(Target::Auto), Sink::Earlier);
}

/// Starts this test binary again with `child` only; returns what it wrote to its standard error,
/// which is a regular file.
fn run(level: Option<&str>, journal: bool) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stderr");
    let stderr = File::create(&path).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command.args(["--exact", "observe::stderr::child", "--nocapture"]).env(CHILD, "1");
    command.env_remove("FLYWHEEL_LOG").env_remove("JOURNAL_STREAM");
    if let Some(level) = level {
        command.env("FLYWHEEL_LOG", level);
    }
    if journal {
        let meta = stderr.metadata().unwrap();
        command.env("JOURNAL_STREAM", format!("{}:{}", meta.dev(), meta.ino()));
    }
    let out = command.stderr(stderr).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stdout));
    let mut text = String::new();
    File::open(&path).unwrap().read_to_string(&mut text).unwrap();
    text
}

#[test]
fn lines_on_standard_error() {
    let text = run(None, false);
    assert!(text.contains("INFO") && text.contains("a line session=\"s1\""), "{text}");
    assert!(!text.contains("a detail") && !text.contains('\u{1b}'), "{text}");
    let text = run(Some("debug"), false);
    assert!(text.contains("a detail"), "{text}");
}

#[test]
fn an_unknown_level_is_said() {
    let text = run(Some("flywheel=loud"), false);
    assert!(text.contains("$FLYWHEEL_LOG is not understood") && text.contains("a line"), "{text}");
}

/// Standard error is what `$JOURNAL_STREAM` names. With a journald on the host the lines go there;
/// without one they come here, without a time, and with the reason.
#[test]
fn logging_works_without_journald() {
    let text = run(None, true);
    if Path::new("/run/systemd/journal/socket").exists() {
        assert_eq!(text, "");
    } else {
        assert!(text.contains("journald cannot be reached"), "{text}");
        assert!(
            text.lines().any(|line| line.starts_with(" INFO ") && line.ends_with("a line session=\"s1\"")),
            "{text}"
        );
    }
}
