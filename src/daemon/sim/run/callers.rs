//! What users do in a run: they build, start and end jobs, push, flush, and leave.

use std::collections::BTreeSet;

use super::super::caches::Fault;
use super::super::checks;
use super::super::configuration::CACHES;
use super::super::jobs::{Asked, Call, Job, UIDS, cache_of};
use super::acts::Act;
use super::turns::INTAKE;
use super::world::lock;
use super::{HANG, PIDS, Run};
use crate::control::messages::Request as Ask;
use crate::control::server::{Incoming, Peer, Responder};
use crate::daemon::driver::Turn;

impl Run {
    pub(super) fn ask(
        &mut self,
        uid: u32,
        pid: Option<i32>,
        asked: Asked,
        request: Ask,
        deadline: Option<u64>,
    ) {
        self.calls_made += 1;
        let number = self.calls_made;
        let at = {
            let mut world = lock(&self.world);
            world.line(&format!("call {number} of {uid}: {asked:?}"));
            world.moment()
        };
        let (responder, answer) = Responder::pair();
        let peer = Peer { pid, uid, gid: uid };
        let incoming = Incoming { request, peer, responder };
        if let Some(life) = &mut self.life {
            self.calls.push(Call { asked, at, deadline, answer, number });
            life.driver.turn(Turn::Request(incoming));
        }
    }

    /// The world does something.
    pub(super) fn world_acts(&mut self, now: u64) {
        let (faults, emphasis) = {
            let world = lock(&self.world);
            (world.faults, world.emphasis)
        };
        let act = self.then.take().unwrap_or_else(|| Act::draw(&self.acts, &mut self.rng));
        match act {
            Act::Build => {
                let mut world = lock(&self.world);
                world.build();
                if emphasis.others && world.rng.one_in(3) {
                    world.other_host_pushes();
                }
            }
            Act::Builds => lock(&self.world).builds(false),
            Act::Start => self.start_job(),
            Act::End => self.end_job(),
            Act::EndTwo => {
                self.end_job();
                self.then = Some(Act::End);
                self.next_op = now + 1 + self.rng.below(400);
            }
            Act::Scene(kind) => self.begin_scene(kind, now),
            Act::GoOn => self.go_on(now),
            Act::Push => self.push(),
            Act::Flush => self.flush(),
            Act::Status => {
                let deadline = now + 3_000;
                self.ask(UIDS[0], None, Asked::Status, Ask::Status, Some(deadline));
            }
            Act::Die => {
                let running: Vec<usize> = {
                    let world = lock(&self.world);
                    (0..world.jobs.len()).filter(|n| !world.jobs[*n].dead).collect()
                };
                if let Some(job) = self.rng.pick(&running).copied() {
                    self.kill_job(job);
                }
            }
            Act::Leave if self.calls.is_empty() => {}
            Act::Leave => {
                let n = self.rng.index(self.calls.len());
                self.leave(n);
            }
            Act::Outage => {
                let fault = *self.rng.pick(&Fault::ALL).unwrap();
                let until = now + self.rng.below(40_000);
                let mut world = lock(&self.world);
                let cache = self.rng.index(world.caches.len());
                world.caches[cache].fault = Some((fault, until));
                world.line(&format!("world: cache {cache} {fault:?} until {until}"));
                world.count("outages");
                world.count(fault.word());
                // It comes back with an older state.
                if faults.deletions && self.rng.one_in(2) {
                    world.delete(cache);
                }
            }
            Act::Delete => {
                let mut world = lock(&self.world);
                let cache = self.rng.index(world.caches.len());
                world.delete(cache);
            }
            Act::Collect => {
                lock(&self.world).collect();
            }
            Act::GoBack => lock(&self.world).back_up_or_go_back(),
            Act::Away if self.away_until.is_some() => {}
            Act::Away => {
                let until = now + self.rng.below(20_000);
                let mut world = lock(&self.world);
                world.store.set_away(true);
                world.jobs.iter_mut().filter(|job| job.id.is_none()).for_each(|job| job.sees_rows = false);
                drop(world);
                self.away_until = Some(until);
                self.line("world: the Nix database is absent");
                self.count("databases away");
            }
            Act::Hang => {
                let which = self.rng.index(self.frozen.len());
                self.hang(which, now, HANG);
            }
            Act::AskInVain => {
                self.hang(INTAKE, now + HANG / 2, HANG / 2);
                lock(&self.world).builds(false);
                match self.rng.below(3) {
                    0 => self.flush(),
                    1 => self.start_job(),
                    _ => self.end_job(),
                }
            }
            Act::Crash if self.life.is_none() => {}
            Act::Crash => self.crash("now"),
            Act::CrashSoon => {
                if let Some(life) = &self.life {
                    life.disk.kill_after(u32::try_from(self.rng.below(6)).unwrap());
                }
            }
            Act::Stop => {
                if let Some(life) = &mut self.life
                    && !std::mem::replace(&mut life.stopping, true)
                {
                    self.line("world: SIGTERM");
                    self.count("stops");
                    // The end of the driver is seen at its next turn.
                    let _ = self.turn(Turn::Stop);
                }
            }
            Act::Reload => self.reload(),
            Act::DiskFull if self.full_until.is_some() => {}
            Act::DiskFull => {
                self.full_until = Some(now + self.rng.below(10_000));
                self.line("world: the ledger's disk is full");
                self.count("full disks");
                if let Some(life) = &self.life {
                    life.disk.set_full(true);
                }
            }
            Act::CutPower if self.life.is_none() => {}
            Act::CutPower => self.cut_power(),
            Act::OtherHost => lock(&self.world).other_host_pushes(),
            Act::Nothing => {}
        }
    }

    /// A part of the daemon hangs, until `most` after `least` at most.
    pub(super) fn hang(&mut self, which: usize, least: u64, most: u64) {
        self.frozen[which] = least + self.rng.below(most);
        self.line(&format!("world: {} hangs", ["intake", "ledger", "roots", "blocking work"][which]));
        self.count("hangs");
    }

    /// A caller ends its connection before it is answered.
    fn leave(&mut self, n: usize) {
        let call = self.calls.remove(n);
        self.line(&format!("call {}: the caller leaves", call.number));
        self.count("callers that left");
        match call.asked {
            Asked::End { job, .. } => lock(&self.world).jobs[job].finished = false,
            Asked::Start { job } => {
                let mut world = lock(&self.world);
                (world.jobs[job].dead, world.jobs[job].finished) = (true, true);
            }
            Asked::Push { .. } | Asked::Flush { .. } | Asked::Status => {}
        }
    }

    /// SIGHUP, with a configuration that is changed, the same, or cannot be read. Tokens are
    /// renewed with it.
    fn reload(&mut self) {
        self.configuration.jobs = *self.rng.pick(&["\"auto\"", "1", "4"]).unwrap();
        self.configuration.third = self.rng.one_in(2);
        let readable = !self.rng.one_in(4);
        let now = self.now();
        let mut world = lock(&self.world);
        for cache in world.caches.iter_mut().filter(|_| readable) {
            if matches!(cache.fault, Some((Fault::Unauthorized, until)) if until > now) {
                cache.fault = None;
            }
        }
        world.count(if readable { "reloads" } else { "reloads refused" });
        drop(world);
        self.read_again(readable);
    }

    /// The daemon reads its configuration again.
    pub(super) fn read_again(&mut self, readable: bool) {
        let Some(life) = &mut self.life else { return };
        if readable {
            self.configuration.write();
        } else {
            self.configuration.spoil();
        }
        let (jobs, third) = (self.configuration.jobs, self.configuration.third);
        lock(&self.world)
            .line(&format!("world: SIGHUP, jobs {jobs}, third cache {third}, readable {readable}"));
        life.driver.turn(Turn::Reload);
    }

    pub(super) fn kill_job(&self, job: usize) {
        let mut world = lock(&self.world);
        world.jobs[job].dead = true;
        if let Some(pid) = world.jobs[job].anchor {
            self.proc.end(pid);
        }
        world.line(&format!("world: job {job} dies"));
        world.count("jobs that died");
    }

    pub(super) fn start_job(&mut self) {
        let uid = UIDS[self.rng.index(UIDS.len())];
        self.start_job_of(uid, 5);
        if lock(&self.world).faults.callers_leave
            && self.rng.one_in(4)
            && matches!(self.calls.last(), Some(call) if matches!(call.asked, Asked::Start { .. }))
        {
            self.leave(self.calls.len() - 1);
        }
    }

    /// A job of this user starts, unless so many run. Returns its number.
    pub(super) fn start_job_of(&mut self, uid: u32, most: usize) -> Option<usize> {
        let mut world = lock(&self.world);
        if self.life.is_none() || world.jobs.iter().filter(|job| !job.finished).count() >= most {
            return None;
        }
        let job = world.jobs.len();
        let pid = PIDS + 10 * i32::try_from(job).unwrap();
        let has_anchor = !self.rng.one_in(3);
        let start = u64::from(pid.unsigned_abs());
        self.proc.add(pid, 1, start, "job", uid, b"job\0");
        self.proc.add(pid + 1, pid, start + 1, "flywheelctl", uid, b"flywheelctl\0");
        let started = world.moment();
        world.jobs.push(Job {
            uid,
            started,
            sees_rows: self.away_until.is_none(),
            id: None,
            anchor: has_anchor.then_some(pid),
            dead: false,
            finished: false,
            ended: None,
            end_asked: false,
            first_end: None,
            taken_in: None,
            is_recorded: false,
            may_be_lost: false,
            named: BTreeSet::new(),
        });
        drop(world);
        let request = Ask::SessionStart {
            label: None,
            cache: None,
            anchor_pid: has_anchor.then_some(pid.unsigned_abs()),
            strict: false,
            ci: None,
            log_paths: false,
        };
        if self.away_until.is_some() {
            // The window begins after the last row that was read.
            let cursor = self.cursor();
            let mut world = lock(&self.world);
            let read = world.store.read_up_to(cursor);
            for made in world.store.made.values_mut().filter(|made| made.row > read) {
                made.allowed.insert(cache_of(uid));
            }
        }
        self.ask(uid, Some(pid + 1), Asked::Start { job }, request, None);
        Some(job)
    }

    pub(super) fn some_paths(&mut self) -> Vec<String> {
        let mut world = lock(&self.world);
        let valid = world.store.valid();
        let mut paths = BTreeSet::new();
        for _ in 0..world.rng.below(3) {
            paths.extend(world.rng.pick(&valid).cloned());
        }
        paths.into_iter().collect()
    }

    pub(super) fn name(&self, paths: &[String], cache: u16) -> Vec<String> {
        let mut world = lock(&self.world);
        for base in paths {
            if let Some(made) = world.store.made.get_mut(base) {
                made.allowed.insert(cache);
            }
        }
        paths.iter().map(|base| world.store.full(base)).collect()
    }

    pub(super) fn end_job(&mut self) {
        let jobs: Vec<usize> = {
            let world = lock(&self.world);
            (0..world.jobs.len())
                .filter(|n| world.jobs[*n].id.is_some() && !world.jobs[*n].finished)
                .collect()
        };
        // Sometimes one that has ended is ended again.
        let again = self.rng.one_in(8);
        let job = if again {
            let ended: Vec<usize> = {
                let world = lock(&self.world);
                (0..world.jobs.len()).filter(|n| world.jobs[*n].ended.is_some()).collect()
            };
            self.rng.pick(&ended).copied()
        } else {
            self.rng.pick(&jobs).copied()
        };
        if let Some(job) = job {
            let paths = if again || self.rng.one_in(2) { Vec::new() } else { self.some_paths() };
            let wait = !self.rng.one_in(6);
            let emphasis = lock(&self.world).emphasis;
            let timeout = emphasis.timeout(&[500, 5_000, 60_000, 240_000], &mut self.rng);
            self.end(job, paths, wait, timeout, again);
        }
    }

    pub(super) fn end(&mut self, job: usize, paths: Vec<String>, wait: bool, timeout: u64, again: bool) {
        if self.life.is_none() {
            return;
        }
        let (uid, id) = {
            let mut world = lock(&self.world);
            let now = world.moment();
            let job = &mut world.jobs[job];
            job.finished = true;
            job.end_asked = true;
            job.first_end.get_or_insert(now);
            job.named.extend(paths.iter().cloned());
            (job.uid, job.id.clone())
        };
        let live =
            self.life.as_ref().is_some_and(|life| id.as_ref().is_some_and(|id| life.driver.is_live(id)));
        let recorded = !live;
        let push = self.name(&paths, cache_of(uid));
        let request =
            Ask::SessionEnd { session: id, ci_job: None, push, timeout_ms: timeout, wait, patient: true };
        let deadline = Some(self.now() + timeout);
        self.ask(uid, None, Asked::End { job, wait, timeout, paths, again, recorded }, request, deadline);
    }

    /// All jobs end their sessions.
    pub(super) fn end_jobs(&mut self) {
        let open: Vec<usize> = {
            let world = lock(&self.world);
            (0..world.jobs.len())
                .filter(|n| world.jobs[*n].id.is_some() && !world.jobs[*n].finished)
                .collect()
        };
        for job in open {
            self.end(job, Vec::new(), true, 240_000, false);
        }
    }

    pub(super) fn push(&mut self) {
        if self.life.is_none() {
            return;
        }
        let uid = UIDS[self.rng.index(UIDS.len())];
        let paths = self.some_paths();
        let other = self.configuration.third && self.rng.one_in(4);
        let cache = if other { 2 } else { cache_of(uid) };
        let full = self.name(&paths, cache);
        let wait = !self.rng.one_in(3);
        let emphasis = lock(&self.world).emphasis;
        let timeout = emphasis.timeout(&[500, 5_000, 60_000], &mut self.rng);
        let name = other.then(|| CACHES[2].to_owned());
        let request = Ask::Push { paths: full, cache: name, wait, timeout_ms: timeout };
        let deadline = Some(self.now() + timeout);
        self.ask(uid, None, Asked::Push { cache, paths, wait }, request, deadline);
    }

    pub(super) fn flush(&mut self) {
        if self.life.is_none() {
            return;
        }
        let mut before: BTreeSet<String> = lock(&self.world).store.valid().into_iter().collect();
        // A flush does not wait for what has failed before, even if it is tried again later.
        let failed = self.ledger(checks::failed);
        let has_failed = |base: &String| {
            failed.contains(base) || self.life.as_ref().is_some_and(|life| life.driver.has_failed(base))
        };
        before.retain(|base| !has_failed(base));
        let emphasis = lock(&self.world).emphasis;
        let timeout = emphasis.timeout(&[500, 60_000], &mut self.rng);
        let deadline = Some(self.now() + timeout);
        self.ask(UIDS[0], None, Asked::Flush { before }, Ask::Flush { timeout_ms: timeout }, deadline);
    }
}
