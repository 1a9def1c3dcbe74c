//! The namings that wait for the intake: users take turns, the intake has one of each
//! user at a time, a user's queue is bounded, and equal ones are one. Must not know what a
//! naming is.

use std::collections::{BTreeMap, VecDeque};

use super::Tuning;
use crate::types::{CacheId, SessionId};

/// What a push asks for. `P` is a set of named paths. Pushes of one user that are equal have
/// the same answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PushSubject<P> {
    /// The configuration of the routes, which changes with a reload.
    pub(crate) rules: u64,
    /// The user's group, by which a route may go.
    pub(crate) gid: u32,
    /// The cache that was named. `None`: the routes decide.
    pub(crate) cache: Option<CacheId>,
    pub(crate) paths: P,
}

/// What a naming that somebody waits for asks for. A later request of the same user for an
/// equal subject is answered by the same naming, as long as the intake does not have it: an
/// answer must not be older than its question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Subject<P> {
    /// The end of a session, with these paths.
    End(SessionId, P),
    /// A push.
    Push(PushSubject<P>),
    /// Everything.
    Flush,
}

/// How a naming is queued.
#[derive(Debug)]
struct Terms<P> {
    /// It counts against the user's limit.
    counts: bool,
    /// What its callers ask for. `None`: it is a question of the daemon's own.
    subject: Option<Subject<P>>,
}

/// The queue. `T` is a naming.
#[derive(Debug)]
pub(crate) struct NamingQueue<P, T> {
    tuning: Tuning,
    /// The namings of each user that wait.
    waiting: BTreeMap<u32, VecDeque<(Terms<P>, T)>>,
    /// Users with a queue, the next one first.
    order: VecDeque<u32>,
    /// Users whose naming the intake has, and how it is queued once it is put back.
    at_intake: BTreeMap<u32, Terms<P>>,
}

impl<P: PartialEq, T> NamingQueue<P, T> {
    pub(crate) fn new(tuning: Tuning) -> Self {
        Self { tuning, waiting: BTreeMap::new(), order: VecDeque::new(), at_intake: BTreeMap::new() }
    }

    /// Queues a naming. A `needed` one (the end of a session, a question of the daemon's own)
    /// is never refused and does not count against the user's limit: sessions that end
    /// together must not keep their user from asking. Returns any other naming when the user
    /// has reached the limit.
    pub(crate) fn push(
        &mut self,
        uid: u32,
        subject: Option<Subject<P>>,
        naming: T,
        needed: bool,
    ) -> Result<(), T> {
        let counted =
            |queue: &VecDeque<(Terms<P>, T)>| queue.iter().filter(|(terms, _)| terms.counts).count();
        if !needed && self.waiting.get(&uid).map_or(0, counted) >= self.tuning.namings_of_user {
            return Err(naming);
        }
        let queue = self.waiting.entry(uid).or_insert_with(|| {
            self.order.push_back(uid);
            VecDeque::new()
        });
        queue.push_back((Terms { counts: !needed, subject }, naming));
        Ok(())
    }

    /// Returns a user's naming that waits and has an equal subject.
    pub(crate) fn equal(&self, uid: u32, subject: &Subject<P>) -> Option<&T> {
        let mut waiting = self.waiting.get(&uid).into_iter().flatten();
        waiting.find(|(terms, _)| terms.subject.as_ref() == Some(subject)).map(|(_, naming)| naming)
    }

    /// Removes and returns the next naming that the intake may have.
    pub(crate) fn next(&mut self) -> Option<(u32, T)> {
        if self.at_intake.len() >= self.tuning.namings_at_intake {
            return None;
        }
        let at = self.order.iter().position(|uid| !self.at_intake.contains_key(uid))?;
        let uid = self.order.remove(at)?;
        let queue = self.waiting.get_mut(&uid)?;
        let (terms, naming) = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&uid);
        } else {
            self.order.push_back(uid);
        }
        self.at_intake.insert(uid, terms);
        Some((uid, naming))
    }

    /// Puts a naming back in front that the intake could not take.
    pub(crate) fn put_back(&mut self, uid: u32, naming: T) {
        let own = Terms { counts: false, subject: None };
        let terms = self.at_intake.remove(&uid).unwrap_or(own);
        let known = self.waiting.contains_key(&uid);
        self.waiting.entry(uid).or_default().push_front((terms, naming));
        if known {
            self.order.retain(|user| *user != uid);
        }
        self.order.push_front(uid);
    }

    /// The intake has finished a user's naming.
    pub(crate) fn finished(&mut self, uid: u32) {
        self.at_intake.remove(&uid);
    }

    /// Returns whether a naming waits that the intake may have.
    #[cfg(test)]
    pub(super) fn has_next(&self) -> bool {
        self.at_intake.len() < self.tuning.namings_at_intake
            && self.order.iter().any(|uid| !self.at_intake.contains_key(uid))
    }
}
