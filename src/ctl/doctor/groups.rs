//! Groups: whether the processes that open sessions may use the daemon's socket. A
//! process keeps the groups that it had when it was started, so that a runner, or a
//! shell, does not see a change. Must not know the daemon.

use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist, getgroups};

use super::Finding;

/// Names of the processes that run jobs, as the kernel has them: at most 15 characters.
const RUNNERS: [&str; 8] = [
    "gitlab-runner",
    "Runner.Listener",
    "act_runner",
    "gitea-runner",
    "forgejo-runner",
    "buildkite-agent",
    "woodpecker-agent",
    "hercules-ci-age",
];
/// What the command line of Jenkins' agent contains, which is a `java`.
const JENKINS: [&str; 3] = ["agent.jar", "remoting.jar", "swarm-client"];

/// A process that runs jobs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Runner {
    pub(super) pid: u32,
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gids: Vec<u32>,
    /// The systemd service that it is in.
    pub(super) unit: Option<String>,
}

/// What the name service says of a user.
pub(super) struct Person {
    pub(super) name: String,
    pub(super) gids: Vec<u32>,
}

/// Checks the caller's own groups and those of the runners. `socket`: the control socket.
pub(super) fn of_groups(socket: &Path, proc: &Path) -> Vec<Finding> {
    let Some(group) = socket_group(socket) else { return Vec::new() };
    let mut all = Vec::new();
    let own = getgroups().unwrap_or_default().iter().map(|gid| gid.as_raw()).collect::<Vec<u32>>();
    let uid = Uid::effective();
    let held = uid.is_root() || own.contains(&group.gid) || Gid::effective().as_raw() == group.gid;
    if let Some(person) = person(uid.as_raw()).filter(|person| !held && person.gids.contains(&group.gid)) {
        all.push(stale_shell(&person.name, &group.name));
    }
    let runners = runners(proc);
    all.extend(runners.iter().filter_map(|runner| of_runner(runner, &group, person(runner.uid).as_ref())));
    if all.is_empty() && !runners.is_empty() {
        let names: Vec<&str> = runners.iter().map(|runner| runner.name.as_str()).collect();
        all.push(Finding::good("runners", format!("{} may use flywheeld", names.join(", "))));
    }
    all
}

/// The group whose members may use the socket.
pub(super) struct SocketGroup {
    pub(super) gid: u32,
    pub(super) name: String,
}

fn socket_group(socket: &Path) -> Option<SocketGroup> {
    let gid = std::fs::metadata(socket).ok()?.gid();
    let name = Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name);
    Some(SocketGroup { gid, name: name.unwrap_or_else(|| gid.to_string()) })
}

fn person(uid: u32) -> Option<Person> {
    let user = User::from_uid(Uid::from_raw(uid)).ok().flatten()?;
    let name = std::ffi::CString::new(user.name.as_str()).ok()?;
    let groups = getgrouplist(&name, user.gid).ok()?;
    Some(Person { name: user.name, gids: groups.iter().map(|gid| gid.as_raw()).collect() })
}

fn stale_shell(user: &str, group: &str) -> Finding {
    let text = format!("{user} joined the group {group} after this shell was started: log in again");
    Finding::bad("your groups", text, format!("newgrp {group}"))
}

/// Says why a runner's jobs cannot use the socket; none when they can.
pub(super) fn of_runner(runner: &Runner, group: &SocketGroup, person: Option<&Person>) -> Option<Finding> {
    if runner.uid == 0 || runner.gids.contains(&group.gid) {
        return None;
    }
    let what = format!("runner {}", runner.name);
    let (gid, group) = (group.gid, &group.name);
    let restart = match &runner.unit {
        Some(unit) => format!("systemctl restart {unit}"),
        None => format!("kill {}   # and start it again", runner.pid),
    };
    Some(match person {
        Some(person) if person.gids.contains(&gid) => {
            let text = format!(
                "process {} was started before its user {} joined the group {group}: its jobs cannot use flywheeld",
                runner.pid, person.name
            );
            Finding::bad(what, text, restart)
        }
        person => {
            let user = person.map_or_else(|| runner.uid.to_string(), |person| person.name.clone());
            let text = format!("its user {user} is not in the group {group}: its jobs cannot use flywheeld");
            Finding::bad(what, text, format!("usermod -aG {group} {user} && {restart}"))
        }
    })
}

/// The runners among the processes of `proc`, which is `/proc`.
pub(super) fn runners(proc: &Path) -> Vec<Runner> {
    let entries = std::fs::read_dir(proc).into_iter().flatten().flatten();
    let mut all: Vec<Runner> = entries.filter_map(|entry| runner(&entry.path())).collect();
    all.sort_by_key(|runner| runner.pid);
    all
}

fn runner(dir: &Path) -> Option<Runner> {
    let pid = dir.file_name()?.to_str()?.parse().ok()?;
    let comm = std::fs::read_to_string(dir.join("comm")).ok()?.trim().to_owned();
    let name = if RUNNERS.contains(&comm.as_str()) {
        comm
    } else if comm == "java" {
        let words = std::fs::read(dir.join("cmdline")).ok()?;
        let words = String::from_utf8_lossy(&words);
        JENKINS.iter().any(|word| words.contains(word)).then(|| "jenkins-agent".to_owned())?
    } else {
        return None;
    };
    let status = std::fs::read_to_string(dir.join("status")).ok()?;
    let numbers = |field: &str| -> Vec<u32> {
        let line = status.lines().find_map(|line| line.strip_prefix(field)).unwrap_or_default();
        line.split_whitespace().filter_map(|word| word.parse().ok()).collect()
    };
    // Real, effective, saved and file system ids.
    let uid = numbers("Uid:").get(1).copied()?;
    let mut gids = numbers("Groups:");
    gids.extend(numbers("Gid:").get(1));
    let cgroup = std::fs::read_to_string(dir.join("cgroup")).unwrap_or_default();
    let unit = cgroup.trim().rsplit('/').find(|part| part.ends_with(".service")).map(str::to_owned);
    Some(Runner { pid, name, uid, gids, unit })
}

/// Whether Nix's `trusted-users` name the caller.
pub(super) fn is_trusted(list: &[&str]) -> bool {
    let uid = Uid::effective();
    let person = person(uid.as_raw());
    let groups: Vec<String> =
        person.iter().flat_map(|person| &person.gids).filter_map(|gid| group_name(*gid)).collect();
    uid.is_root()
        || list.iter().any(|word| match word.strip_prefix('@') {
            Some(group) => groups.iter().any(|name| name == group),
            None => *word == "*" || person.as_ref().is_some_and(|person| person.name == *word),
        })
}

fn group_name(gid: u32) -> Option<String> {
    Group::from_gid(Gid::from_raw(gid)).ok().flatten().map(|group| group.name)
}
