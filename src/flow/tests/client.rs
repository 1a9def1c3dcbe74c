//! The life of the attic client: every state with every event, and random events.

use proptest::prelude::*;

use crate::flow::{ClientAction, ClientEvent, ClientLife, ClientState, Found};

use crate::types::Mono;
use ClientAction::{Check, Look, Usable};
use ClientEvent::{Begin, CacheBack, Checked, Looked, Lost, Sighted, Tick, Wanted};
use ClientState::{Absent, Broken, Ready, Trying, Updating};

/// Returns a life after these events, all at time 0.
fn after(events: &[ClientEvent]) -> ClientLife {
    let mut life = ClientLife::new(1, false);
    for event in events {
        life.step(*event, Mono(0));
    }
    life
}

#[test]
fn a_fixed_client_is_looked_for_until_it_is_usable() {
    let mut life = ClientLife::new(1, true);
    life.step(Begin { left: false }, Mono(0));
    life.step(Looked(Found::Missing), Mono(0));
    assert!(life.due().is_some());
    life.step(Wanted, Mono(0));
    assert_eq!(life.step(Looked(Found::Usable), Mono(0)), [Usable(true)]);
    assert_eq!((life.due(), life.step(Sighted, Mono(0)), life.due()), (None, vec![], None));
    assert_eq!(life.step(Lost, Mono(0)), [Usable(false), Look]);
}

#[test]
fn every_state_with_every_event() {
    let look = Begin { left: false };
    let states: [(&str, &[ClientEvent], ClientState); 6] = [
        ("absent", &[look, Looked(Found::Missing)], Absent),
        ("trying", &[look], Trying),
        ("checking", &[Begin { left: true }], Trying),
        ("ready", &[look, Looked(Found::Usable)], Ready),
        ("updating", &[look, Looked(Found::Usable), Wanted], Updating),
        ("broken", &[look, Looked(Found::Broken)], Broken),
    ];
    // For each event and state: the actions, and the state afterwards.
    type Row = (ClientEvent, [(&'static [ClientAction], ClientState); 6]);
    let table: [Row; 11] = [
        (
            Begin { left: true },
            [
                (&[Check], Trying),
                (&[], Trying),
                (&[], Trying),
                (&[Check], Ready),
                (&[], Updating),
                (&[Check], Trying),
            ],
        ),
        (
            Checked(true),
            [
                (&[], Absent),
                (&[], Trying),
                (&[Usable(true), Look], Updating),
                (&[], Ready),
                (&[], Updating),
                (&[], Broken),
            ],
        ),
        (
            Checked(false),
            [(&[], Absent), (&[], Trying), (&[Look], Trying), (&[], Ready), (&[], Updating), (&[], Broken)],
        ),
        (
            Looked(Found::Usable),
            [
                (&[], Absent),
                (&[Usable(true)], Ready),
                (&[], Trying),
                (&[], Ready),
                (&[], Ready),
                (&[], Broken),
            ],
        ),
        (
            Looked(Found::Missing),
            [(&[], Absent), (&[], Absent), (&[], Trying), (&[], Ready), (&[], Ready), (&[], Broken)],
        ),
        (
            Looked(Found::Broken),
            [(&[], Absent), (&[], Broken), (&[], Trying), (&[], Ready), (&[], Ready), (&[], Broken)],
        ),
        (
            Wanted,
            [
                (&[Look], Trying),
                (&[], Trying),
                (&[], Trying),
                (&[Look], Updating),
                (&[], Updating),
                (&[Look], Trying),
            ],
        ),
        (
            Sighted,
            [
                (&[Look], Trying),
                (&[], Trying),
                (&[], Trying),
                (&[], Ready),
                (&[], Updating),
                (&[Look], Trying),
            ],
        ),
        (
            CacheBack,
            [
                (&[Look], Trying),
                (&[], Trying),
                (&[], Trying),
                (&[], Ready),
                (&[], Updating),
                (&[Look], Trying),
            ],
        ),
        (
            Lost,
            [
                (&[Look], Trying),
                (&[], Trying),
                (&[], Trying),
                (&[Usable(false), Look], Trying),
                (&[Usable(false)], Trying),
                (&[Look], Trying),
            ],
        ),
        (Tick, [(&[], Absent), (&[], Trying), (&[], Trying), (&[], Ready), (&[], Updating), (&[], Broken)]),
    ];
    for (event, row) in table {
        for ((name, before, state), (actions, then)) in states.iter().zip(row) {
            let mut life = after(before);
            assert_eq!(life.state(), *state, "{name}");
            assert_eq!(life.step(event, Mono(0)), actions, "{name} and {event:?}");
            assert_eq!(life.state(), then, "{name} and {event:?}");
        }
    }
}

#[test]
fn events_during_a_look_lead_to_another() {
    for (event, found, again) in [
        (Wanted, Found::Usable, true),
        (Wanted, Found::Missing, true),
        (Sighted, Found::Missing, true),
        (CacheBack, Found::Untried, true),
        (Tick, Found::Missing, false),
    ] {
        let mut life = after(&[Begin { left: false }, event]);
        let actions = life.step(Looked(found), Mono(0));
        assert_eq!(actions.contains(&Look), again, "{event:?} {found:?}");
    }
    // The look itself makes the client's path appear.
    let mut life = after(&[Begin { left: false }, Looked(Found::Usable), Wanted, Sighted]);
    assert_eq!(life.step(Looked(Found::Usable), Mono(0)), []);
}

#[test]
fn waits_grow_to_a_cap_and_start_again() {
    let mut life = after(&[Begin { left: false }]);
    let (mut now, mut longest) = (Mono(0), 0);
    for _ in 0..40 {
        life.step(Looked(Found::Missing), now);
        let due = life.due().unwrap();
        assert!(due > now, "never at once");
        longest = longest.max(due.0 - now.0);
        assert_eq!(life.step(Tick, Mono(due.0 - 1)), [], "not before its time");
        assert_eq!(life.step(Tick, due), [Look]);
        assert_eq!(life.due(), None, "while it looks nothing is due");
        now = due;
    }
    assert!((5 * 60_000..=15 * 60_000).contains(&longest), "{longest}");
    life.step(Looked(Found::Usable), now);
    assert!(life.due().unwrap().0 - now.0 >= 6 * 3_600_000);
    // A path that may be a newer client leads to one look, soon.
    life.step(Sighted, now);
    life.step(Sighted, Mono(now.0 + 10));
    assert_eq!(life.due(), Some(Mono(now.0 + 60_000)));
    life.step(Lost, now);
    life.step(Looked(Found::Missing), now);
    assert!(life.due().unwrap().0 - now.0 <= 10_000, "the first wait again");
}

#[test]
fn an_update_that_could_not_be_tried_is_tried_when_the_cache_is_back() {
    let mut life = after(&[Begin { left: false }, Looked(Found::Usable), Wanted, Looked(Found::Untried)]);
    assert_eq!(life.state(), Ready);
    assert_eq!(life.step(CacheBack, Mono(5)), [Look]);
}

fn any_event() -> impl Strategy<Value = ClientEvent> {
    let found = [Found::Usable, Found::Missing, Found::Untried, Found::Broken].map(Looked);
    let others = [Checked(true), Checked(false), Wanted, Sighted, CacheBack, Lost, Tick];
    prop_oneof![proptest::sample::select(found.to_vec()), proptest::sample::select(others.to_vec())]
}

proptest! {
    /// One check or look runs at a time, `Usable` says when the client may be used,
    /// and there is always a next attempt.
    #[test]
    fn anything_in_any_order(
        left in any::<bool>(),
        events in proptest::collection::vec((any_event(), 0u64..100_000_000), 0..200),
        seed in any::<u64>(),
    ) {
        let mut life = ClientLife::new(seed, false);
        let (mut now, mut said) = (0, false);
        for (event, later) in std::iter::once((Begin { left }, 0)).chain(events) {
            now += later;
            let busy = matches!(life.state(), Trying | Updating);
            for action in life.step(event, Mono(now)) {
                match action {
                    Usable(usable) => {
                        prop_assert_ne!(usable, said);
                        said = usable;
                    }
                    Check | Look => prop_assert!(!busy || matches!(event, Checked(_) | Looked(_))),
                }
            }
            prop_assert_eq!(said, matches!(life.state(), Ready | Updating));
            let busy = matches!(life.state(), Trying | Updating);
            prop_assert_eq!(busy, life.due().is_none(), "a look is under way or has a time");
        }
    }
}
