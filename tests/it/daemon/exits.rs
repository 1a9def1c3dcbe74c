//! The exit status of every command in every state, as the README's table promises it, and that
//! `--json` prints one value whatever happens.

use std::collections::BTreeSet;
use std::io::Write as _;
use std::process::{Command, Stdio};

use serde_json::Value;

use crate::support::cache::{StandaloneCache, UploadGate};
use crate::support::daemon::{CommandResult, Daemon, EMBEDDED};
use crate::support::nix::PrivateNix;
use crate::support::users::{NOBODY, can_switch_user, nobodys_client, open_to_all, set_mode};

/// Where a command writes its JSON.
#[derive(Clone, Copy, PartialEq)]
enum Json {
    Stdout,
    /// Standard output belongs to the command that it runs.
    Stderr,
    /// It prints nothing, or something that is no JSON.
    Never,
}

/// One command in one state: its arguments, its status without and with `--strict`, where its JSON
/// goes and the `outcome` in it (empty: not looked at).
type Row<'a> = (&'a [&'a str], i32, i32, Json, &'a str);

/// Runs each row three times: as it is, with `--strict` and with `--json`.
#[track_caller]
fn check(rows: &[Row<'_>], mut run: impl FnMut(&[&str]) -> CommandResult) {
    let mut wrong = Vec::new();
    for (args, lenient, strict, json, outcome) in rows {
        let plain = run(args);
        if plain.code != *lenient {
            wrong.push(format!("{args:?}: {lenient} expected: {plain:?}"));
        }
        let result = run(&[&["--strict"], *args].concat());
        if result.code != *strict {
            wrong.push(format!("--strict {args:?}: {strict} expected: {result:?}"));
        }
        let result = run(&[&["--json"], *args].concat());
        let text = match json {
            Json::Stdout => result.out.clone(),
            // Warnings for people are there as well.
            Json::Stderr => result.err.lines().filter(|line| line.starts_with('{')).collect(),
            Json::Never => continue,
        };
        if result.code != *lenient {
            wrong.push(format!("--json {args:?}: {lenient} expected: {result:?}"));
        }
        // Of more than one value this makes an error.
        match serde_json::from_str::<Value>(&text) {
            Ok(value) if outcome.is_empty() || value["outcome"] == *outcome => {
                let failed =
                    matches!(*outcome, "unreachable" | "denied" | "invalid" | "not_found" | "no_session");
                if failed && !value["error"].is_string() {
                    wrong.push(format!("--json {args:?}: no error in {value}"));
                }
            }
            Ok(value) => wrong.push(format!("--json {args:?}: outcome {outcome} expected: {value}")),
            Err(error) => wrong.push(format!("--json {args:?}: {error}: {result:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// A store path that is well-formed and not valid.
const ABSENT: &str = "00000000000000000000000000000000-absent";

fn absent(daemon: &Daemon) -> String {
    format!("{}/{ABSENT}", daemon.nix.store_dir().display())
}

/// `flywheelctl` with this standard input, run to its end.
fn with_input(mut command: Command, input: &str) -> CommandResult {
    let mut child =
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    CommandResult::of(&child.wait_with_output().unwrap())
}

/// The commands of a level of the command line, from its help.
fn commands_of(daemon: &Daemon, command: &[&str]) -> BTreeSet<String> {
    let help = daemon.ctl(&[command, &["--help"]].concat()).out;
    let list = help.split_once("Commands:\n").unwrap().1;
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    let names = names.filter_map(|line| line.split_whitespace().next());
    names.filter(|name| *name != "help").map(|name| [command, &[name]].concat().join(" ")).collect()
}

#[test]
fn without_a_daemon() {
    let daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    let path = absent(&daemon);
    let dir = daemon.nix.path().join("host").display().to_string();
    let gone = "unreachable";
    let setup = ["setup", "--built-in", "--yes", "--dry-run", "--root", &dir];
    let rows: &[Row<'_>] = &[
        (&["session", "start"], 0, 5, Json::Stdout, gone),
        (&["session", "end"], 0, 5, Json::Stdout, gone),
        (&["session", "end", "x", "--push", &path], 0, 5, Json::Stdout, gone),
        (&["session", "list"], 5, 5, Json::Stdout, gone),
        (&["session", "show", "x"], 5, 5, Json::Stdout, gone),
        (&["session", "report", "x"], 5, 5, Json::Stdout, gone),
        (&["run", "--", "true"], 0, 5, Json::Stderr, gone),
        (&["run", "--", "sh", "-c", "exit 7"], 7, 7, Json::Stderr, gone),
        (&["push", &path], 5, 5, Json::Stdout, gone),
        (&["push", "--stdin"], 5, 5, Json::Stdout, gone),
        (&["flush"], 5, 5, Json::Stdout, gone),
        (&["why", &path], 5, 5, Json::Stdout, gone),
        (&["verify", &path], 5, 5, Json::Stdout, gone),
        (&["verify", "--sample", "3"], 5, 5, Json::Stdout, gone),
        (&["status"], 5, 5, Json::Stdout, gone),
        (&["status", "--watch"], 5, 5, Json::Stdout, gone),
        (&["client"], 5, 5, Json::Stdout, gone),
        (&["client", "status"], 5, 5, Json::Stdout, gone),
        // Its status is that of the client; a shell's for a command that does not exist.
        (&["client", "exec", "--", "--version"], 127, 127, Json::Stderr, gone),
        (&["nix-conf"], 5, 5, Json::Stdout, gone),
        (&["nix-conf", "--netrc"], 5, 5, Json::Stdout, gone),
        (&["hook"], 0, 0, Json::Never, ""),
        (&["reload"], 5, 5, Json::Stdout, gone),
        (&["doctor"], 5, 5, Json::Stdout, gone),
        (&["metrics"], 5, 5, Json::Stdout, gone),
        (&["completions", "bash"], 0, 0, Json::Never, ""),
        (&setup, 0, 0, Json::Stdout, ""),
        // These do not ask the daemon first.
        (&["logs", "not an id"], 2, 2, Json::Stdout, "invalid"),
    ];
    check(rows, |args| daemon.ctl(args));
    // Every command has its row.
    let mut names = commands_of(&daemon, &[]);
    for level in ["session", "client"] {
        names.remove(level);
        names.extend(commands_of(&daemon, &[level]));
    }
    let covered = |name: &String| {
        rows.iter().any(|(args, ..)| format!("{} ", args.join(" ")).starts_with(&format!("{name} ")))
    };
    let missing: Vec<_> = names.iter().filter(|name| !covered(name)).collect();
    assert!(missing.is_empty() && names.len() > 20, "{missing:?} of {names:?}");
}

#[test]
fn without_the_right_to_ask() {
    if !can_switch_user() {
        return;
    }
    let routes = format!("[[route]]\nuser = \"{NOBODY}\"\ncache = \"other\"\n");
    let config =
        format!("default_cache = \"main\"\n{EMBEDDED}[caches.other]\nendpoints = \"embedded\"\n{routes}");
    let daemon = Daemon::start(PrivateNix::new(), &config);
    let session = daemon.session(&[]);
    let path = daemon.nix.make("a");
    let nobody = |args: &[&str]| CommandResult::of(&nobodys_client(&daemon, args).output().unwrap());
    set_mode(daemon.nix.path(), 0o755);
    set_mode(&daemon.socket(), 0o600);
    let gone = "unreachable";
    check(
        &[
            (&["session", "start"], 0, 5, Json::Stdout, gone),
            (&["session", "end"], 0, 5, Json::Stdout, gone),
            (&["run", "--", "true"], 0, 5, Json::Stderr, gone),
            (&["hook"], 0, 0, Json::Never, ""),
            (&["push", &path], 5, 5, Json::Stdout, gone),
            (&["status"], 5, 5, Json::Stdout, gone),
            (&["doctor"], 5, 5, Json::Stdout, gone),
        ],
        nobody,
    );
    open_to_all(&daemon);
    check(
        &[
            (&["session", "start", "--cache", "main"], 0, 5, Json::Stdout, "denied"),
            (&["run", "--cache", "main", "--", "true"], 0, 5, Json::Stderr, "denied"),
            (&["push", "--cache", "main", &path], 5, 5, Json::Stdout, "denied"),
            (&["session", "end", &session], 0, 5, Json::Stdout, "denied"),
            (&["session", "show", &session], 5, 5, Json::Stdout, "denied"),
            (&["session", "report", &session], 5, 5, Json::Stdout, "denied"),
            (&["reload"], 5, 5, Json::Stdout, "denied"),
            (&["doctor", "--push"], 5, 5, Json::Stdout, "denied"),
        ],
        nobody,
    );
}

#[test]
fn with_bad_input() {
    let daemon = Daemon::embedded();
    let session = daemon.session(&[]);
    let path = absent(&daemon);
    let bad = "invalid";
    check(
        &[
            // The command line itself.
            (&["no-such-command"], 2, 2, Json::Stdout, bad),
            (&["status", "--no-such-option"], 2, 2, Json::Stdout, bad),
            (&["flush", "--timeout", "soon"], 2, 2, Json::Stdout, bad),
            (&["flush", "--timeout", "9999h"], 2, 2, Json::Stdout, bad),
            (&["push"], 2, 2, Json::Stdout, bad),
            (&["verify"], 2, 2, Json::Stdout, bad),
            (&["run"], 2, 2, Json::Stdout, bad),
            (&["session", "start", "--anchor-pid", "0"], 2, 2, Json::Stdout, bad),
            // Names that nothing has.
            (&["session", "start", "--cache", "none"], 2, 2, Json::Stdout, bad),
            (&["session", "end", "none"], 2, 2, Json::Stdout, "not_found"),
            (&["session", "show", "none"], 2, 2, Json::Stdout, "not_found"),
            (&["session", "report", "none"], 2, 2, Json::Stdout, "not_found"),
            (&["push", "--cache", "none", &path], 2, 2, Json::Stdout, bad),
            (&["verify", "--session", "none"], 2, 2, Json::Stdout, "not_found"),
            (&["run", "--", "/no/such/program"], 127, 127, Json::Stderr, bad),
            // A path that is not valid.
            (&["push", &path, "--wait"], 2, 2, Json::Stdout, "complete"),
            (&["session", "end", &session, "--push", &path], 0, 2, Json::Stdout, "complete"),
            (&["run", "--push", &path, "--", "true"], 0, 2, Json::Stderr, "complete"),
            (&["why", &path], 2, 2, Json::Stdout, ""),
            // Something that is not in the store.
            (&["push", "/etc/passwd"], 2, 2, Json::Stdout, bad),
            (&["why", "/etc/passwd"], 2, 2, Json::Stdout, bad),
            (&["verify", "/etc/passwd"], 2, 2, Json::Stdout, bad),
            // A pattern that matches nothing.
            (&["push", "none*"], 2, 2, Json::Stdout, bad),
            (&["session", "end", &session, "--push", "none*"], 0, 2, Json::Stdout, "complete"),
            (&["run", "--push", "none*", "--", "true"], 0, 2, Json::Stderr, "complete"),
            (&["why", "none*"], 2, 2, Json::Stdout, bad),
            (&["verify", "none*"], 2, 2, Json::Stdout, bad),
        ],
        |args| daemon.ctl(args),
    );
    // The count of paths that are not valid is a field, and the same when asked again.
    let named = daemon.json(&["session", "end", &session]);
    assert_eq!((&named["invalid"], &named["pushed"]), (&Value::from(1), &Value::from(0)), "{named}");
    assert_eq!(daemon.json(&["session", "show", &session])["summary"]["route"], "default_cache");
}

#[test]
fn without_a_session() {
    let daemon = Daemon::embedded();
    check(
        &[
            (&["session", "end"], 0, 5, Json::Stdout, "no_session"),
            // A name is missing.
            (&["session", "show"], 2, 2, Json::Stdout, "invalid"),
            (&["session", "report"], 2, 2, Json::Stdout, "invalid"),
        ],
        |args| daemon.ctl(args),
    );
}

/// A daemon whose cache refuses large paths, behind a gate.
fn gated() -> (Daemon, StandaloneCache, UploadGate) {
    let nix = PrivateNix::new();
    let cache = StandaloneCache::start(&nix, |settings| settings.max_nar_size = 64 << 10);
    let gate = cache.gate();
    (Daemon::start(nix, &cache.config_at(&gate.url())), cache, gate)
}

#[test]
fn with_paths_that_are_pending() {
    let (daemon, _cache, gate) = gated();
    gate.close();
    let session = daemon.session(&[]);
    let path = daemon.nix.make("held");
    gate.until_came(1);
    let soon = ["--timeout", "50ms"];
    check(
        &[
            (&["session", "end", &session, soon[0], soon[1]], 0, 4, Json::Stdout, "pending"),
            (&["session", "end", &session, "--no-wait"], 0, 0, Json::Stdout, "pending"),
            (&["run", "--push", &path, soon[0], soon[1], "--", "true"], 0, 4, Json::Stderr, "pending"),
            (&["push", &path, "--wait", soon[0], soon[1]], 4, 4, Json::Stdout, "pending"),
            (&["push", &path], 0, 0, Json::Stdout, "pending"),
            (&["flush", soon[0], soon[1]], 4, 4, Json::Stdout, "pending"),
            (&["why", &path], 0, 0, Json::Stdout, ""),
            (&["status"], 0, 0, Json::Stdout, ""),
        ],
        |args| daemon.ctl(args),
    );
    let result =
        with_input(daemon.client(&["push", "--stdin", "--json", "--timeout", "1s"]), &format!("{path}\n"));
    assert_eq!((result.code, &result.json()["outcome"]), (4, &"pending".into()), "{result:?}");
    gate.open();
}

#[test]
fn with_paths_that_have_failed() {
    let (daemon, _cache, _gate) = gated();
    let session = daemon.session(&["--label", "large"]);
    let large = daemon.nix.build(&PrivateNix::shell("large", "head -c 200000 /dev/zero > $out")).remove(0);
    check(
        &[
            (&["session", "end", &session], 0, 3, Json::Stdout, "partial"),
            (&["run", "--push", &large, "--", "true"], 0, 3, Json::Stderr, "partial"),
            (&["run", "--push", &large, "--", "sh", "-c", "exit 9"], 9, 9, Json::Stderr, "partial"),
            (&["push", &large, "--wait"], 3, 3, Json::Stdout, "partial"),
            (&["flush"], 3, 3, Json::Stdout, "partial"),
            (&["why", &large], 0, 0, Json::Stdout, ""),
            (&["verify", &large], 3, 3, Json::Stdout, "bad"),
            (&["session", "show", &session], 0, 0, Json::Stdout, ""),
            (&["session", "list"], 0, 0, Json::Stdout, ""),
            (&["metrics"], 0, 0, Json::Never, ""),
        ],
        |args| daemon.ctl(args),
    );
    let result = with_input(daemon.client(&["push", "--stdin", "--json"]), &format!("{large}\nnone*\n"));
    assert_eq!(result.code, 3, "{result:?}");
    let outcomes: Vec<Value> = result.out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(outcomes.len(), 2, "{outcomes:?}");
    assert!(outcomes.iter().all(|one| one["outcome"] == "failed"), "{outcomes:?}");
}
