//! `services.flywheel`, evaluated with nixpkgs' own `lib` for the table of
//! tests/nixos/cases.nix. Needs `NIXPKGS_LIB`, a directory that holds `lib/`: a
//! checkout of nixpkgs, or of its mirror nix-community/nixpkgs.lib.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;

use crate::support::nix::PrivateNix;

const OURS: &str = "/nix/store/00000000000000000000000000000000-flywheel";

/// The result of tests/nixos/eval.nix; `None` without `NIXPKGS_LIB`.
fn evaluated() -> Option<Value> {
    let Some(lib) = std::env::var_os("NIXPKGS_LIB").filter(|dir| !dir.is_empty()) else {
        eprintln!("skipped: NIXPKGS_LIB names no directory with nixpkgs' lib (CONTRIBUTING.md)");
        return None;
    };
    let nix = PrivateNix::new();
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/nixos/eval.nix");
    let mut command = nix.command("nix-instantiate");
    command.args(["--eval", "--strict", "--json"]).arg(file).args(["--argstr", "nixpkgs"]).arg(lib);
    let out = command.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    Some(serde_json::from_slice(&out.stdout).unwrap())
}

fn strings(value: &Value) -> Vec<&str> {
    value.as_array().unwrap().iter().map(|v| v.as_str().unwrap()).collect()
}

/// Each message that a case names appears, and no other.
fn wrong_messages(name: &str, expected: &Value, found: &Value) -> Vec<String> {
    let (expected, found) = (strings(expected), strings(found));
    let missing = expected.iter().filter(|e| !found.iter().any(|f| f.contains(**e)));
    let mut wrong: Vec<String> = missing.map(|e| format!("{name}: nobody says {e:?}: {found:?}")).collect();
    let unasked = found.iter().filter(|f| !expected.iter().any(|e| f.contains(e)));
    wrong.extend(unasked.map(|f| format!("{name}: says {f:?}")));
    wrong
}

#[test]
fn every_case_gives_its_expected_errors() {
    let Some(all) = evaluated() else { return };
    let cases = all["cases"].as_object().unwrap();
    assert!(cases.len() > 20);
    let wrong: Vec<String> = cases
        .iter()
        .flat_map(|(name, case)| {
            let mut wrong = wrong_messages(name, &case["fails"], &case["failed"]);
            wrong.extend(wrong_messages(name, &case["warns"], &case["warned"]));
            wrong
        })
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Runs the system build's check with the real flywheeld, for each case that can be built, and then
/// with an unknown key.
#[test]
fn flywheeld_accepts_every_generated_configuration() {
    let Some(all) = evaluated() else { return };
    let dir = tempfile::tempdir().unwrap();
    let build = |name: &str, case: &Value, change: &dyn Fn(&mut toml::Table)| {
        let at = dir.path().join(name);
        fs::create_dir_all(&at).unwrap();
        // A null fails here: an option that is not set must not appear.
        let mut table: toml::Table = serde_json::from_value(case["configuration"].clone())
            .unwrap_or_else(|e| panic!("{name}: {e}: {}", case["configuration"]));
        change(&mut table);
        fs::write(at.join("in.toml"), table.to_string()).unwrap();
        let bin = Path::new(env!("CARGO_BIN_EXE_flywheeld")).parent().unwrap();
        let script = case["check"].as_str().unwrap();
        let script = script.replace(&format!("{OURS}/bin"), bin.to_str().unwrap());
        // As few variables as a build has.
        let out = Command::new("bash")
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap())
            .env("HOME", "/homeless-shelter")
            .env("configuration", at.join("in.toml"))
            .env("credentials", strings(&case["credentials"]).join(" "))
            .env("out", at.join("out.toml"))
            .current_dir(&at)
            .args(["-euc", &script])
            .output()
            .unwrap();
        (out.status.success(), String::from_utf8_lossy(&out.stderr).into_owned(), at.join("out.toml"))
    };
    for (name, case) in all["cases"].as_object().unwrap() {
        if strings(&case["fails"]).is_empty() {
            let (good, text, made) = build(name, case, &|_| ());
            assert!(good && made.exists(), "{name}: {text}");
            // The stand-ins for the credentials are found.
            let tokens = !strings(&case["credentials"]).is_empty();
            assert!(!(tokens && text.contains("cache main: no token")), "{name}: {text}");
        }
    }
    let (good, text, made) = build("wrong", &all["cases"]["minimal"], &|table| {
        table.insert("sokcet".into(), "/run/x".into());
    });
    assert!(!good && !made.exists() && text.contains("sokcet"), "{text}");
}

/// The keys of a unit file's [Service] section.
fn keys(unit: &str) -> BTreeSet<String> {
    let service = unit.split_once("[Service]").unwrap().1;
    let service = service.split("\n[").next().unwrap();
    let lines = service.lines().filter(|l| !l.starts_with('#'));
    lines.filter_map(|l| l.split_once('=')).map(|(key, _)| key.to_owned()).collect()
}

/// Hardening and limits are in systemd/ alone: the module's drop-in repeats nothing of the unit
/// except what depends on options.
#[test]
fn the_module_uses_the_unit_and_only_adds_to_it() {
    let Some(all) = evaluated() else { return };
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd/flywheeld.service");
    let unit = keys(&fs::read_to_string(unit).unwrap());
    assert!(unit.contains("ProtectSystem") && unit.contains("LoadCredential"), "{unit:?}");
    for (name, case) in all["cases"].as_object().unwrap() {
        assert_eq!(strings(&case["packages"]), [OURS], "{name}");
        assert_eq!(strings(&case["tmpfiles"]), [OURS], "{name}");
        let service = &case["services"]["flywheeld"];
        assert_eq!(strings(&service["wantedBy"]), ["multi-user.target"], "{name}");
        let set: BTreeMap<String, Value> = serde_json::from_value(service["serviceConfig"].clone()).unwrap();
        let group = (name == "everything").then_some("Group");
        let credential = (!strings(&case["credentials"]).is_empty()).then_some("LoadCredential");
        let directories = ["elsewhere", "rooted"].contains(&name.as_str()).then_some("ReadWritePaths");
        let allowed: Vec<&str> = group.into_iter().chain(credential).chain(directories).collect();
        assert_eq!(set.keys().collect::<Vec<_>>(), allowed, "{name}");
    }
    let credentials = |name: &str| {
        let service = &all["cases"][name]["services"]["flywheeld"]["serviceConfig"];
        strings(&service["LoadCredential"]).join(" ")
    };
    assert_eq!(credentials("token"), "attic-token:/run/secrets/attic");
    assert_eq!(
        credentials("tokens"),
        "attic-token-main:/run/secrets/main attic-token-other:/run/secrets/other"
    );
}

#[test]
fn what_is_not_set_is_left_to_the_daemon() {
    let Some(all) = evaluated() else { return };
    fn leaves(value: &Value) -> usize {
        match value {
            Value::Object(map) => map.values().map(leaves).sum(),
            Value::Array(list) => list.len(),
            _ => 1,
        }
    }
    assert_eq!(leaves(&all["cases"]["minimal"]["configuration"]), 0);
    assert_eq!(leaves(&all["cases"]["github"]["configuration"]), 1, "the endpoint");
    // The one default that the module repeats is the daemon's.
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/flywheel.toml");
    let listen = all["cases"]["embedded-unknown"]["configuration"]["embedded"]["listen"].as_str().unwrap();
    assert!(fs::read_to_string(example).unwrap().contains(&format!("\n#listen = \"{listen}\"\n")));
}

#[test]
fn every_option_reaches_the_configuration() {
    let Some(all) = evaluated() else { return };
    let case = |name: &str| &all["cases"][name];
    let everything = case("everything");
    assert_eq!(everything["ports"], serde_json::json!([9000]));
    assert_eq!(strings(&everything["groups"]["ci"]["members"]), ["builder"]);
    assert_eq!(everything["users"]["flywheel"]["group"], "flywheel");
    assert_eq!(everything["services"]["flywheeld"]["serviceConfig"]["Group"], "ci");
    assert_eq!(everything["sockets"]["flywheeld"]["socketConfig"]["SocketGroup"], "ci");
    let socket = &case("minimal")["sockets"]["flywheeld"];
    assert_eq!(*socket, serde_json::json!({"socketConfig": {}, "wantedBy": ["sockets.target"]}));
    let cache_socket = &everything["sockets"]["flywheeld-cache"]["socketConfig"]["ListenStream"];
    assert_eq!(strings(cache_socket), ["", "[::]:9000"]);
    assert!(case("embedded-unknown")["sockets"]["flywheeld-cache"].is_null());
    assert_eq!(strings(&everything["nix"]["substituters"]), ["http://127.0.0.1:9000/local"]);
    assert_eq!(everything["nix"]["post-build-hook"], format!("{OURS}/lib/flywheel/flywheel-hook"));
    assert_eq!(case("private")["nix"]["netrc-file"], case("private")["configuration"]["nix"]["netrc"]);
    assert!(case("token")["nix"]["netrc-file"].is_null());
    assert_eq!(case("embedded-closed")["ports"], serde_json::json!([]));
    assert!(case("embedded-unknown")["nix"]["substituters"].is_null());
    assert!(case("minimal")["nix"]["post-build-hook"].is_null());
    for name in ["minimal", "everything"] {
        let nix = &case(name)["nix"];
        assert_eq!(
            (&nix["fallback"], &nix["connect-timeout"]),
            (&Value::from(true), &Value::from(5)),
            "{name}"
        );
    }
    let verify = &everything["services"]["flywheel-verify"]["environment"]["FLYWHEEL_VERIFY"];
    assert_eq!(*verify, "--sample=200 --repair");
    assert_eq!(
        strings(&everything["timers"]["flywheel-verify"]["timerConfig"]["OnCalendar"]),
        ["", "weekly"]
    );
    assert!(case("minimal")["timers"]["flywheel-verify"].is_null());
    let elsewhere = &case("elsewhere")["services"]["flywheeld"];
    for (section, key) in [("serviceConfig", "ReadWritePaths"), ("unitConfig", "RequiresMountsFor")] {
        assert_eq!(strings(&elsewhere[section][key]), ["/srv/flywheel", "/srv/cache"]);
    }
    assert_eq!(strings(&case("elsewhere")["directories"]), ["/srv/cache", "/srv/flywheel"]);
    let roots = ["/srv/ci/nix/var/nix/gcroots/flywheel"];
    let rooted = &case("rooted")["services"]["flywheeld"]["serviceConfig"];
    assert_eq!(strings(&rooted["ReadWritePaths"]), roots);
    assert_eq!(strings(&case("rooted")["directories"]), roots);
    assert_eq!(strings(&case("minimal")["directories"]).len(), 0);
    for name in ["everything", "minimal"] {
        assert_eq!(strings(&case(name)["etc"]), ["flywheel/flywheel.toml"]);
    }

    let gitlab = &case("gitlab")["services"]["gitlab-runner"];
    assert_eq!(strings(&gitlab["serviceConfig"]["SupplementaryGroups"]), ["flywheel"]);
    assert!(case("gitlab-left-alone")["services"]["gitlab-runner"].is_null());
    assert_eq!(strings(&case("gitlab-left-alone")["gitlab"]["nix"]).len(), 0);
    assert_eq!(strings(&case("gitlab-containers")["gitlab"]["nix"]).len(), 0);

    let github = &case("github")["services"]["github-runner-nix"];
    assert_eq!(strings(&github["serviceConfig"]["SupplementaryGroups"]), ["flywheel"]);
    assert_eq!(strings(&github["path"]), [OURS]);
    for (variable, file) in [("STARTED", "job-started.sh"), ("COMPLETED", "job-completed.sh")] {
        let hook = &github["environment"][format!("ACTIONS_RUNNER_HOOK_JOB_{variable}")];
        assert_eq!(*hook, format!("{OURS}/share/flywheel/ci/github-hooks/{file}"));
        assert!(Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/ci/github-hooks").join(file).exists());
    }
}

/// The flags reach gitlab-runner through two shells, as NixOS passes them, and are then what
/// packaging/ci tells administrators to write.
#[test]
fn a_gitlab_runner_gets_the_scripts_whole() {
    let Some(all) = evaluated() else { return };
    let flags = strings(&all["cases"]["gitlab"]["gitlab"]["nix"]);
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/ci/gitlab-runner-config.toml");
    let runner: toml::Table = fs::read_to_string(file).unwrap().parse().unwrap();
    let script = |key: &str| runner["runners"][0][key].as_str().unwrap().to_owned();
    let command = format!("printf '%s\\0' \\\n {}", flags.join(" \\\n "));
    let out = Command::new("bash").args(["-c", "exec bash -c \"$1\"", "bash", &command]).output().unwrap();
    let arguments: Vec<String> =
        out.stdout.split(|b| *b == 0).map(|a| String::from_utf8_lossy(a).into_owned()).collect();
    assert_eq!(
        arguments[..4],
        [
            "--pre-build-script".to_owned(),
            script("pre_build_script"),
            "--post-build-script".to_owned(),
            script("post_build_script"),
        ]
    );
}

/// Both hooks run, in order, with Nix's environment; the status is the second one's.
#[test]
fn chained_hooks_are_both_run() {
    let Some(all) = evaluated() else { return };
    let dir = tempfile::tempdir().unwrap();
    let place = |name: &str| dir.path().join(name).display().to_string();
    let program = |name: &str, last: &str| {
        let text = format!("#!/bin/sh\necho \"{name}: $OUT_PATHS\" >> {}\n{last}\n", place("log"));
        fs::write(dir.path().join(name), text).unwrap();
        let mut mode = fs::metadata(dir.path().join(name)).unwrap().permissions();
        std::os::unix::fs::PermissionsExt::set_mode(&mut mode, 0o755);
        fs::set_permissions(dir.path().join(name), mode).unwrap();
    };
    program("ours", "exit 0");
    program("other hook", "exit 7");
    let script = all["cases"]["hook-chained"]["hook"].as_str().unwrap();
    let script = script
        .replace(&format!("{OURS}/lib/flywheel/flywheel-hook"), &place("ours"))
        .replace("/etc/nix/other hook", &place("other hook"));
    let status = Command::new("bash").args(["-c", &script]).env("OUT_PATHS", "/a /b").status().unwrap();
    assert_eq!(status.code(), Some(7));
    assert_eq!(fs::read_to_string(place("log")).unwrap(), "ours: /a /b\nother hook: /a /b\n");
}

#[test]
fn the_manual_can_be_made_and_disabled_adds_nothing() {
    let Some(all) = evaluated() else { return };
    let manual = all["manual"].as_array().unwrap();
    assert!(manual.len() > 30, "{manual:#?}");
    for option in manual {
        let text = option["description"].as_str().unwrap_or_default().trim();
        assert!(text.len() > 20 && !text.ends_with(','), "{}: {text:?}", option["name"]);
    }
    assert_eq!(strings(&all["overlay"]), ["flywheel"]);
    assert_eq!(all["off"], serde_json::json!({"assertions": [], "etc": {}, "services": {}, "warnings": []}));
}

/// The documents name only options that exist.
#[test]
fn the_documents_name_options_that_exist() {
    let Some(all) = evaluated() else { return };
    let manual = all["manual"].as_array().unwrap();
    let options: BTreeSet<&str> = manual.iter().map(|o| o["name"].as_str().unwrap()).collect();
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (mut wrong, mut seen) = (Vec::new(), 0);
    for page in ["README.md", "docs/install.md", "docs/nixos.md", "docs/migration.md", "nixos-module.nix"] {
        let text = fs::read_to_string(root.join(page)).unwrap();
        for (at, prefix) in text.match_indices("services.flywheel.") {
            let rest = &text[at + prefix.len()..];
            let end = rest.find(|c: char| !(c.is_alphanumeric() || "._".contains(c))).unwrap_or(rest.len());
            let name = text[at..at + prefix.len() + end].trim_end_matches('.');
            // These name text of a file, or a placeholder.
            if name == "services.flywheel" || name.starts_with("services.flywheel.settings.") {
                continue;
            }
            seen += 1;
            // An option, or the set that contains some; the token files are named after caches.
            let cache = ["tokenFile.", "pullTokenFile."];
            let known = options.iter().any(|o| *o == name || o.starts_with(&format!("{name}.")))
                || cache.iter().any(|o| name["services.flywheel.".len()..].starts_with(o));
            if !known {
                wrong.push(format!("{page}: {name}"));
            }
        }
    }
    assert!(wrong.is_empty() && seen > 20, "{seen}: {}", wrong.join("\n"));
}

/// Each option of `settings` is a key of the annotated example.
#[test]
fn the_typed_settings_are_keys_of_the_daemon() {
    let Some(all) = evaluated() else { return };
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("packaging/flywheel.toml");
    // A commented-out key has no blank after `#`; a comment has one.
    let text = fs::read_to_string(example).unwrap();
    let keys = text.lines().filter_map(|l| l.strip_prefix('#')).filter(|l| !l.starts_with(' '));
    let example: toml::Table = keys.collect::<Vec<_>>().join("\n").parse().unwrap();
    let example = toml::Value::Table(example);
    let mut seen = 0;
    let mut documented = BTreeSet::new();
    for option in all["manual"].as_array().unwrap() {
        let name = option["name"].as_str().unwrap();
        let Some(path) = name.strip_prefix("services.flywheel.settings.") else { continue };
        let path = path.replace("<name>", "main");
        documented.insert(path.clone());
        let found = path.split('.').try_fold(&example, |at, key| at.get(key));
        assert!(found.is_some(), "{name}: packaging/flywheel.toml has no such key");
        seen += 1;
    }
    assert!(seen > 15, "{seen}");
    // Every setting of a cache has a place in the manual, apart from what an option of the module sets.
    for key in example["caches"]["main"].as_table().unwrap().keys().filter(|key| *key != "pull_token_file") {
        assert!(documented.contains(&format!("caches.main.{key}")), "the module has no option for {key}");
    }
}

/// A running daemon applies what it can; the module restarts it only for the rest.
#[test]
fn only_what_a_reload_cannot_apply_restarts() {
    let Some(all) = evaluated() else { return };
    let restart = |name: &str| &all["cases"][name]["services"]["flywheeld"]["restartTriggers"];
    let reload = |name: &str| strings(&all["cases"][name]["services"]["flywheeld"]["reloadTriggers"]);
    assert_eq!(restart("minimal"), restart("github"), "they differ in their caches");
    assert_ne!(restart("minimal"), restart("embedded-known"));
    assert_ne!(restart("minimal"), restart("private"));
    assert!(reload("minimal")[0].ends_with("-flywheel.toml"));
}
