//! A hundred thousand pushes: the steps are counted, no time is measured.

use super::super::{Action, CacheLimits, Event, Failure, Flow};
use super::{MAIN, admit, missing, push, recount};
use crate::types::{Mono, PushId};

const MANY: PushId = 100_000;

#[test]
fn a_hundred_thousand_pushes_take_steps_in_proportion() {
    let mut flow = Flow::new(&[CacheLimits { least: 8, most: 64 }], 1);
    let now = Mono(0);
    let mut steps = 0_u32;
    let mut open = Vec::new();
    let mut settled = 0;
    // Everything refers to push 1 and to the two before it.
    for from in (1..=MANY).step_by(1_000) {
        let refs =
            |id: PushId| [1, id - 1, id - 2].into_iter().filter(|r| *r > 0 && *r < id).collect::<Vec<_>>();
        let pushes = (from..from + 1_000).map(|id| push(id, &refs(id), &[1 + id % 7])).collect();
        open.extend(flow.step(admit(pushes), now));
        steps += 1;
    }
    open.extend(flow.step(Event::WantAll(100), now));
    open.extend(flow.step(Event::Flush(100), now));
    let mut quiet = 0;
    while let Some(action) = open.pop() {
        let event = match action {
            Action::Ask(_, ids) => missing(ids),
            Action::Upload(_, id, _) => Event::Uploaded(id, super::TOOK),
            Action::Settled(..) => {
                settled += 1;
                continue;
            }
            Action::Confirmed(..) => continue,
            Action::Quiet(100) => {
                quiet += 1;
                continue;
            }
            other => panic!("{other:?}"),
        };
        steps += 1;
        open.extend(flow.step(event, now));
    }
    assert_eq!((settled, quiet), (MANY, 1));
    assert!(steps <= 100 + 30 + MANY as u32, "{steps} steps");
    recount(&flow);
    assert!(flow.groups[&100].pushes.is_empty(), "settled pushes leave their session");
    let (pushes, asks) = (flow.pushes.capacity(), flow.caches[0].asks.capacity());
    assert!(pushes < 10_000 && asks < 10_000, "the tables are small again: {pushes}, {asks}");
}

#[test]
fn a_reference_of_a_hundred_thousand_fails_and_is_retried() {
    let mut flow = Flow::new(&[CacheLimits { least: 8, most: 64 }], 1);
    flow.failed_most = usize::MAX;
    let now = Mono(0);
    let pushes = (1..=MANY).map(|id| push(id, if id == 1 { &[] } else { &[1] }, &[1])).collect();
    let mut actions = flow.step(admit(pushes), now);
    for _ in 0..3 {
        let ask = |actions: &[Action]| {
            actions.iter().find_map(|a| if let Action::Ask(_, ids) = a { Some(ids.clone()) } else { None })
        };
        while let Some(ids) = ask(&actions) {
            actions = flow.step(missing(ids), now);
        }
        let failed = flow.step(Event::UploadFailed(1, Failure::Rejected), now);
        assert_eq!(failed.len(), MANY as usize);
        actions = flow.step(Event::Retry(None), now);
    }
    let collected = flow.step(Event::Collected(1), now);
    assert!(!collected.is_empty());
    recount(&flow);
    assert_eq!(flow.view(MAIN).unwrap().pending, MANY as usize - 1);
}

#[test]
fn of_a_hundred_thousand_failed_pushes_ten_thousand_stay_known() {
    let mut flow = Flow::new(&[CacheLimits { least: 8, most: 64 }], 1);
    let now = Mono(0);
    let pushes =
        (1..=MANY).map(|id| push(id, if id % 10 == 1 { vec![] } else { vec![id - 1] }.as_slice(), &[1]));
    let mut actions = flow.step(admit(pushes.collect()), now);
    let mut failed = 0;
    while actions.iter().any(|a| matches!(a, Action::Ask(..))) {
        actions = flow.step(Event::AskFailed { cache: MAIN, failure: Failure::NoSuchCache }, now);
        failed += actions.iter().filter(|a| matches!(a, Action::Failed(..))).count();
    }
    assert_eq!(failed, MANY as usize);
    assert!(flow.known() <= 10_000 && flow.has_forgotten(), "{} are known", flow.known());
    recount(&flow);
}
