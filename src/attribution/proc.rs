//! Reads what `/proc` says about processes (proc(5)). Every user may read `stat`,
//! `status`, `cmdline` and `cgroup`. `ns/pid` can be read only with permission for
//! the process.
//!
//! Must not know: Nix, sessions.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};
use rustix::process::{PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

/// How much of `stat`, `status`, `cmdline` and `cgroup` is used, in bytes.
const MOST: usize = 4096;
/// The first size of the buffer for a file, in bytes. Most files fit into it.
const ROOM: usize = 4096;
/// The most that is read of a file, in bytes: about 60,000 lines of `locks`.
const LONGEST: u64 = 4 << 20;

/// Identifies a process, also among later ones with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcId {
    /// The process number.
    pub pid: i32,
    /// When the process started, in clock ticks since boot (field 22 of `stat`).
    pub start: u64,
}

/// The fields of `/proc/<pid>/stat` that are used.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// The process.
    pub id: ProcId,
    /// The name of its program, cut to 15 bytes.
    pub comm: String,
    /// The process number of its parent.
    pub ppid: i32,
    /// Its process session (setsid(2)).
    pub session: i32,
    /// Whether the process has ended. Its parent has not waited for it yet.
    pub zombie: bool,
}

/// Reads `/proc`, or another directory in tests.
#[derive(Debug, Clone)]
pub struct Proc {
    root: PathBuf,
}

impl Default for Proc {
    fn default() -> Self {
        Self { root: PathBuf::from("/proc") }
    }
}

impl Proc {
    /// Returns a reader of `root` instead of `/proc`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// Reads a file, up to 4 MiB. The buffer is large from the beginning: the size of
    /// these files is not known, and with a small buffer each takes many reads.
    pub(super) fn read(&self, name: &str) -> Option<Vec<u8>> {
        let mut bytes = Vec::with_capacity(ROOM);
        std::fs::File::open(self.root.join(name)).ok()?.take(LONGEST).read_to_end(&mut bytes).ok()?;
        Some(bytes)
    }

    pub(super) fn open(&self, name: &str) -> Option<std::fs::File> {
        std::fs::File::open(self.root.join(name)).ok()
    }

    fn text(&self, pid: i32, name: &str) -> Option<String> {
        let mut bytes = self.read(&format!("{pid}/{name}"))?;
        bytes.truncate(MOST);
        Some(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// Reads a process's `stat`. Returns `None` when the process does not exist or
    /// this user may not see it.
    #[must_use]
    pub fn stat(&self, pid: i32) -> Option<Stat> {
        parse_stat(&self.text(pid, "stat")?)
    }

    /// Whether this process is running. A later process with the same number does
    /// not count.
    #[must_use]
    pub fn is_alive(&self, id: ProcId) -> bool {
        self.stat(id.pid).is_some_and(|s| s.id == id && !s.zombie)
    }

    /// Returns the real user of a process.
    #[must_use]
    pub fn uid(&self, pid: i32) -> Option<u32> {
        field(&self.text(pid, "status")?, "Uid:")?.split_whitespace().next()?.parse().ok()
    }

    /// Returns the real group of a process.
    pub(super) fn gid(&self, pid: i32) -> Option<u32> {
        field(&self.text(pid, "status")?, "Gid:")?.split_whitespace().next()?.parse().ok()
    }

    /// Returns the number of the process that a thread belongs to; `number` itself when it is
    /// a process's. `/proc` has threads too, without listing them.
    pub(super) fn process_of(&self, number: i32) -> i32 {
        let status = self.text(number, "status").unwrap_or_default();
        field(&status, "Tgid:").and_then(|text| text.trim().parse().ok()).unwrap_or(number)
    }

    /// Returns the numbers of a process in each process namespace, from the one of
    /// this `/proc` to the process's own.
    pub(super) fn numbers(&self, pid: i32) -> Vec<i32> {
        let Some(status) = self.text(pid, "status") else { return Vec::new() };
        let numbers = field(&status, "NSpid:").unwrap_or_default();
        numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect()
    }

    /// Returns the process namespace of a process, or `None` when this user may not
    /// see it.
    fn namespace(&self, pid: i32) -> Option<PathBuf> {
        std::fs::read_link(self.root.join(format!("{pid}/ns/pid"))).ok()
    }

    /// Returns the process that has `number` in the process namespace of `observer`.
    /// Returns `None` when there is none or more than one, or when this user may not
    /// see the namespaces.
    pub(super) fn inner(&self, observer: i32, number: i32) -> Option<i32> {
        let namespace = self.namespace(observer)?;
        let fits = |pid: &i32| {
            self.numbers(*pid).last() == Some(&number) && self.namespace(*pid).as_ref() == Some(&namespace)
        };
        let entries = std::fs::read_dir(&self.root).ok()?;
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
        let mut found = pids.filter(fits);
        let first = found.next()?;
        found.next().is_none().then_some(first)
    }

    /// Returns process number and user of who opened the connection that a process has as
    /// its standard input (SO_PEERCRED). Returns `None` when it is no connection of this
    /// host, when that process is in a namespace that cannot be seen from here, or when
    /// this user may not trace the process (ptrace(2)), as the service's own user may not.
    pub(super) fn stdin_peer(&self, of: ProcId) -> Option<(i32, u32)> {
        // Only of real processes.
        if self.root != Path::new("/proc") {
            return None;
        }
        let pid = rustix::process::Pid::from_raw(of.pid)?;
        let process = pidfd_open(pid, PidfdFlags::empty()).ok()?;
        // The number is the process's as long as this is true, and so is the descriptor.
        if !self.is_alive(of) {
            return None;
        }
        let stdin = pidfd_getfd(&process, 0, PidfdGetfdFlags::empty()).ok()?;
        let peer = getsockopt(&stdin, PeerCredentials).ok()?;
        (peer.pid() > 0).then_some((peer.pid(), peer.uid()))
    }

    /// Returns the command line of a process: its arguments, each followed by a zero
    /// byte. At most 4096 bytes.
    pub(super) fn cmdline(&self, pid: i32) -> Option<Vec<u8>> {
        let mut bytes = self.read(&format!("{pid}/cmdline"))?;
        bytes.truncate(MOST);
        Some(bytes)
    }

    /// Returns the control group of a process: that of version 2, or else the one
    /// that systemd manages in version 1. `None` for the root group.
    #[must_use]
    pub fn cgroup(&self, pid: i32) -> Option<String> {
        parse_cgroup(&self.text(pid, "cgroup")?)
    }

    /// Returns the process and its ancestors, nearest first, up to the first one that
    /// this user cannot see. It also ends before a parent that started later than its
    /// child: that is another process with the parent's number.
    #[must_use]
    pub fn ancestry(&self, pid: i32) -> Vec<Stat> {
        let mut line: Vec<Stat> = Vec::new();
        let mut next = pid;
        while next > 0 && line.len() < super::lineage::DEEPEST {
            let Some(stat) = self.stat(next) else { break };
            if line.last().is_some_and(|child| child.id.start < stat.id.start) {
                break;
            }
            next = stat.ppid;
            line.push(stat);
        }
        line
    }
}

/// Parses a `stat` file. The program's name may contain blanks and parentheses, so
/// the other fields are counted from the last closing parenthesis.
pub(super) fn parse_stat(text: &str) -> Option<Stat> {
    let (head, rest) = text.rsplit_once(')')?;
    let (pid, comm) = head.split_once('(')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let number = |field: usize| fields.get(field - 3)?.parse::<i32>().ok();
    Some(Stat {
        id: ProcId { pid: pid.trim().parse().ok()?, start: fields.get(22 - 3)?.parse().ok()? },
        comm: comm.to_owned(),
        ppid: number(4)?,
        session: number(6)?,
        zombie: matches!(fields.first(), Some(&("Z" | "X"))),
    })
}

pub(super) fn field<'a>(text: &'a str, name: &str) -> Option<&'a str> {
    text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim)
}

/// Parses a `cgroup` file. A line such as `0::/a/b` is of version 2. Of the lines of
/// version 1, only `name=systemd` counts.
pub(super) fn parse_cgroup(text: &str) -> Option<String> {
    let mut found = BTreeMap::new();
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (Some(_), Some(kind), Some(path)) = (parts.next(), parts.next(), parts.next()) else { continue };
        found.insert(kind, path);
    }
    let of = |kind: &str| found.get(kind).copied().filter(|path| *path != "/");
    of("").or_else(|| of("name=systemd")).map(str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_may_hold_anything() {
        let text = "10420 (a) S (b) S 10403 10420 10421 0 -1 4194368 433 1269 0 0 0 1 0 2 20 0 2 0 551056 495128576 3189 1844";
        let stat = parse_stat(text).unwrap();
        assert_eq!(stat.id, ProcId { pid: 10420, start: 551_056 });
        assert_eq!((stat.comm.as_str(), stat.ppid, stat.session), ("a) S (b", 10403, 10421));
        assert!(!stat.zombie);
        assert!(parse_stat(&text.replace(") S 1", ") Z 1")).unwrap().zombie);
        for cut in ["", "1", "1 (a)", "1 (a) S 1 2", "x (a) S 1 2 3 4"] {
            assert_eq!(parse_stat(cut), None, "{cut}");
        }
    }

    #[test]
    fn control_groups_of_both_versions() {
        assert_eq!(parse_cgroup("0::/system.slice/job.scope\n").as_deref(), Some("/system.slice/job.scope"));
        assert_eq!(
            parse_cgroup("12:cpu,cpuacct:/x\n1:name=systemd:/user.slice/a:b\n0::/\n").as_deref(),
            Some("/user.slice/a:b")
        );
        assert_eq!(parse_cgroup("0::/\n"), None);
    }

    #[test]
    fn we_are_our_own_first_ancestor() {
        let line = Proc::default().ancestry(i32::try_from(std::process::id()).unwrap());
        assert!(line.len() > 1, "{line:?}");
        assert!(Proc::default().is_alive(line[0].id));
        assert!(!Proc::default().is_alive(ProcId { pid: line[0].id.pid, start: line[0].id.start + 1 }));
    }
}
