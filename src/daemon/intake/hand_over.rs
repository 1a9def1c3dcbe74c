//! Writes planned pushes to the ledger, and reports the open ones to the driver.

use std::collections::HashMap;

use super::{Intake, IntakeError};
use crate::daemon::inbox::{DbRow, FoundPath, Input};
use crate::flow::{NewPush, Purpose};
use crate::ledger::{Admit, Cursor, Evidence, NewPushRow, PushState, SessionRow};
use crate::store::PathInfo;
use crate::types::{CacheId, Mono, PushId, StorePath, Wall};

/// A row on its way into the ledger.
pub(super) struct PlannedPush {
    pub(super) info: PathInfo,
    /// Pending, Upstream or Skipped.
    pub(super) state: PushState,
    /// The sessions that it belongs to.
    pub(super) sessions: Vec<(SessionRow, Evidence)>,
    /// A session with a path that needs it: it waits for it, and the push becomes its own
    /// only if it fails.
    pub(super) waits: Option<SessionRow>,
    /// What sent it to the cache, if it is no session's.
    pub(super) route: Option<String>,
}

/// Settings that all pushes of one admission share.
#[derive(Debug, Clone, Copy)]
pub(super) struct Terms {
    pub(super) cache: u16,
    /// The oldest confirmation of the other paths in the closures of the planned pushes.
    /// `None` when it is not known.
    pub(super) closure_at: Option<Mono>,
    /// Answers to questions that began earlier do not count.
    pub(super) ask_after: Mono,
    /// Whether failed pushes are retried.
    pub(super) retry: bool,
}

/// A push that is in the ledger.
pub(super) struct LedgerPush {
    pub(super) info: PathInfo,
    pub(super) id: PushId,
    pub(super) state: PushState,
    pub(super) sessions: Vec<SessionRow>,
    /// When it was taken in, in ms since 1970; 0 if it is not known.
    pub(super) seen_at: i64,
    /// It became pending when it was taken in.
    pub(super) is_new: bool,
}

impl Intake {
    /// Writes planned pushes of one cache, references first, to the ledger, in the same
    /// transaction as the cursor, and reports the open pushes to the driver.
    pub(super) fn admit(
        &mut self,
        terms: Terms,
        planned: Vec<PlannedPush>,
        cursor: Option<&Cursor>,
    ) -> Result<(), IntakeError> {
        let cache = &self.policy.caches[usize::from(terms.cache)].name;
        let item = |push: &PlannedPush| NewPushRow {
            cache: cache.clone(),
            path: push.info.path.base().to_owned(),
            nar_size: push.info.nar_size,
            valid_at: push.info.registered_at.saturating_mul(1000),
            state: push.state,
            retry_failed: terms.retry,
            sessions: push.sessions.clone(),
            needed_by: push.waits,
            route: push.route.clone(),
        };
        let pushes = planned.iter().map(item).collect();
        let at = Wall::now().0;
        let admitted = self.ledger.admit(Admit { cursor: cursor.cloned(), pushes, at })?;
        if !self.undecided_people()?.is_empty() {
            self.forget_undecided(planned.iter().map(|push| push.info.path.base().to_owned()).collect())?;
        }
        let mut found = Vec::with_capacity(planned.len());
        let mut upstream = Vec::new();
        for (push, (id, state, is_new)) in planned.into_iter().zip(admitted.pushes) {
            if push.state == PushState::Upstream && !is_open(state) {
                upstream.push(push.info);
            } else if push.state == PushState::Pending || is_open(state) {
                let sessions = push.sessions.iter().map(|(session, _)| *session).chain(push.waits);
                found.push(LedgerPush {
                    info: push.info,
                    id,
                    state,
                    sessions: sessions.collect(),
                    seen_at: at,
                    is_new,
                });
            }
        }
        self.confirm_upstream(terms, &upstream, &found);
        self.hand_over(terms, &found, Vec::new())
    }

    /// Notes paths that an upstream cache has as confirmed, except those with a pending
    /// push in their closure.
    fn confirm_upstream(&mut self, terms: Terms, upstream: &[PathInfo], found: &[LedgerPush]) {
        let at = terms.closure_at.min(Some(self.now()));
        let mut waits: std::collections::HashSet<&StorePath> =
            found.iter().map(|push| &push.info.path).collect();
        for info in upstream {
            if info.references.iter().any(|reference| waits.contains(reference)) {
                waits.insert(&info.path);
            } else {
                self.confirmed[usize::from(terms.cache)].settled(info.id, at);
            }
        }
    }

    /// Reports pushes to the driver, with the references that must be pushed first. The
    /// cache is asked again about pushes that the ledger has as confirmed.
    pub(super) fn hand_over(
        &mut self,
        terms: Terms,
        found: &[LedgerPush],
        reasons: Vec<(PushId, String, String)>,
    ) -> Result<(), IntakeError> {
        if found.is_empty() {
            return Ok(());
        }
        let cache = terms.cache;
        let mut known: HashMap<StorePath, Option<PushId>> =
            found.iter().map(|push| (push.info.path.clone(), Some(push.id))).collect();
        let references = found.iter().flat_map(|push| push.info.references.clone()).collect();
        let failed = self.find_references(cache, references, &mut known)?;
        let references = |info: &PathInfo| {
            let others = info.references.iter().filter(|r| **r != info.path);
            others.filter_map(|r| known.get(r).copied().flatten()).collect()
        };
        let new = |info: &PathInfo, id, purpose, sessions| NewPush {
            id,
            nar_size: info.nar_size,
            built: info.ultimate,
            references: references(info),
            sessions,
            purpose,
            closure_at: terms.closure_at,
            ask_after: terms.ask_after,
        };
        let place = |info: &PathInfo, id, seen_at, is_new| FoundPath {
            seen_at,
            is_new,
            push: id,
            row: DbRow { generation: self.generation, id: info.id },
            path: info.path.clone(),
            nar_size: info.nar_size,
        };
        let mut pushes = Vec::with_capacity(failed.len() + found.len());
        let mut paths = Vec::with_capacity(failed.len() + found.len());
        for (info, id) in failed.iter().rev() {
            pushes.push(new(info, *id, Purpose::Failed, Vec::new()));
            paths.push(place(info, *id, 0, false));
        }
        for LedgerPush { info, id, state, sessions, seen_at, is_new } in found {
            let purpose = match state {
                PushState::Pending | PushState::Uploading => Purpose::Wanted,
                PushState::Failed => Purpose::Failed,
                PushState::Upstream => Purpose::Upstream,
                PushState::Pushed | PushState::Cached | PushState::Skipped | PushState::Collected => {
                    Purpose::Recheck
                }
            };
            pushes.push(new(info, *id, purpose, sessions.clone()));
            paths.push(place(info, *id, *seen_at, *is_new));
        }
        for path in &paths {
            self.confirmed[usize::from(cache)].hand_on(path.row.id);
        }
        // Before the driver learns of the pushes, which relies on the protection, and after
        // everything that may have to be done again.
        let open = || found.iter().filter(|push| is_open(push.state));
        self.gc_roots.protect(cache, open().map(|push| (&push.info.path, push.info.nar_size)));
        for push in open().filter(|push| push.state == PushState::Failed) {
            self.gc_roots.keep_failed(cache, push.info.path.clone());
        }
        let (cache, retry, report) = (CacheId(cache), terms.retry, self.settlements.report());
        self.tell(Input::Found { cache, pushes, paths, reasons, retry, report })
    }

    /// Finds the pushes of references that are not among the pushes at hand, and adds
    /// them to `known`. Returns the failed ones, with those that they refer to,
    /// referrers first: the driver may have forgotten them, and nothing that refers to
    /// them may be uploaded.
    fn find_references(
        &self,
        cache: u16,
        mut unknown: Vec<StorePath>,
        known: &mut HashMap<StorePath, Option<PushId>>,
    ) -> Result<Vec<(PathInfo, PushId)>, IntakeError> {
        let mut failed = Vec::new();
        loop {
            unknown.retain(|path| !known.contains_key(path));
            unknown.sort_unstable();
            unknown.dedup();
            if unknown.is_empty() {
                return Ok(failed);
            }
            let names: Vec<String> = unknown.iter().map(|p| p.base().to_owned()).collect();
            let places = self.ledger.lookup(&self.policy.caches[usize::from(cache)].name, &names)?;
            for (path, place) in std::mem::take(&mut unknown).into_iter().zip(places) {
                if let Some((id, PushState::Failed, _)) = place
                    && let Some(info) = self.nix_db.db()?.info(&path)?
                {
                    unknown.extend(info.references.iter().cloned());
                    failed.push((info, id));
                }
                known.insert(path, place.map(|(id, _, _)| id));
            }
        }
    }
}

/// Whether a push in this state is still to be done, or can be retried.
fn is_open(state: PushState) -> bool {
    matches!(state, PushState::Pending | PushState::Uploading | PushState::Failed)
}
