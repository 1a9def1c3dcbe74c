//! Uploads that end without a verdict: how long a path is tried, and what ends its waits.

use std::time::Duration;

use super::super::push::Phase;
use super::super::{Action, CacheLimits, Cause, Event, Failure, Flow};
use super::{MAIN, admit, missing, phase, push};
use crate::types::{Mono, PushId};

/// What came of one path.
#[derive(Debug, PartialEq, Eq)]
struct Course {
    /// When its uploads began.
    uploads: Vec<Mono>,
    /// When it was confirmed; `None`: it failed.
    confirmed: Option<Mono>,
    end: Mono,
}

/// Pushes one path through a proxy whose uploads, each a second long, have no verdict until
/// `fault` is over, and that loses what it takes meanwhile. `asks`: whether somebody asks
/// for the path again at the beginning of each wait.
fn course(seed: u64, fault: Duration, asks: bool) -> Course {
    const ID: PushId = 1;
    let mut flow = Flow::new(&[CacheLimits { least: 1, most: 1 }], seed);
    let mut course = Course { uploads: Vec::new(), confirmed: None, end: Mono(0) };
    let mut now = Mono(0);
    let mut asked = false;
    let mut actions = flow.step(admit(vec![push(ID, &[], &[])]), now);
    loop {
        let event = match actions.as_slice() {
            [Action::Ask(..)] => {
                asked = true;
                missing([ID])
            }
            [Action::Upload(_, ID, _)] => {
                assert!(std::mem::take(&mut asked), "the cache is asked before each upload");
                course.uploads.push(now);
                now = now.after(Duration::from_secs(1));
                match now.since(Mono(0)) <= fault {
                    true => Event::UploadFailed(ID, Failure::NoVerdict),
                    false => Event::Uploaded(ID, Duration::from_secs(1)),
                }
            }
            [Action::Confirmed(..), Action::Settled(..)] => {
                return Course { confirmed: Some(now), end: now, ..course };
            }
            [Action::Failed(ID, Cause::Failed(Failure::NoVerdict))] => return Course { end: now, ..course },
            [] if asks => Event::Retry(Some(vec![ID])),
            [] => {
                now = flow.next_deadline().expect("it is tried again");
                Event::Tick
            }
            other => panic!("{other:?}"),
        };
        actions = flow.step(event, now);
    }
}

#[test]
fn a_path_is_given_minutes_before_it_fails() {
    for seed in 0..500 {
        let Course { uploads, confirmed, end } = course(seed, Duration::MAX, false);
        assert_eq!((uploads.len(), confirmed), (5, None), "seed {seed}");
        assert!((150_000..330_000).contains(&end.0), "seed {seed}: {end:?}");
        let waits: Vec<u64> = uploads.windows(2).map(|pair| pair[1].0 - pair[0].0).collect();
        assert!(waits.is_sorted() && waits[0] <= 3_000, "seed {seed}: each wait is longer: {waits:?}");
    }
}

#[test]
fn a_fault_of_two_minutes_costs_no_path() {
    for seed in 0..500 {
        for seconds in [1, 10, 60, 120] {
            let course = course(seed, Duration::from_secs(seconds), false);
            assert!(course.confirmed.is_some(), "seed {seed}, {seconds} s: {course:?}");
        }
    }
}

#[test]
fn who_asks_for_the_path_need_not_wait() {
    let course = course(1, Duration::MAX, true);
    assert_eq!((course.uploads.len(), course.end), (5, Mono(5_000)), "{course:?}");
    // Asking for all paths, as a reload does, is the same; for another path it is not.
    let resting = || {
        let mut flow = super::flow(1);
        flow.step(admit(vec![push(1, &[], &[]), push(2, &[], &[])]), Mono(0));
        flow.step(missing([1, 2]), Mono(0));
        flow.step(Event::UploadFailed(1, Failure::NoVerdict), Mono(0));
        assert!(matches!(phase(&flow, 1), Some(Phase::Resting(_))));
        flow
    };
    let asks_for_1 = |actions: &[Action]| actions.contains(&Action::Ask(MAIN, vec![1]));
    assert!(asks_for_1(&resting().step(Event::Retry(None), Mono(1))));
    assert!(!asks_for_1(&resting().step(Event::Retry(Some(vec![2])), Mono(1))));
    // A wait that the server asked for stays.
    let mut flow = super::flow(1);
    flow.step(admit(vec![push(1, &[], &[])]), Mono(0));
    flow.step(missing([1]), Mono(0));
    let wait = Failure::Transient { retry_after: Some(Duration::from_secs(60)) };
    flow.step(Event::UploadFailed(1, wait), Mono(0));
    flow.step(Event::Retry(None), Mono(1));
    assert_eq!(phase(&flow, 1), Some(Phase::Resting(Mono(60_000))));
}
