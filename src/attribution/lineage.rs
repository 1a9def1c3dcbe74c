//! From the holder of a path's lock to the processes it works for.
//!
//! In a multi-user installation the holder is a nix-daemon worker. One that
//! `nix-daemon --daemon` forked overwrites its argument with the number of the
//! client's process (Nix, `src/nix/unix/daemon.cc`: "For debugging, stuff the
//! pid into argv[1]"), which is an aid and no interface: whatever looks
//! different is "hidden" and proves nothing. In a single-user installation the
//! holder is the nix process itself.

use super::proc::{Proc, ProcId, Stat};

/// Generations that are looked at.
pub(super) const DEEPEST: usize = 128;

/// A process and all it descends from, nearest first, through the nix-daemon to
/// its client. It ends at the first process of the namespace: if nothing here
/// is a session's anchor, the path is no session's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The ancestors.
    pub line: Vec<ProcId>,
    /// The process session of who asked for the path.
    pub session: i32,
    /// The control group of who asked for the path.
    pub cgroup: Option<String>,
    /// The user and group of who asked for the path.
    pub person: Option<(u32, u32)>,
}

/// What a process's command line says about it.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// A worker for this client.
    WorkerFor(i32),
    /// A nix-daemon that does not say whom it works for.
    Hidden,
    /// Anything else.
    Ordinary,
}

impl Lineage {
    /// Follows the ancestors of `pid`. None when they cannot be followed to the
    /// end: gone, hidden, in another namespace, or a daemon that does not tell.
    #[must_use]
    pub fn of(proc: &Proc, pid: i32) -> Option<Self> {
        let first = proc.stat(pid)?;
        // Only who runs as the holder itself is believed to be its nix-daemon:
        // anybody can call a process so.
        let owner = proc.uid(pid)?;
        let mut line: Vec<ProcId> = Vec::new();
        let mut client = first.clone();
        let mut at = first;
        loop {
            if line.contains(&at.id) || line.len() >= DEEPEST {
                return None;
            }
            line.push(at.id);
            let next = match role(proc, &at, owner) {
                Role::Hidden => return None,
                Role::WorkerFor(pid) => {
                    client = proc.stat(pid)?;
                    client.clone()
                }
                Role::Ordinary if at.ppid == 0 => break,
                Role::Ordinary => proc.stat(at.ppid)?,
            };
            // Who started later took over a number that had become free.
            if next.id.start > at.id.start {
                return None;
            }
            at = next;
        }
        let pid = client.id.pid;
        let person = proc.uid(pid).zip(proc.gid(pid));
        Some(Self { line, session: client.session, cgroup: proc.cgroup(pid), person })
    }
}

fn role(proc: &Proc, stat: &Stat, owner: u32) -> Role {
    if !stat.comm.starts_with("nix") || proc.uid(stat.id.pid) != Some(owner) {
        return Role::Ordinary;
    }
    proc.cmdline(stat.id.pid).map_or(Role::Hidden, |line| parse_role(&line))
}

fn parse_role(cmdline: &[u8]) -> Role {
    let mut arguments = cmdline.split(|byte| *byte == 0);
    let program = String::from_utf8_lossy(arguments.next().unwrap_or_default()).into_owned();
    let name = program.rsplit('/').next().unwrap_or_default();
    let first = arguments.next().unwrap_or_default();
    let daemon = name == "nix-daemon" || (name == "nix" && (first == b"daemon" || is_number(first)));
    if !daemon {
        return Role::Ordinary;
    }
    if first == b"--stdio" {
        // Passes on what comes through its standard input: its parents asked.
        return Role::Ordinary;
    }
    // The number took the argument's place and was cut to its length; what is
    // left of the place is zeros. Without one it may have been longer.
    let place = &cmdline[(program.len() + 1).min(cmdline.len())..];
    let room = place[first.len().min(place.len())..].iter().take_while(|byte| **byte == 0).count();
    let whole = room > 1 || first.len() >= 7;
    match std::str::from_utf8(first).ok().and_then(|text| text.parse().ok()) {
        Some(pid) if pid > 0 && is_number(first) && whole => Role::WorkerFor(pid),
        _ => Role::Hidden,
    }
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::tests::FakeProc;

    #[test]
    fn command_lines_of_nix() {
        for (line, role) in [
            // Nix 2.8.0 and 2.26.3, `nix-daemon --daemon`: recorded.
            (&b"nix-daemon\x0010417\0\0\0\0"[..], Role::WorkerFor(10417)),
            (b"/nix/store/x-nix/bin/nix-daemon\x004194303\0\0", Role::WorkerFor(4_194_303)),
            // `nix daemon`: six letters of room, so that six digits may be seven.
            (b"nix\x0054321\0\0", Role::WorkerFor(54321)),
            (b"nix\x00543210\0", Role::Hidden),
            (b"nix-daemon\0--daemon\0", Role::Hidden),
            (b"nix-daemon\0", Role::Hidden),
            (b"nix-daemon\x000\0\0\0\0\0\0\0\0", Role::Hidden),
            (b"nix-daemon\0--stdio\0", Role::Ordinary),
            (b"nix\0build\0", Role::Ordinary),
            (b"nix-build\0", Role::Ordinary),
            (b"sh\x001234\0\0", Role::Ordinary),
            (b"", Role::Ordinary),
        ] {
            assert_eq!(parse_role(line), role, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn a_worker_leads_to_its_client() {
        let fake = FakeProc::new();
        fake.add(1, 0, 1, "systemd", 0, b"/sbin/init\0");
        fake.add(10, 1, 20, "nix-daemon", 0, b"nix-daemon\0--daemon\0");
        fake.add(11, 10, 90, "nix-daemon", 0, b"nix-daemon\x0040\0\0\0\0\0\0\0");
        fake.add(30, 1, 50, "bash", 1000, b"bash\0");
        fake.add(40, 30, 80, "nix-build", 1000, b"nix-build\0");
        let found = Lineage::of(&fake.proc(), 11).unwrap();
        let pids: Vec<i32> = found.line.iter().map(|id| id.pid).collect();
        assert_eq!(pids, [11, 40, 30, 1]);
        assert_eq!(found.cgroup.as_deref(), Some("/of/40"), "the client's, not the daemon's");
        assert_eq!(found.person, Some((1000, 1000)), "also the client's");
        // The daemon itself works for nobody that can be named.
        assert_eq!(Lineage::of(&fake.proc(), 10), None);
    }

    #[test]
    fn a_client_that_started_later_is_another_one() {
        let fake = FakeProc::new();
        fake.add(1, 0, 1, "systemd", 0, b"/sbin/init\0");
        fake.add(11, 1, 90, "nix-daemon", 0, b"nix-daemon\x0040\0\0\0\0\0\0\0");
        fake.add(40, 1, 91, "nix-build", 1000, b"nix-build\0");
        assert_eq!(Lineage::of(&fake.proc(), 11), None);
    }

    #[test]
    fn nobody_can_pose_as_a_daemon() {
        let fake = FakeProc::new();
        fake.add(1, 0, 1, "systemd", 0, b"/sbin/init\0");
        fake.add(11, 1, 90, "nix-daemon", 0, b"nix-daemon\x0040\0\0\0\0\0\0\0");
        fake.add(40, 30, 80, "nix-build", 1000, b"nix-build\0");
        // A user's process that names somebody else's job.
        fake.add(30, 1, 50, "nix-daemon", 1000, b"nix-daemon\x0060\0\0\0\0\0\0\0");
        fake.add(60, 1, 40, "bash", 2000, b"bash\0");
        let pids: Vec<i32> = Lineage::of(&fake.proc(), 11).unwrap().line.iter().map(|id| id.pid).collect();
        assert_eq!(pids, [11, 40, 30, 1]);
    }

    #[test]
    fn what_cannot_be_followed_proves_nothing() {
        let fake = FakeProc::new();
        fake.add(40, 30, 80, "nix-build", 1000, b"nix-build\0");
        assert_eq!(Lineage::of(&fake.proc(), 40), None, "its parent is hidden");
        fake.add(30, 40, 80, "bash", 1000, b"bash\0");
        assert_eq!(Lineage::of(&fake.proc(), 40), None, "a circle");
        assert_eq!(Lineage::of(&fake.proc(), 77), None, "gone");
    }
}
