//! Tests of sessions that are being opened: the whole table, and random requests against a
//! model.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::opening::{Event, Stage, Step, step};
use super::*;

/// Rows of `what for | stage | event | next stage | step`. A row without a row changes
/// nothing.
const TABLE: &str = "
job  | recording | recorded            | answering | Answer
job  | recording | recorded, left      | over      | Abandon
job  | recording | recorded, stopping  | over      | Stop
job  | recording | failed              | over      | Refuse
job  | recording | failed, stopping    | over      | Refuse
job  | recording | stop                | recording | Stop
job  | answering | heard               | over      | Wait
job  | answering | not heard           | over      | Abandon
push | recording | recorded            | over      | Take
push | recording | recorded, left      | over      | Take
push | recording | recorded, stopping  | over      | Stop
push | recording | failed              | over      | Refuse
push | recording | failed, stopping    | over      | Refuse
push | recording | stop                | recording | Stop
push | answering | heard               | over      | Wait
push | answering | not heard           | over      | Abandon
";

#[test]
fn the_whole_table() {
    let events = [
        ("recorded", Event::Recorded { awaited: true }, false),
        ("recorded, left", Event::Recorded { awaited: false }, false),
        ("recorded, stopping", Event::Recorded { awaited: true }, true),
        ("failed", Event::Failed, false),
        ("failed, stopping", Event::Failed, true),
        ("heard", Event::Answered { heard: true }, false),
        ("not heard", Event::Answered { heard: false }, false),
        ("stop", Event::Stop, true),
    ];
    let mut rows: Vec<Vec<&str>> =
        TABLE.trim().lines().map(|line| line.split('|').map(str::trim).collect()).collect();
    for (what, is_job) in [("job", true), ("push", false)] {
        for (from, stage) in [("recording", Stage::Recording), ("answering", Stage::Answering)] {
            for (name, event, stopping) in events {
                let is_row = |row: &Vec<&str>| row[..3] == [what, from, name];
                let row = rows.iter().position(is_row).map(|at| rows.remove(at));
                let (next, step) = step(is_job, stage, event, stopping);
                let next = match next {
                    Some(Stage::Recording) => "recording",
                    Some(Stage::Answering) => "answering",
                    None => "over",
                };
                let expected = row.map_or((from, "Wait"), |row| (row[3], row[4]));
                assert_eq!((next, &*format!("{step:?}")), expected, "{what}, {from}, {name}");
            }
        }
    }
    assert_eq!(rows, Vec::<Vec<&str>>::new(), "rows that nothing tested");
}

const ANYBODY: fn(&u32) -> bool = |_| false;

fn push(paths: &'static str) -> OpenFor<&'static str> {
    OpenFor::Push(PushSubject { rules: 0, gid: 1, cache: None, paths })
}

fn ticket<C>(begun: &Begun<C>) -> u64 {
    match begun {
        Begun::Record(ticket) => *ticket,
        Begun::Joined | Begun::Refused(..) | Begun::Stopping(_) => panic!("it does not begin"),
    }
}

#[test]
fn starts_that_are_under_way_count_and_one_that_fails_gives_its_place_back() {
    let (mut openings, mut limits) = (Openings::<&str, u32>::new(&TUNING), SessionLimits::new(TUNING));
    let mut begin = |openings: &mut Openings<_, _>, caller| {
        openings.begin(&mut limits, (1, 0), OpenFor::Job, caller, ANYBODY)
    };
    let tickets: Vec<u64> = (0..3).map(|caller| ticket(&begin(&mut openings, caller))).collect();
    assert!(matches!(begin(&mut openings, 3), Begun::Refused(LimitReached::Open { open: 3, .. }, 3)));
    assert_eq!(openings.failed(&mut limits, tickets[1]), [1]);
    assert_eq!(openings.failed(&mut limits, tickets[1]), [0; 0], "once only");
    ticket(&openings.begin(&mut limits, (1, 0), OpenFor::Job, 4, ANYBODY));
}

#[test]
fn equal_pushes_are_opened_once_and_take_one_place() {
    let (mut openings, mut limits) = (Openings::new(&TUNING), SessionLimits::new(TUNING));
    let first = ticket(&openings.begin(&mut limits, (1, 0), push("a"), 0, ANYBODY));
    for caller in 1..40 {
        assert_eq!(openings.begin(&mut limits, (1, 0), push("a"), caller, ANYBODY), Begun::Joined);
    }
    let others = [push("b"), OpenFor::Job];
    for purpose in others {
        ticket(&openings.begin(&mut limits, (1, 0), purpose, 40, ANYBODY));
    }
    ticket(&openings.begin(&mut limits, (2, 0), push("a"), 41, ANYBODY));
    let opened = openings.recorded(&mut limits, (first, 0), ANYBODY).unwrap();
    assert_eq!((opened.step, opened.callers.len(), opened.outdated), (Step::Take, 40, false));
    assert!(matches!(opened.purpose, Some(OpenFor::Push(PushSubject { paths: "a", .. }))));
    // Its naming may have begun.
    ticket(&openings.begin(&mut limits, (1, 0), push("a"), 42, ANYBODY));
}

#[test]
fn callers_of_one_opening_that_have_left_are_forgotten() {
    let (mut openings, mut limits) = (Openings::new(&TUNING), SessionLimits::new(TUNING));
    let first = ticket(&openings.begin(&mut limits, (1, 0), push("a"), 0, ANYBODY));
    for caller in 1..1_000 {
        let has_left = move |other: &u32| *other + 1 < caller;
        assert_eq!(openings.begin(&mut limits, (1, 0), push("a"), caller, has_left), Begun::Joined);
    }
    let callers = openings.recorded(&mut limits, (first, 0), ANYBODY).unwrap().callers;
    assert!(callers.len() <= TUNING.callers + 1, "{}", callers.len());
    assert!(callers.contains(&998) && callers.contains(&999), "those that wait are kept");
}

#[test]
fn the_routes_are_examined_again_when_they_changed_while_a_session_was_opened() {
    let (mut openings, mut limits) = (Openings::<&str, _>::new(&TUNING), SessionLimits::new(TUNING));
    let before = ticket(&openings.begin(&mut limits, (1, 0), OpenFor::Job, 0, ANYBODY));
    let after = ticket(&openings.begin(&mut limits, (1, 1), OpenFor::Job, 1, ANYBODY));
    assert!(openings.recorded(&mut limits, (before, 1), ANYBODY).unwrap().outdated);
    assert!(!openings.recorded(&mut limits, (after, 1), ANYBODY).unwrap().outdated);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, failure_persistence: None, ..ProptestConfig::default() })]

    /// Random requests, ends and a stop: each caller leaves once, with those of equal pushes and
    /// nobody else, and the places taken are those of what is being opened and of what is open.
    #[test]
    fn every_caller_of_an_opening_is_accounted_for(ops in prop::collection::vec((0..12_u8, 0..3_usize, any::<bool>()), 0..80)) {
        let (mut openings, mut limits) = (Openings::new(&TUNING), SessionLimits::new(TUNING));
        // Each opening: its user, push or job, and its callers.
        let mut model: BTreeMap<u64, (u32, Option<&str>, Vec<u32>)> = BTreeMap::new();
        let (mut live, mut stopping) = (0_usize, false);
        for (n, (op, which, left)) in (0_u32..).zip(ops) {
            let uid = u32::try_from(which).unwrap();
            let paths = ["a", "b"][which % 2];
            let one = model.keys().nth(which).copied();
            match op {
                0..=5 => {
                    let purpose = if op < 2 { OpenFor::Job } else { push(paths) };
                    let kind = (op >= 2).then_some(paths);
                    let equal = kind.and_then(|_| model.iter().find(|(_, of)| of.0 == uid && of.1 == kind)).map(|of| *of.0);
                    match openings.begin(&mut limits, (uid, 0), purpose, n, ANYBODY) {
                        Begun::Record(ticket) => {
                            prop_assert!(equal.is_none() && !stopping);
                            model.insert(ticket, (uid, kind, vec![n]));
                        }
                        Begun::Joined => model.get_mut(&equal.unwrap()).unwrap().2.push(n),
                        Begun::Refused(_, caller) => {
                            prop_assert!(equal.is_none() && caller == n);
                            prop_assert!(model.len() + live >= TUNING.open_of_user);
                        }
                        Begun::Stopping(caller) => prop_assert!(stopping && caller == n),
                    }
                }
                6..=8 => if let Some(ticket) = one {
                    let opened = openings.recorded(&mut limits, (ticket, 0), |_| left).unwrap();
                    let (_, kind, callers) = model.remove(&ticket).unwrap();
                    prop_assert_eq!(opened.callers, callers);
                    let expected = match (stopping, kind, left) {
                        (true, ..) => Step::Stop,
                        (false, Some(_), _) => Step::Take,
                        (false, None, true) => Step::Abandon,
                        (false, None, false) => Step::Answer,
                    };
                    // The callers of an opening that has none any more were refused before.
                    prop_assert!(opened.step == expected);
                    live += usize::from(!stopping);
                    if opened.step == Step::Answer {
                        prop_assert_eq!(openings.answered(ticket, left), if left { Step::Wait } else { Step::Abandon });
                    }
                }
                9 | 10 => if let Some(ticket) = one {
                    prop_assert_eq!(openings.failed(&mut limits, ticket), model.remove(&ticket).unwrap().2);
                },
                _ => if n % 4 == 0 {
                    stopping = true;
                    let callers: Vec<u32> = model.values_mut().flat_map(|of| std::mem::take(&mut of.2)).collect();
                    prop_assert_eq!(openings.stop(), callers);
                },
            }
        }
        // Everything gives its place back but the sessions that are live.
        for ticket in model.keys() {
            openings.failed(&mut limits, *ticket);
        }
        let mut fits = 0;
        while limits.begin(99 + fits, false).is_ok() {
            fits += 1;
        }
        prop_assert_eq!(usize::try_from(fits).unwrap(), TUNING.live - live);
    }
}
