//! packaging/container/image.sh: what the OCI image has in it. The programs in it are stand-ins,
//! because those of the tests are not static; a release's image has flywheel's.

use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::daemon::CommandResult;

fn image(binaries: &Path, target: &Path) -> CommandResult {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/container/image.sh");
    let mut command = Command::new(script);
    command.arg("--binaries").arg(binaries).env("CARGO_TARGET_DIR", target);
    CommandResult::of(&command.output().unwrap())
}

/// Whether umoci and the certificate authorities are here; prints why not.
fn possible() -> bool {
    let umoci = Command::new("umoci").arg("--version").output().is_ok_and(|o| o.status.success());
    let possible = umoci && Path::new("/etc/ssl/certs/ca-certificates.crt").exists();
    if !possible {
        eprintln!("skipped: umoci or ca-certificates is not here (apt-get install umoci ca-certificates)");
    }
    possible
}

#[test]
fn programs_that_need_libraries_are_refused() {
    if !possible() {
        return;
    }
    let target = tempfile::tempdir().unwrap();
    let programs = Path::new(env!("CARGO_BIN_EXE_flywheeld")).parent().unwrap();
    let refused = image(programs, target.path());
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.err.contains("needs libraries, which the image does not have"), "{refused:?}");
}

#[test]
fn the_image_has_the_programs_and_the_certificate_authorities() {
    if !possible() {
        return;
    }
    let top = tempfile::tempdir().unwrap();
    let source = top.path().join("program.c");
    fs::write(&source, "int main(void) { return 0; }\n").unwrap();
    for program in ["flywheeld", "flywheelctl"] {
        let mut cc = Command::new("cc");
        let made = cc.arg("-static").arg("-o").arg(top.path().join(program)).arg(&source).output().unwrap();
        if !made.status.success() {
            return eprintln!("skipped: cc makes no static programs here");
        }
    }
    let made = image(top.path(), top.path());
    assert_eq!(made.code, 0, "{made:?}");
    let archive = made.out.lines().last().unwrap();
    let unpacked = top.path().join("unpacked");
    fs::create_dir(&unpacked).unwrap();
    let tar = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(&unpacked).status().unwrap();
    assert!(tar.success());
    // index.json names the manifest, the manifest the configuration and the layers.
    let read = |file: &Path| -> Value { serde_json::from_slice(&fs::read(file).unwrap()).unwrap() };
    let blob = |digest: &Value| {
        unpacked.join("blobs/sha256").join(digest.as_str().unwrap().strip_prefix("sha256:").unwrap())
    };
    let index = read(&unpacked.join("index.json"));
    let manifest = read(&blob(&index["manifests"][0]["digest"]));
    let config = read(&blob(&manifest["config"]["digest"]))["config"].clone();
    assert_eq!(config["Entrypoint"], serde_json::json!(["/bin/flywheeld"]), "{config}");
    assert_eq!((&config["User"], &config["StopSignal"]), (&"0:970".into(), &"SIGTERM".into()), "{config}");
    let mut files = String::new();
    for layer in manifest["layers"].as_array().unwrap() {
        let listed = Command::new("tar").arg("-tzf").arg(blob(&layer["digest"])).output().unwrap();
        files += &String::from_utf8(listed.stdout).unwrap();
    }
    for file in ["bin/flywheeld", "bin/flywheelctl", "etc/ssl/certs/ca-certificates.crt", "etc/passwd"] {
        assert!(files.lines().any(|line| line.trim_start_matches("./") == file), "{file}: {files}");
    }
}
