//! The transition table of a push: every phase with every event and failure.

use super::super::push::Phase;
use super::super::{Action, CacheLimits, Event, Failure, Flow, NewPush, Outcome};
use super::{MAIN, admit, flow, missing, phase, push, recount};
use crate::types::Mono;

const NOW: Mono = Mono(10);

/// Returns decisions with push 1 in a phase. Push 99 or 2 keeps it there.
fn reach(phase: &str) -> Flow {
    let mut flow = flow(1);
    let mut step = |event| flow.step(event, Mono(0));
    match phase {
        "unknown" => {}
        "unasked" => {
            step(admit(vec![push(99, &[], &[])]));
            step(admit(vec![push(1, &[], &[])]));
        }
        "asking" => {
            step(admit(vec![push(1, &[], &[])]));
        }
        "held" => {
            step(admit(vec![push(2, &[], &[]), push(1, &[2], &[])]));
            step(missing([2, 1]));
        }
        "ready" => {
            step(admit(vec![push(2, &[], &[]), push(1, &[], &[])]));
            step(missing([2, 1]));
        }
        "stale" => {
            step(admit(vec![NewPush { closure_at: None, ..push(1, &[], &[]) }]));
            step(missing([1]));
        }
        "uploading" => {
            step(admit(vec![push(1, &[], &[])]));
            step(missing([1]));
        }
        "resting" => {
            flow = reach("uploading");
            flow.step(Event::UploadFailed(1, Failure::Transient { retry_after: None }), Mono(0));
        }
        "failed" => {
            flow = reach("uploading");
            flow.step(Event::UploadFailed(1, Failure::TooLarge), Mono(0));
        }
        other => panic!("{other}"),
    }
    flow
}

fn events() -> Vec<(&'static str, Event)> {
    let ask = |failure| Event::AskFailed { cache: MAIN, failure };
    let up = |failure| Event::UploadFailed(1, failure);
    let transient = Failure::Transient { retry_after: None };
    vec![
        ("admit", admit(vec![push(1, &[], &[])])),
        ("present", Event::Asked { cache: MAIN, present: vec![1], missing: vec![] }),
        ("missing", missing([1])),
        ("left out", missing([])),
        ("ask unreachable", ask(Failure::Unreachable)),
        ("ask transient", ask(transient)),
        ("ask refused", ask(Failure::Refused)),
        ("ask no such cache", ask(Failure::NoSuchCache)),
        ("ask mismatch", ask(Failure::Mismatch)),
        ("ask too large", ask(Failure::TooLarge)),
        ("ask rejected", ask(Failure::Rejected)),
        ("ask local", ask(Failure::Local)),
        ("ask no verdict", ask(Failure::NoVerdict)),
        ("ask store", ask(Failure::Store)),
        ("ask engine", ask(Failure::Engine)),
        ("uploaded", Event::Uploaded(1, super::TOOK)),
        ("upstream", Event::InUpstream(1, NOW)),
        ("arrived", Event::Arrived(1)),
        ("unreachable", up(Failure::Unreachable)),
        ("transient", up(transient)),
        ("refused", up(Failure::Refused)),
        ("no verdict", up(Failure::NoVerdict)),
        ("no such cache", up(Failure::NoSuchCache)),
        ("mismatch", up(Failure::Mismatch)),
        ("too large", up(Failure::TooLarge)),
        ("rejected", up(Failure::Rejected)),
        ("local", up(Failure::Local)),
        ("store", up(Failure::Store)),
        ("engine", up(Failure::Engine)),
        ("collected", Event::Collected(1)),
        ("probed", Event::Probed(MAIN, Ok(()))),
        ("probe failed", Event::Probed(MAIN, Err(Failure::Unreachable))),
        ("probe_now", Event::ProbeNow(MAIN)),
        ("retry", Event::Retry(Some(vec![1]))),
        ("retry all", Event::Retry(None)),
        ("want", Event::Want(5, vec![1])),
        ("want all", Event::WantAll(5)),
        ("flush", Event::Flush(5)),
        ("forget", Event::Forget(5)),
        ("round trip", Event::RoundTrip(MAIN, super::TOOK)),
        ("hold", Event::Hold(MAIN, true)),
        ("end of hold", Event::Hold(MAIN, false)),
        ("limits", Event::Limits(MAIN, CacheLimits { least: 1, most: 1 })),
        ("more uploads", Event::Limits(MAIN, CacheLimits { least: 2, most: 2 })),
        ("rechecked", Event::Rechecked(MAIN)),
        ("unconfirmed", Event::Unconfirmed(5)),
        ("tick", Event::Tick),
        ("stop", Event::Stop),
        ("resume", Event::Resume),
    ]
}

/// Rows of `phase | event | phase after | actions`. A pair without a row changes
/// nothing and has no actions, except that a flush of an empty session is quiet.
const TABLE: &str = "
unknown   | admit             | asking    | ask[1]
unasked   | ask no such cache | asking    | failed99 ask[1]
unasked   | ask mismatch      | asking    | failed99 ask[1]
unasked   | ask too large     | asking    | failed99 ask[1]
unasked   | ask rejected      | asking    | failed99 ask[1]
unasked   | ask local         | asking    | failed99 ask[1]
unasked   | ask unreachable   | unasked   | breaker
unasked   | ask refused       | unasked   | breaker
unasked   | collected         | unknown   | collected1
asking    | present           | unknown   | whole1 cached1
asking    | missing           | uploading | upload1#1
asking    | left out          | unasked   |
asking    | ask unreachable   | unasked   | breaker
asking    | ask transient     | unasked   |
asking    | ask refused       | unasked   | breaker
asking    | ask no such cache | failed    | failed1
asking    | ask mismatch      | failed    | failed1
asking    | ask too large     | failed    | failed1
asking    | ask rejected      | failed    | failed1
asking    | ask local         | failed    | failed1
asking    | ask no verdict    | unasked   |
asking    | ask store         | unasked   |
asking    | ask engine        | unasked   |
asking    | collected         | unknown   | collected1
held      | collected         | unknown   | collected1
ready     | collected         | unknown   | collected1
ready     | more uploads      | uploading | upload1#1
uploading | uploaded          | unknown   | whole1 pushed1
uploading | upstream          | unknown   | whole1 upstream1
uploading | arrived           | unknown   | whole1 cached1
uploading | unreachable       | ready     | breaker
uploading | transient         | resting   |
uploading | refused           | ready     | breaker
uploading | no verdict        | resting   |
uploading | no such cache     | failed    | failed1
uploading | mismatch          | uploading | upload1#2
uploading | too large         | failed    | failed1
uploading | rejected          | failed    | failed1
uploading | local             | resting   |
uploading | store             | resting   |
uploading | engine            | resting   |
uploading | collected         | unknown   | collected1
stale     | admit             | uploading | upload1#1
stale     | rechecked         | resting   |
stale     | collected         | unknown   | collected1
resting   | collected         | unknown   | collected1
failed    | collected         | unknown   | collected1
failed    | retry             | asking    | reopened1 ask[1]
failed    | retry all         | asking    | reopened1 ask[1]
unknown   | probe failed      | unknown   | breaker
unasked   | probe failed      | unasked   | breaker
asking    | probe failed      | asking    | breaker
held      | probe failed      | held      | breaker
ready     | probe failed      | ready     | breaker
stale     | probe failed      | stale     | breaker
uploading | probe failed      | uploading | breaker
resting   | probe failed      | resting   | breaker
failed    | probe failed      | failed    | breaker
";

fn name(phase: Option<Phase>) -> &'static str {
    match phase {
        None => "unknown",
        Some(Phase::Unasked) => "unasked",
        Some(Phase::Asking) => "asking",
        Some(Phase::Held) => "held",
        Some(Phase::Ready) => "ready",
        Some(Phase::Stale) => "stale",
        Some(Phase::Uploading) => "uploading",
        Some(Phase::Resting(_)) => "resting",
        Some(Phase::Failed(_)) => "failed",
    }
}

fn show(action: &Action) -> String {
    match action {
        Action::Ask(_, ids) => format!("ask{ids:?}"),
        Action::Upload(_, id, attempt) => format!("upload{id}#{attempt}"),
        Action::Probe(_) => "probe".into(),
        Action::Confirmed(id, _) => format!("whole{id}"),
        Action::Wanted(ids) => format!("wanted{ids:?}"),
        Action::Distrust(..) => "distrust".into(),
        Action::Recheck(_, ids) => format!("recheck{ids:?}"),
        Action::Settled(id, Outcome::Pushed) => format!("pushed{id}"),
        Action::Settled(id, Outcome::Cached) => format!("cached{id}"),
        Action::Settled(id, Outcome::Upstream) => format!("upstream{id}"),
        Action::Settled(id, Outcome::Collected) => format!("collected{id}"),
        Action::Failed(id, _) => format!("failed{id}"),
        Action::Reopened(id) => format!("reopened{id}"),
        Action::Quiet(session) => format!("quiet{session}"),
        Action::Forgotten(id) => format!("forgotten{id}"),
        Action::Breaker(..) => "breaker".into(),
    }
}

/// The events of the table, by variant. A new variant of [`Event`] must be added here,
/// and the test then asks for its rows.
fn variant(event: &Event) -> usize {
    match event {
        Event::Admit { .. } => 0,
        Event::Asked { .. } => 1,
        Event::AskFailed { .. } => 2,
        Event::Uploaded(..) => 3,
        Event::RoundTrip(..) => 4,
        Event::InUpstream(..) => 5,
        Event::UploadFailed(..) => 6,
        Event::Collected(_) => 7,
        Event::Probed(..) => 8,
        Event::ProbeNow(_) => 9,
        Event::Retry(_) => 10,
        Event::Want(..) => 11,
        Event::WantAll(_) => 12,
        Event::Flush(_) => 13,
        Event::Forget(_) => 14,
        Event::Hold(..) => 15,
        Event::Limits(..) => 16,
        Event::Tick => 17,
        Event::Stop => 18,
        Event::Resume => 19,
        Event::Rechecked(_) => 20,
        Event::Unconfirmed(_) => 21,
        Event::Arrived(_) => 22,
    }
}

#[test]
fn the_whole_table() {
    let variants: std::collections::BTreeSet<_> = events().iter().map(|(_, event)| variant(event)).collect();
    assert!(variants.into_iter().eq(0..=22), "an event is missing");
    let mut rows: Vec<Vec<&str>> =
        TABLE.trim().lines().map(|l| l.split('|').map(str::trim).collect()).collect();
    for from in ["unknown", "unasked", "asking", "held", "ready", "stale", "uploading", "resting", "failed"] {
        assert_eq!(name(phase(&reach(from), 1)), from);
        for (what, event) in events() {
            let mut flow = reach(from);
            let actions: Vec<_> = flow.step(event, NOW).iter().map(show).collect();
            let row = rows.iter().position(|r| r[0] == from && r[1] == what).map(|at| rows.remove(at));
            let (to, expected) = match &row {
                Some(row) => (row[2], row[3]),
                None => (from, if what == "flush" { "quiet5" } else { "" }),
            };
            assert_eq!(name(phase(&flow, 1)), to, "{from}, {what}: {actions:?}");
            assert_eq!(actions.join(" "), expected, "{from}, {what}");
            recount(&flow);
        }
    }
    assert_eq!(rows, Vec::<Vec<&str>>::new(), "rows that nothing tested");
}

#[test]
fn the_end_of_a_reference_decides_about_its_referrers() {
    for (event, actions, after) in [
        (Event::Uploaded(2, super::TOOK), "whole2 pushed2 upload1#1", "uploading"),
        (Event::InUpstream(2, NOW), "whole2 upstream2 upload1#1", "uploading"),
        (Event::Arrived(2), "whole2 cached2 upload1#1", "uploading"),
        (Event::UploadFailed(2, Failure::Rejected), "failed2 failed1", "failed"),
        (Event::UploadFailed(2, Failure::Local), "", "held"),
        (Event::Collected(2), "collected2 collected1", "unknown"),
    ] {
        let mut flow = reach("held");
        let shown: Vec<_> = flow.step(event.clone(), NOW).iter().map(show).collect();
        assert_eq!(shown.join(" "), actions, "{event:?}");
        assert_eq!(name(phase(&flow, 1)), after, "{event:?}");
        recount(&flow);
    }
}

#[test]
fn a_collected_failed_reference_collects_its_referrers() {
    let mut flow = reach("held");
    flow.step(Event::UploadFailed(2, Failure::Rejected), NOW);
    let shown: Vec<_> = flow.step(Event::Collected(2), NOW).iter().map(show).collect();
    assert_eq!(shown.join(" "), "collected2 collected1");
}

#[test]
fn a_retry_takes_up_every_failed_reference() {
    let mut flow = flow(4);
    flow.step(admit(vec![push(2, &[], &[]), push(3, &[], &[]), push(1, &[2, 3], &[])]), NOW);
    flow.step(missing([2, 3, 1]), NOW);
    flow.step(Event::UploadFailed(2, Failure::Rejected), NOW);
    flow.step(Event::UploadFailed(3, Failure::Rejected), NOW);
    flow.step(Event::Retry(Some(vec![1])), NOW);
    assert!([1, 2, 3].iter().all(|id| name(phase(&flow, *id)) == "asking"));
}

#[test]
fn a_push_admitted_again_does_not_keep_old_references() {
    let mut flow = flow(4);
    flow.step(admit(vec![push(2, &[], &[]), push(1, &[2], &[])]), NOW);
    flow.step(Event::Asked { cache: MAIN, present: vec![1], missing: vec![2] }, NOW);
    flow.step(admit(vec![push(3, &[], &[]), push(1, &[2, 3], &[])]), NOW);
    flow.step(missing([3, 1]), NOW);
    recount(&flow);
    let actions = flow.step(Event::Uploaded(2, super::TOOK), NOW);
    assert!(super::uploads(&actions).is_empty(), "3 is not there yet");
    assert_eq!(super::uploads(&flow.step(Event::Uploaded(3, super::TOOK), NOW)), [1]);
}

#[test]
fn a_refused_query_fails_only_the_push_it_is_refused_for() {
    let mut flow = flow(1);
    let bad = 2_345;
    let mut actions = flow.step(admit((1..=4_000).map(|id| push(id, &[], &[])).collect()), NOW);
    let (mut failed, mut queries) = (Vec::new(), 0);
    while let Some(ids) =
        actions.iter().find_map(|a| if let Action::Ask(_, ids) = a { Some(ids.clone()) } else { None })
    {
        queries += 1;
        let failure = Failure::Rejected;
        actions = if ids.contains(&bad) {
            flow.step(Event::AskFailed { cache: MAIN, failure }, NOW)
        } else {
            flow.step(Event::Asked { cache: MAIN, present: ids, missing: vec![] }, NOW)
        };
        failed.extend(
            actions.iter().filter_map(|a| if let Action::Failed(id, _) = a { Some(*id) } else { None }),
        );
    }
    assert_eq!(failed, [bad]);
    assert!(queries <= 80, "{queries} queries");
    assert_eq!(flow.view(MAIN).unwrap().pending, 0);
}

#[test]
fn a_server_that_refuses_every_query_is_not_asked_for_each_push() {
    let mut flow = flow(1);
    flow.failed_most = usize::MAX;
    let mut actions = flow.step(admit((1..=40_000).map(|id| push(id, &[], &[])).collect()), NOW);
    let mut queries = 0;
    while actions.iter().any(|a| matches!(a, Action::Ask(..))) {
        queries += 1;
        actions = flow.step(Event::AskFailed { cache: MAIN, failure: Failure::Rejected }, NOW);
    }
    assert!(queries <= 100, "{queries} queries");
    assert_eq!(flow.view(MAIN).unwrap().failed, 40_000);
}

#[test]
fn a_session_counts_failed_pushes_once_they_are_retried() {
    let mut flow = reach("failed");
    flow.step(Event::Want(5, vec![1]), NOW);
    assert_eq!(flow.unsettled(5), 0);
    flow.step(Event::Retry(None), NOW);
    assert_eq!(flow.unsettled(5), 1);
    assert_eq!(flow.step(Event::Flush(5), NOW), []);
    let actions = flow.step(Event::Asked { cache: MAIN, present: vec![1], missing: vec![] }, NOW);
    assert_eq!(actions, [Action::Confirmed(1, NOW), Action::Settled(1, Outcome::Cached), Action::Quiet(5)]);
}

#[test]
fn a_number_can_be_used_again_after_it_was_forgotten() {
    let mut flow = reach("ready");
    for _ in 0..3 {
        flow.step(Event::WantAll(5), NOW);
        assert_eq!(flow.unsettled(5), 2);
        flow.step(Event::Forget(5), NOW);
        recount(&flow);
    }
    flow.step(Event::Want(5, vec![2]), NOW);
    flow.step(Event::Flush(5), NOW);
    assert_eq!(flow.unsettled(5), 1);
}

#[test]
fn after_a_stop_nothing_begins_and_nothing_is_due() {
    let mut flow = reach("ready");
    flow.step(Event::UploadFailed(2, Failure::Unreachable), Mono(0));
    flow.step(Event::Stop, Mono(0));
    for at in [0, 1_000, 100_000] {
        assert_eq!(flow.step(Event::Tick, Mono(at)), []);
        assert_eq!(flow.next_deadline(), None);
    }
}

#[test]
fn no_deadline_stays_in_the_past_while_queries_wait_and_the_cache_is_away() {
    let mut flow = flow(1);
    flow.step(admit(vec![push(2, &[], &[])]), Mono(0));
    flow.step(missing([2]), Mono(0));
    flow.step(admit(vec![push(1, &[], &[])]), Mono(0));
    let transient = Failure::Transient { retry_after: None };
    flow.step(Event::AskFailed { cache: MAIN, failure: transient }, Mono(0));
    flow.step(Event::UploadFailed(2, Failure::Unreachable), Mono(0));
    for _ in 0..20 {
        let Some(due) = flow.next_deadline() else { panic!("it must be probed") };
        let actions = flow.step(Event::Tick, due);
        assert!(flow.next_deadline().is_none_or(|next| next > due), "spins at {due:?}");
        if actions.contains(&Action::Probe(MAIN)) {
            flow.step(Event::Probed(MAIN, Err(Failure::Unreachable)), due);
        }
    }
}
