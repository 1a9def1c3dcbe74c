//! Jobs in process and user namespaces of their own, as in containers that share the daemon's
//! socket and the store. The kernel translates the numbers of their processes and users.

use std::os::unix::process::CommandExt as _;
use std::process::Command;

use crate::support::daemon::{CommandResult, Daemon, EMBEDDED};
use crate::support::nix::PrivateNix;
use crate::support::users::{NOBODY, as_nobody, can_switch_user, nobodys_client, open_to_all};

/// Whether this program makes a namespace; prints why not.
fn possible(command: &mut Command) -> bool {
    let possible = command.arg("true").output().is_ok_and(|output| output.status.success());
    if !possible {
        eprintln!("skipped: namespaces cannot be made here");
    }
    possible
}

#[test]
fn a_job_in_a_process_namespace_gets_its_paths() {
    const NAMESPACE: [&str; 3] = ["--pid", "--fork", "--mount-proc"];
    if !possible(Command::new("unshare").args(NAMESPACE)) {
        return;
    }
    let daemon = Daemon::start(PrivateNix::new(), EMBEDDED);
    let nix = daemon.nix.command("nix-build");
    let mut job = Command::new("unshare");
    job.args(NAMESPACE).args([
        "sh",
        "-c",
        "session=$(\"$CTL\" session start) && nix-build --no-out-link -E \"$EXPRESSION\" >&2 && \"$CTL\" --json session end \"$session\"",
    ]);
    job.env_clear().envs(nix.get_envs().filter_map(|(key, value)| Some((key, value?))));
    job.env("PATH", std::env::var_os("PATH").unwrap()).env("FLYWHEEL_SOCKET", daemon.socket());
    job.env("CTL", env!("CARGO_BIN_EXE_flywheelctl")).current_dir(daemon.nix.work_dir());
    job.env("EXPRESSION", PrivateNix::shell("inside", "sleep 0.2; echo $name > $out"));
    let ended = CommandResult::of(&job.output().unwrap());
    assert_eq!(ended.code, 0, "{ended:?}");
    let summary = ended.json();
    assert_eq!(summary["outcome"], "complete", "{summary}");
    // Its processes are seen from outside of the namespace.
    assert!(summary["attributed"]["process"].as_u64().unwrap() >= 1, "{summary}");
}

/// A daemon in a user namespace of its own cannot tell users apart that the namespace does not map:
/// it serves none of them, since one could pass for another.
#[test]
fn a_daemon_in_a_user_namespace_serves_only_users_that_it_can_tell_apart() {
    const NAMESPACE: [&str; 2] = ["--user", "--map-root-user"];
    if !can_switch_user() || !possible(Command::new("unshare").args(NAMESPACE)) {
        return;
    }
    let mut daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    daemon.wrapper = ["unshare"].iter().chain(&NAMESPACE).map(|word| (*word).to_owned()).collect();
    daemon.up();
    open_to_all(&daemon);
    assert_eq!(daemon.ctl(&["--strict", "status"]).code, 0, "root is mapped");
    let session = daemon.session(&[]);
    for args in
        [&["status"][..], &["--strict", "session", "start"], &["--strict", "session", "end", &session]]
    {
        let refused = as_nobody(&daemon, args);
        assert_eq!((refused.code, refused.out.as_str()), (5, ""), "{refused:?}");
        assert!(refused.err.contains("its user namespace has no number for you"), "{refused:?}");
    }
}

#[test]
fn a_user_of_a_user_namespace_is_confined_by_the_hosts_number() {
    if !can_switch_user() {
        return;
    }
    let as_root_inside = ["--user", "--map-root-user"];
    if !possible(Command::new("unshare").args(as_root_inside).uid(NOBODY).gid(NOBODY)) {
        return;
    }
    let routes = format!("[[route]]\nuser = \"{}-{NOBODY}\"\ncache = \"untrusted\"\n", NOBODY - 10);
    let config = format!(
        "default_cache = \"main\"\n[caches.main]\nendpoints = \"embedded\"\n[caches.untrusted]\nendpoints = \"embedded\"\n\
         [embedded]\nlisten = \"127.0.0.1:0\"\n[client]\nenable = false\n{routes}"
    );
    let daemon = Daemon::start(PrivateNix::new(), &config);
    open_to_all(&daemon);
    // The same command as `nobody`, who is root inside.
    let inside = |args: &[&str]| {
        let plain = nobodys_client(&daemon, args);
        let mut command = Command::new("unshare");
        command.args(as_root_inside).args(["sh", "-c", "test \"$(id -u)\" = 0 && exec \"$@\"", "sh"]);
        command.arg(plain.get_program()).args(plain.get_args()).uid(NOBODY).gid(NOBODY).current_dir("/");
        command.env_clear().envs(plain.get_envs().filter_map(|(key, value)| Some((key, value?))));
        CommandResult::of(&command.output().unwrap())
    };
    let refused = inside(&["--strict", "session", "start", "--cache", "main"]);
    let reason = format!("[[route]] 1 (user = \"{}-{NOBODY}\") allows untrusted", NOBODY - 10);
    assert!(refused.code == 5 && refused.err.contains(&reason), "{refused:?}");
    let started = inside(&["session", "start"]);
    assert_eq!(started.code, 0, "{started:?}");
    let shown = daemon.json(&["session", "show", started.out.trim()]);
    assert_eq!(shown["session"]["cache"], "untrusted", "{shown}");
}
