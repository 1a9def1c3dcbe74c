//! Scenes: acts of the world that follow each other within a moment, because they only
//! matter together. What the daemon does meanwhile, and what else fails, stays random.

use std::collections::BTreeSet;

use super::super::caches::Fault;
use super::super::checks::hash;
use super::super::jobs::{Asked, UIDS, cache_of};
use super::Run;
use super::acts::Act;
use super::turns::INTAKE;
use super::world::{World, lock};
use crate::control::messages::Request as Ask;

/// What a scene is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// A cache deletes a reference of a job's path and refuses it, and the job ends.
    Refused,
    /// The same, and somebody asks for the reference before the job ends.
    RefusedBefore,
    /// A cache deletes a reference of a job's path and takes no uploads, and the job ends with a
    /// short deadline.
    NoUploads,
    /// A job ends, and the intake hangs when the cache is to be asked once more.
    AnotherRound,
    /// Another host pushes a job's path, and the job ends while the cache is asked about it.
    Elsewhere,
    /// A cache loses a job's path when it has stored it, and the job ends when the upload's answer
    /// comes.
    Lost,
    /// A cache loses a path when it has stored it, and an older one that somebody asks about before
    /// the upload's answer comes; another path refers to the lost one.
    LostReference,
    /// The Nix database goes back, and rows are read again while another user has a session.
    ReadAgain,
    /// The Nix database goes back during uploads, and the numbers of their rows are given to
    /// another user's paths, which then are needed in the same cache.
    OldRows,
}

/// A scene that goes on.
#[derive(Debug)]
pub(super) struct Scene {
    kind: Kind,
    stage: u32,
    uid: u32,
    job: usize,
    /// A path from before the job.
    old: String,
    /// A path of the job.
    new: String,
}

impl Run {
    /// The scene goes on, until `most` after `least` at most.
    fn go_on_at(&mut self, scene: Scene, least: u64, most: u64) {
        self.scene = Some(Scene { stage: scene.stage + 1, ..scene });
        (self.then, self.next_op) = (Some(Act::GoOn), least + self.rng.below(most.max(1)));
    }

    /// A user makes a path that a job's path will refer to.
    pub(super) fn begin_scene(&mut self, kind: Kind, now: u64) {
        let rows = matches!(kind, Kind::ReadAgain | Kind::OldRows);
        let uid = if rows { UIDS[0] } else { UIDS[self.rng.index(UIDS.len())] };
        let mut world = lock(&self.world);
        world.line(&format!("world: scene {kind:?}"));
        world.count("scenes");
        if rows {
            drop(world);
            return self.begin_going_back(kind, now);
        }
        let old = world.build_with(None, Some(uid), Some(BTreeSet::new())).unwrap_or_default();
        let slow = world.caches[usize::from(cache_of(uid))].slow;
        drop(world);
        let scene = Scene { kind, stage: 0, uid, job: 0, old, new: String::new() };
        self.go_on_at(scene, now + 5 * slow + 100, 1_000);
    }

    /// Rows that are read together, and of which some stay when the database goes back; or rows
    /// whose uploads run when it does.
    fn begin_going_back(&mut self, kind: Kind, now: u64) {
        let mut world = lock(&self.world);
        let build = |world: &mut World| world.build_with(None, Some(UIDS[0]), Some(BTreeSet::new()));
        if kind == Kind::ReadAgain {
            build(&mut world);
            build(&mut world);
        }
        world.store.back_up();
        for _ in 0..3 {
            build(&mut world);
        }
        let slow = world.caches[0].slow;
        drop(world);
        let (old, new) = (String::new(), String::new());
        let scene = Scene { kind, stage: 0, uid: UIDS[0], job: 0, old, new };
        let most = if kind == Kind::OldRows { 3 * slow + 10 } else { 500 };
        self.go_on_at(scene, now + 1, most);
    }

    /// A cache has stored a path. In some scenes it loses it at once. Returns when it answers then.
    pub(super) fn stored(&mut self, cache: u16, stored: &str, now: u64) -> Option<u64> {
        let scene = self.scene.as_ref().filter(|scene| scene.stage == 3 && !scene.new.is_empty())?;
        if hash(&scene.new) != stored {
            return None;
        }
        let (kind, uid, old) = (scene.kind, scene.uid, scene.old.clone());
        if !matches!(kind, Kind::Lost | Kind::LostReference) || cache != cache_of(uid) {
            return None;
        }
        let mut world = lock(&self.world);
        let place = &mut world.caches[usize::from(cache)];
        place.has.remove(stored);
        let answers = now + 3 * place.slow + 500;
        if kind == Kind::LostReference {
            place.has.remove(hash(&old));
        }
        world.line(&format!("world: cache {cache} loses what it has just stored"));
        world.count("deletions");
        drop(world);
        // Once.
        self.scene.as_mut().unwrap().new.clear();
        // In `Lost` the job ends when the answer comes, in `LostReference` somebody asks before.
        self.next_op = if kind == Kind::Lost { answers } else { now + 1 + self.rng.below(300) };
        Some(answers)
    }

    /// The next step of the scene. It ends when what it needs is not there.
    pub(super) fn go_on(&mut self, now: u64) {
        let Some(mut scene) = self.scene.take() else { return };
        let cache = cache_of(scene.uid);
        let slow = lock(&self.world).caches[usize::from(cache)].slow;
        match (scene.stage, scene.kind) {
            (1, Kind::OldRows) => {
                let mut world = lock(&self.world);
                world.go_back();
                let given: BTreeSet<String> = (0..3)
                    .filter_map(|_| world.build_with(None, Some(UIDS[1]), Some(BTreeSet::new())))
                    .collect();
                drop(world);
                self.others = given;
                self.go_on_at(scene, now + 5 * slow + 50, 100);
            }
            (_, Kind::OldRows) => {
                let given = std::mem::take(&mut self.others);
                lock(&self.world).build_with(None, Some(UIDS[0]), Some(given));
            }
            (2, Kind::ReadAgain) => lock(&self.world).go_back(),
            (1, Kind::ReadAgain) => {
                if self.start_job_of(UIDS[1], 20).is_some() {
                    self.go_on_at(scene, now + 100, 500);
                }
            }
            (1, _) => {
                let Some(job) = self.start_job_of(scene.uid, 20) else { return };
                scene.job = job;
                self.go_on_at(scene, now + 50, 200);
            }
            (2, kind) => {
                let mut world = lock(&self.world);
                if world.jobs[scene.job].id.is_none() {
                    return;
                }
                let is_lost = matches!(kind, Kind::Lost | Kind::LostReference);
                let needed = if is_lost { BTreeSet::new() } else { BTreeSet::from([scene.old.clone()]) };
                let references = Some(needed);
                scene.new = world.build_with(Some(scene.job), None, references).unwrap_or_default();
                if kind == Kind::Refused {
                    // So nothing of the session is uploaded, and its end asks only once.
                    world.caches[usize::from(cache)].has.insert(hash(&scene.new).to_owned());
                }
                if kind == Kind::Elsewhere {
                    // Without its closure, or with it.
                    world.caches[usize::from(cache)].has.insert(hash(&scene.new).to_owned());
                    world.line("world: another host pushes it");
                    drop(world);
                    return self.go_on_at(scene, now + 1, 2 * slow + 20);
                }
                if kind == Kind::LostReference {
                    let references = Some(BTreeSet::from([scene.new.clone()]));
                    world.build_with(Some(scene.job), None, references);
                }
                drop(world);
                if is_lost {
                    // Or when it is stored.
                    return self.go_on_at(scene, now + 20_000, 1);
                }
                let wait = if kind == Kind::AnotherRound { slow + 10 } else { 5 * slow + 100 };
                self.go_on_at(scene, now + wait, wait);
            }
            (3, Kind::LostReference) => {
                self.push_one(scene.uid, scene.old.clone());
                self.go_on_at(scene, now + 5 * slow + 500, 1_000);
            }
            (3, Kind::Elsewhere | Kind::Lost) => {
                self.end(scene.job, Vec::new(), true, 240_000, false);
            }
            (3, Kind::AnotherRound) => {
                lock(&self.world).build_with(Some(scene.job), None, Some(BTreeSet::new()));
                self.end(scene.job, Vec::new(), true, 5_000, false);
                self.go_on_at(scene, now + 1, 4 * slow + 20);
            }
            (4, Kind::AnotherRound) => self.hang(INTAKE, now + 6_000, 1),
            (3, kind) => {
                let mut world = lock(&self.world);
                let place = &mut world.caches[usize::from(cache)];
                if !place.has.contains(hash(&scene.new)) || !place.has.remove(hash(&scene.old)) {
                    return;
                }
                if kind == Kind::NoUploads {
                    place.fault = Some((Fault::NoUploads, now + 20_000));
                } else {
                    place.too_large.insert(hash(&scene.old).to_owned());
                }
                world.count("deletions");
                world.line(&format!("world: cache {cache} deletes {} and does not take it", scene.old));
                drop(world);
                if kind == Kind::RefusedBefore {
                    self.push_one(scene.uid, scene.old.clone());
                    return self.go_on_at(scene, now + 5 * slow + 100, 1_000);
                }
                let timeout = if kind == Kind::NoUploads { 2 * slow + 500 } else { 240_000 };
                self.end(scene.job, Vec::new(), true, timeout, false);
            }
            _ => self.end(scene.job, Vec::new(), true, 240_000, false),
        }
    }

    /// A user pushes one path and does not wait.
    pub(super) fn push_one(&mut self, uid: u32, base: String) {
        if self.life.is_none() {
            return;
        }
        let (paths, cache) = (vec![base], cache_of(uid));
        let full = self.name(&paths, cache);
        let request = Ask::Push { paths: full, cache: None, wait: false, timeout_ms: 5_000 };
        let deadline = Some(self.now() + 5_000);
        self.ask(uid, None, Asked::Push { cache, paths, wait: false }, request, deadline);
    }
}
