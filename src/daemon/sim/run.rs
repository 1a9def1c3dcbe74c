//! One run: the world acts, the daemon's parts take turns, and the invariants are checked
//! after each turn. At the end the faults stop, and everything must settle.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rusqlite::Connection;
use tokio::time::Instant;

use super::caches::{Cache, Fault, Request, short};
use super::checks::{self, Check, hash};
use super::jobs::{Asked, Call, Job, LATE, UIDS, cache_of};
use super::life::Life;
use super::store::{Made, Store};
use super::trace::{Rng, Trace};
use crate::attribution::tests::FakeProc;
use crate::attribution::{Lineage, LockWatcher, ProcId};
use crate::config::Settings;
use crate::control::messages::{ErrorCode, Outcome, Reply, Request as Ask, Summary};
use crate::control::server::{Incoming, Peer, Responder};
use crate::daemon::driver::Turn;

/// Turns after which a run that does not settle is broken off.
const TURNS: u64 = 60_000;
/// How long everything may take to settle when the faults have stopped, in milliseconds.
const CALM: u64 = 600_000;
/// The first process number of the simulated processes, above what a kernel gives.
const PIDS: i32 = 5_000_000;

/// What happened in one run, or in many.
#[derive(Debug, Default)]
pub(super) struct Report {
    pub(super) violation: Option<String>,
    pub(super) trace_hash: u64,
    pub(super) tail: String,
    pub(super) failed: Vec<u64>,
    runs: u64,
    turns: u64,
    seen: BTreeMap<&'static str, u64>,
}

impl Report {
    pub(super) fn add(&mut self, seed: u64, one: Self) {
        self.runs += 1;
        self.turns += one.turns;
        if one.violation.is_some() {
            self.failed.push(seed);
            self.failed.sort_unstable();
        }
        for (what, count) in one.seen {
            *self.seen.entry(what).or_default() += count;
        }
    }

    /// How often something happened.
    pub(super) fn seen(&self, what: &str) -> u64 {
        self.seen.get(what).copied().unwrap_or(0)
    }

    pub(super) fn runs(&self) -> u64 {
        self.runs
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(
            f,
            "{} runs, {} turns, {} failed {:?}",
            self.runs,
            self.turns,
            self.failed.len(),
            self.failed
        )?;
        for (what, count) in &self.seen {
            writeln!(f, "  {count:>8} {what}")?;
        }
        Ok(())
    }
}

/// Which faults a run has, drawn from its seed.
#[derive(Debug, Clone, Copy)]
struct Faults {
    crashes: bool,
    stops: bool,
    outages: bool,
    deletions: bool,
    collections: bool,
    rollbacks: bool,
    no_database: bool,
    slow_ledger: bool,
    anchors_end: bool,
    callers_leave: bool,
    interleaved: bool,
}

impl Faults {
    fn draw(rng: &mut Rng) -> Self {
        let mut some = || rng.one_in(2);
        Self {
            crashes: some(),
            stops: some(),
            outages: some(),
            deletions: some(),
            collections: some(),
            rollbacks: some() && some(),
            no_database: some() && some(),
            slow_ledger: some(),
            anchors_end: some(),
            callers_leave: some(),
            interleaved: some(),
        }
    }
}

/// What the ledger's calls, too, may act on.
pub(super) struct World {
    pub(super) store: Store,
    pub(super) caches: Vec<Cache>,
    jobs: Vec<Job>,
    rng: Rng,
    trace: Trace,
    seen: BTreeMap<&'static str, u64>,
    origin: Instant,
    faults: Faults,
    /// The world does not act between calls of the ledger any more.
    calm: bool,
    /// The daemon is to be woken up: a path may have become valid.
    ring: bool,
    fresh: u64,
    /// What the running daemon sees of makers.
    lock_watcher: Option<LockWatcher>,
}

impl World {
    fn now(&self) -> u64 {
        u64::try_from(self.origin.elapsed().as_millis()).unwrap()
    }

    fn line(&mut self, text: &str) {
        let now = self.now();
        self.trace.line(now, text);
    }

    fn count(&mut self, what: &'static str) {
        *self.seen.entry(what).or_default() += 1;
    }

    /// A build: one path becomes valid, made by a job or by nobody's job.
    fn build(&mut self) {
        let running: Vec<usize> = (0..self.jobs.len()).filter(|n| !self.jobs[*n].dead).collect();
        let job = if self.rng.one_in(3) { None } else { self.rng.pick(&running).copied() };
        let maker = job.map_or_else(|| UIDS[self.rng.index(UIDS.len())], |job| self.jobs[job].uid);
        // Without a daemon nobody sees who holds a lock.
        let seen = !self.rng.one_in(4) && self.lock_watcher.is_some();
        let valid = self.store.valid();
        let mut references = BTreeSet::new();
        for _ in 0..self.rng.below(4) {
            references.extend(self.rng.pick(&valid).cloned());
        }
        // Most builds are new; some make a path again that was collected.
        let gone: Vec<String> =
            self.store.made.iter().filter(|(_, made)| !made.valid).map(|(base, _)| base.clone()).collect();
        let again = if self.rng.one_in(5) { self.rng.pick(&gone).cloned() } else { None };
        let base = again.unwrap_or_else(|| self.store.new_name());
        if let Some(before) = self.store.made.get(&base) {
            references = before.references.iter().filter(|r| self.store.made[*r].valid).cloned().collect();
            if references.len() < before.references.len() {
                return;
            }
        }
        // Users who surely have an open session, and those who may have one.
        let is_open = |job: &&Job| job.id.is_some() && !job.finished && !job.end_asked && !job.dead;
        let open: BTreeSet<u32> = self.jobs.iter().filter(is_open).map(|job| job.uid).collect();
        let mut allowed: BTreeSet<u16> =
            self.store.made.get(&base).map(|made| made.allowed.clone()).unwrap_or_default();
        allowed.extend(if seen { vec![cache_of(maker)] } else { self.caches_of_nobody() });
        let before = self.store.made.get(&base).map_or_else(Vec::new, |made| {
            let mut before = made.before.clone();
            before.push((made.seen, made.open.clone()));
            before
        });
        let made = Made {
            references: references.into_iter().collect(),
            seen: seen.then_some(maker),
            maker,
            job,
            allowed,
            row: 0,
            at: self.now(),
            valid: true,
            open,
            before,
        };
        if seen {
            let anchor = job.and_then(|job| self.jobs[job].anchor);
            let mut line = vec![ProcId { pid: PIDS - 1, start: 1_000_000 }];
            line.extend(anchor.map(|pid| ProcId { pid, start: u64::from(pid.unsigned_abs()) }));
            let lineage = Lineage { line, session: 1, cgroup: None, person: Some((maker, maker)) };
            if let Some(watcher) = &self.lock_watcher {
                watcher.saw(&base, &Arc::new(lineage));
            }
        }
        let size = 100 + self.rng.below(1 << 21);
        let text = format!(
            "world: build {} by {maker} of job {job:?}, seen {seen}, refers to {:?}",
            short(hash(&base)),
            made.references.iter().map(|r| short(hash(r))).collect::<Vec<_>>()
        );
        self.store.register(&base, made, size);
        if self.rng.one_in(30) {
            let cache = self.rng.index(self.caches.len());
            self.caches[cache].too_large.insert(hash(&base).to_owned());
        }
        self.line(&text);
        self.count("builds");
        self.ring = true;
    }

    /// Caches that a path may go to whose maker was not seen.
    fn caches_of_nobody(&self) -> Vec<u16> {
        let sessions = self.jobs.iter().filter(|job| job.ended.is_none()).map(|job| cache_of(job.uid));
        sessions.chain([0]).collect()
    }

    /// The daemon has ended: what it knew of the makers of rows above the cursor is lost.
    fn forget_makers(&mut self, cursor: i64) {
        self.lock_watcher = None;
        let caches = self.caches_of_nobody();
        for made in self.store.made.values_mut().filter(|made| made.row > cursor) {
            made.seen = None;
            made.allowed.extend(caches.iter().copied());
        }
    }

    fn collect(&mut self) -> Vec<String> {
        let kept = self.store.roots();
        let mut rng = self.rng.clone();
        let removed = self.store.collect(&kept, |_| rng.one_in(2));
        self.rng = rng;
        let names: Vec<String> = removed.iter().map(|base| short(hash(base))).collect();
        self.line(&format!("world: collection removes {names:?}"));
        self.count("collections");
        removed
    }

    /// What may happen between two calls of the ledger.
    fn interfere(&mut self) {
        if self.calm || !self.faults.interleaved || !self.rng.one_in(12) {
            return;
        }
        self.count("events within a turn");
        if self.faults.collections && self.rng.one_in(2) {
            self.collect();
        } else {
            self.build();
        }
    }
}

type Shared = Arc<Mutex<World>>;

fn lock(world: &Shared) -> MutexGuard<'_, World> {
    world.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The whole run.
struct Run {
    world: Shared,
    rng: Rng,
    life: Option<Life>,
    /// When the daemon is started again.
    start_at: u64,
    proc: FakeProc,
    settings: Arc<Settings>,
    calls: Vec<Call>,
    calls_made: u64,
    requests: Vec<Request>,
    next_op: u64,
    ops: u64,
    next_progress: u64,
    frozen: [u64; 3],
    away_until: Option<u64>,
    lives: u64,
    /// Sessions without an anchor whose job never learned of them.
    lost_sessions: usize,
    turns: u64,
    origin: Instant,
}

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Choice {
    Input,
    Task,
    Tick,
    Progress,
    Intake,
    Ledger,
    Roots,
    Cache(usize),
    World,
    Start,
    Back,
}

const INTAKE: usize = 0;
const LEDGER: usize = 1;
const ROOTS: usize = 2;

/// Runs one seed. `print`: prints the trace.
pub(super) fn run(seed: u64, print: bool) -> Report {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .start_paused(true)
        .max_blocking_threads(1)
        .build()
        .unwrap();
    let top = ["/dev/shm", "/tmp"].into_iter().find(|dir| std::path::Path::new(dir).is_dir()).unwrap();
    let dir = tempfile::Builder::new().prefix("flywheel-sim").tempdir_in(top).unwrap();
    runtime.block_on(async {
        let mut run = Run::new(seed, dir.path(), print);
        let ended = run.go().await;
        if let Some(life) = run.life.take() {
            life.kill();
        }
        let world = lock(&run.world);
        Report {
            violation: ended.err(),
            trace_hash: world.trace.hash(),
            tail: world.trace.tail(),
            failed: Vec::new(),
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
        let config = dir.join("flywheel.toml");
        let cache = |name: &str| format!("[caches.{name}]\nendpoints = [\"http://127.0.0.1:9\"]\n");
        let text = format!(
            "default_cache = \"a\"\nstate_dir = \"{0}/state\"\n{1}{2}[nix]\nstore_dir = \"{0}/store\"\n\
             state_dir = \"{0}/nix\"\nmin_free = \"0\"\n[client]\nenable = false\n[push]\nrecheck_after = \"{fresh}s\"\n\
             jobs = {jobs}\n[[route]]\nuser = \"{3}\"\ncache = \"b\"\nallow = [\"a\"]\n[[route]]\nmaker = \"unknown\"\ncache = \"a\"\n",
            dir.display(),
            cache("a"),
            cache("b"),
            UIDS[1],
        );
        std::fs::write(&config, text).unwrap();
        let env = |name: &str| match name {
            "RUNTIME_DIRECTORY" => Some(dir.join("runtime").display().to_string()),
            _ => None,
        };
        let settings = Arc::new(Settings::load(Some(&config), &env).unwrap());
        let proc = FakeProc::new();
        proc.add(1, 0, 1, "init", 0, b"init\0");
        let origin = Instant::now();
        let faults = Faults::draw(&mut rng);
        store.back_up();
        let mut caches: Vec<Cache> = (0..2).map(|_| Cache::default()).collect();
        for cache in &mut caches {
            cache.slow = *rng.pick(&[0, 20, 400]).unwrap();
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
            calm: false,
            ring: false,
            fresh: fresh * 1_000,
            lock_watcher: None,
        };
        world.line(&format!("seed {seed}: {faults:?}, recheck_after {fresh} s, jobs {jobs}"));
        // The daemon's first start is on a host with some paths.
        for _ in 0..rng.below(4) {
            world.build();
        }
        for made in world.store.made.values_mut() {
            // They are old, and nothing is to be done about them.
            made.job = Some(usize::MAX);
        }
        world.ring = false;
        Self {
            world: Arc::new(Mutex::new(world)),
            rng,
            life: None,
            start_at: 0,
            proc,
            settings,
            calls: Vec::new(),
            calls_made: 0,
            requests: Vec::new(),
            next_op: 500,
            ops: 0,
            next_progress: 0,
            frozen: [0; 3],
            away_until: None,
            lives: 0,
            lost_sessions: 0,
            turns: 0,
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
                life.driver.unsettled() == 0
                    && life.driver.live_sessions() <= self.lost_sessions
                    && self.calls.is_empty()
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
        self.frozen = [0; 3];
        if let Some(life) = &self.life {
            life.disk.kill_after(u32::MAX);
        }
        if self.away_until.is_some() {
            self.away_until = Some(self.now());
        }
        self.start_at = self.start_at.min(self.now());
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
            return self.check();
        };
        self.act(choice, now)?;
        settle().await;
        self.tell();
        self.collect_requests(now);
        if self.life.as_ref().is_some_and(|life| life.disk.is_dead()) {
            self.crash("between two commits");
        }
        self.hear()?;
        self.check()
    }

    fn choices(&mut self, now: u64) -> (Vec<Choice>, u64) {
        let mut ready = Vec::new();
        let mut next = u64::MAX;
        let mut at = |due: u64, choice: Choice| {
            if due <= now {
                ready.push(choice);
            } else {
                next = next.min(due);
            }
        };
        for (n, request) in self.requests.iter().enumerate() {
            at(
                if request.result.is_some() { request.answer_at } else { request.process_at },
                Choice::Cache(n),
            );
        }
        if !lock(&self.world).calm {
            at(self.next_op, Choice::World);
        }
        if let Some(until) = self.away_until {
            at(until, Choice::Back);
        }
        let origin = self.origin;
        let Some(life) = &mut self.life else {
            at(self.start_at, Choice::Start);
            return (ready, next);
        };
        if !life.inputs.is_empty() {
            at(0, Choice::Input);
        }
        if life.driver.has_tasks() {
            at(0, Choice::Task);
        }
        let ms =
            |instant: Instant| u64::try_from(instant.saturating_duration_since(origin).as_millis()).unwrap();
        at(ms(life.driver.wakes_at()), Choice::Tick);
        if life.driver.has_waiters() {
            at(self.next_progress, Choice::Progress);
        }
        if let Some(due) = life.intake.as_mut().and_then(super::super::intake::SimulatedIntake::due) {
            at(ms(due).max(self.frozen[INTAKE]), Choice::Intake);
        }
        if life.disk.waiting() > 0 {
            at(self.frozen[LEDGER], Choice::Ledger);
        }
        if life.gc_roots.has_requests() {
            at(self.frozen[ROOTS], Choice::Roots);
        }
        (ready, next)
    }

    fn act(&mut self, choice: Choice, now: u64) -> Check {
        match choice {
            Choice::World => {
                self.ops += 1;
                self.next_op = now + self.rng.below(*self.rng.clone().pick(&[10, 300, 4_000]).unwrap());
                self.world_acts(now);
            }
            Choice::Back => {
                lock(&self.world).store.set_away(false);
                self.away_until = None;
                self.line("world: the Nix database is back");
                lock(&self.world).ring = true;
            }
            Choice::Start => self.start(now),
            Choice::Cache(n) => return self.cache(n, now),
            Choice::Input | Choice::Task | Choice::Tick | Choice::Progress => {
                let Some(life) = &mut self.life else { return Ok(()) };
                let turn = match choice {
                    Choice::Input => match life.inputs.try_recv() {
                        Ok(input) => {
                            lock(&self.world).line(&format!("driver: {}", words(&input)));
                            Turn::Input(input)
                        }
                        Err(_) => return Ok(()),
                    },
                    Choice::Task => Turn::Task,
                    Choice::Progress => {
                        self.next_progress =
                            now + u64::try_from(crate::daemon::driver::Driver::PROGRESS.as_millis()).unwrap();
                        Turn::Progress
                    }
                    _ => Turn::Tick,
                };
                self.turn(turn)?;
            }
            Choice::Intake => {
                let Some(life) = &mut self.life else { return Ok(()) };
                let Some(intake) = &mut life.intake else { return Ok(()) };
                lock(&self.world).line("intake: turn");
                match intake.turn() {
                    Ok(true) => {}
                    Ok(false) => life.intake = None,
                    Err(error) if life.disk.is_dead() => drop(error),
                    Err(error) => return Err(format!("the intake ended: {error}")),
                }
            }
            Choice::Ledger => {
                let Some(life) = &self.life else { return Ok(()) };
                lock(&self.world).line(&format!("ledger: writes {}", life.disk.waiting()));
                life.disk.write();
            }
            Choice::Roots => {
                let Some(life) = &self.life else { return Ok(()) };
                life.gc_roots.turn();
            }
        }
        Ok(())
    }

    fn turn(&mut self, turn: Turn) -> Check {
        let Some(life) = &mut self.life else { return Ok(()) };
        if let Some(ended) = life.driver.turn(turn) {
            life.disk.write();
            self.line(&format!("driver: {ended:?}"));
            if matches!(ended, crate::daemon::driver::Ended::Failed(_)) {
                return Err(format!("the daemon ended: {ended:?}"));
            }
            self.down("stopped");
        }
        Ok(())
    }

    fn start(&mut self, now: u64) {
        self.lives += 1;
        self.line(&format!("daemon: start {}", self.lives));
        let (dir, store_dir) = {
            let world = lock(&self.world);
            (world.store.dir.clone(), world.store.store_dir.clone())
        };
        let life = Life::start(&dir, &store_dir, &self.settings, &self.proc.proc(), self.rng.next(), now);
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
        self.down("killed");
    }

    /// The daemon's process has ended: its callers lose their connections.
    fn down(&mut self, how: &str) {
        let Some(life) = self.life.take() else { return };
        life.kill();
        let cursor =
            self.ledger().query_row("SELECT id FROM cursor", [], |row| row.get(0)).unwrap_or_default();
        lock(&self.world).forget_makers(cursor);
        self.requests.clear();
        self.line(&format!("daemon: {how}"));
        self.start_at = self.now() + self.rng.below(3_000);
        let calls = std::mem::take(&mut self.calls);
        for call in calls {
            if let Asked::Start { job } = call.asked {
                // Nobody knows the session's id, and without an anchor nothing ends it.
                let has_anchor = lock(&self.world).jobs[job].anchor.is_some();
                self.lost_sessions += usize::from(!has_anchor);
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
            // An upload begins within this time of its confirmation, and then takes a while.
            let fresh = world.fresh + 2 * world.caches[cache].slow + 1_000;
            checks::closure_is_there(&world.store, &world.caches[cache], &base, now, fresh)?;
        }
        Ok(())
    }

    /// Tells the daemon what it would see of the world.
    fn tell(&mut self) {
        if let Some(life) = &self.life
            && std::mem::take(&mut lock(&self.world).ring)
        {
            life.bell.ring();
        }
    }

    fn ask(&mut self, uid: u32, pid: Option<i32>, asked: Asked, request: Ask, deadline: Option<u64>) {
        let now = self.now();
        self.calls_made += 1;
        let number = self.calls_made;
        self.line(&format!("call {number} of {uid}: {asked:?}"));
        let (responder, answer) = Responder::pair();
        let peer = Peer { pid, uid, gid: uid };
        let incoming = Incoming { request, peer, responder };
        if let Some(life) = &mut self.life {
            self.calls.push(Call { asked, at: now, deadline, answer, number });
            life.driver.turn(Turn::Request(incoming));
        }
    }

    /// The world does something.
    fn world_acts(&mut self, now: u64) {
        let faults = lock(&self.world).faults;
        match self.rng.below(40) {
            0..=12 => lock(&self.world).build(),
            13..=15 => self.start_job(),
            16..=19 => self.end_job(),
            20 | 21 => self.push(),
            22 => self.flush(),
            23 => {
                let deadline = now + 3_000;
                self.ask(UIDS[0], None, Asked::Status, Ask::Status, Some(deadline));
            }
            24 if faults.anchors_end => {
                let running: Vec<usize> = {
                    let world = lock(&self.world);
                    (0..world.jobs.len()).filter(|n| !world.jobs[*n].dead).collect()
                };
                if let Some(job) = self.rng.pick(&running).copied() {
                    self.kill_job(job);
                }
            }
            25 if faults.callers_leave && !self.calls.is_empty() => {
                let n = self.rng.index(self.calls.len());
                let call = self.calls.remove(n);
                self.line(&format!("call {}: the caller leaves", call.number));
                self.count("callers that left");
                match call.asked {
                    Asked::End { job, .. } => lock(&self.world).jobs[job].finished = false,
                    Asked::Start { job } => {
                        let mut world = lock(&self.world);
                        (world.jobs[job].dead, world.jobs[job].finished) = (true, true);
                    }
                    _ => {}
                }
            }
            26 | 27 if faults.outages => {
                let fault = *self
                    .rng
                    .pick(&[
                        Fault::Unreachable,
                        Fault::ServerError,
                        Fault::Unauthorized,
                        Fault::NoVerdict,
                        Fault::Busy,
                    ])
                    .unwrap();
                let until = now + self.rng.below(40_000);
                let mut world = lock(&self.world);
                let cache = self.rng.index(world.caches.len());
                world.caches[cache].fault = Some((fault, until));
                world.line(&format!("world: cache {cache} {fault:?} until {until}"));
                world.count("outages");
            }
            28 | 29 if faults.deletions => {
                let mut world = lock(&self.world);
                let cache = self.rng.index(world.caches.len());
                let all = self.rng.one_in(3);
                let deleted = world.caches[cache].delete(|| all || self.rng.one_in(3));
                world.line(&format!("world: cache {cache} deletes {deleted} paths"));
                world.count("deletions");
            }
            30 | 31 if faults.collections => {
                lock(&self.world).collect();
            }
            32 if faults.rollbacks => {
                let mut world = lock(&self.world);
                if world.rng.one_in(2) {
                    world.store.back_up();
                    world.line("world: backup of the Nix database");
                } else if let Some(removed) = world.store.roll_back() {
                    world.line(&format!("world: the Nix database goes back, {} paths", removed.len()));
                    world.count("rollbacks");
                    world.ring = true;
                }
            }
            33 if faults.no_database && self.away_until.is_none() => {
                let until = now + self.rng.below(20_000);
                lock(&self.world).store.set_away(true);
                self.away_until = Some(until);
                self.line("world: the Nix database is away");
                self.count("databases away");
            }
            34 | 35 if faults.slow_ledger => {
                let which = self.rng.index(3);
                self.frozen[which] = now + self.rng.below(5_000);
                self.line(&format!("world: {} hangs", ["intake", "ledger", "roots"][which]));
            }
            36 if faults.crashes && self.life.is_some() => self.crash("now"),
            37 if faults.crashes => {
                if let Some(life) = &self.life {
                    life.disk.kill_after(u32::try_from(self.rng.below(6)).unwrap());
                }
            }
            38 if faults.stops => {
                if let Some(life) = &mut self.life
                    && !std::mem::replace(&mut life.stopping, true)
                {
                    self.line("world: SIGTERM");
                    self.count("stops");
                    // The end of the driver is seen at its next turn.
                    let _ = self.turn(Turn::Stop);
                }
            }
            _ => {}
        }
    }

    fn kill_job(&self, job: usize) {
        let mut world = lock(&self.world);
        world.jobs[job].dead = true;
        if let Some(pid) = world.jobs[job].anchor {
            self.proc.end(pid);
        }
        world.line(&format!("world: job {job} dies"));
        world.count("jobs that died");
    }

    fn start_job(&mut self) {
        let mut world = lock(&self.world);
        if self.life.is_none() || world.jobs.iter().filter(|job| !job.finished).count() >= 5 {
            return;
        }
        let uid = UIDS[self.rng.index(UIDS.len())];
        let job = world.jobs.len();
        let pid = PIDS + 10 * i32::try_from(job).unwrap();
        let has_anchor = !self.rng.one_in(3);
        let start = u64::from(pid.unsigned_abs());
        self.proc.add(pid, 1, start, "job", uid, b"job\0");
        self.proc.add(pid + 1, pid, start + 1, "flywheelctl", uid, b"flywheelctl\0");
        world.jobs.push(Job {
            uid,
            id: None,
            anchor: has_anchor.then_some(pid),
            dead: false,
            finished: false,
            ended: None,
            end_asked: false,
            first_end: None,
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
            let cursor = self.ledger().query_row("SELECT id FROM cursor", [], |row| row.get(0)).unwrap_or(0);
            let mut world = lock(&self.world);
            for made in world.store.made.values_mut().filter(|made| made.row > cursor) {
                made.allowed.insert(cache_of(uid));
            }
        }
        self.ask(uid, Some(pid + 1), Asked::Start { job }, request, None);
    }

    fn some_paths(&mut self) -> Vec<String> {
        let mut world = lock(&self.world);
        let valid = world.store.valid();
        let mut paths = BTreeSet::new();
        for _ in 0..world.rng.below(3) {
            paths.extend(world.rng.pick(&valid).cloned());
        }
        paths.into_iter().collect()
    }

    fn name(&self, paths: &[String], cache: u16) -> Vec<String> {
        let mut world = lock(&self.world);
        for base in paths {
            if let Some(made) = world.store.made.get_mut(base) {
                made.allowed.insert(cache);
            }
        }
        paths.iter().map(|base| world.store.full(base)).collect()
    }

    fn end_job(&mut self) {
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
            let timeout = *self.rng.pick(&[500, 5_000, 60_000, 240_000]).unwrap();
            self.end(job, paths, wait, timeout, again);
        }
    }

    fn end(&mut self, job: usize, paths: Vec<String>, wait: bool, timeout: u64, again: bool) {
        if self.life.is_none() {
            return;
        }
        let now = self.now();
        let (uid, id) = {
            let mut world = lock(&self.world);
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
    fn end_jobs(&mut self) {
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

    fn push(&mut self) {
        if self.life.is_none() {
            return;
        }
        let uid = UIDS[self.rng.index(UIDS.len())];
        let paths = self.some_paths();
        let full = self.name(&paths, cache_of(uid));
        let wait = !self.rng.one_in(3);
        let timeout = *self.rng.pick(&[500, 5_000, 60_000]).unwrap();
        let request = Ask::Push { paths: full, cache: None, wait, timeout_ms: timeout };
        let deadline = Some(self.now() + timeout);
        self.ask(uid, None, Asked::Push { uid, paths, wait }, request, deadline);
    }

    fn flush(&mut self) {
        if self.life.is_none() {
            return;
        }
        let before: BTreeSet<String> = lock(&self.world).store.valid().into_iter().collect();
        let timeout = *self.rng.pick(&[500, 60_000]).unwrap();
        let deadline = Some(self.now() + timeout);
        self.ask(UIDS[0], None, Asked::Flush { before }, Ask::Flush { timeout_ms: timeout }, deadline);
    }

    fn ledger(&self) -> Connection {
        let path = lock(&self.world).store.dir.join("state/ledger.sqlite");
        Connection::open_with_flags(path, rusqlite::OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap()
    }

    /// Hears the answers to calls.
    fn hear(&mut self) -> Check {
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

    fn answered(&mut self, call: Call, reply: Reply) -> Check {
        let Call { asked, at, number, .. } = call;
        self.line(&format!("call {number}: {}", said(&reply)));
        match (asked, reply) {
            (Asked::Start { job }, Reply::Started { session, .. }) => {
                lock(&self.world).jobs[job].id = Some(session);
                self.count("sessions");
            }
            (Asked::Start { job }, Reply::Error { .. }) => {
                let mut world = lock(&self.world);
                (world.jobs[job].finished, world.jobs[job].dead) = (true, true);
            }
            (Asked::End { job, again, recorded, .. }, Reply::Ended(summary)) => {
                self.count("ends");
                let id = lock(&self.world).jobs[job].id.clone().unwrap();
                let ledger = self.ledger();
                checks::adds_up(&ledger, &id, &summary)?;
                let mut world = lock(&self.world);
                let before = world.jobs[job].ended.clone();
                if let Some(before) = before.filter(|before| before.outcome == Outcome::Complete && again) {
                    let counts =
                        |s: &Summary| (s.pushed, s.already_cached, s.upstream, s.failed_total, s.skipped);
                    if counts(&before) != counts(&summary) {
                        return Err(format!("session {id} was answered {before:?}, and then {summary:?}"));
                    }
                    return Ok(());
                }
                let uncertain = summary.warnings.iter().any(|warning| warning.contains("again and again"));
                if summary.outcome == Outcome::Complete && !uncertain && world.jobs[job].ended.is_none() {
                    let cache = cache_of(world.jobs[job].uid);
                    let mut there = checks::there(&ledger, &id);
                    // What is not in the store any more cannot be pushed again.
                    there.retain(|base| world.store.made[base].valid);
                    let at = if recorded { world.jobs[job].first_end.unwrap_or(at) } else { at };
                    checks::answer_is_fresh(&world.store, &world.caches, &there, cache, at)?;
                    world.count("complete ends");
                }
                world.jobs[job].ended.get_or_insert(*Box::new(summary));
            }
            (Asked::End { job, .. }, Reply::Error { code: ErrorCode::Draining | ErrorCode::Busy, .. }) => {
                lock(&self.world).jobs[job].finished = false;
            }
            (Asked::Push { uid, paths, wait }, Reply::Pushed(summary)) => {
                self.count("pushes");
                if wait
                    && summary.outcome == Outcome::Complete
                    && summary.warnings.is_empty()
                    && summary.collected == 0
                {
                    let world = lock(&self.world);
                    let paths = paths.into_iter().filter(|base| world.store.made[base].valid).collect();
                    checks::answer_is_fresh(&world.store, &world.caches, &paths, cache_of(uid), at)?;
                }
            }
            (Asked::Flush { before }, Reply::Pushed(summary)) => {
                self.count("flushes");
                if summary.outcome == Outcome::Complete && summary.warnings.is_empty() {
                    let world = lock(&self.world);
                    for base in before {
                        let made = &world.store.made[&base];
                        let confirmed = world.caches.iter().any(|c| c.confirmed.contains_key(hash(&base)));
                        let refused = world
                            .store
                            .closure(&base)
                            .iter()
                            .any(|part| world.caches.iter().any(|c| c.too_large.contains(hash(part))));
                        if made.valid && made.job != Some(usize::MAX) && !confirmed && !refused {
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

    /// The invariants that hold after every turn.
    fn check(&mut self) -> Check {
        let now = self.now();
        let frozen = self.frozen.iter().any(|until| until + LATE > now);
        if let Some(life) = &self.life {
            for call in &self.calls {
                let late = call.deadline.is_some_and(|deadline| now > deadline.max(life.began) + LATE);
                if late && !frozen {
                    return Err(format!(
                        "call {} of {} ms is not answered at {now} ms",
                        call.number, call.at
                    ));
                }
            }
            let world = lock(&self.world);
            let roots = world.store.roots();
            if !life.gc_roots.has_requests() && world.store.rollbacks == 0 {
                for (_, path) in life.driver.wanted() {
                    let valid = world.store.made.get(path.base()).is_some_and(|made| made.valid);
                    if valid && !roots.contains(path.base()) {
                        return Err(format!("{path} is pending and not protected"));
                    }
                }
            }
        }
        Ok(())
    }

    fn final_checks(&mut self) -> Check {
        if let Some(life) = &self.life {
            life.gc_roots.turn();
            life.disk.write();
        }
        let ledger = self.ledger();
        let world = lock(&self.world);
        checks::all_is_settled(&ledger, self.lost_sessions)?;
        if world.store.rollbacks == 0 {
            checks::nothing_is_forgotten(&ledger, &world.store, &world.caches)?;
            checks::belongs(&ledger, &world.store)?;
        }
        let failed: i64 =
            ledger.query_row("SELECT count(*) FROM item WHERE state = 5", [], |row| row.get(0)).unwrap();
        let roots = world.store.roots();
        if i64::try_from(roots.len()).unwrap() > failed {
            return Err(format!(
                "at the end {} paths are protected, and {failed} pushes have failed",
                roots.len()
            ));
        }
        Ok(())
    }
}

/// Lets tasks and threads do what they can.
async fn settle() {
    for _ in 0..3 {
        for _ in 0..4 {
            tokio::task::yield_now().await;
        }
        // There is one thread for blocking work, which does it in order.
        tokio::task::spawn_blocking(|| ()).await.unwrap();
    }
}

/// An input of the driver in words.
fn words(input: &crate::daemon::inbox::Input) -> String {
    use crate::daemon::inbox::Input;
    match input {
        Input::Found { cache, paths, retry, pushes, .. } => {
            let paths: Vec<String> = paths.iter().map(|found| short(hash(found.path.base()))).collect();
            let purposes: Vec<_> =
                pushes.iter().map(|push| (push.id, push.purpose, &push.references, &push.sessions)).collect();
            format!("found for cache {}: {paths:?} {purposes:?} retry {retry}", cache.0)
        }
        Input::Uploaded { push, result, .. } => {
            let text = format!("{result:?}");
            format!("uploaded {push}: {}", text.split(['(', ' ']).next().unwrap_or_default())
        }
        Input::Asked { cache, pushes, result, .. } => {
            format!(
                "asked cache {} of {pushes:?}: {:?} missing",
                cache.0,
                result.as_ref().map_err(|e| e.class)
            )
        }
        Input::Probed(cache, result) => format!("probed cache {}: {}", cache.0, result.is_ok()),
        Input::Stuck(why) => format!("stuck: {}", why.is_some()),
        other => format!("{other:?}"),
    }
}

/// A reply in words that do not differ between two runs.
fn said(reply: &Reply) -> String {
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
