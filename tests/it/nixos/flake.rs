//! What can be checked of the flake without nixpkgs: every file parses, all outputs evaluate with
//! stand-ins for nixpkgs' packages, the lock matches, and the package installs the files of this
//! tree.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde_json::Value;

use crate::support::nix::PrivateNix;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|e| panic!("{path}: {e}"))
}

/// The project's files, without build results and hidden files.
fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if name.starts_with('.')
            || name.starts_with("result") && dir == root()
            || path == root().join("target")
        {
            continue;
        }
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

fn said(out: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr))
}

#[test]
fn every_nix_file_is_nix() {
    let nix = PrivateNix::new();
    let mut all = Vec::new();
    files(root(), &mut all);
    all.retain(|f| f.extension().is_some_and(|e| e == "nix"));
    assert!(all.len() >= 9, "they are found: {all:?}");
    let out = nix.command("nix-instantiate").arg("--parse").args(&all).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
}

/// Formatted as nixfmt does, which `nix flake check` requires.
#[test]
fn every_nix_file_is_formatted() {
    let mut all = Vec::new();
    files(root(), &mut all);
    all.retain(|f| f.extension().is_some_and(|e| e == "nix"));
    let Ok(out) = Command::new("nixfmt").arg("--check").args(&all).output() else {
        return eprintln!("skipped: nixfmt is not here (nix fmt, or cargo install nixfmt_rs)");
    };
    assert!(out.status.success(), "{}", said(&out));
}

/// Nix code in the documents can be copied: each block parses, alone or as part of a configuration.
#[test]
fn nix_code_in_the_documents_parses() {
    let nix = PrivateNix::new();
    let mut seen = 0;
    for page in ["README.md", "docs/install.md", "docs/nixos.md", "docs/migration.md"] {
        for shown in text(page).split("```nix\n").skip(1) {
            let shown = shown.split("```").next().unwrap();
            let code = if shown.contains("\n{\n") { shown.to_owned() } else { format!("{{ {shown} }}") };
            let out = nix.run("nix-instantiate", &["--parse", "-E", &code]);
            assert!(out.status.success(), "{page}: {shown}\n{}", said(&out));
            seen += 1;
        }
    }
    assert!(seen >= 5, "{seen}");
}

/// Python only parses it.
#[test]
fn the_test_script_of_the_virtual_machines_is_python() {
    let nix = PrivateNix::new();
    let (flake, stub) = copied(&nix);
    let attribute = format!("{flake}#checks.x86_64-linux.vm.script");
    let more = ["--no-write-lock-file", "--override-input", "nixpkgs", &stub];
    let out = nix.command("nix").args(["eval", "--raw"]).args(more).arg(&attribute).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let read = "import ast, sys; ast.parse(sys.argv[1])";
    let script = String::from_utf8(out.stdout).unwrap();
    let Ok(out) = Command::new("python3").args(["-c", read, &script]).output() else {
        return eprintln!("skipped: python3 is not here");
    };
    assert!(out.status.success(), "{}", said(&out));
}

/// A copy of the tree that Nix can add to its store, and the stand-in for nixpkgs beside it.
fn copied(nix: &PrivateNix) -> (String, String) {
    let to = nix.work_dir().join("flake");
    let mut all = Vec::new();
    files(root(), &mut all);
    for file in all {
        let copy = to.join(file.strip_prefix(root()).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&file, &copy).unwrap();
    }
    let stub = to.join("tests/nixos/stub-nixpkgs");
    (format!("path:{}", to.display()), format!("path:{}", stub.display()))
}

fn names(value: &Value) -> Vec<&str> {
    value.as_object().unwrap_or_else(|| panic!("no set: {value}")).keys().map(String::as_str).collect()
}

#[test]
fn the_flake_has_what_it_should() {
    let nix = PrivateNix::new();
    let (flake, stub) = copied(&nix);
    let more = ["--no-write-lock-file", "--override-input", "nixpkgs", &stub];
    let out =
        nix.command("nix").args(["flake", "check", "--no-build"]).args(more).arg(&flake).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let out = nix.command("nix").args(["flake", "show", "--json"]).args(more).arg(&flake).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let shown: Value = serde_json::from_slice(&out.stdout).unwrap();
    assert_eq!(
        names(&shown),
        ["apps", "checks", "devShells", "formatter", "nixosModules", "overlays", "packages"]
    );
    for system in ["x86_64-linux", "aarch64-linux"] {
        assert_eq!(names(&shown["packages"][system]), ["book", "container", "default", "flywheel", "static"]);
        assert_eq!(names(&shown["apps"][system]), ["default"]);
        assert_eq!(names(&shown["devShells"][system]), ["default"]);
        assert_eq!(
            names(&shown["checks"][system]),
            ["book", "clippy", "format", "format-rust", "module", "package", "tests", "vm"]
        );
        assert_eq!(shown["formatter"][system]["type"], "derivation");
        let version = format!("flywheel-{}", env!("CARGO_PKG_VERSION"));
        assert_eq!(shown["packages"][system]["flywheel"]["name"], version.as_str());
    }
    assert_eq!(names(&shown["nixosModules"]), ["default"]);
    assert_eq!(names(&shown["overlays"]), ["default"]);
}

/// The lock names the inputs of flake.nix, and a nixpkgs whose rustc is new enough.
#[test]
fn flake_lock_matches_flake_nix() {
    let nix = PrivateNix::new();
    let expression = format!("(import {}/flake.nix).inputs", root().display());
    let out = nix.run("nix-instantiate", &["--eval", "--strict", "--json", "-E", &expression]);
    let inputs: Value = serde_json::from_slice(&out.stdout).unwrap_or_else(|e| panic!("{e}: {}", said(&out)));
    assert_eq!(names(&inputs), ["nixpkgs"]);
    let lock: Value = serde_json::from_str(&text("flake.lock")).unwrap();
    assert_eq!(names(&lock["nodes"]), ["nixpkgs", "root"]);
    assert_eq!(names(&lock["nodes"]["root"]["inputs"]), ["nixpkgs"]);
    let (original, locked) = (&lock["nodes"]["nixpkgs"]["original"], &lock["nodes"]["nixpkgs"]["locked"]);
    let part = |key: &str| original[key].as_str().unwrap();
    let url = format!("{}:{}/{}/{}", part("type"), part("owner"), part("repo"), part("ref"));
    assert_eq!(inputs["nixpkgs"]["url"], url.as_str());
    assert!(locked["rev"].as_str().is_some_and(|r| r.len() == 40));
    assert!(locked["narHash"].as_str().is_some_and(|h| h.starts_with("sha256-")));
    // nixpkgs-unstable has had rustc 1.89, which rust-version asks for, since September 2025.
    let october_2025 = 1_759_276_800;
    assert!(text("Cargo.toml").contains("rust-version = \"1.89\""), "a newer rustc: look at the lock again");
    assert!(locked["lastModified"].as_u64().unwrap() > october_2025);
}

/// If the development shell lacked a command of tests/run.sh, the script would install it by other
/// means or fail.
#[test]
fn the_development_shell_has_what_the_checks_use() {
    let shell = text("packaging/nix/shell.nix");
    let run = text("tests/run.sh");
    let needed = run.lines().find_map(|l| l.strip_prefix("NEEDED=\"")).unwrap().trim_end_matches('"');
    let commands = needed.split_whitespace().map(|pair| pair.split(':').next().unwrap());
    // These come with a package of another name, or with mkShell itself.
    for command in commands.filter(|c| *c != "cc") {
        let package = match command {
            "nix-build" | "nix-store" => "nix",
            "sqlite3" => "sqlite",
            "dbus-daemon" => "dbus",
            other => other,
        };
        assert!(shell.contains(&format!("\n    {package}\n")), "packaging/nix/shell.nix lacks {command}");
    }
    for tool in
        ["cargo-nextest", "cargo-deny", "mdbook", "rustfmt", "clippy", "shellcheck", "rsync", "nodejs"]
    {
        assert!(shell.contains(&format!("\n    {tool}\n")), "packaging/nix/shell.nix lacks {tool}");
    }
}

/// Runs the package's `postInstall` as the builder would, with the programs of this build, and
/// checks what it installs.
#[test]
fn the_package_installs_the_files_of_this_repository() {
    let nix = PrivateNix::new();
    let (flake, stub) = copied(&nix);
    let attribute = format!("{flake}#packages.x86_64-linux.flywheel.postInstall");
    let more = ["--no-write-lock-file", "--override-input", "nixpkgs", &stub];
    let out = nix.command("nix").args(["eval", "--raw"]).args(more).arg(&attribute).output().unwrap();
    assert!(out.status.success(), "{}", said(&out));
    let script = String::from_utf8(out.stdout).unwrap();

    let prefix = nix.work_dir().join("out");
    fs::create_dir_all(prefix.join("bin")).unwrap();
    for (program, built) in
        [("flywheeld", env!("CARGO_BIN_EXE_flywheeld")), ("flywheelctl", env!("CARGO_BIN_EXE_flywheelctl"))]
    {
        std::os::unix::fs::symlink(built, prefix.join("bin").join(program)).unwrap();
    }
    // The two helpers of nixpkgs that it calls.
    let helpers = r#"
        set -eu
        substituteInPlace() {
            local files=() file
            while [ "$1" != --replace-fail ]; do files+=("$1"); shift; done
            for file in "${files[@]}"; do
                grep -q -- "$2" "$file" || { echo "$file: no $2" >&2; exit 1; }
                sed -i "s|$2|$3|g" "$file"
            done
        }
        installShellCompletion() { mkdir -p $out/completions && cp "$@" $out/completions; }
        installManPage() { mkdir -p $out/man && cp "$@" $out/man; }
    "#;
    let tree = nix.work_dir().join("flake");
    let mut bash = Command::new("bash");
    let out = bash.current_dir(&tree).env("out", &prefix).args(["-c", &format!("{helpers}\n{script}")]);
    let out = out.output().unwrap();
    assert!(out.status.success(), "{}", said(&out));

    let mut installed = Vec::new();
    files(&prefix, &mut installed);
    let installed: BTreeSet<String> =
        installed.iter().map(|f| f.strip_prefix(&prefix).unwrap().to_str().unwrap().to_owned()).collect();
    for file in [
        "completions/flywheelctl.bash",
        "lib/flywheel/flywheel-hook",
        "lib/systemd/system/flywheel-verify.service",
        "lib/systemd/system/flywheel-verify.timer",
        "lib/systemd/system/flywheeld.service",
        "lib/systemd/system/flywheeld.socket",
        "lib/sysusers.d/flywheel.conf",
        "lib/tmpfiles.d/flywheel.conf",
        "man/flywheel-errors.7",
        "man/flywheel.toml.5",
        "man/flywheelctl.1",
        "man/flywheeld.8",
        "share/doc/flywheel/flywheel.toml",
        "share/flywheel/ci/github-hooks/job-started.sh",
        "share/flywheel/quickstart.sh",
        "share/licenses/flywheel/LICENSE-MIT",
    ] {
        assert!(installed.contains(file), "{file} is missing: {installed:#?}");
    }
    // No line starts a program of flywheel where Debian has it, outside of the package.
    for file in installed.iter().filter(|f| f.starts_with("lib/systemd/")) {
        let unit = fs::read_to_string(prefix.join(file)).unwrap();
        for line in unit.lines().filter(|l| l.starts_with("Exec")) {
            if line.contains("=+/bin/sh -c") {
                assert!(!line.contains("/usr/bin"), "{file}: {line}");
                continue;
            }
            assert!(line.contains(prefix.to_str().unwrap()), "{file}: {line}");
        }
    }
    let hook = Command::new(prefix.join("lib/flywheel/flywheel-hook"))
        .env("FLYWHEEL_SOCKET", "/nonexistent")
        .output()
        .unwrap();
    assert!(hook.status.success() && said(&hook).is_empty(), "{}", said(&hook));
}
