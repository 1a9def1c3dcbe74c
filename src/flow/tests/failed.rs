//! Failed pushes beyond the bound: the oldest are forgotten, and no push is
//! uploaded before its references.

use super::super::{Action, Cause, Event, NewPush};
use super::{MAIN, admit, flow, missing, push, recount};
use crate::types::{Mono, PushId};

fn failed(id: PushId, references: &[PushId]) -> NewPush {
    NewPush { purpose: super::Purpose::Failed, ..push(id, references, &[]) }
}

#[test]
fn beyond_the_bound_the_oldest_without_referrers_are_forgotten() {
    let mut flow = flow(4);
    flow.failed_most = 3;
    let mut step = |event| {
        let actions = flow.step(event, Mono(0));
        recount(&flow);
        (actions, flow.view(MAIN).map_or(0, |view| view.failed), flow.has_forgotten())
    };
    let chain = vec![failed(1, &[]), failed(2, &[1]), failed(3, &[2])];
    assert_eq!(step(admit(chain)), (vec![], 3, false));
    // A referrer is forgotten before its reference.
    assert_eq!(step(admit(vec![failed(4, &[])])), (vec![Action::Forgotten(3)], 3, true));
    assert_eq!(step(admit(vec![failed(5, &[])])), (vec![Action::Forgotten(2)], 3, true));
    // A referrer that has not failed keeps its reference here, and is not uploaded before it.
    assert_eq!(step(admit(vec![push(6, &[1], &[])])).0, [Action::Ask(MAIN, vec![6])]);
    assert_eq!(step(admit(vec![failed(7, &[])])), (vec![Action::Forgotten(4)], 3, true));
    let (actions, ..) = step(missing([6]));
    assert_eq!(actions, [Action::Failed(6, Cause::Reference(1)), Action::Forgotten(6)]);
    // A forgotten push can be admitted again.
    assert_eq!(step(admit(vec![failed(6, &[1])])).0, [Action::Forgotten(6)]);
    let (actions, left, forgot) = step(Event::Retry(None));
    let reopened = actions.iter().filter(|a| matches!(a, Action::Reopened(_))).count();
    assert_eq!((reopened, left, forgot), (3, 0, false), "{actions:?}");
}
