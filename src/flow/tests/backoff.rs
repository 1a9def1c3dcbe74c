//! Waits after errors, and the cost of one push's errors to others.

use crate::types::{CacheId, Mono, PushId};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::super::push::Phase;
use super::super::retry::Rng;
use super::super::{Action, Backoff, BreakerState, CacheLimits, Event, Failure, Flow};
use super::sim::{Server, Sim};
use super::{MAIN, admit, flow, missing, phase, push};

const KINDS: [Backoff; 4] = [Backoff::UPLOAD, Backoff::PROBE, Backoff::OVERLOAD, Backoff::REFUSED];

#[test]
fn waits_grow_to_the_cap_and_are_spread() {
    let mut rng = Rng::new(1);
    for kind in KINDS {
        for attempt in [1, 2, 3, 5, 10, 21, 64, 1_000, u32::MAX] {
            let bound = kind.base.saturating_mul(1 << (attempt - 1).min(20)).min(kind.cap);
            let waits: Vec<_> = (0..2_000).map(|_| kind.wait(attempt, &mut rng)).collect();
            assert!(waits.iter().all(|w| *w <= bound && *w >= bound / 11), "{kind:?} {attempt}");
            // Uniform: each fifth of the range has about a fifth of the waits.
            for fifth in 0..5 {
                let from = bound / 10 + (bound - bound / 10) / 5 * fifth;
                let to = from + (bound - bound / 10) / 5;
                let here = waits.iter().filter(|w| **w >= from && **w < to).count();
                assert!((300..=500).contains(&here), "{kind:?} {attempt}: {here} of 2000 in fifth {fifth}");
            }
        }
    }
}

#[test]
fn a_seed_decides_every_wait() {
    let waits = |seed| {
        let mut rng = Rng::new(seed);
        (1..50).map(|attempt| Backoff::UPLOAD.wait(attempt, &mut rng)).collect::<Vec<_>>()
    };
    assert_eq!(waits(5), waits(5));
    assert_ne!(waits(5), waits(6));
}

/// Returns how long push 1 waits after `failure`.
fn rest(failure: Failure) -> u64 {
    let mut flow = flow(1);
    flow.step(admit(vec![push(1, &[], &[])]), Mono(0));
    flow.step(missing([1]), Mono(0));
    flow.step(Event::UploadFailed(1, failure), Mono(0));
    match phase(&flow, 1) {
        Some(Phase::Resting(Mono(until))) => until,
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_the_server_asks_for_is_honoured_within_bounds() {
    let seconds = |s| rest(Failure::Transient { retry_after: Some(Duration::from_secs(s)) });
    assert_eq!(seconds(30), 30_000);
    assert_eq!(seconds(600), 600_000);
    assert_eq!(seconds(1_000_000), 600_000);
    assert!((50..=500).contains(&seconds(0)), "asking for no wait does not make it spin");
    // Queries are handled the same way.
    let mut flow = flow(1);
    flow.step(admit(vec![push(1, &[], &[])]), Mono(0));
    let failure = Failure::Transient { retry_after: Some(Duration::from_secs(30)) };
    flow.step(Event::AskFailed { cache: MAIN, failure }, Mono(0));
    assert_eq!(flow.next_deadline(), Some(Mono(30_000)));
    assert_eq!(flow.step(Event::Tick, Mono(29_999)), []);
    assert_eq!(flow.step(Event::Tick, Mono(30_000)), [Action::Ask(MAIN, vec![1])]);
}

#[test]
fn three_transient_errors_in_a_row_close_the_breaker_for_all_pushes() {
    let mut flow = Flow::new(&[CacheLimits { least: 4, most: 4 }], 1);
    flow.step(admit((1..=10).map(|id| push(id, &[], &[])).collect()), Mono(0));
    flow.step(missing(1..=10), Mono(0));
    let fail = |id| Event::UploadFailed(id, Failure::Transient { retry_after: None });
    flow.step(fail(1), Mono(0));
    flow.step(fail(2), Mono(0));
    flow.step(Event::Uploaded(3, super::TOOK), Mono(0));
    flow.step(fail(4), Mono(0));
    flow.step(fail(5), Mono(0));
    assert_eq!(flow.view(MAIN).unwrap().state, BreakerState::Online, "one success resets the count");
    let actions = flow.step(fail(6), Mono(0));
    assert_eq!(actions, [Action::Breaker(MAIN, BreakerState::Offline)], "and no upload begins");
}

/// Each cache has its own breaker, whether queries or uploads fail.
#[test]
fn errors_of_one_cache_do_not_affect_another() {
    let limits = CacheLimits { least: 4, most: 4 };
    let other = CacheId(1);
    for failure in [Failure::Unreachable, Failure::Refused, Failure::Transient { retry_after: None }] {
        for in_question in [false, true] {
            let mut flow = Flow::new(&[limits, limits], 1);
            flow.step(admit((1..=4).map(|id| push(id, &[], &[])).collect()), Mono(0));
            if !in_question {
                flow.step(missing(1..=4), Mono(0));
            }
            flow.step(Event::Admit { cache: other, pushes: vec![push(10, &[], &[])] }, Mono(0));
            for id in 1..=4 {
                let asked = Event::AskFailed { cache: MAIN, failure };
                flow.step(if in_question { asked } else { Event::UploadFailed(id, failure) }, Mono(0));
            }
            let said = format!("{failure:?} {in_question}");
            assert!(in_question || flow.view(MAIN).unwrap().state != BreakerState::Online, "{said}");
            assert_eq!(flow.view(other).unwrap().state, BreakerState::Online, "{said}");
            let asked = Event::Asked { cache: other, present: Vec::new(), missing: vec![10] };
            assert_eq!(flow.step(asked, Mono(0)), [Action::Upload(other, 10, 1)], "{said}");
        }
    }
}

/// Each upload takes 20 ms. Uploads of pushes in `poison` always fail.
struct Poisoned {
    poison: BTreeMap<PushId, Failure>,
    begun: BTreeMap<PushId, Mono>,
    done: BTreeSet<PushId>,
    tries: u32,
    finished: Mono,
}

impl Server for Poisoned {
    fn request(&mut self, _: usize, action: &Action, now: Mono) -> Option<(Mono, Event)> {
        let event = match action {
            Action::Ask(_, ids) => missing(ids.clone()),
            Action::Probe(cache) => Event::Probed(*cache, Ok(())),
            Action::Upload(_, id, _) => {
                self.begun.entry(*id).or_insert(now);
                match self.poison.get(id) {
                    Some(failure) => {
                        self.tries += 1;
                        Event::UploadFailed(*id, *failure)
                    }
                    None => Event::Uploaded(*id, super::TOOK),
                }
            }
            _ => return None,
        };
        Some((now.after(Duration::from_millis(20)), event))
    }

    fn ended(&mut self, _: usize, event: &Event, now: Mono) {
        if let Event::Uploaded(id, _) = event {
            self.done.insert(*id);
            self.finished = now;
        }
    }
}

fn poisoned(poison: &[(PushId, Failure)]) -> Sim<Poisoned> {
    let server = Poisoned {
        poison: poison.iter().copied().collect(),
        begun: BTreeMap::new(),
        done: BTreeSet::new(),
        tries: 0,
        finished: Mono(0),
    };
    Sim::new(vec![Flow::new(&[CacheLimits { least: 2, most: 8 }], 3)], server)
}

const ALWAYS: [Failure; 4] =
    [Failure::Unreachable, Failure::Transient { retry_after: None }, Failure::Local, Failure::Store];

#[test]
fn an_unreadable_nix_database_fails_no_push_and_closes_no_breaker() {
    let mut flow = flow(1);
    flow.step(admit(vec![push(1, &[], &[])]), Mono(0));
    flow.step(missing([1]), Mono(0));
    let mut now = Mono(0);
    for attempt in 1..1_000 {
        let actions = flow.step(Event::UploadFailed(1, Failure::Store), now);
        assert!(actions.is_empty(), "{attempt}: {actions:?}");
        let Some(Phase::Resting(until)) = phase(&flow, 1) else { panic!("{attempt}: it does not rest") };
        assert!(until > now && until <= now.after(Backoff::UPLOAD.cap));
        now = until;
        assert_eq!(flow.step(Event::Tick, now), [Action::Upload(MAIN, 1, attempt + 1)]);
    }
    assert_eq!(flow.view(MAIN).unwrap().state, BreakerState::Online);
}

#[test]
fn one_poisonous_path_does_not_hold_up_a_thousand() {
    let run = |poison: &[(PushId, Failure)]| {
        let mut sim = poisoned(poison);
        sim.at(Mono(0), 0, admit((1..=3_000).map(|id| push(id, &[], &[])).collect()));
        sim.run(Mono(60_000));
        assert_eq!(sim.server.done.len(), 3_000 - poison.len());
        sim.server.finished.0
    };
    let without = run(&[]);
    for failure in ALWAYS {
        let with = run(&[(1, failure)]);
        assert!(with <= without + without / 4, "{failure:?}: {with} ms instead of {without} ms");
    }
}

#[test]
fn beside_a_poisonous_path_a_new_one_waits_less_than_a_second() {
    for failure in ALWAYS {
        let mut sim = poisoned(&[(1, failure)]);
        sim.at(Mono(0), 0, admit(vec![push(1, &[], &[])]));
        // Rare enough that the failing push is alone most of the time.
        for n in 0..200 {
            sim.at(Mono(7_300 * (n + 1)), 0, admit(vec![push(100 + n as i64, &[], &[])]));
        }
        sim.run(Mono(7_300 * 202));
        let wait = |n: u64| sim.server.begun[&(100 + n as i64)].0 - 7_300 * (n + 1);
        let worst = (0..200).map(wait).max().unwrap();
        assert!(worst < 1_000, "{failure:?}: {worst} ms");
        assert!(sim.server.tries <= 120, "{failure:?}: {} tries", sim.server.tries);
    }
}
