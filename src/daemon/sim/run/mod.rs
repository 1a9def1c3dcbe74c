//! One run: the world acts, the daemon's parts take turns, and the invariants are checked
//! after each turn. At the end the faults stop, and everything must settle.

mod acts;
mod answers;
mod callers;
mod report;
mod scenes;
mod turns;
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;

use super::caches::{Cache, Request, short};
use super::checks::{self, Check, hash};
use super::configuration::{CACHES, Configuration};
use super::jobs::{Asked, Call};
use super::life::Life;
use super::store::Store;
use super::trace::{Rng, Trace};
use crate::attribution::tests::FakeProc;
use crate::types::PushId;
use acts::{Act, Emphasis};
pub(super) use report::Report;
use scenes::Scene;
use turns::Choice;
use world::{Faults, Shared, World, lock};

/// Turns after which a run that does not settle is broken off.
const TURNS: u64 = 60_000;
/// How long everything may take to settle when the faults have stopped, in milliseconds.
const CALM: u64 = 600_000;
/// How often tasks are given the thread after a turn. Each time, tokio runs those that are
/// ready.
const SETTLE: usize = 2;
/// How long a part of the daemon hangs at most, in milliseconds.
const HANG: u64 = 5_000;
/// The first process number of the simulated processes, above what a kernel gives.
const PIDS: i32 = 5_000_000;

/// The whole run.
struct Run {
    world: Shared,
    rng: Rng,
    life: Option<Life>,
    /// The connection to the ledger that the last life had.
    left: Option<Connection>,
    /// When the daemon is started again.
    start_at: u64,
    proc: FakeProc,
    configuration: Configuration,
    calls: Vec<Call>,
    calls_made: u64,
    requests: Vec<Request>,
    next_op: u64,
    /// What the world does, and how often.
    acts: Vec<(Act, u64)>,
    /// What it does next.
    then: Option<Act>,
    /// The scene that goes on with that.
    scene: Option<Scene>,
    /// What another user has built in it.
    others: BTreeSet<String>,
    ops: u64,
    next_progress: u64,
    frozen: [u64; 4],
    away_until: Option<u64>,
    /// The disk of the ledger is full until then.
    full_until: Option<u64>,
    lives: u64,
    turns: u64,
    /// The pending pushes whose paths were seen to be protected.
    protected: BTreeSet<PushId>,
    origin: Instant,
}

/// Runs one seed. `print`: prints the trace. A panic is a violation as well.
pub(super) fn run(seed: u64, print: bool) -> Report {
    std::panic::catch_unwind(|| run_to_end(seed, print)).unwrap_or_else(|reason| {
        let reason = reason.downcast_ref::<String>().cloned();
        let violation = Some(format!("the daemon panicked: {}", reason.unwrap_or_default()));
        Report { violation, runs: 1, ..Report::default() }
    })
}

fn run_to_end(seed: u64, print: bool) -> Report {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    let top = ["/dev/shm", "/tmp"].into_iter().find(|dir| std::path::Path::new(dir).is_dir()).unwrap();
    let dir = tempfile::Builder::new().prefix("flywheel-sim").tempdir_in(top).unwrap();
    runtime.block_on(async {
        let mut run = Run::new(seed, dir.path(), print);
        let ended = run.go().await;
        if let Some(life) = run.life.take() {
            drop(life.kill());
        }
        let world = lock(&run.world);
        Report {
            violation: ended.err(),
            trace_hash: world.trace.hash(),
            tail: world.trace.tail(),
            failed: BTreeMap::new(),
            hashes: BTreeMap::new(),
            runs: 1,
            turns: run.turns,
            seen: world.seen.clone(),
        }
    })
}

impl Run {
    fn new(seed: u64, dir: &std::path::Path, print: bool) -> Self {
        let mut rng = Rng::new(seed);
        let mut store = Store::new(dir);
        let fresh = *rng.pick(&[5_u64, 20, 600]).unwrap();
        let jobs = *rng.pick(&["\"auto\"", "1", "4"]).unwrap();
        let configuration = Configuration::new(dir, fresh, jobs);
        let proc = FakeProc::within(dir);
        proc.add(1, 0, 1, "init", 0, b"init\0");
        let origin = Instant::now();
        let emphasis = Emphasis::draw(&mut rng);
        let faults = emphasis.with(Faults::draw(&mut rng));
        store.back_up();
        let mut caches: Vec<Cache> = CACHES.iter().map(|_| Cache::default()).collect();
        for cache in &mut caches {
            cache.slow = emphasis.slow(&mut rng);
        }
        let mut world = World {
            store,
            caches,
            jobs: Vec::new(),
            rng: Rng::new(seed ^ 0x5555),
            trace: Trace::new(print),
            seen: BTreeMap::new(),
            origin,
            faults,
            emphasis,
            calm: false,
            wake: false,
            fresh: fresh * 1_000,
            lock_watcher: None,
        };
        world.line(&format!("seed {seed}: {emphasis:?}, {faults:?}, recheck_after {fresh} s, jobs {jobs}"));
        // The daemon's first start is on a host with some paths.
        for _ in 0..rng.below(4) {
            world.build();
        }
        for made in world.store.made.values_mut() {
            // They are old, and nothing is to be done about them.
            made.job = Some(usize::MAX);
        }
        world.wake = false;
        Self {
            world: Arc::new(Mutex::new(world)),
            rng,
            life: None,
            left: None,
            start_at: 0,
            proc,
            configuration,
            calls: Vec::new(),
            calls_made: 0,
            requests: Vec::new(),
            next_op: 500,
            acts: Act::weights(faults, emphasis),
            then: None,
            scene: None,
            others: BTreeSet::new(),
            ops: 0,
            next_progress: 0,
            frozen: [0; 4],
            away_until: None,
            full_until: None,
            lives: 0,
            turns: 0,
            protected: BTreeSet::new(),
            origin,
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap()
    }

    fn line(&self, text: &str) {
        lock(&self.world).line(text);
    }

    fn count(&self, what: &'static str) {
        lock(&self.world).count(what);
    }

    async fn go(&mut self) -> Check {
        let ops = 40 + self.rng.below(80);
        while self.ops < ops {
            self.step().await?;
        }
        self.calm();
        let until = self.now() + CALM;
        // Until nothing has happened for a while.
        let mut quiet_since = self.now();
        loop {
            self.step().await?;
            let settled = self.life.as_ref().is_some_and(|life| {
                life.driver.unsettled() == 0 && life.driver.live_sessions() == 0 && self.calls.is_empty()
            });
            if !settled {
                quiet_since = self.now();
                self.end_jobs();
            } else if self.now() > quiet_since + 15_000 {
                break;
            }
            if self.now() > until {
                let life =
                    self.life.as_ref().map(|life| (life.driver.unsettled(), life.driver.live_sessions()));
                return Err(format!(
                    "does not settle: unsettled and live {life:?}, {} calls",
                    self.calls.len()
                ));
            }
        }
        self.final_checks()
    }

    /// The faults stop.
    fn calm(&mut self) {
        self.line("world: calm");
        let mut world = lock(&self.world);
        world.calm = true;
        for cache in &mut world.caches {
            cache.fault = None;
        }
        drop(world);
        // What hung begins to go on now, and callers that waited for it are not late yet.
        let now = self.now();
        self.frozen = self.frozen.map(|until| until.min(now));
        if let Some(life) = &self.life {
            life.disk.kill_after(u32::MAX);
        }
        self.away_until = self.away_until.map(|_| now);
        self.full_until = self.full_until.map(|_| now);
        self.start_at = self.start_at.min(self.now());
        // What is pending for a cache that the configuration does not have waits for it.
        if !std::mem::replace(&mut self.configuration.third, true) {
            self.read_again(true);
        }
    }

    /// One turn of something, or time passes.
    async fn step(&mut self) -> Check {
        self.turns += 1;
        if self.turns > TURNS {
            return Err(format!("{TURNS} turns, and no end"));
        }
        let now = self.now();
        let (ready, next) = self.choices(now);
        let Some(choice) = self.rng.pick(&ready).copied() else {
            // Processes are looked at every second.
            let step = next.saturating_sub(now).clamp(1, 1_000);
            tokio::time::advance(Duration::from_millis(step)).await;
            settle().await;
            self.tell();
            return self.check(false);
        };
        // GC roots end only in their own turn.
        if matches!(choice, Choice::Roots | Choice::Start) {
            self.protected.clear();
        }
        self.act(choice, now)?;
        settle().await;
        self.tell();
        self.collect_requests(now);
        if self.life.as_ref().is_some_and(|life| life.disk.is_dead()) {
            self.crash("between two commits");
        }
        self.hear()?;
        let (calm, emphasis) = {
            let world = lock(&self.world);
            (world.calm, world.emphasis)
        };
        if emphasis.crashes && !calm && self.life.is_some() {
            // What blocking work has done is often said by nobody yet.
            let starts = self.calls.iter().any(|call| matches!(call.asked, Asked::Start { .. }));
            let often = if !matches!(choice, Choice::Work(_)) {
                150
            } else if starts {
                3
            } else {
                15
            };
            if self.rng.one_in(often) {
                self.crash("between two turns");
            }
        }
        self.check(choice.may_unprotect())
    }

    fn start(&mut self, now: u64) {
        self.lives += 1;
        self.line(&format!("daemon: start {}", self.lives));
        let (dir, store_dir) = {
            let world = lock(&self.world);
            (world.store.dir.clone(), world.store.store_dir.clone())
        };
        let seed = self.rng.next();
        self.configuration.write();
        // One start in four opens the ledger as a start does.
        let left = self.left.take().filter(|_| !self.rng.one_in(4));
        let life = Life::start(&dir, &store_dir, &self.proc.proc(), left, seed, now);
        if self.full_until.is_some() {
            life.disk.set_full(true);
        }
        let world = Arc::clone(&self.world);
        life.disk.before_calls(move || lock(&world).interfere());
        lock(&self.world).lock_watcher = Some(life.lock_watcher.clone());
        self.life = Some(life);
        if self.lives > 1 {
            self.count("restarts");
        }
    }

    fn crash(&mut self, how: &'static str) {
        self.line(&format!("world: kill -9 {how}"));
        self.count("crashes");
        if self.full_until.is_some() {
            self.may_lose_sessions();
        }
        self.down("killed");
    }

    /// What the daemon has noticed and said is not in its file for sure.
    fn may_lose_sessions(&self) {
        let mut world = lock(&self.world);
        world.store.forget_that_it_was_noticed();
        for job in world.jobs.iter_mut().filter(|job| job.id.is_some()) {
            (job.may_be_lost, job.taken_in) = (true, None);
            // One whose end is lost may be open again.
            job.finished = false;
        }
    }

    /// The power is cut: of the ledger's log a beginning is left.
    fn cut_power(&mut self) {
        self.line("world: the power is cut");
        self.count("power cuts");
        self.may_lose_sessions();
        if let Some(life) = &self.life {
            let rng = &mut self.rng;
            // Mostly the last commits only.
            life.disk.cut_power(|len| {
                let lost = if rng.one_in(4) { rng.index(len + 1) } else { rng.index(len.min(60_000) + 1) };
                len - lost
            });
        }
        self.down("without power");
    }

    /// The daemon's process has ended: its callers lose their connections.
    fn down(&mut self, how: &str) {
        let Some(life) = self.life.take() else { return };
        self.left = life.kill();
        let cursor = self.cursor();
        let mut world = lock(&self.world);
        for job in world.jobs.iter_mut().filter(|job| job.id.is_some() && !job.is_recorded) {
            job.may_be_lost = true;
        }
        world.forget_makers(cursor);
        for cache in &mut world.caches {
            // It is asked again, and only then it is recorded.
            cache.told_missing.clear();
            cache.begun_before.clear();
            cache.distrusted_at = 0;
        }
        drop(world);
        self.requests.clear();
        self.line(&format!("daemon: {how}"));
        self.start_at = self.now() + self.rng.below(3_000);
        let calls = std::mem::take(&mut self.calls);
        for call in calls {
            if let Asked::Start { job } = call.asked {
                self.kill_job(job);
            }
            // Whoever ends a session asks again when the daemon is back.
            if let Asked::End { job, .. } = call.asked {
                lock(&self.world).jobs[job].finished = false;
            }
        }
    }

    /// Calls of the caches that have been made.
    fn collect_requests(&mut self, now: u64) {
        let Some(life) = &self.life else { return };
        let calls = std::mem::take(&mut *life.board.lock().unwrap_or_else(PoisonError::into_inner));
        for (cache, call) in calls {
            let request = lock(&self.world).caches[cache.index()].request(cache.0, call, now, &mut self.rng);
            self.requests.push(request);
        }
    }

    fn cache(&mut self, n: usize, now: u64) -> Check {
        if self.requests[n].result.is_some() {
            let request = self.requests.remove(n);
            let text = request.answer();
            self.line(&text);
            return Ok(());
        }
        let mut world = lock(&self.world);
        let request = &mut self.requests[n];
        let cache = usize::from(request.cache);
        let stored = world.caches[cache].process(request, now, &mut self.rng);
        if let Some(stored) = stored {
            let base = world.store.made.keys().find(|base| hash(base) == stored).cloned().unwrap();
            world.count("uploads");
            world.line(&format!("cache {cache}: stores {}", short(&stored)));
            checks::may_go_there(&world.store, request.cache, &base)?;
            // An upload begins within this time of its confirmation; what reads the path before
            // the cache is called may hang.
            let hang = if world.faults.slow_ledger { HANG } else { 0 };
            let fresh = world.fresh + hang + 1_000;
            let since = request.made_at.saturating_sub(fresh).max(request.trusted_since);
            checks::closure_is_there(&world.store, &world.caches[cache], &base, since)?;
            if world.emphasis.deletions && !world.calm && self.rng.one_in(10) {
                world.delete(cache);
            }
            let number = request.cache;
            drop(world);
            if let Some(answers) = self.stored(number, &stored, now) {
                self.requests[n].answer_at = answers;
            }
        }
        Ok(())
    }

    /// Tells the daemon what it would see of the world.
    fn tell(&mut self) {
        if let Some(life) = &self.life
            && std::mem::take(&mut lock(&self.world).wake)
        {
            life.handle.wake();
        }
    }
}

/// Lets tasks do what they can. There is no other thread.
async fn settle() {
    for _ in 0..SETTLE {
        tokio::task::yield_now().await;
    }
}
