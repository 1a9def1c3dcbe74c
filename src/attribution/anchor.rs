//! A session's anchor: the process that everything the job does descends from.
//! Must not know who asked for it beyond their user and process number.

use super::lineage::Lineage;
use super::proc::{Proc, ProcId};

/// A session's anchor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchor {
    /// The process.
    pub id: ProcId,
    /// The process session that begins with it, for what lost its parents.
    pub session: Option<i32>,
    /// The control group that the job has for itself, for the same reason.
    pub cgroup: Option<String>,
}

/// Why a process cannot be an anchor.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AnchorError {
    /// Nothing has this number.
    #[error("there is no process {0} to follow: name one that lives as long as the job (--anchor-pid)")]
    Gone(u32),
    /// Somebody else's.
    #[error("process {pid} belongs to user {uid}, not to you: name one of your own (--anchor-pid)")]
    NotYours {
        /// Which.
        pid: i32,
        /// Whose.
        uid: u32,
    },
}

impl Anchor {
    /// The anchor with this process, which must live.
    #[must_use]
    pub fn of(proc: &Proc, id: ProcId) -> Option<Self> {
        let stat = proc.stat(id.pid).filter(|s| s.id == id && !s.zombie)?;
        let parent = proc.stat(stat.ppid);
        let session =
            parent.as_ref().is_some_and(|parent| parent.session != stat.session).then_some(stat.session);
        // What the runner is in as well says nothing about this job.
        let outer = proc.cgroup(stat.ppid).unwrap_or_default();
        let cgroup = proc.cgroup(id.pid).filter(|own| parent.is_some() && !is_within(&outer, own));
        Some(Self { id, session: session.filter(|s| *s > 0), cgroup })
    }

    /// The anchor that a caller asks for by a number in its own process
    /// namespace. `Ok(None)`: it cannot be seen from here, or is the first
    /// process, which everything descends from.
    pub fn resolve(
        proc: &Proc,
        wanted: u32,
        peer: Option<i32>,
        uid: u32,
    ) -> Result<Option<Self>, AnchorError> {
        let line = proc.ancestry(peer.unwrap_or_default());
        let (Some(caller), Ok(number)) = (line.first(), i32::try_from(wanted)) else { return Ok(None) };
        // In a container numbers mean something else: there an anchor must be
        // an ancestor, whose inner number the kernel tells.
        let nested = proc.numbers(caller.id.pid).len() > 1;
        let pid = if nested {
            let inner = |pid: &i32| matches!(&proc.numbers(*pid)[..], [_, .., last] if *last == number);
            line.iter().map(|s| s.id.pid).find(inner)
        } else {
            Some(number)
        };
        let Some(pid) = pid.filter(|pid| *pid != 1) else { return Ok(None) };
        let stat = proc.stat(pid).filter(|s| !s.zombie).ok_or(AnchorError::Gone(wanted))?;
        match proc.uid(pid) {
            Some(owner) if owner == uid || uid == 0 => Ok(Self::of(proc, stat.id)),
            Some(owner) => Err(AnchorError::NotYours { pid, uid: owner }),
            None => Ok(None),
        }
    }

    /// How near it is to who made a path; none when that does not descend from
    /// it. Parents come before what outlives them.
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
        assert_eq!(resolve(1, 0), Ok(None), "everything descends from the first");
        assert_eq!(Anchor::resolve(&fake.proc(), 30, None, 1000), Ok(None), "a caller that is not seen");
        assert_eq!(Anchor::resolve(&fake.proc(), 30, Some(99), 1000), Ok(None));
    }

    #[test]
    fn a_container_counts_otherwise() {
        let fake = job();
        fake.nested(40, 7);
        fake.nested(30, 5);
        let resolve = |wanted| Anchor::resolve(&fake.proc(), wanted, Some(40), 1000);
        assert_eq!(resolve(5).unwrap().unwrap().id.pid, 30);
        assert_eq!(resolve(20), Ok(None), "the host's number 20 is not meant");
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
}
