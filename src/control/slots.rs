//! Counts connections, in all and by user, and refuses one too many. Must not
//! know what a connection does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

/// How many there are, by uid.
#[derive(Debug)]
pub(super) struct Slots {
    all: usize,
    per_uid: usize,
    taken: Mutex<HashMap<u32, usize>>,
}

/// One connection's place; given back when dropped.
#[derive(Debug)]
pub(super) struct Slot {
    slots: Arc<Slots>,
    uid: u32,
}

impl Slots {
    pub(super) fn new(all: usize, per_uid: usize) -> Arc<Self> {
        Arc::new(Self { all, per_uid, taken: Mutex::default() })
    }

    /// A place, or why there is none.
    pub(super) fn take(self: &Arc<Self>, uid: u32) -> Result<Slot, String> {
        let mut taken = self.lock();
        if taken.values().sum::<usize>() >= self.all {
            return Err(format!("the daemon has its {} connections: try again later", self.all));
        }
        let mine = taken.entry(uid).or_default();
        if *mine >= self.per_uid {
            return Err(format!(
                "user {uid} has {} connections open, the most allowed: try again later",
                self.per_uid
            ));
        }
        *mine += 1;
        drop(taken);
        Ok(Slot { slots: Arc::clone(self), uid })
    }

    // A count is whole between two statements, so a panic elsewhere cannot have spoilt it.
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let mut taken = self.slots.lock();
        if let Some(mine) = taken.get_mut(&self.uid) {
            *mine -= 1;
            if *mine == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_hold_and_places_come_back() {
        let slots = Slots::new(3, 2);
        let first = slots.take(7).unwrap();
        let _second = slots.take(7).unwrap();
        assert!(slots.take(7).unwrap_err().contains("user 7"));
        let _other = slots.take(8).unwrap();
        assert!(slots.take(9).unwrap_err().contains("3 connections"));
        drop(first);
        slots.take(7).unwrap();
        assert_eq!(slots.lock().len(), 2, "users without connections are forgotten");
    }
}
