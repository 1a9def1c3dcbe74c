//! A session's anchor: the process that all other processes of the job descend
//! from. Must not know: who asked for the session, beyond user and process number.

use super::lineage::Lineage;
use super::proc::{Proc, ProcId};

/// A session's anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The process.
    pub id: ProcId,
    /// The process session that the anchor leads. It identifies processes of the
    /// job that lost their parents.
    pub session: Option<i32>,
    /// The control group that only the job uses, for the same purpose.
    pub cgroup: Option<String>,
}

/// Why a process cannot be an anchor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// No process has this number.
    #[error("there is no process {0} to follow: name one that lives as long as the job (--anchor-pid)")]
    Gone(u32),
    /// The process belongs to another user.
    #[error("process {pid} belongs to user {uid}, not to you: name one of your own (--anchor-pid)")]
    NotYours {
        /// The process.
        pid: i32,
        /// Its user.
        uid: u32,
    },
    /// Every process descends from the first one, those of other users too.
    #[error("process 1 is the ancestor of every user's processes: name one of your own (--anchor-pid)")]
    First,
    /// The number means nothing outside of the caller's process namespace.
    #[error(
        "process {0} cannot be found among the processes that you descend from: in a process namespace name an \
         ancestor of flywheelctl by its number there (--anchor-pid), and mount /proc in it"
    )]
    Unresolved(u32),
}

impl Anchor {
    /// Makes an anchor of a living process. `None`: it does not live.
    ///
    /// Process session and control group are used only where they belong to the
    /// job alone. A process session does when the anchor leads it. A control
    /// group does when the parent is outside of it; a parent that is process 1
    /// proves nothing, since orphans in a runner's group get it as well.
    #[must_use]
    pub fn of(proc: &Proc, id: ProcId) -> Option<Self> {
        let stat = proc.stat(id.pid).filter(|s| s.id == id && !s.zombie)?;
        let session = (stat.session == id.pid).then_some(stat.session);
        let is_child_of_other = stat.ppid > 1 && proc.stat(stat.ppid).is_some();
        let outer = proc.cgroup(stat.ppid).unwrap_or_default();
        let cgroup = proc.cgroup(id.pid).filter(|own| is_child_of_other && !is_within(&outer, own));
        Some(Self { id, session, cgroup })
    }

    /// The anchor that a caller asks for by a number in the caller's process
    /// namespace. `Ok(None)`: the caller cannot be seen from here, or is root and
    /// names a process that cannot be an anchor; the session has no anchor then.
    pub fn resolve(
        proc: &Proc,
        wanted: u32,
        peer: Option<i32>,
        uid: u32,
    ) -> Result<Option<Self>, AnchorError> {
        let refuse = |error| if uid == 0 { Ok(None) } else { Err(error) };
        let line = proc.ancestry(peer.unwrap_or_default());
        let Some(caller) = line.first() else { return Ok(None) };
        let Ok(number) = i32::try_from(wanted) else { return Err(AnchorError::Gone(wanted)) };
        // In another namespace numbers mean something else: there an anchor must
        // be an ancestor, whose inner number the kernel tells.
        let nested = proc.numbers(caller.id.pid).len() > 1;
        let pid = if nested {
            let inner = |pid: &i32| matches!(&proc.numbers(*pid)[..], [_, .., last] if *last == number);
            line.iter().map(|s| s.id.pid).find(inner)
        } else {
            Some(proc.process_of(number))
        };
        let Some(pid) = pid else { return refuse(AnchorError::Unresolved(wanted)) };
        if pid == 1 {
            return refuse(AnchorError::First);
        }
        let stat = proc.stat(pid).filter(|s| !s.zombie).ok_or(AnchorError::Gone(wanted))?;
        match proc.uid(pid) {
            Some(owner) if owner == uid || uid == 0 => Ok(Self::of(proc, stat.id)),
            Some(owner) => Err(AnchorError::NotYours { pid, uid: owner }),
            None => refuse(AnchorError::Unresolved(wanted)),
        }
    }

    /// The number of generations between the anchor and the maker of a path;
    /// `None` when the maker does not descend from the anchor. A shared process
    /// session or control group counts as farther than any ancestor.
    pub(super) fn distance(&self, lineage: &Lineage) -> Option<usize> {
        let far = super::lineage::DEEPEST;
        if let Some(steps) = lineage.line.iter().position(|id| *id == self.id) {
            return Some(steps);
        }
        if self.session == Some(lineage.session) {
            return Some(far);
        }
        match (&self.cgroup, &lineage.cgroup) {
            (Some(own), Some(its)) if is_within(its, own) => Some(far + 1),
            _ => None,
        }
    }
}

fn is_within(inner: &str, outer: &str) -> bool {
    inner.strip_prefix(outer).is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attribution::tests::FakeProc;

    fn job() -> FakeProc {
        let fake = FakeProc::new();
        fake.add(1, 0, 1, "systemd", 0, b"/sbin/init\0");
        fake.add(20, 1, 10, "runner", 1000, b"runner\0");
        fake.add(30, 20, 50, "bash", 1000, b"bash\0");
        fake.add(40, 30, 80, "flywheelctl", 1000, b"flywheelctl\0");
        fake
    }

    #[test]
    fn ones_own_process_and_no_other() {
        let fake = job();
        let resolve = |wanted, uid| Anchor::resolve(&fake.proc(), wanted, Some(40), uid);
        assert_eq!(resolve(30, 1000).unwrap().unwrap().id, ProcId { pid: 30, start: 50 });
        assert_eq!(resolve(30, 1001), Err(AnchorError::NotYours { pid: 30, uid: 1000 }));
        assert_eq!(resolve(30, 0).unwrap().unwrap().id.pid, 30, "root may");
        assert_eq!(resolve(31, 1000), Err(AnchorError::Gone(31)));
        assert_eq!(resolve(1, 1000), Err(AnchorError::First), "everything descends from the first");
        assert_eq!(resolve(1, 0), Ok(None));
        assert_eq!(Anchor::resolve(&fake.proc(), 30, None, 1000), Ok(None), "a caller that is not seen");
        assert_eq!(Anchor::resolve(&fake.proc(), 30, Some(99), 1000), Ok(None));
    }

    /// Nothing descends from a thread.
    #[test]
    fn the_number_of_a_thread_stands_for_its_process() {
        let (tell, told) = std::sync::mpsc::channel();
        let (end, ended) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            tell.send(rustix::thread::gettid().as_raw_nonzero().get()).unwrap();
            let _ = ended.recv();
        });
        let (number, own) = (told.recv().unwrap(), std::process::id().cast_signed());
        assert_ne!(number, own);
        let uid = rustix::process::getuid().as_raw();
        let anchor = Anchor::resolve(&Proc::default(), number.cast_unsigned(), Some(own), uid);
        assert_eq!(anchor.unwrap().unwrap().id.pid, own);
        drop(end);
        thread.join().unwrap();
    }

    #[test]
    fn a_container_counts_otherwise() {
        let fake = job();
        fake.nested(40, 7);
        fake.nested(30, 5);
        let resolve = |wanted| Anchor::resolve(&fake.proc(), wanted, Some(40), 1000);
        assert_eq!(resolve(5).unwrap().unwrap().id.pid, 30);
        assert_eq!(resolve(20), Err(AnchorError::Unresolved(20)), "the host's number 20 is not meant");
    }

    #[test]
    fn a_number_that_was_used_again_is_another_process() {
        let fake = job();
        let id = ProcId { pid: 30, start: 50 };
        assert!(Anchor::of(&fake.proc(), id).is_some());
        fake.add(30, 20, 51, "bash", 1000, b"bash\0");
        assert_eq!(Anchor::of(&fake.proc(), id), None);
        let anchor = Anchor { id, session: None, cgroup: None };
        let lineage = Lineage::of(&fake.proc(), 40).unwrap();
        assert_eq!(anchor.distance(&lineage), None, "nor does anything descend from it");
    }

    #[test]
    fn what_lost_its_parents_is_known_by_its_session_or_group() {
        let far = super::super::lineage::DEEPEST;
        let id = ProcId { pid: 30, start: 50 };
        let orphan = |session, cgroup: &str| Lineage {
            line: vec![ProcId { pid: 41, start: 81 }, ProcId { pid: 1, start: 1 }],
            session,
            cgroup: Some(cgroup.to_owned()),
            person: None,
        };
        let anchor = Anchor { id, session: Some(30), cgroup: Some("/job".to_owned()) };
        assert_eq!(anchor.distance(&orphan(30, "/")), Some(far));
        assert_eq!(anchor.distance(&orphan(41, "/job/nix")), Some(far + 1));
        assert_eq!(anchor.distance(&orphan(41, "/jobs")), None);
        let plain = Anchor { id, session: None, cgroup: None };
        assert_eq!(plain.distance(&orphan(30, "/job")), None);
    }

    #[test]
    fn only_a_session_and_group_of_its_own_count() {
        let fake = job();
        let anchor = Anchor::of(&fake.proc(), ProcId { pid: 30, start: 50 }).unwrap();
        assert_eq!(anchor.session, None, "shared with the runner");
        assert_eq!(anchor.cgroup.as_deref(), Some("/of/30"));
        fake.set(30, "cgroup", "0::/of/20\n");
        assert_eq!(Anchor::of(&fake.proc(), ProcId { pid: 30, start: 50 }).unwrap().cgroup, None);
    }

    /// An orphan's new parent is process 1, which is in no group of the runner's.
    #[test]
    fn an_orphan_takes_neither_the_runners_session_nor_its_group() {
        let fake = job();
        fake.add(35, 1, 60, "bash", 1000, b"bash\0");
        fake.session(35, 20);
        fake.set(35, "cgroup", "0::/of/20\n");
        let anchor = Anchor::of(&fake.proc(), ProcId { pid: 35, start: 60 }).unwrap();
        assert_eq!((anchor.session, anchor.cgroup), (None, None));
        // A process session of its own is the job's alone, also an orphan's.
        fake.session(35, 35);
        let anchor = Anchor::of(&fake.proc(), ProcId { pid: 35, start: 60 }).unwrap();
        assert_eq!((anchor.session, anchor.cgroup), (Some(35), None));
    }
}
