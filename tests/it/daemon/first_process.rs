//! The daemon as the first process of a container: it has no systemd above it, and the kernel
//! makes it the parent of every orphan.

use std::process::Command;

use rustix::process::{Pid, Signal, kill_process};

use crate::support::daemon::{CommandResult, Daemon, EMBEDDED, until, until_some};
use crate::support::nix::PrivateNix;

/// What starts a program as the first process of a process namespace of its own.
const NAMESPACE: [&str; 5] = ["unshare", "--pid", "--fork", "--mount-proc", "--kill-child"];

/// A daemon that will start as the first process; none, with a line that says why, where no
/// process namespace can be made.
fn prepare() -> Option<Daemon> {
    let made = Command::new(NAMESPACE[0]).args(&NAMESPACE[1..]).arg("true").output();
    if !made.is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: a process namespace needs root and unshare (util-linux)");
        return None;
    }
    let mut daemon = Daemon::prepare(PrivateNix::new(), EMBEDDED);
    daemon.wrapper = NAMESPACE.map(str::to_owned).to_vec();
    Some(daemon)
}

/// The children of a process, by the kernel's numbers here, with their names. A process that has
/// ended is among them until its parent takes its status.
fn children(parent: u32) -> Vec<(u32, String)> {
    let stats = std::fs::read_dir("/proc").unwrap().filter_map(|entry| {
        let pid: u32 = entry.unwrap().file_name().to_str()?.parse().ok()?;
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        let (name, rest) = stat.rsplit_once(')')?;
        let name = name.split_once('(')?.1.to_owned();
        let its_parent: u32 = rest.split_whitespace().nth(1)?.parse().ok()?;
        Some((pid, name, its_parent))
    });
    stats.filter(|stat| stat.2 == parent).map(|(pid, name, _)| (pid, name)).collect()
}

fn signal(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

#[test]
fn it_takes_the_status_of_orphans_and_passes_signals_on() {
    let Some(mut daemon) = prepare() else { return };
    daemon.up();
    let (first, _) = children(daemon.pid())[0];
    // An orphan, as a command in the container leaves it behind.
    let left = Command::new("nsenter")
        .args(["--target", &first.to_string(), "--pid", "sh", "-c", "sleep 600 >/dev/null 2>&1 </dev/null &"])
        .status();
    assert!(left.unwrap().success());
    let orphan = || children(first).into_iter().find(|(_, name)| name == "sleep");
    let (number, _) = until_some("the orphan has the first process as its parent", orphan);
    signal(number, Signal::KILL);
    until("no entry is left of the orphan", || orphan().is_none());

    // SIGHUP reaches the daemon.
    signal(first, Signal::HUP);
    until("the configuration is read again", || {
        daemon.notified().iter().filter(|line| *line == "READY=1").count() == 2
    });
    // It works as everywhere else, and a stop finishes the uploads.
    let path = daemon.nix.make("one");
    daemon.flush();
    assert!(daemon.main().has(&path));
    signal(first, Signal::TERM);
    let status = daemon.ended();
    assert!(status.success(), "{status}");
    daemon.assert_logged(1, "stopped: no upload was interrupted");
    assert!(!daemon.socket().exists());
}

#[test]
fn its_exit_status_is_the_daemons() {
    let Some(daemon) = prepare() else { return };
    std::fs::write(daemon.config(), "no_such_setting = 1\n").unwrap();
    let ended = CommandResult::of(&daemon.program().arg("--config").arg(daemon.config()).output().unwrap());
    assert_eq!(ended.code, 2, "{ended:?}");
    assert!(ended.err.contains("no_such_setting"), "{ended:?}");
}
