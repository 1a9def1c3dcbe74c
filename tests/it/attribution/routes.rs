//! Routes by a path's maker, and a job that is recognized by its control group alone.

use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

use crate::attribution::sessions::{evidence, job};
use crate::support::daemon::{CommandResult, Daemon, EMBEDDED, until};
use crate::support::multiuser::NixDaemon;
use crate::support::nix::PrivateNix;
use crate::support::users::{NOBODY, can_switch_user, open_to_all, set_mode};

#[test]
fn a_path_of_no_session_follows_the_route_of_its_maker() {
    if !can_switch_user() {
        return;
    }
    let nix = PrivateNix::new();
    let started = NixDaemon::start(&nix, &[]);
    let config = format!(
        "default_cache = \"main\"\n[caches.main]\nendpoints = \"embedded\"\n[caches.untrusted]\nendpoints = \"embedded\"\n\
         [embedded]\nlisten = \"127.0.0.1:0\"\n[client]\nenable = false\n\
         [[route]]\nuser = \"{NOBODY}\"\ncache = \"untrusted\"\n[[route]]\ngroup = \"4242\"\naction = \"skip\"\n"
    );
    let daemon = Daemon::start(nix, &config);
    open_to_all(&daemon);
    set_mode(&daemon.nix.work_dir(), 0o777);
    let build = |name: &str, uid: u32, gid: u32| {
        let mut build = daemon.nix.command("nix-build");
        build.args(["--no-out-link", "-E", &PrivateNix::shell(name, "sleep 0.2; echo $name > $out")]);
        build.env("NIX_REMOTE", started.remote()).env("HOME", daemon.nix.work_dir());
        let said = CommandResult::of(&build.uid(uid).gid(gid).output().unwrap());
        assert_eq!(said.code, 0, "{said:?}");
    };
    build("of-root", 0, 0);
    build("of-nobody", NOBODY, NOBODY);
    build("of-a-guest", 4243, 4242);
    daemon.flush();
    assert_eq!(daemon.cache("main").names(), ["of-root"]);
    assert_eq!(daemon.cache("untrusted").names(), ["of-nobody"]);
}

/// A control group of this test, in the version that the host has.
struct Group(PathBuf);

impl Group {
    fn new() -> Option<Self> {
        let name = format!("flywheel-test-{}", std::process::id());
        ["/sys/fs/cgroup/unified", "/sys/fs/cgroup", "/sys/fs/cgroup/systemd"]
            .iter()
            .map(|top| PathBuf::from(top).join(&name))
            .find(|dir| std::fs::create_dir(dir).is_ok() && dir.join("cgroup.procs").exists())
            .map(Self)
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // The group is empty when the last of its processes has been waited for.
        for _ in 0..500 {
            if std::fs::remove_dir(&self.0).is_ok() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(10));
        }
    }
}

/// A build without its parents and process session, in the job's control group, while another job
/// is open.
#[test]
fn an_orphaned_process_is_found_by_its_control_group() {
    let Some(group) = Group::new() else {
        eprintln!("skipped: no control group can be made here");
        return;
    };
    let daemon = Daemon::start(PrivateNix::new(), EMBEDDED);
    let mut other = job(&daemon, "\"$CTL\" session start --label other; read end", &[]);
    let expr = PrivateNix::shell("orphan", "sleep 0.3; echo 1 > $out");
    let script = "echo $$ > \"$GROUP/cgroup.procs\"; \"$CTL\" session start --label mine >/dev/null
        (setsid nix-build --no-out-link -E \"$E\" >built 2>log &) ; read end";
    let group_dir = group.0.to_str().unwrap();
    let mut mine = job(&daemon, script, &[("GROUP", group_dir), ("E", &expr)]);
    until("the orphan's build", || {
        std::fs::read_to_string(daemon.nix.work_dir().join("built")).is_ok_and(|text| text.contains("orphan"))
    });
    daemon.flush();
    let list = daemon.json(&["session", "list"]);
    let of = |label: &str| {
        let all = list.as_array().unwrap();
        let id = all.iter().find(|s| s["label"] == label).unwrap()["session"].as_str().unwrap().to_owned();
        daemon.json(&["session", "show", &id])
    };
    assert_eq!(evidence(&of("mine"), "-orphan"), "process");
    assert_eq!(of("other")["paths"].as_array().unwrap().len(), 0);
    for shell in [&mut mine, &mut other] {
        shell.kill().unwrap();
        shell.wait().unwrap();
    }
}

/// The hook succeeds and prints nothing, whichever program listens on its socket.
#[test]
fn the_hook_fails_no_build() {
    let dir = tempfile::tempdir().unwrap();
    let hook = dir.path().join("flywheel-hook");
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_flywheelctl"), &hook).unwrap();
    let at = |name: &str| dir.path().join(name);
    drop(std::os::unix::net::UnixListener::bind(at("dead")).unwrap());
    let _hangs = std::os::unix::net::UnixListener::bind(at("hangs")).unwrap();
    let babbles = std::os::unix::net::UnixListener::bind(at("babbles")).unwrap();
    std::thread::spawn(move || {
        for stream in babbles.incoming() {
            let _ = std::io::Write::write_all(&mut stream.unwrap(), &[0xff; 64]);
        }
    });
    std::fs::write(at("file"), "").unwrap();
    for socket in ["absent", "dead", "hangs", "babbles", "file"] {
        for outputs in [Some("/nix/store/x /nix/store/y"), None] {
            let mut call = Command::new(&hook);
            call.env_clear().env("FLYWHEEL_SOCKET", at(socket)).envs(outputs.map(|o| ("OUT_PATHS", o)));
            let said = CommandResult::of(&call.output().unwrap());
            assert_eq!((said.code, said.out.as_str(), said.err.as_str()), (0, "", ""), "{socket}");
        }
    }
}
