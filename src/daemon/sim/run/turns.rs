//! Which part of the daemon, or what of the world, has the next turn.

use tokio::time::Instant;

use super::super::caches::{Cache, short};
use super::super::checks::{self, Check, hash};
use super::Run;
use super::world::lock;
use crate::daemon::driver::{Driver, Turn};
use crate::daemon::inbox::Input;
use crate::types::{CacheId, PushId};

/// What can happen next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Input,
    Task,
    Tick,
    Progress,
    Intake,
    Ledger,
    Roots,
    /// A piece of blocking work.
    Work(usize),
    Cache(usize),
    World,
    Start,
    Back,
    Room,
}

impl Choice {
    /// Whether it may change which paths are pending or protected.
    pub(super) fn may_unprotect(self) -> bool {
        match self {
            Self::Input | Self::Task | Self::Tick | Self::Roots | Self::World | Self::Start => true,
            Self::Progress
            | Self::Intake
            | Self::Ledger
            | Self::Work(_)
            | Self::Cache(_)
            | Self::Back
            | Self::Room => false,
        }
    }
}

pub(super) const INTAKE: usize = 0;
pub(super) const LEDGER: usize = 1;
pub(super) const ROOTS: usize = 2;
pub(super) const WORK: usize = 3;

impl Run {
    pub(super) fn choices(&mut self, now: u64) -> (Vec<Choice>, u64) {
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
        if let Some(until) = self.full_until {
            at(until, Choice::Room);
        }
        let origin = self.origin;
        let Some(life) = &mut self.life else {
            at(self.start_at, Choice::Start);
            return (ready, next);
        };
        if !life.inputs.is_empty() {
            at(0, Choice::Input);
        }
        if life.driver.has_ended_tasks() {
            at(0, Choice::Task);
        }
        let ms =
            |instant: Instant| u64::try_from(instant.saturating_duration_since(origin).as_millis()).unwrap();
        at(ms(life.driver.wakes_at()), Choice::Tick);
        if life.driver.has_waiters() {
            at(self.next_progress, Choice::Progress);
        }
        if let Some(due) = life.intake.as_mut().and_then(crate::daemon::intake::SimulatedIntake::due) {
            at(ms(due).max(self.frozen[INTAKE]), Choice::Intake);
        }
        if life.disk.waiting() > 0 {
            at(self.frozen[LEDGER], Choice::Ledger);
        }
        if life.gc_roots.has_requests() {
            at(self.frozen[ROOTS], Choice::Roots);
        }
        for n in 0..life.work.len() {
            at(self.frozen[WORK], Choice::Work(n));
        }
        (ready, next)
    }

    pub(super) fn act(&mut self, choice: Choice, now: u64) -> Check {
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
                lock(&self.world).wake = true;
            }
            Choice::Room => {
                self.full_until = None;
                self.line("world: the ledger's disk has room again");
                if let Some(life) = &self.life {
                    life.disk.set_full(false);
                }
            }
            Choice::Start => self.start(now),
            Choice::Cache(n) => return self.cache(n, now),
            Choice::Input | Choice::Task | Choice::Tick | Choice::Progress => {
                let Some(life) = &mut self.life else { return Ok(()) };
                let turn = match choice {
                    Choice::Input => match life.inputs.try_recv() {
                        Ok(input) => {
                            let mut world = lock(&self.world);
                            world.line(&format!("driver: {}", words(&input)));
                            match &input {
                                Input::Cursor(cursor) => world.store.cursor_is(*cursor),
                                Input::Asked { cache, result: Ok(missing), .. } => {
                                    hears(&life.driver, &mut world.caches[cache.index()], *cache, missing);
                                }
                                _ => {}
                            }
                            drop(world);
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
                let mut world = lock(&self.world);
                world.line("intake: turn");
                if world.faults.crashes && !world.calm && self.rng.one_in(12) {
                    // Between two calls of the ledger within the turn.
                    life.disk.kill_after(u32::try_from(self.rng.below(8)).unwrap());
                }
                drop(world);
                match intake.turn() {
                    Ok(true) => {}
                    Ok(false) => life.intake = None,
                    Err(error) if life.disk.is_dead() => drop(error),
                    Err(error) => return Err(format!("the intake ended: {error}")),
                }
            }
            Choice::Ledger => {
                let Some(life) = &self.life else { return Ok(()) };
                let mut world = lock(&self.world);
                world.line(&format!("ledger: writes {}", life.disk.waiting()));
                drop(world);
                life.disk.write();
                if life.disk.is_failing() || life.disk.is_dead() {
                    return Ok(());
                }
                world = lock(&self.world);
                world.jobs.iter_mut().filter(|job| job.id.is_some()).for_each(|job| job.is_recorded = true);
                let checked = life.disk.read(|ledger| checks::missing_is_open(ledger, &world.caches));
                drop(world);
                return checked.unwrap_or(Ok(()));
            }
            Choice::Work(n) => {
                let Some(life) = &self.life else { return Ok(()) };
                lock(&self.world).line(&format!("thread: work {n} of {}", life.work.len()));
                life.work.run(n);
            }
            Choice::Roots => {
                let Some(life) = &self.life else { return Ok(()) };
                life.gc_roots.turn();
            }
        }
        Ok(())
    }

    pub(super) fn turn(&mut self, turn: Turn) -> Check {
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
}

/// The daemon hears that pushes are missing in the cache.
fn hears(driver: &Driver, cache: &mut Cache, id: CacheId, missing: &[PushId]) {
    if missing.iter().any(|push| driver.is_confirmed(*push)) {
        cache.distrusted_at = cache.asked_at;
        cache.begun_before = driver.uploading(id).iter().map(|base| hash(base).to_owned()).collect();
    }
    cache.told_missing.extend(missing.iter().filter_map(|push| Some(hash(driver.base(*push)?).to_owned())));
}

/// An input of the driver in words.
pub(super) fn words(input: &crate::daemon::inbox::Input) -> String {
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
