//! The namings that wait for the intake: users take turns, the intake has one of each
//! user at a time, and a user's queue is bounded. Must not know what a naming is.

use std::collections::{BTreeMap, VecDeque};

use super::Tuning;

/// The queue. `T` is a naming.
#[derive(Debug)]
pub(crate) struct NamingQueue<T> {
    tuning: Tuning,
    /// For each user the namings that wait, and whether each counts against the user's limit.
    waiting: BTreeMap<u32, VecDeque<(bool, T)>>,
    /// Users with a queue, the next one first.
    order: VecDeque<u32>,
    /// Users whose naming the intake has, and whether it counts once it is put back.
    at_intake: BTreeMap<u32, bool>,
}

impl<T> NamingQueue<T> {
    pub(crate) fn new(tuning: Tuning) -> Self {
        Self { tuning, waiting: BTreeMap::new(), order: VecDeque::new(), at_intake: BTreeMap::new() }
    }

    /// Queues a naming. A `needed` one (the end of a session, a question of the daemon's own)
    /// is never refused and does not count against the user's limit: sessions that end
    /// together must not keep their user from asking. Returns any other naming when the user
    /// has reached the limit.
    pub(crate) fn push(&mut self, uid: u32, naming: T, needed: bool) -> Result<(), T> {
        let counted = |queue: &VecDeque<(bool, T)>| queue.iter().filter(|(counts, _)| *counts).count();
        if !needed && self.waiting.get(&uid).map_or(0, counted) >= self.tuning.namings_of_user {
            return Err(naming);
        }
        let queue = self.waiting.entry(uid).or_insert_with(|| {
            self.order.push_back(uid);
            VecDeque::new()
        });
        queue.push_back((!needed, naming));
        Ok(())
    }

    /// Returns the namings of a user that wait, in order.
    pub(crate) fn waiting_of(&self, uid: u32) -> impl Iterator<Item = &T> {
        self.waiting.get(&uid).into_iter().flatten().map(|(_, naming)| naming)
    }

    /// Removes and returns the next naming that the intake may have.
    pub(crate) fn next(&mut self) -> Option<(u32, T)> {
        if self.at_intake.len() >= self.tuning.namings_at_intake {
            return None;
        }
        let at = self.order.iter().position(|uid| !self.at_intake.contains_key(uid))?;
        let uid = self.order.remove(at)?;
        let queue = self.waiting.get_mut(&uid)?;
        let (counts, naming) = queue.pop_front()?;
        if queue.is_empty() {
            self.waiting.remove(&uid);
        } else {
            self.order.push_back(uid);
        }
        self.at_intake.insert(uid, counts);
        Some((uid, naming))
    }

    /// Puts a naming back in front that the intake could not take.
    pub(crate) fn put_back(&mut self, uid: u32, naming: T) {
        let counts = self.at_intake.remove(&uid).unwrap_or(false);
        let known = self.waiting.contains_key(&uid);
        self.waiting.entry(uid).or_default().push_front((counts, naming));
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
