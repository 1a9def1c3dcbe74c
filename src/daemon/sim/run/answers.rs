//! The answers of the daemon, and the invariants that hold after each turn and at the
//! end of a run.

use std::collections::BTreeSet;

use rusqlite::Connection;

use super::super::checks::{self, Check, hash};
use super::super::jobs::{Asked, Call, LATE, cache_of};
use super::Run;
use super::world::lock;
use crate::control::messages::{ErrorCode, Outcome, Reply, Summary};

impl Run {
    /// Reads the ledger: through the daemon's connection while it runs, which has the file
    /// for itself.
    pub(super) fn ledger<R>(&self, mut read: impl FnMut(&Connection) -> R) -> R {
        if let Some(read) = self.life.as_ref().and_then(|life| life.disk.read(&mut read)) {
            return read;
        }
        if let Some(left) = &self.left {
            return read(left);
        }
        let path = lock(&self.world).store.dir.join("state/ledger.sqlite");
        read(&Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap())
    }

    /// The cursor in the ledger, 0 if there is none.
    pub(super) fn cursor(&self) -> i64 {
        let cursor = "SELECT id FROM cursor";
        self.ledger(|ledger| ledger.query_row(cursor, [], |row| row.get(0)).unwrap_or(0))
    }

    /// Hears the answers to calls.
    pub(super) fn hear(&mut self) -> Check {
        let mut n = 0;
        while n < self.calls.len() {
            match self.calls[n].answer.try_next() {
                None => n += 1,
                Some(Reply::Progress(progress)) => {
                    if progress.settled > progress.total {
                        return Err(format!("progress of {} of {}", progress.settled, progress.total));
                    }
                    n += 1;
                }
                Some(reply) => {
                    let call = self.calls.remove(n);
                    self.answered(call, reply)?;
                }
            }
        }
        Ok(())
    }

    pub(super) fn answered(&mut self, call: Call, reply: Reply) -> Check {
        let Call { asked, at, number, deadline, .. } = call;
        self.line(&format!("call {number}: {}", said(&reply)));
        let heard = lock(&self.world).moment();
        let waits = match &asked {
            Asked::End { wait, .. } | Asked::Push { wait, .. } => *wait,
            Asked::Flush { .. } => true,
            Asked::Start { .. } | Asked::Status => false,
        };
        let stopping = self.life.as_ref().is_none_or(|life| life.stopping);
        if let Reply::Ended(summary) | Reply::Pushed(summary) = &reply
            && waits
            && deadline.is_some_and(|deadline| heard.ms < deadline)
            && summary.pending > 0
            && !stopping
            && self.full_until.is_none()
            // A path of the session that was collected may be built again by somebody else while
            // the answer is made.
            && !lock(&self.world).faults.collections
        {
            return Err(format!(
                "call {number} is answered before its deadline, while {} paths are pending",
                summary.pending
            ));
        }
        match (asked, reply) {
            (Asked::Start { job }, Reply::Started { session, .. }) => {
                lock(&self.world).jobs[job].id = Some(session);
                self.count("sessions");
            }
            (Asked::Start { job }, Reply::Error { .. }) => {
                let mut world = lock(&self.world);
                (world.jobs[job].finished, world.jobs[job].dead) = (true, true);
            }
            (Asked::End { job, wait, timeout, again, recorded, .. }, Reply::Ended(summary)) => {
                self.count("ends");
                if summary.outcome == Outcome::Complete || (!wait && !stopping && heard.ms < at.ms + timeout)
                {
                    lock(&self.world).jobs[job].taken_in.get_or_insert(heard);
                }
                let id = lock(&self.world).jobs[job].id.clone().unwrap();
                self.ledger(|ledger| checks::adds_up(ledger, &id, &summary))?;
                let mut world = lock(&self.world);
                let before = world.jobs[job].ended.clone().filter(|_| !world.jobs[job].may_be_lost);
                if let Some(before) = before.filter(|before| before.outcome == Outcome::Complete && again) {
                    let counts =
                        |s: &Summary| (s.pushed, s.already_cached, s.upstream, s.failed_total, s.skipped);
                    if counts(&before) != counts(&summary) {
                        return Err(format!("session {id} was answered {before:?}, and then {summary:?}"));
                    }
                    return Ok(());
                }
                let uncertain = summary.warnings.iter().any(|warning| warning.contains("repeatedly"));
                if summary.outcome == Outcome::Complete && !uncertain && world.jobs[job].ended.is_none() {
                    let cache = cache_of(world.jobs[job].uid);
                    drop(world);
                    let mut there = self.ledger(|ledger| checks::there(ledger, &id));
                    world = lock(&self.world);
                    let at = if recorded { world.jobs[job].first_end.unwrap_or(at) } else { at };
                    there.retain(|base| world.store.was_there(base, at));
                    checks::answer_is_fresh(&world.store, &world.caches, &there, cache, at.ms, stopping)?;
                    world.count("complete ends");
                }
                world.jobs[job].ended.get_or_insert(*Box::new(summary));
            }
            (Asked::End { job, .. }, Reply::Error { code: ErrorCode::NotFound, .. })
                if lock(&self.world).jobs[job].may_be_lost =>
            {
                self.count("sessions lost");
            }
            (Asked::End { job, .. }, Reply::Error { .. }) if self.full_until.is_some() => {
                lock(&self.world).jobs[job].finished = false;
            }
            // The cache that comes and goes is not in the daemon's configuration yet, or any more.
            (Asked::Push { cache: 2, .. }, Reply::Error { .. }) => {}
            (Asked::Push { .. } | Asked::Flush { .. }, Reply::Error { .. }) if self.full_until.is_some() => {}
            (Asked::End { job, .. }, Reply::Error { code: ErrorCode::Draining | ErrorCode::Busy, .. }) => {
                lock(&self.world).jobs[job].finished = false;
            }
            (Asked::Push { cache, paths, wait }, Reply::Pushed(summary)) => {
                self.count("pushes");
                if wait
                    && summary.outcome == Outcome::Complete
                    && summary.warnings.is_empty()
                    && summary.collected == 0
                {
                    let world = lock(&self.world);
                    let paths = paths.into_iter().filter(|base| world.store.was_there(base, at)).collect();
                    checks::answer_is_fresh(&world.store, &world.caches, &paths, cache, at.ms, stopping)?;
                }
            }
            (Asked::Flush { before }, Reply::Pushed(summary)) => {
                self.count("flushes");
                let uncertain = summary.warnings.iter().any(|warning| warning.contains("repeatedly"));
                if summary.outcome == Outcome::Complete && !uncertain {
                    let failed = self.ledger(checks::failed);
                    let world = lock(&self.world);
                    for base in before {
                        let made = &world.store.made[&base];
                        let confirmed = world.caches.iter().any(|c| c.confirmed.contains_key(hash(&base)));
                        let wanted = world.store.was_there(&base, at) && made.job != Some(usize::MAX);
                        // One that was refused may have been taken up again by another caller.
                        let refused = world
                            .store
                            .closure(&base)
                            .iter()
                            .any(|part| world.caches.iter().any(|c| c.too_large.contains(hash(part))));
                        let failed = || {
                            failed.contains(&base)
                                || self.life.as_ref().is_some_and(|life| life.driver.has_failed(&base))
                        };
                        if wanted && !confirmed && !refused && !failed() {
                            return Err(format!("a flush is complete without {base}"));
                        }
                    }
                }
            }
            (Asked::Status, Reply::Status(_)) => self.count("status"),
            (
                Asked::Push { .. } | Asked::Flush { .. } | Asked::Status,
                Reply::Error { code: ErrorCode::Draining | ErrorCode::Busy, .. },
            ) => {}
            (asked, reply) => return Err(format!("{asked:?} was answered {reply:?}")),
        }
        Ok(())
    }

    /// The invariants that hold after every turn. `may_unprotect`: the turn may have changed
    /// which paths are pending or protected.
    pub(super) fn check(&mut self, may_unprotect: bool) -> Check {
        let now = self.now();
        let frozen = self.frozen.iter().any(|until| until + LATE > now);
        if let Some(life) = &self.life {
            for call in &self.calls {
                let late = call.deadline.is_some_and(|deadline| now > deadline.max(life.began) + LATE);
                // `status` waits for nothing that may hang.
                if late && (!frozen || matches!(call.asked, Asked::Status)) {
                    return Err(format!(
                        "call {} of {} ms is not answered at {now} ms",
                        call.number, call.at.ms
                    ));
                }
            }
            let world = lock(&self.world);
            if may_unprotect && !life.gc_roots.has_requests() && world.store.rollbacks == 0 {
                // GC roots end only in their own turn, and `protected` with it.
                let mut protected = BTreeSet::new();
                for (push, path) in life.driver.wanted() {
                    let valid = world.store.made.get(path.base()).is_some_and(|made| made.valid);
                    if self.protected.contains(&push) || (valid && world.store.is_root(path.base())) {
                        protected.insert(push);
                    } else if valid {
                        return Err(format!("{path} is pending and not protected"));
                    }
                }
                self.protected = protected;
            }
        }
        Ok(())
    }

    pub(super) fn final_checks(&mut self) -> Check {
        if let Some(life) = &self.life {
            life.gc_roots.turn();
            life.disk.write();
        }
        let failed = self.ledger(|ledger| {
            let world = lock(&self.world);
            checks::all_is_settled(ledger)?;
            if world.store.rollbacks == 0 {
                checks::nothing_is_forgotten(ledger, &world.store, &world.caches)?;
                checks::belongs(ledger, &world.store, &world.jobs)?;
            }
            let failed = "SELECT count(*) FROM item WHERE state = 5";
            Ok::<i64, String>(ledger.query_row(failed, [], |row| row.get(0)).unwrap())
        })?;
        let roots = lock(&self.world).store.roots();
        if i64::try_from(roots.len()).unwrap() > failed {
            return Err(format!(
                "at the end {} paths are protected, and {failed} pushes have failed",
                roots.len()
            ));
        }
        Ok(())
    }
}

/// A reply in words that do not differ between two runs.
pub(super) fn said(reply: &Reply) -> String {
    match reply {
        Reply::Started { .. } => "started".to_owned(),
        Reply::Ended(s) | Reply::Pushed(s) => format!(
            "{:?}: {} pushed, {} cached, {} failed, {} pending, {} collected, {} skipped",
            s.outcome, s.pushed, s.already_cached, s.failed_total, s.pending, s.collected, s.skipped
        ),
        Reply::Error { code, message } => {
            format!("{code:?} {}", message.split(['/', '"']).next().unwrap_or_default())
        }
        Reply::Status(_) => "status".to_owned(),
        _ => "another reply".to_owned(),
    }
}
