//! A cache whose uploads wait for the engine.

use super::{MAIN, admit, flow, missing, push};
use crate::flow::{Action, Event, Failure};
use crate::types::Mono;

#[test]
fn queries_go_on_and_uploads_wait_until_the_hold_ends() {
    let mut flow = flow(4);
    flow.step(Event::Hold(MAIN, true), Mono(0));
    let asked = flow.step(admit(vec![push(1, &[], &[7]), push(2, &[], &[7])]), Mono(0));
    assert_eq!(asked, [Action::Ask(MAIN, vec![1, 2])]);
    // A push that the cache has already needs no engine.
    let settled = flow.step(Event::Asked { cache: MAIN, present: vec![1], missing: vec![2] }, Mono(0));
    assert_eq!(settled.last(), Some(&Action::Settled(1, crate::flow::Outcome::Cached)));
    assert_eq!(flow.step(Event::Flush(7), Mono(0)), []);
    assert_eq!(flow.step(Event::Tick, Mono(1_000_000)), []);
    assert_eq!(flow.step(Event::Hold(MAIN, false), Mono(1_000_000)), [Action::Upload(MAIN, 2, 1)]);
    let done = flow.step(Event::Uploaded(2, super::TOOK), Mono(1_000_001));
    assert!(done.contains(&Action::Quiet(7)), "{done:?}");
}

#[test]
fn an_engine_that_always_fails_fails_no_push() {
    let mut flow = flow(1);
    flow.step(admit(vec![push(1, &[], &[])]), Mono(0));
    flow.step(missing([1]), Mono(0));
    for n in 1..50 {
        let now = Mono(n * 100_000);
        assert_eq!(flow.step(Event::UploadFailed(1, Failure::Engine), now), [], "it rests");
        let again = flow.step(Event::Tick, Mono(n * 100_000 + 99_999));
        assert_eq!(again, [Action::Upload(MAIN, 1, u32::try_from(n).unwrap() + 1)]);
    }
}
