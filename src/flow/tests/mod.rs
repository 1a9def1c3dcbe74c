//! Tests of the decisions, one file for each concern, and what the files share.

use crate::types::{CacheId, Mono, PushId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

use super::push::Phase;
use super::{Action, CacheLimits, Event, Flow, NewPush, Outcome, Purpose};

mod backoff;
mod breaker;
mod client;
mod concurrency;
mod failed;
mod fairness;
mod herd;
mod hold;
mod model;
mod no_verdict;
mod other_hosts;
mod scale;
mod sim;
mod transitions;

const MAIN: CacheId = CacheId(0);

/// The duration of an upload in tests that do not depend on it.
const TOOK: std::time::Duration = std::time::Duration::from_millis(5);

/// Returns decisions about one cache with at most `most` uploads at a time.
fn flow(most: u32) -> Flow {
    Flow::new(&[CacheLimits { least: 1, most }], 7)
}

fn push(id: PushId, references: &[PushId], sessions: &[SessionId]) -> NewPush {
    NewPush {
        id,
        references: references.to_vec(),
        sessions: sessions.to_vec(),
        purpose: Purpose::Wanted,
        closure_at: Some(Mono::MAX),
        ask_after: Mono(0),
        nar_size: 0,
        built: false,
    }
}

fn admit(pushes: Vec<NewPush>) -> Event {
    Event::Admit { cache: MAIN, pushes }
}

fn missing(ids: impl IntoIterator<Item = PushId>) -> Event {
    Event::Asked { cache: MAIN, present: Vec::new(), missing: ids.into_iter().collect() }
}

fn phase(flow: &Flow, id: PushId) -> Option<Phase> {
    flow.pushes.get(&id).map(|push| push.phase)
}

fn uploads(actions: &[Action]) -> Vec<PushId> {
    actions.iter().filter_map(|a| if let Action::Upload(_, id, _) = a { Some(*id) } else { None }).collect()
}

/// Answers every query with "missing" until none follows. Returns the uploads that
/// began.
fn ask_through(flow: &mut Flow, mut actions: Vec<Action>, now: Mono) -> Vec<PushId> {
    let mut begun = uploads(&actions);
    while let Some(ids) =
        actions.iter().find_map(|a| if let Action::Ask(_, ids) = a { Some(ids.clone()) } else { None })
    {
        actions = flow.step(missing(ids), now);
        begun.extend(uploads(&actions));
    }
    begun
}

/// Counts everything anew and compares with the kept counts; checks that both ends
/// of every reference agree.
fn recount(flow: &Flow) {
    for (index, cache) in flow.caches.iter().enumerate() {
        let all = || flow.pushes.iter().map(|(_, push)| push);
        let here = || all().filter(|push| usize::from(push.cache.0) == index);
        assert_eq!(cache.pushes, here().count());
        assert_eq!(cache.failed, here().filter(|push| push.is_failed()).count());
        assert_eq!(cache.uploading as usize, here().filter(|push| push.phase == Phase::Uploading).count());
        let asking = here().filter(|push| push.phase == Phase::Asking).count();
        assert!(asking <= cache.asking.as_ref().map_or(0, Vec::len));
    }
    let mut named: BTreeMap<SessionId, BTreeSet<PushId>> = BTreeMap::new();
    for (id, push) in flow.pushes.iter() {
        for s in push.sessions.iter() {
            assert!(named.entry(s).or_default().insert(id), "{id} names {s} twice");
        }
        for r in push.references.iter() {
            assert!(flow.pushes[&r].referrers.iter().any(|r| r == id), "{r} does not know that {id} waits");
        }
        for r in push.referrers.iter() {
            assert!(flow.pushes[&r].references.iter().any(|r| r == id), "{r} does not wait for {id}");
        }
        if matches!(push.phase, Phase::Ready | Phase::Uploading | Phase::Resting(_)) {
            assert!(push.references.is_empty(), "{id} is {:?} before its references", push.phase);
        }
        if push.phase == Phase::Held {
            assert!(!push.references.is_empty(), "{id} is held without a reference");
            assert!(
                !push.references.iter().any(|r| flow.pushes[&r].is_failed()),
                "{id} waits for a failed one"
            );
        }
        if push.urgent && !push.is_failed() {
            let back = |r: &PushId| !flow.pushes[r].is_failed() && !flow.pushes[r].urgent;
            assert_eq!(push.references.iter().find(back), None, "a reference of urgent {id} is not urgent");
        }
    }
    for (s, group) in &flow.groups {
        let pushes = named.remove(s).unwrap_or_default();
        assert_eq!(group.pushes, pushes, "pushes of session {s}");
        let unsettled = pushes.iter().filter(|id| !flow.pushes[*id].is_failed()).count();
        assert_eq!(group.unsettled as usize, unsettled, "unsettled pushes of session {s}");
    }
    assert_eq!(named.len(), 0, "pushes name sessions that are not known");
}

/// The cache deletes paths: an upload that began before that was noticed may be of one that
/// was deleted as well. It confirms nothing, and who refers to it has its closure asked about again.
#[test]
fn an_upload_from_before_a_deletion_confirms_nothing() {
    let mut flow = flow(4);
    flow.step(admit(vec![push(1, &[], &[]), push(2, &[1], &[])]), Mono(0));
    flow.step(missing([1, 2]), Mono(1));
    assert!(flow.pushes[&1].phase == Phase::Uploading && flow.pushes[&2].phase == Phase::Held);
    let recorded = NewPush { purpose: Purpose::Recheck, ..push(3, &[], &[]) };
    flow.step(admit(vec![recorded]), Mono(5));
    let actions = flow.step(missing([3]), Mono(6));
    assert!(actions.contains(&Action::Distrust(MAIN, Mono(5))), "{actions:?}");
    let actions = flow.step(Event::Uploaded(1, TOOK), Mono(7));
    assert!(actions.contains(&Action::Settled(1, Outcome::Pushed)), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Confirmed(..))), "{actions:?}");
    assert!(actions.contains(&Action::Recheck(MAIN, vec![2])), "{actions:?}");
}

/// Who admits a push has not learned yet that the cache has deleted paths, and names an older
/// confirmation of the push's closure.
#[test]
fn what_was_confirmed_before_a_deletion_does_not_count_for_a_push_that_is_admitted_later() {
    let mut flow = flow(4);
    let recorded = NewPush { purpose: Purpose::Recheck, ..push(1, &[], &[]) };
    flow.step(admit(vec![recorded]), Mono(5));
    let actions = flow.step(missing([1]), Mono(6));
    assert!(actions.contains(&Action::Distrust(MAIN, Mono(5))), "{actions:?}");
    let referrer = |id, at| NewPush { closure_at: Some(Mono(at)), ..push(id, &[], &[]) };
    flow.step(admit(vec![referrer(2, 4), referrer(3, 5)]), Mono(7));
    let actions = flow.step(missing([2, 3]), Mono(8));
    assert_eq!(uploads(&actions), [3]);
    assert!(actions.contains(&Action::Recheck(MAIN, vec![2])), "{actions:?}");
    // The same of its closure that is read again.
    flow.step(admit(vec![referrer(2, 4)]), Mono(9));
    assert_eq!(phase(&flow, 2), Some(Phase::Stale));
}

/// An early answer counts what is only remembered as confirmed as pending. That the cache does
/// not have it still shows that it deletes paths.
#[test]
fn a_deletion_is_noticed_after_an_early_answer() {
    let mut flow = flow(4);
    let recorded = NewPush { purpose: Purpose::Recheck, ..push(1, &[], &[7]) };
    flow.step(admit(vec![recorded, push(2, &[], &[7])]), Mono(5));
    let actions = flow.step(Event::Unconfirmed(7), Mono(6));
    assert!(actions.contains(&Action::Wanted(vec![1])), "{actions:?}");
    let actions = flow.step(Event::Unconfirmed(7), Mono(6));
    assert!(!actions.iter().any(|action| matches!(action, Action::Wanted(_))), "{actions:?}");
    let actions = flow.step(missing([1, 2]), Mono(7));
    assert!(actions.contains(&Action::Distrust(MAIN, Mono(5))), "{actions:?}");
    assert!(!actions.iter().any(|action| matches!(action, Action::Wanted(_))), "{actions:?}");
}

#[test]
fn what_an_upstream_had_is_wanted_and_the_cache_has_deleted_nothing() {
    for (purpose, distrusted) in [(Purpose::Upstream, false), (Purpose::Recheck, true)] {
        let mut flow = flow(4);
        let recorded = NewPush { purpose, ..push(1, &[], &[]) };
        flow.step(admit(vec![recorded, push(2, &[], &[])]), Mono(0));
        let actions = flow.step(missing([1, 2]), Mono(1));
        assert!(actions.contains(&Action::Wanted(vec![1])), "{purpose:?}: {actions:?}");
        assert_eq!(
            actions.contains(&Action::Distrust(MAIN, Mono(0))),
            distrusted,
            "{purpose:?}: {actions:?}"
        );
        // An upstream's answer is as old as its question.
        let actions = flow.step(Event::InUpstream(1, Mono(0)), Mono(9));
        assert!(actions.contains(&Action::Confirmed(1, Mono(0))), "{purpose:?}: {actions:?}");
    }
}
