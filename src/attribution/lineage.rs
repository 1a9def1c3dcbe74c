//! Follows the holder of a path's lock to the processes that it works for.
//!
//! In a multi-user installation the holder is a worker of the nix-daemon. These
//! tell the client that a worker serves:
//!
//! | worker | where the client's process number is |
//! |---|---|
//! | forked by `nix-daemon --daemon` | argv[1] is overwritten with it (Nix, `src/nix/unix/daemon.cc`: "For debugging, stuff the pid into argv[1]"), cut to the argument's length |
//! | Lix | `nix-daemon --for PID …`, or argv[1] overwritten with NUL, number and blanks |
//! | started by systemd for one connection (`Accept=yes`) | the instance of its unit, `nix-daemon@N-PID-UID.service`, in its control group |
//! | `nix-daemon --stdio` with a connection as its standard input | the kernel knows who opened the connection; it tells root and services with CAP_SYS_PTRACE |
//!
//! The first two are debugging aids and no interfaces: a worker whose command
//! line looks different has an unknown client and proves nothing. In a
//! single-user installation the holder is the nix process itself.
//!
//! All of these are believed only of a process of the holder's user: a lock in
//! the store is held by the store's owner, and anybody else can choose a name,
//! arguments and, with a user's systemd, a unit.

use super::proc::{Proc, ProcId, Stat};

/// Generations that are followed; a maker below more of them is unknown.
pub(super) const DEEPEST: usize = 128;

/// A process and its ancestors, nearest first, through the nix-daemon to its
/// client, up to the first process of the namespace. A path whose maker's
/// lineage contains no session's anchor is no session's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lineage {
    /// The process and its ancestors.
    pub line: Vec<ProcId>,
    /// The process session of the client.
    pub session: i32,
    /// The control group of the client.
    pub cgroup: Option<String>,
    /// User and group of the client.
    pub person: Option<(u32, u32)>,
}

/// What a process is in the line from the holder to the job.
#[derive(Debug, PartialEq, Eq)]
enum Role {
    /// A worker of the nix-daemon that serves this process; the number is one of
    /// the worker's process namespace.
    WorkerFor(i32),
    /// A nix-daemon that serves one connection and does not tell whose.
    Connection,
    /// A nix-daemon whose client is unknown.
    Hidden,
    /// Any other process.
    Ordinary,
}

impl Lineage {
    /// Follows the ancestors of `pid`. `None` (the maker is unknown) when they
    /// cannot be followed to the end: a process has ended, is hidden or in
    /// another namespace, there are more than [`DEEPEST`], or a nix-daemon does
    /// not tell its client.
    #[must_use]
    pub fn of(proc: &Proc, pid: i32) -> Option<Self> {
        let first = proc.stat(pid)?;
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
                Role::WorkerFor(number) => {
                    client = proc.stat(outer_number(proc, &at, number)?)?;
                    client.clone()
                }
                Role::Connection => {
                    client = proc.stat(client_of_connection(proc, &at)?)?;
                    client.clone()
                }
                Role::Ordinary if at.ppid == 0 => break,
                Role::Ordinary => proc.stat(at.ppid)?,
            };
            // A process that started later was given a number that became free.
            if next.id.start > at.id.start {
                return None;
            }
            at = next;
        }
        let pid = client.id.pid;
        let person = Some((proc.uid(pid)?, proc.gid(pid)?));
        Some(Self { line, session: client.session, cgroup: proc.cgroup(pid), person })
    }
}

/// The number here of the process that a worker calls `number`.
fn outer_number(proc: &Proc, worker: &Stat, number: i32) -> Option<i32> {
    if proc.numbers(worker.id.pid).len() > 1 { proc.inner(worker.id.pid, number) } else { Some(number) }
}

/// The client of a worker that serves one connection: the unit's name tells it, or the
/// kernel does, which may be asked only by a service that may trace the worker. The user
/// who opened the connection must still be the process's.
fn client_of_connection(proc: &Proc, worker: &Stat) -> Option<i32> {
    client_of_unit(proc, worker).or_else(|| {
        let (pid, uid) = proc.stdin_peer(worker.id)?;
        (proc.uid(pid)? == uid).then_some(pid)
    })
}

/// The client of a worker that systemd started for one connection (systemd.socket(5),
/// `Accept=`): the instance's name holds a count, the client's process number and
/// its user. The user must still be the process's.
fn client_of_unit(proc: &Proc, worker: &Stat) -> Option<i32> {
    let (pid, uid) = parse_unit(&proc.cgroup(worker.id.pid)?)?;
    (proc.uid(pid)? == uid).then_some(pid)
}

/// Reads `/system.slice/…/nix-daemon@N-PID-UID.service`. Units of users' own
/// managers are not believed.
fn parse_unit(cgroup: &str) -> Option<(i32, u32)> {
    let rest = cgroup.strip_prefix("/system.slice/")?;
    let unit = rest.split('/').rfind(|part| part.starts_with("nix-daemon") && part.ends_with(".service"))?;
    let instance = unit.strip_suffix(".service")?.split_once('@')?.1;
    // Some versions escape or append the connection's number: the last two count.
    let mut numbers = instance.rsplitn(3, '-');
    let (uid, pid, count) = (numbers.next()?, numbers.next()?, numbers.next()?);
    // systemd 258 appends `_` and the number of the process's pidfd.
    let pid = pid.split_once('_').map_or(pid, |(pid, _)| pid);
    let digits = [uid, pid, count].iter().all(|text| is_number(text.as_bytes()));
    let pid = pid.parse().ok().filter(|pid| *pid > 0)?;
    if digits { Some((pid, uid.parse().ok()?)) } else { None }
}

fn role(proc: &Proc, stat: &Stat, owner: u32) -> Role {
    if !stat.comm.starts_with("nix") || proc.uid(stat.id.pid) != Some(owner) {
        return Role::Ordinary;
    }
    match proc.cmdline(stat.id.pid).map_or(Role::Hidden, |line| parse_role(&line)) {
        // Also a worker whose command line tells nothing may have a unit.
        Role::Hidden if client_of_unit(proc, stat).is_some() => Role::Connection,
        role => role,
    }
}

fn parse_role(cmdline: &[u8]) -> Role {
    let mut arguments = cmdline.split(|byte| *byte == 0);
    let program = String::from_utf8_lossy(arguments.next().unwrap_or_default()).into_owned();
    let name = program.rsplit('/').next().unwrap_or_default();
    let place = &cmdline[(program.len() + 1).min(cmdline.len())..];
    // Lix puts a NUL before the number.
    let first_byte = place.iter().position(|byte| *byte != 0).unwrap_or(place.len());
    let place = &place[first_byte..];
    let length = place.iter().position(|byte| matches!(byte, 0 | b' ')).unwrap_or(place.len());
    let (first, rest) = place.split_at(length);
    let daemon = name == "nix-daemon" || (name == "nix" && (first == b"daemon" || is_number(first)));
    if !daemon {
        return Role::Ordinary;
    }
    let pid = |text: &[u8]| {
        let number = std::str::from_utf8(text).ok().filter(|text| is_number(text.as_bytes()));
        number.and_then(|text| text.parse().ok()).filter(|pid: &i32| *pid > 0)
    };
    match first {
        b"--for" => {
            let argument = rest[1.min(rest.len())..].split(|byte| *byte == 0).next().unwrap_or_default();
            return pid(argument).map_or(Role::Hidden, Role::WorkerFor);
        }
        b"--stdio" => return Role::Connection,
        _ => {}
    }
    // The number took the argument's place and was cut to its length; the rest of
    // the place is NULs or blanks. Without a rest the number may have been longer.
    let room = rest.iter().take_while(|byte| matches!(byte, 0 | b' ')).count();
    let whole = room > 1 || rest.first() == Some(&b' ') || first.len() >= 7;
    match pid(first) {
        Some(pid) if whole => Role::WorkerFor(pid),
        _ => Role::Hidden,
    }
}

fn is_number(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// Reads bytes as a command line.
#[cfg(any(fuzzing, test))]
pub(super) fn fuzz(bytes: &[u8]) {
    if let Role::WorkerFor(pid) = parse_role(bytes) {
        assert!(pid > 0 && bytes.windows(3).any(|word| word == b"nix"));
    }
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
            // Lix 2.95.
            (b"nix-daemon\0--for\x0010417\0--log-level\x003\0--protocol\x00x\0", Role::WorkerFor(10417)),
            (b"nix-daemon\0--for\0x\0", Role::Hidden),
            (b"nix-daemon\0--for\0", Role::Hidden),
            (b"nix-daemon\0\x0010417    \0", Role::WorkerFor(10417)),
            (b"nix-daemon\0--daemon\0", Role::Hidden),
            (b"nix-daemon\0", Role::Hidden),
            (b"nix-daemon\x000\0\0\0\0\0\0\0\0", Role::Hidden),
            (b"nix-daemon\0--stdio\0", Role::Connection),
            (b"nix\0build\0", Role::Ordinary),
            (b"nix-build\0", Role::Ordinary),
            (b"sh\x001234\0\0", Role::Ordinary),
            (b"", Role::Ordinary),
        ] {
            assert_eq!(parse_role(line), role, "{}", String::from_utf8_lossy(line));
        }
    }

    #[test]
    fn instances_of_socket_units() {
        for (cgroup, client) in [
            ("/system.slice/system-nix\\x2ddaemon.slice/nix-daemon@7-1234-1000.service", Some((1234, 1000))),
            ("/system.slice/nix-daemon@7-1234-1000.service/supervisor", Some((1234, 1000))),
            ("/system.slice/nix-daemon@7-1234_9876-1000.service", Some((1234, 1000))),
            ("/system.slice/nix-daemon.service", None),
            ("/system.slice/nix-daemon@7-0-1000.service", None),
            ("/system.slice/nix-daemon@7-x-1000.service", None),
            ("/system.slice/other@7-1234-1000.service", None),
            ("/user.slice/user-1000.slice/user@1000.service/app.slice/nix-daemon@7-1234-0.service", None),
        ] {
            assert_eq!(parse_unit(cgroup), client, "{cgroup}");
        }
    }

    /// A worker of `Accept=yes` that says nothing itself.
    #[test]
    fn a_worker_of_a_socket_unit_leads_to_its_client_or_to_nobody() {
        let fake = FakeProc::new();
        fake.add(1, 0, 1, "systemd", 0, b"/sbin/init\0");
        fake.add(11, 1, 90, "nix-daemon", 0, b"nix-daemon\0--stdio\0");
        fake.add(30, 1, 50, "bash", 1000, b"bash\0");
        fake.add(40, 30, 80, "nix-build", 1000, b"nix-build\0");
        assert_eq!(Lineage::of(&fake.proc(), 11), None, "its client is unknown");
        let instance =
            |text: &str| fake.set(11, "cgroup", format!("0::/system.slice/nix-daemon@{text}.service\n"));
        instance("3-40-1000");
        let found = Lineage::of(&fake.proc(), 11).unwrap();
        assert_eq!(found.line.iter().map(|id| id.pid).collect::<Vec<_>>(), [11, 40, 30, 1]);
        assert_eq!(found.person, Some((1000, 1000)));
        instance("3-40-1001");
        assert_eq!(Lineage::of(&fake.proc(), 11), None, "the number was given to another user's process");
    }

    /// Numbers in the command line are those of the worker's namespace.
    #[test]
    fn a_worker_in_another_namespace() {
        let fake = FakeProc::new();
        fake.add(1, 0, 1, "systemd", 0, b"/sbin/init\0");
        fake.add(11, 1, 90, "nix-daemon", 0, b"nix-daemon\x0040\0\0\0\0\0\0\0");
        fake.add(40, 1, 50, "bash", 1000, b"bash\0");
        fake.add(70, 1, 60, "nix-build", 2000, b"nix-build\0");
        fake.nested(11, 5);
        fake.nested(70, 40);
        assert_eq!(Lineage::of(&fake.proc(), 11), None, "the host's 40 is not meant");
        fake.namespace(11, 77);
        fake.namespace(70, 77);
        let found = Lineage::of(&fake.proc(), 11).unwrap();
        assert_eq!(found.line.iter().map(|id| id.pid).collect::<Vec<_>>(), [11, 70, 1]);
    }

    /// More generations than are followed: unknown, and nobody's only by that.
    #[test]
    fn a_deep_maker_is_unknown() {
        let fake = FakeProc::new();
        fake.add(1, 0, 1, "systemd", 0, b"/sbin/init\0");
        let deepest = i32::try_from(DEEPEST).unwrap();
        for pid in 2..=deepest + 1 {
            fake.add(pid, pid - 1, u64::try_from(pid).unwrap(), "sh", 1000, b"sh\0");
        }
        assert!(Lineage::of(&fake.proc(), deepest).is_some());
        assert_eq!(Lineage::of(&fake.proc(), deepest + 1), None);
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
