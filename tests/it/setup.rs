//! The questions of `flywheelctl setup` on a real terminal, below another root directory.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;

use crate::support::terminal::OnTerminal;

const TOKEN: &str = "token-that-is-not-shown";

/// `flywheelctl setup` for the host below this directory.
fn setup(root: &Path) -> OnTerminal {
    let mut command = Command::new(env!("CARGO_BIN_EXE_flywheelctl"));
    command.arg("setup").arg("--root").arg(root).env_remove("CI");
    OnTerminal::start(command, 40, 160)
}

/// Answers the questions up to the last one, whether this is to be done.
fn answer(terminal: &OnTerminal) {
    terminal.until_shown("Address of the Attic server");
    terminal.press(b"https://attic.example.com\r");
    terminal.until_shown("Name of the cache on it (empty: main)");
    terminal.press(b"ci\r");
    terminal.until_shown("Token that may push");
    terminal.press(format!("{TOKEN}\r").as_bytes());
    terminal.until_shown("Users whose jobs push");
    terminal.press(b"\r");
    terminal.until_shown("Do this?");
}

/// The number of files below a directory.
fn files(root: &Path) -> usize {
    let entries = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path());
    entries.map(|path| if path.is_dir() { files(&path) } else { 1 }).sum()
}

#[test]
fn it_asks_shows_what_it_will_do_and_never_the_token() {
    let root = tempfile::tempdir().unwrap();
    let mut terminal = setup(root.path());
    answer(&terminal);
    assert_eq!(files(root.path()), 0, "nothing is done before the answer");
    terminal.press(b"y\r");
    assert_eq!(terminal.ended().code(), Some(0));
    let written = String::from_utf8_lossy(&terminal.raw.lock().unwrap()).into_owned();
    assert!(!written.contains(TOKEN), "{written}");
    assert!(written.contains("/etc/credstore/attic-token"), "{written}");
    let token = root.path().join("etc/credstore/attic-token");
    assert_eq!(std::fs::read_to_string(&token).unwrap().trim(), TOKEN);
    assert_eq!(token.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let settings =
        std::fs::read_to_string(root.path().join("etc/flywheel/flywheel.toml.d/60-setup.toml")).unwrap();
    assert!(settings.contains("https://attic.example.com") && settings.contains("ci"), "{settings}");

    // A host that is set up is not asked for the server again.
    let mut terminal = setup(root.path());
    terminal.until_shown("Users whose jobs push");
    assert!(!terminal.text().contains("Address of the Attic server"));
    terminal.press(b"\r");
    assert_eq!(terminal.ended().code(), Some(0));
}

#[test]
fn without_a_yes_nothing_is_done() {
    for keys in [&b"n\r"[..], b"\r"] {
        let root = tempfile::tempdir().unwrap();
        let mut terminal = setup(root.path());
        answer(&terminal);
        terminal.press(keys);
        assert_eq!(terminal.ended().code(), Some(2));
        terminal.until_shown("nothing was changed");
        assert_eq!(files(root.path()), 0);
    }
    // An answer that cannot be used ends it, and so does Ctrl-C while the token is typed unseen.
    let root = tempfile::tempdir().unwrap();
    let mut terminal = setup(root.path());
    terminal.until_shown("Address of the Attic server");
    terminal.press(b"attic.example.com\r");
    assert_eq!(terminal.ended().code(), Some(2));
    terminal.until_shown("is no address of a server");
    let mut terminal = setup(root.path());
    terminal.until_shown("Address of the Attic server");
    terminal.press(b"https://attic.example.com\r");
    terminal.until_shown("Name of the cache on it");
    terminal.press(b"\r");
    terminal.until_shown("Token that may push");
    terminal.press(b"half\x03");
    assert_eq!(terminal.ended().code(), Some(2));
    terminal.until_shown("nothing was changed");
    assert_eq!(files(root.path()), 0);
}
