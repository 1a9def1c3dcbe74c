//! packaging/quickstart.sh, which a newcomer runs first, does what the README shows.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use crate::support::documents::blocks;

#[test]
fn the_quick_start_prints_what_the_readme_shows() {
    let bin = Path::new(env!("CARGO_BIN_EXE_flywheeld")).parent().unwrap();
    // The README's first command, run from where the README is.
    let command = blocks("README.md", "sh").remove(0);
    let mut shell = Command::new("sh");
    shell.args(["-c", &command]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let out = shell.env("FLYWHEEL_BIN", bin).env_remove("KEEP").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    for line in ["after the flush: 59", "from the cache: 59, built: 21", "from the cache: 80, built: 0"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}

/// A compiler that is too old is found before anything is compiled, with a way to get a newer one.
#[test]
fn the_quick_start_says_how_to_get_a_newer_rust() {
    let old = tempfile::tempdir().unwrap();
    for program in ["cargo", "rustc"] {
        let file = old.path().join(program);
        fs::write(&file, "#!/bin/sh\necho 'rustc 1.85.0 (4d91de4e4 2025-02-17)'\n").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    }
    let path = format!("{}:{}", old.path().display(), std::env::var("PATH").unwrap());
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/quickstart.sh");
    let out = Command::new(script).env("PATH", path).env_remove("FLYWHEEL_BIN").output().unwrap();
    let text = String::from_utf8_lossy(&out.stderr);
    assert_eq!(out.status.code(), Some(1), "{text}");
    assert!(text.contains("Rust 1.85.0 is too old: flywheel needs Rust 1.89 or newer"), "{text}");
    assert!(text.contains("rustup") && text.contains("--binary flywheel-VERSION"), "{text}");
}

/// A wrong word gets the usage, and an archive that is none gets a message that says which one is
/// meant.
#[test]
fn the_quick_start_checks_what_it_is_given() {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/quickstart.sh");
    let run = |args: &[&str]| {
        let out = Command::new(&script).args(args).env_remove("FLYWHEEL_BIN").output().unwrap();
        (out.status.code(), String::from_utf8_lossy(&out.stderr).into_owned())
    };
    let (code, text) = run(&["--binaries", "x"]);
    assert!(code == Some(2) && text.contains("Usage: packaging/quickstart.sh [--binary"), "{text}");
    let (code, text) = run(&["--binary", "Cargo.toml"]);
    assert!(code == Some(1) && text.contains("wants the archive of a release"), "{text}");
    let empty = tempfile::tempdir().unwrap();
    let (code, text) = run(&["--binary", empty.path().to_str().unwrap()]);
    assert!(code == Some(1) && text.contains("has no flywheeld"), "{text}");
}
