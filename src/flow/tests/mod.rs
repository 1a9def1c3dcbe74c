//! Tests of the decisions, a file a concern, and what they share.

use crate::types::{CacheId, Mono, PushId, SessionId};
use std::collections::{BTreeMap, BTreeSet};

use super::push::Phase;
use super::{Action, CacheLimits, Event, Flow, NewPush};

mod backoff;
mod breaker;
mod client;
mod concurrency;
mod failed;
mod fairness;
mod herd;
mod hold;
mod model;
mod scale;
mod sim;
mod transitions;

const MAIN: CacheId = CacheId(0);

/// How long an upload took, where that does not matter.
const TOOK: std::time::Duration = std::time::Duration::from_millis(5);

/// One cache, at most `most` uploads at a time.
fn flow(most: u32) -> Flow {
    Flow::new(&[CacheLimits { least: 1, most }], 7)
}

fn push(id: PushId, references: &[PushId], sessions: &[SessionId]) -> NewPush {
    NewPush { id, references: references.to_vec(), sessions: sessions.to_vec(), failed: false, nar_size: 0 }
}

fn admit(pushes: Vec<NewPush>) -> Event {
    Event::Admit { cache: MAIN, pushes }
}

fn missing(ids: impl IntoIterator<Item = PushId>) -> Event {
    Event::Asked { cache: MAIN, present: Vec::new(), missing: ids.into_iter().collect() }
}

fn phase(flow: &Flow, id: PushId) -> Option<Phase> {
    flow.pushes.get(&id).map(|t| t.phase)
}

fn uploads(actions: &[Action]) -> Vec<PushId> {
    actions.iter().filter_map(|a| if let Action::Upload(_, id, _) = a { Some(*id) } else { None }).collect()
}

/// Answers every query with "missing" until no more comes; returns the uploads begun.
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

/// What is counted is what is there, and both ends of every edge agree.
fn recount(flow: &Flow) {
    for (index, c) in flow.caches.iter().enumerate() {
        let here = || flow.pushes.values().filter(|t| usize::from(t.cache.0) == index);
        assert_eq!(c.pushes, here().count());
        assert_eq!(c.failed, here().filter(|t| t.is_failed()).count());
        assert_eq!(c.uploading as usize, here().filter(|t| t.phase == Phase::Uploading).count());
        let asking = here().filter(|t| t.phase == Phase::Asking).count();
        assert!(asking <= c.asking.as_ref().map_or(0, Vec::len));
    }
    let mut named: BTreeMap<SessionId, BTreeSet<PushId>> = BTreeMap::new();
    for (&id, t) in &flow.pushes {
        for &s in &t.sessions {
            assert!(named.entry(s).or_default().insert(id), "{id} names {s} twice");
        }
        for r in &t.references {
            assert!(flow.pushes[r].referrers.iter().any(|r| r == id), "{r} does not know that {id} waits");
        }
        for r in t.referrers.iter() {
            assert!(flow.pushes[&r].references.contains(&id), "{r} does not wait for {id}");
        }
        if matches!(t.phase, Phase::Ready | Phase::Uploading | Phase::Resting(_)) {
            assert!(t.references.is_empty(), "{id} is {:?} before its references", t.phase);
        }
        if t.phase == Phase::Held {
            assert!(!t.references.is_empty(), "{id} is held by nothing");
            assert!(!t.references.iter().any(|r| flow.pushes[r].is_failed()), "{id} waits for a failed one");
        }
        if t.urgent && !t.is_failed() {
            let back = |r: &&PushId| !flow.pushes[*r].is_failed() && !flow.pushes[*r].urgent;
            assert_eq!(t.references.iter().find(back), None, "a reference of urgent {id} is not urgent");
        }
    }
    for (s, group) in &flow.groups {
        let pushes = named.remove(s).unwrap_or_default();
        assert_eq!(group.pushes, pushes, "pushes of group {s}");
        let unsettled = pushes.iter().filter(|t| !flow.pushes[*t].is_failed()).count();
        assert_eq!(group.unsettled as usize, unsettled, "unsettled of group {s}");
    }
    assert_eq!(named.len(), 0, "pushes name groups that are gone");
}
