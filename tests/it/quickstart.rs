//! packaging/quickstart.sh, which a newcomer runs first, does what the README shows.

use std::path::Path;
use std::process::Command;

#[test]
fn the_quick_start_prints_what_the_readme_shows() {
    let bin = Path::new(env!("CARGO_BIN_EXE_flywheeld")).parent().unwrap();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/quickstart.sh");
    let out = Command::new(script).env("FLYWHEEL_BIN", bin).env_remove("KEEP").output().unwrap();
    let text = String::from_utf8_lossy(&out.stdout);
    assert!(out.status.success(), "{text}\n{}", String::from_utf8_lossy(&out.stderr));
    for line in ["after the flush: 59", "from the cache: 59, built: 21", "from the cache: 80, built: 0"] {
        assert!(text.contains(line), "{line}: {text}");
    }
}
