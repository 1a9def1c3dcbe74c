//! The ancestors of the processes that hold locks, remembered: a Nix process holds many
//! locks, one after the other.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::super::lineage::Lineage;
use super::super::proc::{Proc, ProcId};
use crate::observe::detail;

/// Upper bound of the processes whose ancestors are remembered.
const MOST: usize = 1024;
/// How long a process is not followed again whose ancestors could not be known.
const HIDDEN: Duration = Duration::from_millis(50);

#[derive(Default)]
pub(super) struct Lineages {
    known: HashMap<ProcId, Ancestors>,
    /// The last process, and when the lock table was read that shows it. A process that
    /// holds many locks is looked at once.
    last: Option<(i32, Instant, Option<Arc<Lineage>>)>,
}

enum Ancestors {
    Known(Arc<Lineage>),
    /// They could not be followed at this time.
    Hidden(Instant),
}

impl Lineages {
    /// Returns the ancestors of a process that held a lock `now`, when the lock table was
    /// read.
    pub(super) fn of(&mut self, proc: &Proc, pid: i32, now: Instant) -> Option<Arc<Lineage>> {
        match &self.last {
            Some((last, at, lineage)) if (*last, *at) == (pid, now) => lineage.clone(),
            _ => {
                let lineage = self.look(proc, pid, now);
                self.last = Some((pid, now, lineage.clone()));
                lineage
            }
        }
    }

    fn look(&mut self, proc: &Proc, pid: i32, now: Instant) -> Option<Arc<Lineage>> {
        let id = proc.stat(pid)?.id;
        match self.known.get(&id) {
            Some(Ancestors::Known(lineage)) => return Some(Arc::clone(lineage)),
            Some(Ancestors::Hidden(at)) if now < *at + HIDDEN => return None,
            Some(Ancestors::Hidden(_)) | None => {}
        }
        let lineage = Lineage::of(proc, pid).map(Arc::new);
        if lineage.is_none() {
            detail!(pid = pid, "what holds a lock of the store does not show whom it works for");
        }
        if self.known.len() >= MOST {
            self.known.clear();
        }
        self.known.insert(id, lineage.clone().map_or(Ancestors::Hidden(now), Ancestors::Known));
        lineage
    }
}
