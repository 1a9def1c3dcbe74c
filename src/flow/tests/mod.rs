//! Tests of the decisions, a file a concern, and what they share.

use std::collections::{BTreeMap, BTreeSet};

use super::task::Phase;
use super::{Action, CacheId, CacheLimits, Event, Flow, NewTask, SessionId, TaskId, Time};

mod backoff;
mod client;
mod fairness;
mod gate;
mod given_up;
mod herd;
mod hold;
mod model;
mod scale;
mod sim;
mod transitions;

const MAIN: CacheId = CacheId(0);

/// One cache, at most `most` uploads at a time.
fn flow(most: u32) -> Flow {
    Flow::new(&[CacheLimits { least: 1, most }], 7)
}

fn task(id: TaskId, references: &[TaskId], sessions: &[SessionId]) -> NewTask {
    NewTask { id, references: references.to_vec(), sessions: sessions.to_vec(), parked: false }
}

fn admit(tasks: Vec<NewTask>) -> Event {
    Event::Admit { cache: MAIN, tasks }
}

fn missing(ids: impl IntoIterator<Item = TaskId>) -> Event {
    Event::Asked { cache: MAIN, present: Vec::new(), missing: ids.into_iter().collect() }
}

fn phase(flow: &Flow, id: TaskId) -> Option<Phase> {
    flow.tasks.get(&id).map(|t| t.phase)
}

fn uploads(actions: &[Action]) -> Vec<TaskId> {
    actions.iter().filter_map(|a| if let Action::Upload(_, id, _) = a { Some(*id) } else { None }).collect()
}

/// Answers every query with "missing" until no more comes; returns the uploads begun.
fn ask_through(flow: &mut Flow, mut actions: Vec<Action>, now: Time) -> Vec<TaskId> {
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
        let here = || flow.tasks.values().filter(|t| usize::from(t.cache.0) == index);
        assert_eq!(c.tasks, here().count());
        assert_eq!(c.parked, here().filter(|t| t.is_parked()).count());
        assert_eq!(c.uploading as usize, here().filter(|t| t.phase == Phase::Uploading).count());
        let asking = here().filter(|t| t.phase == Phase::Asking).count();
        assert!(asking <= c.asking.as_ref().map_or(0, Vec::len));
    }
    let mut named: BTreeMap<SessionId, BTreeSet<TaskId>> = BTreeMap::new();
    for (&id, t) in &flow.tasks {
        for &s in &t.sessions {
            assert!(named.entry(s).or_default().insert(id), "{id} names {s} twice");
        }
        for r in &t.references {
            assert!(flow.tasks[r].referrers.iter().any(|r| r == id), "{r} does not know that {id} waits");
        }
        for r in t.referrers.iter() {
            assert!(flow.tasks[&r].references.contains(&id), "{r} does not wait for {id}");
        }
        if matches!(t.phase, Phase::Ready | Phase::Uploading | Phase::Resting(_)) {
            assert!(t.references.is_empty(), "{id} is {:?} before its references", t.phase);
        }
        if t.phase == Phase::Held {
            assert!(!t.references.is_empty(), "{id} is held by nothing");
            assert!(!t.references.iter().any(|r| flow.tasks[r].is_parked()), "{id} waits for a parked one");
        }
        if t.urgent && !t.is_parked() {
            let back = |r: &&TaskId| !flow.tasks[*r].is_parked() && !flow.tasks[*r].urgent;
            assert_eq!(t.references.iter().find(back), None, "a reference of urgent {id} is not urgent");
        }
    }
    for (s, group) in &flow.groups {
        let tasks = named.remove(s).unwrap_or_default();
        assert_eq!(group.tasks, tasks, "tasks of group {s}");
        let unsettled = tasks.iter().filter(|t| !flow.tasks[*t].is_parked()).count();
        assert_eq!(group.unsettled as usize, unsettled, "unsettled of group {s}");
    }
    assert_eq!(named.len(), 0, "tasks name groups that are gone");
}
