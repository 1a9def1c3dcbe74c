//! The namings that wait for the intake: users take turns, the intake has one of each
//! user at a time, and a user's queue is bounded. Must not know what a naming is.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use super::Tuning;

/// The queue. `T` is a naming.
#[derive(Debug)]
pub(crate) struct NamingQueue<T> {
    tuning: Tuning,
    waiting: BTreeMap<u32, VecDeque<T>>,
    /// Users with a queue, the next one first.
    order: VecDeque<u32>,
    /// Users whose naming the intake has.
    at_intake: BTreeSet<u32>,
}

impl<T> NamingQueue<T> {
    pub(crate) fn new(tuning: Tuning) -> Self {
        Self { tuning, waiting: BTreeMap::new(), order: VecDeque::new(), at_intake: BTreeSet::new() }
    }

    /// Queues a naming. Returns it when the user's queue is full, unless it is
    /// `needed`: the end of a session must not be refused.
    pub(crate) fn push(&mut self, uid: u32, naming: T, needed: bool) -> Result<(), T> {
        let waiting = self.waiting.get(&uid).map_or(0, VecDeque::len);
        if !needed && waiting >= self.tuning.namings_of_user {
            return Err(naming);
        }
        let queue = self.waiting.entry(uid).or_insert_with(|| {
            self.order.push_back(uid);
            VecDeque::new()
        });
        queue.push_back(naming);
        Ok(())
    }

    /// Removes and returns the next naming that the intake may have.
    pub(crate) fn next(&mut self) -> Option<(u32, T)> {
        if self.at_intake.len() >= self.tuning.namings_at_intake {
            return None;
        }
        let at = self.order.iter().position(|uid| !self.at_intake.contains(uid))?;
        let uid = self.order.remove(at)?;
        let queue = self.waiting.get_mut(&uid)?;
        let naming = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&uid);
        } else {
            self.order.push_back(uid);
        }
        self.at_intake.insert(uid);
        Some((uid, naming))
    }

    /// Puts a naming back in front that the intake could not take.
    pub(crate) fn put_back(&mut self, uid: u32, naming: T) {
        self.at_intake.remove(&uid);
        let known = self.waiting.contains_key(&uid);
        self.waiting.entry(uid).or_default().push_front(naming);
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
            && self.order.iter().any(|uid| !self.at_intake.contains(uid))
    }
}
