//! Limits how many connections are open, in all and for each user. Must not know
//! what a connection does.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

/// Counts the open connections of each user and refuses those above the limits.
#[derive(Debug)]
pub(super) struct ConnectionLimit {
    all: usize,
    per_uid: usize,
    reserved: usize,
    own_uid: u32,
    taken: Mutex<HashMap<u32, usize>>,
}

/// Counts as one connection until it is dropped.
#[derive(Debug)]
pub(super) struct Permit {
    limit: Arc<ConnectionLimit>,
    uid: u32,
}

impl ConnectionLimit {
    /// Allows `all` connections at a time, `per_uid` of them by one user. The last
    /// `reserved` ones are for root and this process's user.
    pub(super) fn new(all: usize, per_uid: usize, reserved: usize) -> Arc<Self> {
        let own_uid = rustix::process::geteuid().as_raw();
        Arc::new(Self { all, per_uid, reserved, own_uid, taken: Mutex::default() })
    }

    /// Counts one more connection of `uid`. The error says which limit is reached.
    pub(super) fn take(self: &Arc<Self>, uid: u32) -> Result<Permit, String> {
        let mut taken = self.lock();
        let is_service = uid == 0 || uid == self.own_uid;
        let all = self.all.saturating_sub(if is_service { 0 } else { self.reserved });
        if taken.values().sum::<usize>() >= all {
            return Err(format!("all {all} connections of the daemon are in use: try again later"));
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
        Ok(Permit { limit: Arc::clone(self), uid })
    }

    // The counts are consistent between any two statements, so a poisoned lock can be used.
    fn lock(&self) -> MutexGuard<'_, HashMap<u32, usize>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let mut taken = self.limit.lock();
        if let Some(mine) = taken.get_mut(&self.uid) {
            *mine -= 1;
            if *mine == 0 {
                taken.remove(&self.uid);
            }
        }
    }
}

/// The time between two log entries about connections of one user that were refused.
const APART: Duration = Duration::from_secs(60);
/// The users for whom the times are kept.
const USERS: usize = 1024;

/// Counts connections that were refused, so that a user who tries again and again does not
/// fill the log.
#[derive(Debug, Default)]
pub(super) struct Refusals(HashMap<u32, (Instant, u64)>);

impl Refusals {
    /// Counts one more refusal of `uid`. Returns how many there were since the last log
    /// entry about this user, when it is time for another one.
    pub(super) fn due(&mut self, uid: u32, now: Instant) -> Option<u64> {
        if self.0.len() >= USERS && !self.0.contains_key(&uid) {
            self.0.retain(|_, (logged, _)| now.saturating_duration_since(*logged) < APART);
            if self.0.len() >= USERS {
                return None;
            }
        }
        let Some((logged, count)) = self.0.get_mut(&uid) else {
            self.0.insert(uid, (now, 0));
            return Some(1);
        };
        *count += 1;
        if now.saturating_duration_since(*logged) < APART {
            return None;
        }
        *logged = now;
        Some(std::mem::take(count))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_counted_and_not_logged_one_by_one() {
        let mut refusals = Refusals::default();
        let now = Instant::now();
        assert_eq!(refusals.due(7, now), Some(1));
        for _ in 0..500 {
            assert_eq!(refusals.due(7, now), None);
        }
        assert_eq!(refusals.due(8, now), Some(1), "another user");
        assert_eq!(refusals.due(7, now + APART), Some(501));
        assert_eq!(refusals.due(7, now + APART), None);
        for uid in 0..2000 {
            refusals.due(uid, now + APART * 3);
        }
        assert_eq!(refusals.0.len(), USERS);
    }

    #[test]
    fn limits_hold_and_a_dropped_permit_counts_no_more() {
        let limit = ConnectionLimit::new(4, 2, 1);
        let first = limit.take(7).unwrap();
        let _second = limit.take(7).unwrap();
        assert!(limit.take(7).unwrap_err().contains("user 7"));
        let _other = limit.take(8).unwrap();
        assert!(limit.take(9).unwrap_err().contains("all 3 connections"));
        let root = limit.take(0).expect("a connection is kept for root");
        assert!(limit.take(0).is_err());
        drop(root);
        drop(first);
        limit.take(7).unwrap();
        assert_eq!(limit.lock().len(), 2, "users without connections are forgotten");
    }
}
