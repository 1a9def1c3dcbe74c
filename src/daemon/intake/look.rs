//! Reading the Nix database: what became valid since the cursor, which of it is
//! wanted, and what a replaced database means.

use std::collections::HashMap;
use std::time::Instant;

use super::hand_over::PlannedPush;
use super::{ITEMS, Intake, IntakeError};
use crate::attribution::{Evidence as Why, Owners};
use crate::daemon::inbox::Input;
use crate::daemon::intake::begin;
use crate::daemon::intake::rules::enters_as;
use crate::daemon::intake::seen::Seen;
use crate::ledger::{Admit, Cursor, Evidence, PushState, SessionRow};
use crate::observe::event;
use crate::store::{NixDb, PathInfo};
use crate::types::{StorePath, Wall};

/// Rows that are taken from the Nix database at a time.
const ROWS: usize = 256;

impl Intake {
    /// Takes in what became valid since the cursor.
    pub(super) fn look(&mut self, cursor: &mut Cursor, seen: &mut [Seen]) -> Result<(), IntakeError> {
        self.reopen_if_replaced(cursor, seen)?;
        let began = Instant::now();
        loop {
            let rows = self.nix_db.rows(cursor.id, ROWS)?;
            let Some(last) = rows.last() else { break };
            self.room()?;
            let next = Cursor { identity: cursor.identity.clone(), id: last.id };
            rows.iter().for_each(|row| self.client.sighted(row.path.base()));
            // Their locks' events came before: what they tell is known then.
            self.lock_watcher.catch_up();
            self.take_rows(rows, Some(&next), seen)?;
            *cursor = next;
            self.tell(Input::Cursor(cursor.id))?;
        }
        // The same file with another content, as after a restored backup.
        if self.nix_db.head()? < cursor.id {
            self.begin_again(cursor, seen);
            return self.look(cursor, seen);
        }
        self.lock_watcher.sweep(began);
        Ok(())
    }

    /// A hook spoke of paths that were taken in before it did: they belong to
    /// who made them, whoever was thought to have.
    pub(super) fn hooked(&mut self, paths: &[StorePath], seen: &mut [Seen]) -> Result<(), IntakeError> {
        let mut rows = Vec::new();
        for path in paths.iter().filter(|p| self.lock_watcher.is_hooked(p.base())) {
            rows.extend(self.nix_db.info(path)?);
        }
        if rows.is_empty() { Ok(()) } else { self.take_rows(rows, None, seen) }
    }

    fn reopen_if_replaced(&mut self, cursor: &mut Cursor, seen: &mut [Seen]) -> Result<(), IntakeError> {
        if self.nix_db.identity().is_ok_and(|identity| identity.to_string() == cursor.identity) {
            return Ok(());
        }
        // In the middle of being replaced this fails, and is tried again.
        self.nix_db = NixDb::open(&self.state_dir, &self.store_dir)?;
        let identity = self.nix_db.identity()?.to_string();
        // It may have been away only for a moment.
        if identity != cursor.identity {
            cursor.identity = identity;
            self.begin_again(cursor, seen);
        }
        Ok(())
    }

    fn begin_again(&self, cursor: &mut Cursor, seen: &mut [Seen]) {
        cursor.id = 0;
        seen.iter_mut().for_each(Seen::clear);
        self.windows().renumber();
        begin::note(&self.own_dir, cursor);
        event!(DATABASE_REPLACED, "the Nix database was replaced: everything in it counts as new");
    }

    fn take_rows(
        &mut self,
        rows: Vec<PathInfo>,
        next: Option<&Cursor>,
        seen: &mut [Seen],
    ) -> Result<(), IntakeError> {
        let windows = self.windows().clone();
        let mut roots: Vec<Vec<i64>> = self.policy.caches.iter().map(|_| Vec::new()).collect();
        let mut owned: HashMap<i64, Vec<(SessionRow, Evidence)>> = HashMap::new();
        let mut aside: Vec<Vec<PlannedPush>> = self.policy.caches.iter().map(|_| Vec::new()).collect();
        for info in rows {
            let maker = self.lock_watcher.maker(info.path.base());
            let owners = windows.owners(info.id, maker.as_ref());
            if next.is_none() {
                let owner = owners.sessions.first().map_or(0, |(session, _)| *session);
                self.ledger.claim(owner, &[info.path.base().to_owned()])?;
            }
            let unowned = || self.unowned(&info, maker.as_ref());
            let Some(cache) = owners.cache.unwrap_or_else(unowned) else { continue };
            let sessions: Vec<_> = owners.sessions.into_iter().map(|(s, why)| (s, evidence(why))).collect();
            let state = enters_as(
                &self.policy.filter,
                self.policy.caches[usize::from(cache)].upstream_keys.have_signed(&info),
                &info,
            );
            if state == PushState::Pending {
                owned.insert(info.id, sessions);
                roots[usize::from(cache)].push(info.id);
            } else if !sessions.is_empty() {
                let planned = PlannedPush { info, cache, state, sessions, recheck_before: 0, retry: false };
                aside[usize::from(cache)].push(planned);
            }
        }
        for (cache, (roots, aside)) in (0_u16..).zip(roots.into_iter().zip(aside)) {
            let mut enter = |id: i64| owned.contains_key(&id) || !seen[usize::from(cache)].contains(id);
            let ids = self.nix_db.closure(&roots, &mut enter)?;
            for ids in ids.chunks(ITEMS) {
                let planned = |info: PathInfo| {
                    let root = owned.remove(&info.id);
                    let upstream = root.is_none()
                        && self.policy.caches[usize::from(cache)].upstream_keys.have_signed(&info);
                    let state = if upstream { PushState::Upstream } else { PushState::Pending };
                    // One that was left out at first and is wanted now: those whose it is follow it.
                    let sessions = root.unwrap_or_else(|| {
                        let maker = self.lock_watcher.maker(info.path.base());
                        self.whose(&windows.owners(info.id, maker.as_ref()), cache)
                    });
                    PlannedPush { info, cache, state, sessions, recheck_before: 0, retry: false }
                };
                let planned = self.nix_db.infos(ids)?.into_iter().map(planned).collect();
                self.admit(cache, planned, false)?;
                ids.iter().for_each(|id| seen[usize::from(cache)].insert(*id));
            }
            if !aside.is_empty() {
                self.admit(cache, aside, false)?;
            }
        }
        // Last, so that what a crash or a full disk cut off is read again.
        if let Some(next) = next {
            self.ledger.admit(Admit { cursor: Some(next.clone()), pushes: Vec::new(), at: Wall::now().0 })?;
        }
        Ok(())
    }

    /// The sessions of a path that goes to this cache on behalf of another path.
    fn whose(&self, owners: &Owners, cache: u16) -> Vec<(SessionRow, Evidence)> {
        // Who made it was asked and forgotten when it became valid: what only
        // could be several sessions' is given to none of them anew.
        let elsewhere = owners.cache.unwrap_or(Some(self.policy.default_cache.0)) != Some(cache);
        if elsewhere || owners.sessions.len() > 1 {
            return Vec::new();
        }
        owners.sessions.iter().map(|(s, why)| (*s, evidence(*why))).collect()
    }
}

fn evidence(why: Why) -> Evidence {
    match why {
        Why::Hook => Evidence::Hook,
        Why::Process => Evidence::Process,
        Why::Window => Evidence::Window,
        Why::Shared => Evidence::Shared,
    }
}
