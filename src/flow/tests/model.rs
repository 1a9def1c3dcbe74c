//! Random operations, checked against a reference model.

use crate::types::{CacheId, Mono, PushId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::super::{Action, CacheLimits, Event, Failure, Flow, NewPush, Outcome, Purpose};
use super::recount;

const CACHES: u16 = 2;
const MOST: u32 = 3;

#[derive(Debug, Clone, Copy)]
enum Op {
    /// `references`: bits for the last sixteen pushes of the cache. `again`: admit a
    /// settled push instead of a new one.
    Admit {
        references: u16,
        sessions: u8,
        failed: bool,
        again: bool,
    },
    Answer {
        cache: u16,
        present: u16,
        failure: Option<Failure>,
        leave_out: bool,
    },
    Upload {
        which: usize,
        result: Result<bool, Failure>,
    },
    Collect {
        which: usize,
    },
    Probe {
        cache: u16,
        result: Result<(), Failure>,
    },
    Wait(u64),
    Deadline,
    ProbeNow(u16),
    Retry {
        which: usize,
        all: bool,
    },
    Want {
        session: SessionId,
        pushes: u16,
    },
    WantAll(SessionId),
    Flush(SessionId),
    Forget(SessionId),
    Limits {
        cache: u16,
        most: u32,
    },
    Stray {
        which: PushId,
        kind: u8,
    },
    Recheck {
        cache: u16,
        unreadable: u16,
    },
    Unconfirmed(SessionId),
    Stop,
}

/// The default of [`Flow`].
const RECHECK_AFTER: std::time::Duration = std::time::Duration::from_secs(600);

fn failure() -> impl Strategy<Value = Failure> {
    prop_oneof![
        2 => Just(Failure::Unreachable),
        4 => prop::option::of(0..900u64).prop_map(|s| Failure::Transient {
            retry_after: s.map(std::time::Duration::from_secs)
        }),
        1 => Just(Failure::Refused),
        1 => Just(Failure::NoSuchCache),
        2 => Just(Failure::NoVerdict),
        1 => Just(Failure::Mismatch),
        1 => Just(Failure::TooLarge),
        1 => Just(Failure::Rejected),
        2 => Just(Failure::Local),
        2 => Just(Failure::Store),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let result = prop_oneof![3 => any::<bool>().prop_map(Ok), 2 => failure().prop_map(Err)];
    prop_oneof![
        8 => (any::<u16>(), any::<u16>(), any::<u8>(), 0..12u8, any::<bool>()).prop_map(|(a, b, sessions, p, again)| {
            Op::Admit { references: a & b, sessions, failed: p == 0, again }
        }),
        6 => (0..CACHES, any::<u16>(), any::<u16>(), prop::option::weighted(0.3, failure()), 0..8u8).prop_map(
            |(cache, a, b, failure, l)| Op::Answer { cache, present: a & b, failure, leave_out: l == 0 }
        ),
        10 => (any::<usize>(), result).prop_map(|(which, result)| Op::Upload { which, result }),
        1 => any::<usize>().prop_map(|which| Op::Collect { which }),
        3 => (0..CACHES, prop_oneof![Just(Ok(())), failure().prop_map(Err)])
            .prop_map(|(cache, result)| Op::Probe { cache, result }),
        2 => prop_oneof![4 => 0..5_000u64, 1 => 0..700_000u64].prop_map(Op::Wait),
        3 => (0..CACHES, any::<u16>(), any::<u16>())
            .prop_map(|(cache, a, b)| Op::Recheck { cache, unreadable: a & b }),
        1 => (1..5i64).prop_map(Op::Unconfirmed),
        4 => Just(Op::Deadline),
        1 => (0..CACHES).prop_map(Op::ProbeNow),
        2 => (any::<usize>(), any::<bool>()).prop_map(|(which, all)| Op::Retry { which, all }),
        2 => (1..5i64, any::<u16>()).prop_map(|(session, pushes)| Op::Want { session, pushes }),
        1 => (1..5i64).prop_map(Op::WantAll),
        2 => (1..5i64).prop_map(Op::Flush),
        1 => (1..5i64).prop_map(Op::Forget),
        1 => (0..CACHES, 1..=MOST).prop_map(|(cache, most)| Op::Limits { cache, most }),
        1 => (1..60i64, any::<u8>()).prop_map(|(which, kind)| Op::Stray { which, kind }),
        1 => (0..20u8).prop_map(|n| if n == 0 { Op::Stop } else { Op::Deadline }),
    ]
}

/// A push in the model.
#[derive(Debug)]
struct Known {
    cache: u16,
    recheck: bool,
    waits: BTreeSet<PushId>,
    failed: bool,
    sessions: BTreeSet<SessionId>,
}

struct World {
    flow: Flow,
    now: Mono,
    next: PushId,
    known: BTreeMap<PushId, Known>,
    /// The cache of each push that was confirmed and not collected since, and when the
    /// question or upload began.
    confirmed: BTreeMap<PushId, (u16, Mono)>,
    /// What each push was ever said to refer to.
    references: BTreeMap<PushId, BTreeSet<PushId>>,
    asked_at: [Mono; CACHES as usize],
    trusted_since: [Mono; CACHES as usize],
    upload_at: BTreeMap<PushId, Mono>,
    rechecking: [Option<Vec<PushId>>; CACHES as usize],
    uploading: BTreeSet<PushId>,
    /// The push whose upload is being broken off, because its path has arrived.
    arrived: Option<PushId>,
    queries: [Option<Vec<PushId>>; CACHES as usize],
    probing: [bool; CACHES as usize],
    flushing: BTreeSet<SessionId>,
    /// Groups that want everything, also what is admitted before their flush.
    gathering: BTreeSet<SessionId>,
    /// How the pushes of each group settled since it wanted everything.
    counted: BTreeMap<SessionId, BTreeMap<PushId, Outcome>>,
    stopped: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        Self {
            flow: Flow::new(&[CacheLimits { least: 1, most: MOST }; CACHES as usize], seed),
            now: Mono(0),
            next: 1,
            known: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            references: BTreeMap::new(),
            asked_at: [Mono(0); 2],
            trusted_since: [Mono(0); 2],
            upload_at: BTreeMap::new(),
            rechecking: [None, None],
            uploading: BTreeSet::new(),
            arrived: None,
            queries: [None, None],
            probing: [false; 2],
            flushing: BTreeSet::new(),
            gathering: BTreeSet::new(),
            counted: BTreeMap::new(),
            stopped: false,
        }
    }

    fn unsettled(&self, session: SessionId) -> usize {
        self.known.values().filter(|k| !k.failed && k.sessions.contains(&session)).count()
    }

    /// Makes one step and checks its actions and the counts.
    fn step(&mut self, event: Event) {
        let flushed = if let Event::Flush(s) = event { Some(s) } else { None };
        let before: BTreeMap<_, _> = (1..5).map(|s| (s, self.unsettled(s))).collect();
        let was_stopped = self.stopped;
        let (mut quiet, mut wanted) = (Vec::new(), Vec::new());
        for action in self.flow.step(event, self.now) {
            match action {
                Action::Ask(c, ids) => {
                    assert!(!was_stopped && !ids.is_empty());
                    assert!(self.queries[usize::from(c.0)].is_none(), "two queries at a time");
                    assert!(ids.iter().all(|id| self.known[id].cache == c.0 && !self.known[id].failed));
                    self.queries[usize::from(c.0)] = Some(ids);
                    self.asked_at[usize::from(c.0)] = self.now;
                }
                Action::Upload(c, id, attempt) => {
                    assert!(!was_stopped && attempt > 0);
                    assert!(self.uploading.insert(id), "{id} is uploaded twice at a time");
                    let known = &self.known[&id];
                    assert!(!known.failed && known.cache == c.0);
                    assert_eq!(known.waits, BTreeSet::new(), "{id} before its references");
                    for reference in self.closure(id) {
                        // One that is asked about again counts as confirmed until the answer.
                        let confirmed = self.confirmed.get(&reference);
                        let (_, at) =
                            confirmed.unwrap_or_else(|| panic!("{id} before {reference} in its closure"));
                        let age = self.now.since(*at);
                        assert!(age <= RECHECK_AFTER, "{id}: {reference} was confirmed {age:?} ago");
                    }
                    self.upload_at.insert(id, self.now);
                    let view = self.flow.view(c).unwrap();
                    assert!(view.uploading <= MOST && view.limit <= MOST, "{view:?}");
                }
                Action::Probe(c) => {
                    assert!(!was_stopped);
                    assert!(!std::mem::replace(&mut self.probing[usize::from(c.0)], true), "two probes");
                }
                Action::Settled(id, outcome) => {
                    let known = self.known.remove(&id).expect("settled twice");
                    assert!(!self.uploading.contains(&id), "{id} is still being uploaded");
                    for (_, counted) in self.counted.iter_mut().filter(|(s, _)| known.sessions.contains(s)) {
                        if counted.get(&id) != Some(&Outcome::Pushed) {
                            counted.insert(id, outcome);
                        }
                    }
                    if outcome == Outcome::Collected {
                        self.confirmed.remove(&id);
                    } else {
                        let uploaded = matches!(outcome, Outcome::Pushed | Outcome::Upstream)
                            || self.arrived == Some(id);
                        let begun = if uploaded {
                            self.upload_at[&id]
                        } else {
                            self.asked_at[usize::from(known.cache)]
                        };
                        self.confirmed.insert(id, (known.cache, begun));
                        // The cache has it and not its whole closure: who refers to it waits on.
                        for referrer in self.known.values_mut() {
                            if referrer.waits.remove(&id) {
                                referrer.waits.extend(&known.waits);
                            }
                        }
                    }
                }
                Action::Confirmed(id, at) => {
                    assert!(self.known[&id].waits.is_empty(), "{id} is not whole");
                    let trusted_since = self.trusted_since[usize::from(self.known[&id].cache)];
                    assert!(at >= trusted_since, "{id}: {at:?} is before the cache was seen to delete paths");
                    for reference in self.closure(id) {
                        assert!(self.confirmed[&reference].1 >= at, "{id}: {reference} is older than {at:?}");
                    }
                }
                Action::Wanted(ids) => {
                    for id in &ids {
                        let known = self.known.get_mut(id).unwrap();
                        assert!(std::mem::replace(&mut known.recheck, false), "{id} was wanted already");
                    }
                    wanted = ids;
                }
                Action::Distrust(c, _) => {
                    let asked_at = self.asked_at[usize::from(c.0)];
                    self.trusted_since[usize::from(c.0)] = asked_at;
                    for id in std::mem::take(&mut wanted) {
                        if self.confirmed.get(&id).is_some_and(|(_, at)| *at < asked_at) {
                            self.confirmed.remove(&id);
                        }
                    }
                }
                Action::Recheck(c, ids) => {
                    assert!(!was_stopped && !ids.is_empty());
                    assert!(self.rechecking[usize::from(c.0)].replace(ids).is_none(), "two rechecks");
                }
                Action::Failed(id, _) => {
                    let known = self.known.get_mut(&id).unwrap();
                    assert!(!std::mem::replace(&mut known.failed, true), "failed twice");
                    assert!(!known.recheck, "a push is not failed and confirmed");
                    assert!(!self.uploading.contains(&id));
                }
                Action::Reopened(id) => {
                    let known = self.known.get_mut(&id).unwrap();
                    assert!(std::mem::replace(&mut known.failed, false), "{id} was not failed");
                }
                Action::Quiet(s) => quiet.push(s),
                Action::Forgotten(id) => panic!("{id} is forgotten, and few are known"),
                Action::Breaker(..) => {}
            }
        }
        let due: Vec<_> = (1..5)
            .filter(|s| self.flushing.contains(s) && self.unsettled(*s) == 0)
            .filter(|s| before[s] > 0 || flushed == Some(*s))
            .collect();
        quiet.sort_unstable();
        assert_eq!(quiet, due, "quiet");
        self.check();
    }

    fn check(&self) {
        recount(&self.flow);
        for c in 0..CACHES {
            let view = self.flow.view(CacheId(c)).unwrap();
            let here = || self.known.iter().filter(|(_, k)| k.cache == c);
            assert_eq!(view.failed, here().filter(|(_, k)| k.failed).count());
            assert_eq!(view.pending, here().filter(|(_, k)| !k.failed).count());
            assert_eq!(view.uploading as usize, here().filter(|(id, _)| self.uploading.contains(id)).count());
        }
        (1..5).for_each(|s| assert_eq!(self.flow.unsettled(s) as usize, self.unsettled(s)));
        for s in 1..5 {
            let of = |outcome| {
                self.counted.get(&s).map_or(0, |all| all.values().filter(|o| **o == outcome).count() as u64)
            };
            let counts = self.flow.counts(s);
            assert_eq!(
                [counts.pushed, counts.cached, counts.upstream, counts.collected],
                [Outcome::Pushed, Outcome::Cached, Outcome::Upstream, Outcome::Collected].map(of),
                "group {s}"
            );
        }
        let due = self.flow.next_deadline();
        assert!(due.is_none_or(|due| due > self.now), "{due:?} is past at {:?}", self.now);
    }

    fn admit(&mut self, cache: u16, references: u16, sessions: u8, failed: bool, again: bool) {
        let old = self.confirmed.iter().find(|(id, (c, _))| *c == cache && !self.known.contains_key(id));
        let is_old = again && old.is_some();
        let id = match old {
            Some((&id, _)) if again => id,
            _ => {
                self.next += 1;
                self.next
            }
        };
        // References have smaller numbers, so that there is no cycle.
        let there = |r: &PushId| {
            self.known.get(r).is_some_and(|k| k.cache == cache)
                || self.confirmed.get(r).is_some_and(|(c, _)| *c == cache)
        };
        let references: Vec<_> =
            (0..16).filter(|n| references & (1 << n) != 0).map(|n| id - 1 - n).filter(there).collect();
        let sessions: Vec<SessionId> = (1..5).filter(|s| sessions & (1 << s) != 0).collect();
        let purpose = match (failed, is_old) {
            (true, _) => Purpose::Failed,
            (false, true) if id % 2 == 1 => Purpose::Upstream,
            (false, true) => Purpose::Recheck,
            (false, false) => Purpose::Wanted,
        };
        // The references of a path never change.
        if !is_old {
            self.references.insert(id, references.into_iter().collect());
        }
        let new = self.new_push(id, purpose, sessions);
        self.insert(cache, &new);
        self.step(Event::Admit { cache: CacheId(cache), pushes: vec![new] });
    }

    fn insert(&mut self, cache: u16, new: &NewPush) {
        let waits = new.references.iter().copied().filter(|r| self.known.contains_key(r)).collect();
        let failed = new.purpose == Purpose::Failed;
        let recheck = matches!(new.purpose, Purpose::Recheck | Purpose::Upstream);
        let mut sessions: BTreeSet<SessionId> = new.sessions.iter().copied().collect();
        if !failed {
            sessions.extend(&self.gathering);
        }
        self.known.insert(new.id, Known { cache, recheck, waits, failed, sessions });
    }

    /// A push as the intake would admit it.
    fn new_push(&self, id: PushId, purpose: Purpose, sessions: Vec<SessionId>) -> NewPush {
        let settled = self.closure(id).into_iter().filter(|r| !self.known.contains_key(r));
        let settled: Vec<_> = settled.map(|r| self.confirmed[&r]).collect();
        let closure_at = settled.iter().map(|(_, at)| *at).min().unwrap_or(Mono::MAX);
        // Also those that only a confirmed reference waits for.
        let references = self.closure(id).into_iter().filter(|r| self.known.contains_key(r));
        NewPush {
            id,
            references: references.collect(),
            sessions,
            purpose,
            // The intake may not have learned yet that the cache was seen to delete paths.
            closure_at: Some(closure_at),
            ask_after: Mono(0),
            built: id % 2 == 0,
            nar_size: if id % 3 == 0 { 2 << 20 } else { 0 },
        }
    }

    /// Everything that a push needs, in order, without what was collected.
    fn closure(&self, id: PushId) -> BTreeSet<PushId> {
        let (mut found, mut stack) = (BTreeSet::new(), vec![id]);
        while let Some(id) = stack.pop() {
            for &reference in self.references.get(&id).into_iter().flatten() {
                let there = self.known.contains_key(&reference) || self.confirmed.contains_key(&reference);
                if there && found.insert(reference) {
                    stack.push(reference);
                }
            }
        }
        found
    }

    /// Does what the intake does for [`Action::Recheck`]; some pushes it cannot read.
    fn recheck(&mut self, cache: u16, unreadable: u16) {
        let Some(ids) = self.rechecking[usize::from(cache)].take() else { return };
        for id in ids.into_iter().filter(|id| unreadable & (1 << (id % 16)) == 0) {
            if !self.known.contains_key(&id) {
                continue;
            }
            for reference in self.closure(id) {
                let old = |w: &Self, r| {
                    let at = w.confirmed[&r].1;
                    w.now.since(at) > RECHECK_AFTER / 2 || at < w.trusted_since[usize::from(cache)]
                };
                let outdated = !self.known.contains_key(&reference) && old(self, reference);
                if outdated {
                    let new = self.new_push(reference, Purpose::Recheck, Vec::new());
                    self.insert(cache, &new);
                    self.step(Event::Admit { cache: CacheId(cache), pushes: vec![new] });
                }
            }
            let Some(known) = self.known.get(&id) else { continue };
            let stale = super::phase(&self.flow, id) == Some(super::Phase::Stale);
            let new = self.new_push(id, Purpose::Wanted, known.sessions.iter().copied().collect());
            if stale {
                let waits = new.references.iter().copied().collect();
                self.known.get_mut(&id).unwrap().waits = waits;
            }
            self.step(Event::Admit { cache: CacheId(cache), pushes: vec![new] });
        }
        self.step(Event::Rechecked(CacheId(cache)));
    }

    fn answer(&mut self, cache: u16, present: u16, failure: Option<Failure>, leave_out: bool) {
        let Some(mut ids) = self.queries[usize::from(cache)].take() else { return };
        let c = CacheId(cache);
        if let Some(failure) = failure {
            return self.step(Event::AskFailed { cache: c, failure });
        }
        if leave_out {
            ids.pop();
        }
        let (present, missing) = ids.into_iter().partition(|id| present & (1 << (id % 16)) != 0);
        self.step(Event::Asked { cache: c, present, missing });
    }

    fn upload(&mut self, which: usize, result: Result<bool, Failure>) {
        let Some(&id) = self.uploading.iter().nth(which % self.uploading.len().max(1)) else { return };
        self.uploading.remove(&id);
        let event = match result {
            Ok(true) => Event::Uploaded(id, super::TOOK),
            Ok(false) if id % 2 == 0 => {
                self.arrived = Some(id);
                Event::Arrived(id)
            }
            Ok(false) => Event::InUpstream(id, self.upload_at[&id]),
            Err(failure) => Event::UploadFailed(id, failure),
        };
        self.step(event);
        self.arrived = None;
    }

    fn probe(&mut self, cache: u16, result: Result<(), Failure>) {
        if std::mem::take(&mut self.probing[usize::from(cache)]) {
            self.step(Event::Probed(CacheId(cache), result));
        }
    }

    fn want(&mut self, session: SessionId, which: impl Fn(PushId, &Known) -> bool) -> Vec<PushId> {
        let chosen = self.known.iter_mut().filter(|(id, k)| which(**id, k));
        chosen.map(|(id, k)| (*id, k.sessions.insert(session)).0).collect()
    }

    fn apply(&mut self, op: Op) {
        match op {
            Op::Admit { references, sessions, failed, again } => {
                self.admit(u16::from(sessions & 1), references, sessions, failed, again);
            }
            Op::Answer { cache, present, failure, leave_out } => {
                self.answer(cache, present, failure, leave_out);
            }
            Op::Upload { which, result } => self.upload(which, result),
            Op::Collect { which } => {
                let Some(&id) = self.known.keys().nth(which % self.known.len().max(1)) else { return };
                // An upload that is under way ends with its path.
                self.uploading.remove(&id);
                self.step(Event::Collected(id));
            }
            Op::Probe { cache, result } => self.probe(cache, result),
            Op::Wait(ms) => {
                self.now.0 += ms;
                self.step(Event::Tick);
            }
            Op::Deadline => {
                if let Some(due) = self.flow.next_deadline() {
                    self.now = due;
                    self.step(Event::Tick);
                }
            }
            Op::ProbeNow(cache) => self.step(Event::ProbeNow(CacheId(cache))),
            Op::Retry { which, all } => {
                let one = self.known.keys().nth(which % self.known.len().max(1)).copied();
                self.step(Event::Retry(if all { None } else { Some(one.into_iter().collect()) }));
            }
            Op::Want { session, pushes } => {
                let pushes = self.want(session, |id, _| pushes & (1 << (id % 16)) != 0);
                self.step(Event::Want(session, pushes));
            }
            Op::WantAll(session) => {
                self.want(session, |_, k| !k.failed);
                self.counted.entry(session).or_default();
                if !self.flushing.contains(&session) {
                    self.gathering.insert(session);
                }
                self.step(Event::WantAll(session));
            }
            Op::Flush(session) => {
                self.flushing.insert(session);
                self.gathering.remove(&session);
                self.step(Event::Flush(session));
            }
            Op::Forget(session) => {
                self.flushing.remove(&session);
                self.gathering.remove(&session);
                self.counted.remove(&session);
                self.known.values_mut().for_each(|k| k.sessions.retain(|s| *s != session));
                self.step(Event::Forget(session));
            }
            Op::Limits { cache, most } => {
                self.step(Event::Limits(CacheId(cache), CacheLimits { least: 1, most }));
            }
            Op::Recheck { cache, unreadable } => self.recheck(cache, unreadable),
            Op::Unconfirmed(session) => self.step(Event::Unconfirmed(session)),
            Op::Stray { which, kind } => self.stray(which, kind),
            Op::Stop => {
                self.stopped = true;
                self.step(Event::Stop);
            }
        }
    }

    /// Sends events about requests that are not under way. They change nothing.
    fn stray(&mut self, id: PushId, kind: u8) {
        let c = CacheId(u16::from(kind) % CACHES);
        let asking = self.queries[usize::from(c.0)].is_some();
        match kind % 5 {
            0 if !self.uploading.contains(&id) => self.step(Event::Uploaded(id, super::TOOK)),
            1 if !self.uploading.contains(&id) => self.step(Event::UploadFailed(id, Failure::Refused)),
            2 if !asking => self.step(Event::Asked { cache: c, present: vec![id], missing: vec![id] }),
            3 if !asking => {
                self.step(Event::AskFailed { cache: c, failure: Failure::Rejected });
            }
            4 if !self.probing[usize::from(c.0)] => self.step(Event::Probed(c, Ok(()))),
            _ => {}
        }
    }

    /// From now on nothing fails: all pushes must settle, and time must pass between
    /// attempts.
    fn settle(&mut self) {
        for _ in 0..20_000 {
            if let Some(c) = (0..CACHES).find(|c| self.queries[usize::from(*c)].is_some()) {
                self.answer(c, 0, None, false);
            } else if !self.uploading.is_empty() {
                self.upload(0, Ok(true));
            } else if let Some(c) = (0..CACHES).find(|c| self.probing[usize::from(*c)]) {
                self.probe(c, Ok(()));
            } else if let Some(c) = (0..CACHES).find(|c| self.rechecking[usize::from(*c)].is_some()) {
                self.recheck(c, 0);
            } else if let Some(due) = self.flow.next_deadline() {
                self.now = due;
                self.step(Event::Tick);
            } else {
                let open: Vec<_> = self.known.iter().filter(|(_, k)| !k.failed).collect();
                assert!(open.is_empty() || self.stopped, "unsettled and nothing due: {open:?}");
                return;
            }
        }
        panic!("does not come to an end: {:?}", self.flow);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_operations_agree_with_the_model_and_settle(seed in any::<u64>(), ops in prop::collection::vec(op(), 1..150)) {
        let mut world = World::new(seed);
        for op in ops {
            world.apply(op);
        }
        world.settle();
        if !world.stopped {
            world.step(Event::Retry(None));
            world.settle();
            prop_assert!(world.known.is_empty(), "unsettled after a retry: {:?}", world.known);
        }
    }
}
