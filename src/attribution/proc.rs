//! What `/proc` tells about processes, and nothing more than everyone may read:
//! `stat`, `status`, `cmdline`, `cgroup` (proc(5)). Must not know Nix, sessions.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

/// Longest `cmdline` or `cgroup` that is looked at.
const MOST: usize = 4096;
/// What most files here fit into.
const ROOM: usize = 4096;
/// The most of a file that is read: some 60,000 lines of `locks`.
const LONGEST: u64 = 4 << 20;

/// A process, told apart from a later one with the same number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ProcId {
    /// Its number.
    pub pid: i32,
    /// When it started, in clock ticks since boot (field 22 of `stat`).
    pub start: u64,
}

/// The fields of `/proc/<pid>/stat` that matter here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stat {
    /// Which process.
    pub id: ProcId,
    /// The name of its program, at most 15 bytes.
    pub comm: String,
    /// Its parent.
    pub ppid: i32,
    /// The process session (setsid(2)) it is in.
    pub session: i32,
    /// Dead, and not yet taken notice of by its parent.
    pub zombie: bool,
}

/// Reads `/proc`, or what a test puts in its place.
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
    /// Reads below `root`.
    #[must_use]
    pub fn at(root: &Path) -> Self {
        Self { root: root.to_owned() }
    }

    /// With room from the beginning: these files have no size that could be
    /// asked for, and a reader that begins small reads each of them many times.
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

    /// Who a process is; none when it is gone or hidden.
    #[must_use]
    pub fn stat(&self, pid: i32) -> Option<Stat> {
        parse_stat(&self.text(pid, "stat")?)
    }

    /// Whether exactly this process lives.
    #[must_use]
    pub fn is_alive(&self, id: ProcId) -> bool {
        self.stat(id.pid).is_some_and(|s| s.id == id && !s.zombie)
    }

    /// Its real user.
    #[must_use]
    pub fn uid(&self, pid: i32) -> Option<u32> {
        field(&self.text(pid, "status")?, "Uid:")?.split_whitespace().next()?.parse().ok()
    }

    /// Its real group.
    pub(super) fn gid(&self, pid: i32) -> Option<u32> {
        field(&self.text(pid, "status")?, "Gid:")?.split_whitespace().next()?.parse().ok()
    }

    /// Its numbers, from our process namespace to its own.
    pub(super) fn numbers(&self, pid: i32) -> Vec<i32> {
        let Some(status) = self.text(pid, "status") else { return Vec::new() };
        let numbers = field(&status, "NSpid:").unwrap_or_default();
        numbers.split_whitespace().filter_map(|n| n.parse().ok()).collect()
    }

    /// The inode of its process namespace; `None` where this user may not see it.
    fn namespace(&self, pid: i32) -> Option<PathBuf> {
        std::fs::read_link(self.root.join(format!("{pid}/ns/pid"))).ok()
    }

    /// The process that a process in an inner namespace calls `number`. `None`
    /// when no process or more than one fits, or the namespaces cannot be compared.
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

    /// Its command line as the kernel has it: arguments, each ended by a zero.
    pub(super) fn cmdline(&self, pid: i32) -> Option<Vec<u8>> {
        let mut bytes = self.read(&format!("{pid}/cmdline"))?;
        bytes.truncate(MOST);
        Some(bytes)
    }

    /// Its control group: version 2, or all of version 1's.
    #[must_use]
    pub fn cgroup(&self, pid: i32) -> Option<String> {
        parse_cgroup(&self.text(pid, "cgroup")?)
    }

    /// The process and its ancestors, nearest first, as far as they can be
    /// seen. A parent that started later is another process with the number.
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

/// The name may hold anything, blanks and parentheses too, so that counting
/// begins behind the last parenthesis.
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

/// `0::/a/b` is version 2; of version 1 the one that systemd keeps counts.
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
