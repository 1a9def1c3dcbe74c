//! The breaker's whole table: every state and every event.

use super::super::breaker::CircuitBreaker;
use super::super::retry::Rng;
use super::super::{BreakerState, Failure};
use crate::types::Mono;

const NOW: Mono = Mono(1_000_000);

const FAILURES: [Failure; 8] = [
    Failure::Unreachable,
    Failure::Transient { retry_after: None },
    Failure::Refused,
    Failure::NoSuchCache,
    Failure::Mismatch,
    Failure::TooLarge,
    Failure::Rejected,
    Failure::Local,
];

/// Returns a breaker in a state.
fn reach(state: &str) -> CircuitBreaker {
    let (mut breaker, mut rng) = (CircuitBreaker::new(), Rng::new(1));
    let transient = Failure::Transient { retry_after: None };
    let long_ago = Mono(0);
    match state {
        "open" => {}
        "strike 2" => (1..=2).for_each(|t| breaker.failed(transient, Some(t), long_ago, &mut rng)),
        "trial" => {
            breaker = reach("away probing");
            assert!(breaker.probed(Ok(()), NOW, &mut rng));
        }
        "away waiting" => breaker.failed(Failure::Unreachable, Some(1), long_ago, &mut rng),
        "refused waiting" => breaker.failed(Failure::Refused, Some(1), long_ago, &mut rng),
        probing => {
            breaker = reach(&probing.replace("probing", "waiting"));
            assert!(breaker.begin_probe(NOW));
        }
    }
    breaker
}

fn show(breaker: &CircuitBreaker) -> String {
    let shown = match breaker.shown() {
        BreakerState::Online => "online",
        BreakerState::Offline => "offline",
        BreakerState::Refused => "refused",
    };
    let state = match (breaker.is_open(), breaker.due()) {
        (true, _) => "open",
        (false, Some(at)) if at <= NOW => "due",
        (false, Some(_)) => "waiting",
        (false, None) => "probing",
    };
    format!("{state} {shown}")
}

/// A state; what it shows; what follows each failure of a request, in the order of
/// `FAILURES`; what follows a success and a `probe_now`; what follows an answered
/// probe and each failure of a probe in the same order. ".": no change.
type Row = (&'static str, &'static str, [&'static str; 8], [&'static str; 2], [&'static str; 9]);

const TABLE: [Row; 7] = {
    const SAME: [&str; 8] = ["."; 8];
    const OFF: &str = "waiting offline";
    const REF: &str = "waiting refused";
    // No probe was under way: its result counts like a request's.
    const FIRST: [&str; 9] = [".", OFF, ".", REF, ".", ".", ".", ".", "."];
    const LAST: [&str; 9] = [".", OFF, OFF, REF, ".", ".", ".", ".", "."];
    const SHUT: [&str; 9] = ["."; 9];
    [
        ("open", "open online", [OFF, ".", REF, ".", ".", ".", ".", "."], [".", "."], FIRST),
        ("strike 2", "open online", [OFF, OFF, REF, ".", ".", ".", ".", "."], [".", "."], LAST),
        ("trial", "open online", [OFF, OFF, REF, ".", ".", ".", ".", "."], [".", "."], LAST),
        ("away waiting", "due offline", SAME, [".", "."], SHUT),
        ("refused waiting", "due refused", SAME, [".", "."], SHUT),
        (
            "away probing",
            "probing offline",
            SAME,
            [".", "."],
            ["open online", OFF, OFF, REF, "open online", "open online", "open online", "open online", OFF],
        ),
        (
            "refused probing",
            "probing refused",
            SAME,
            [".", "."],
            [
                "open refused",
                OFF,
                OFF,
                REF,
                "open refused",
                "open refused",
                "open refused",
                "open refused",
                OFF,
            ],
        ),
    ]
};

#[test]
fn the_whole_table() {
    for (state, itself, failed, other, probed) in TABLE {
        let check = |what: &str, expected: &str, act: &dyn Fn(&mut CircuitBreaker, &mut Rng)| {
            let (mut breaker, mut rng) = (reach(state), Rng::new(2));
            act(&mut breaker, &mut rng);
            let expected = if expected == "." { itself } else { expected };
            assert_eq!(show(&breaker), expected, "{state}, {what}");
        };
        check("nothing", ".", &|_, _| {});
        for (failure, expected) in FAILURES.into_iter().zip(failed) {
            check(&format!("{failure:?}"), expected, &|breaker, rng| {
                breaker.failed(failure, Some(9), NOW, rng);
            });
        }
        check("success", other[0], &|breaker, _| breaker.succeeded());
        check("probe_now", other[1], &|breaker, _| breaker.probe_now(NOW));
        let results = std::iter::once(Ok(())).chain(FAILURES.into_iter().map(Err));
        for (result, expected) in results.zip(probed) {
            check(&format!("probed {result:?}"), expected, &|breaker, rng| {
                breaker.probed(result, NOW, rng);
            });
        }
    }
}

#[test]
fn probe_now_makes_a_waiting_probe_due_and_a_running_one_repeat() {
    let mut rng = Rng::new(3);
    let mut breaker = CircuitBreaker::new();
    breaker.failed(Failure::Refused, None, NOW, &mut rng);
    assert_eq!(show(&breaker), "waiting refused");
    breaker.probe_now(NOW);
    assert_eq!(show(&breaker), "due refused");
    assert!(breaker.begin_probe(NOW));
    breaker.probe_now(NOW);
    assert!(!breaker.begin_probe(NOW), "one probe at a time");
    breaker.probed(Err(Failure::Refused), NOW, &mut rng);
    assert_eq!(show(&breaker), "due refused", "the refused token was the old one");
}

#[test]
fn a_success_resets_the_strikes_and_ends_the_trial() {
    let mut rng = Rng::new(4);
    let transient = Failure::Transient { retry_after: None };
    for state in ["strike 2", "trial"] {
        let mut breaker = reach(state);
        breaker.succeeded();
        breaker.failed(transient, Some(1), NOW, &mut rng);
        breaker.failed(transient, Some(2), NOW, &mut rng);
        assert!(breaker.is_open(), "{state}");
        breaker.failed(transient, Some(3), NOW, &mut rng);
        assert!(!breaker.is_open(), "{state}");
    }
}
