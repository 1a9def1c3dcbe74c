//! The order of uploads among sessions.
//!
//! The bound: when `n` pushes of flushed sessions are ready, all of them are
//! among the next `n + ceil(n / 3)` uploads, since at most every fourth turn
//! belongs to other pushes. The others get at least every fourth turn.

use crate::types::{Mono, PushId};
use std::collections::BTreeSet;

use super::super::{Event, Flow};
use super::{admit, ask_through, flow, missing, push, recount, uploads};

const NOW: Mono = Mono(0);

/// Returns a backlog of one session with answered queries and one running upload.
fn backlog(count: PushId) -> (Flow, PushId) {
    let mut flow = flow(1);
    let actions = flow.step(admit((1..=count).map(|id| push(id, &[], &[1])).collect()), NOW);
    let begun = ask_through(&mut flow, actions, NOW);
    (flow, begun[0])
}

/// Returns the next `count` uploads. One runs at a time and is confirmed at once.
fn next(flow: &mut Flow, mut running: PushId, count: usize) -> Vec<PushId> {
    let mut order = Vec::new();
    while order.len() < count {
        let begun = uploads(&flow.step(Event::Uploaded(running, super::TOOK), NOW));
        let Some(&id) = begun.first() else { break };
        assert_eq!(begun.len(), 1);
        running = id;
        order.push(id);
    }
    order
}

#[test]
fn a_flush_overtakes_a_backlog_which_keeps_its_share() {
    // The flush may come at any of the four turns.
    for already in 0..4 {
        let (mut flow, mut running) = backlog(10_000);
        if already > 0 {
            running = *next(&mut flow, running, already).last().unwrap();
        }
        let actions = flow.step(admit((20_001..=20_010).map(|id| push(id, &[], &[2])).collect()), NOW);
        ask_through(&mut flow, actions, NOW);
        flow.step(Event::Flush(2), NOW);
        let order = next(&mut flow, running, 14);
        assert_eq!(order.iter().filter(|id| **id > 20_000).count(), 10, "{order:?}");
        assert!(order.windows(4).all(|w| w.iter().any(|id| *id <= 10_000)), "{order:?}");
    }
}

#[test]
fn a_flush_is_asked_for_before_a_backlog() {
    let mut flow = flow(1);
    flow.step(admit((1..=10_000).map(|id| push(id, &[], &[1])).collect()), NOW);
    flow.step(admit((20_001..=20_010).map(|id| push(id, &[], &[2])).collect()), NOW);
    flow.step(Event::Flush(2), NOW);
    let actions = flow.step(missing(1..=4_000), NOW);
    let asked = actions.iter().find_map(|a| match a {
        super::Action::Ask(_, ids) => Some(ids.clone()),
        _ => None,
    });
    assert_eq!(asked.unwrap()[..10], (20_001..=20_010).collect::<Vec<_>>());
}

#[test]
fn references_of_a_flushed_push_go_first_as_well() {
    let (mut flow, running) = backlog(1_000);
    // 20,001 refers to 901 and that to 900: both are deep in the other session's backlog.
    let mut flow2 = super::flow(1);
    let mut pushes: Vec<_> = (1..=900).map(|id| push(id, &[], &[1])).collect();
    pushes.push(push(901, &[900], &[1]));
    pushes.extend((902..=1_000).map(|id| push(id, &[], &[1])));
    pushes.push(push(20_001, &[901], &[2]));
    let actions = flow2.step(admit(pushes), NOW);
    let begun = ask_through(&mut flow2, actions, NOW);
    flow2.step(Event::Flush(2), NOW);
    recount(&flow2);
    // Three uploads of the flushed session, each a reference of the next, and at most one of the other.
    let order = next(&mut flow2, begun[0], 4);
    let flushed: Vec<_> = order.iter().copied().filter(|id| [900, 901, 20_001].contains(id)).collect();
    assert_eq!(flushed, [900, 901, 20_001], "{order:?}");
    // Without a flush the order is that of admission.
    assert_eq!(next(&mut flow, running, 3), [2, 3, 4]);
}

#[test]
fn two_flushed_sessions_alternate() {
    let mut flow = flow(1);
    let pushes = (0..200).map(|n| push(n + 1, &[], &[if n < 100 { 1 } else { 2 }])).collect();
    let actions = flow.step(admit(pushes), NOW);
    let begun = ask_through(&mut flow, actions, NOW);
    flow.step(Event::Flush(1), NOW);
    flow.step(Event::Flush(2), NOW);
    let order = next(&mut flow, begun[0], 100);
    let first = order.iter().filter(|id| **id <= 100).count();
    assert!((49..=51).contains(&first), "{first} of 100 for the first");
    assert!(order.windows(3).all(|w| w.iter().any(|id| *id <= 100) && w.iter().any(|id| *id > 100)));
}

#[test]
fn stale_entries_of_flushed_pushes_take_no_turns() {
    // Five sessions are flushed after their pushes were queued; a sixth is not.
    let mut flow = flow(1);
    let pushes = (0..600).map(|n| push(n + 1, &[], &[1 + n / 100])).collect();
    let actions = flow.step(admit(pushes), NOW);
    let begun = ask_through(&mut flow, actions, NOW);
    (1..=5).for_each(|session| drop(flow.step(Event::Flush(session), NOW)));
    let order = next(&mut flow, begun[0], 200);
    let others = order.iter().filter(|id| **id > 500).count();
    assert_eq!(others, 50, "every fourth turn");
    assert_eq!(order.iter().collect::<BTreeSet<_>>().len(), 200);
}

#[test]
fn a_retried_reference_of_a_flushed_push_goes_first() {
    let (mut flow, running) = backlog(100);
    flow.step(admit(vec![push(201, &[], &[]), push(202, &[201], &[2])]), NOW);
    flow.step(Event::AskFailed { cache: super::MAIN, failure: super::super::Failure::NoSuchCache }, NOW);
    flow.step(Event::Flush(2), NOW);
    let actions = flow.step(Event::Retry(Some(vec![202])), NOW);
    recount(&flow);
    ask_through(&mut flow, actions, NOW);
    let order = next(&mut flow, running, 3);
    assert!(order.contains(&201) && order.contains(&202), "{order:?}");
}
