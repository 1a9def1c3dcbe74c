//! Each mechanism that tests/mutants.py breaks is still where it looks for it.

use std::process::Command;

#[test]
fn each_mutant_fits_the_code() {
    let mut check = Command::new("python3");
    check.args(["tests/mutants.py", "--check"]).current_dir(env!("CARGO_MANIFEST_DIR"));
    let Ok(checked) = check.output() else {
        eprintln!("skipped: python3 is not installed");
        return;
    };
    assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stderr));
}
