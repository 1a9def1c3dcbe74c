//! Planned pushes into the ledger, and what of them is to be done to the driver.

use std::collections::HashMap;

use super::{Intake, IntakeError};
use crate::daemon::inbox::Input;
use crate::flow::NewPush;
use crate::ledger::{Admit, Evidence, NewPushRow, PushState, SessionRow};
use crate::store::PathInfo;
use crate::types::{CacheId, StorePath, Wall};

/// A path on its way into the ledger.
pub(super) struct PlannedPush {
    pub(super) info: PathInfo,
    pub(super) cache: u16,
    pub(super) state: PushState,
    pub(super) sessions: Vec<(SessionRow, Evidence)>,
    pub(super) recheck_before: i64,
    pub(super) retry: bool,
}

impl Intake {
    /// Writes planned of one cache, references first, and tells the driver
    /// what of them is to be done.
    pub(super) fn admit(
        &self,
        cache: u16,
        planned: Vec<PlannedPush>,
        retry: bool,
    ) -> Result<(), IntakeError> {
        let pushes = planned.iter().map(|c| self.new_item(c)).collect();
        let admitted = self.ledger.admit(Admit { cursor: None, pushes, at: Wall::now().0 })?;
        let mut sessions = HashMap::new();
        let mut found = Vec::new();
        for (planned, (id, state, _)) in planned.into_iter().zip(admitted.pushes) {
            if !planned.sessions.is_empty() {
                sessions.insert(id, planned.sessions.iter().map(|(s, _)| *s).collect());
            }
            found.push((planned.info, id, state));
        }
        self.hand_over(cache, &found, &sessions, Vec::new(), retry)
    }

    fn new_item(&self, c: &PlannedPush) -> NewPushRow {
        NewPushRow {
            cache: self.policy.caches[usize::from(c.cache)].name.clone(),
            path: c.info.path.base().to_owned(),
            nar_size: c.info.nar_size,
            state: c.state,
            recheck_before: c.recheck_before,
            retry_failed: c.retry,
            sessions: c.sessions.clone(),
        }
    }

    /// Tells the driver what of `items` is unsettled, with the references that
    /// must come first.
    pub(super) fn hand_over(
        &self,
        cache: u16,
        items: &[(PathInfo, i64, PushState)],
        sessions: &HashMap<i64, Vec<SessionRow>>,
        reasons: Vec<(i64, String, String)>,
        retry: bool,
    ) -> Result<(), IntakeError> {
        let mut known: HashMap<StorePath, Option<i64>> =
            items.iter().map(|(info, id, state)| (info.path.clone(), open(*state).then_some(*id))).collect();
        let wanted: Vec<_> = items.iter().filter(|(_, _, state)| open(*state)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        // Before anybody may rely on it.
        self.gc_roots.protect(cache, wanted.iter().map(|(info, _, _)| &info.path));
        for (info, _, _) in wanted.iter().filter(|(_, _, state)| *state == PushState::Failed) {
            self.gc_roots.park(cache, info.path.clone());
        }
        let references = wanted.iter().flat_map(|(info, _, _)| info.references.clone()).collect();
        let given_up = self.find_references(cache, references, &mut known)?;
        let references = |info: &PathInfo| {
            let others = info.references.iter().filter(|r| **r != info.path);
            others.filter_map(|r| known.get(r).copied().flatten()).collect()
        };
        let parked = given_up.iter().rev().map(|(info, id)| NewPush {
            id: *id,
            nar_size: info.nar_size,
            references: references(info),
            sessions: Vec::new(),
            failed: true,
        });
        let pushes = wanted.iter().map(|(info, id, state)| NewPush {
            id: *id,
            nar_size: info.nar_size,
            references: references(info),
            sessions: sessions.get(id).cloned().unwrap_or_default(),
            failed: *state == PushState::Failed,
        });
        let pushes = parked.chain(pushes).collect();
        let paths = given_up.iter().map(|(info, id)| (*id, info.path.clone()));
        let paths = paths.chain(wanted.iter().map(|(info, id, _)| (*id, info.path.clone()))).collect();
        self.tell(Input::Found { cache: CacheId(cache), pushes, paths, reasons, retry })
    }
    /// Where references stand that are not among the items: those that are not
    /// settled get their numbers into `known`. Given-up ones are returned, with
    /// those that they refer to, referrers first: the driver may have forgotten
    /// them, and nothing may be sent before them.
    fn find_references(
        &self,
        cache: u16,
        mut unknown: Vec<StorePath>,
        known: &mut HashMap<StorePath, Option<i64>>,
    ) -> Result<Vec<(PathInfo, i64)>, IntakeError> {
        let mut given_up = Vec::new();
        loop {
            unknown.retain(|path| !known.contains_key(path));
            unknown.sort_unstable();
            unknown.dedup();
            if unknown.is_empty() {
                return Ok(given_up);
            }
            let names: Vec<String> = unknown.iter().map(|p| p.base().to_owned()).collect();
            let places = self.ledger.lookup(&self.policy.caches[usize::from(cache)].name, &names)?;
            for (path, place) in std::mem::take(&mut unknown).into_iter().zip(places) {
                let place = place.filter(|(_, state, _)| open(*state));
                if let Some((id, PushState::Failed, _)) = place
                    && let Some(info) = self.nix_db.info(&path)?
                {
                    unknown.extend(info.references.iter().cloned());
                    given_up.push((info, id));
                }
                known.insert(path, place.map(|(id, _, _)| id));
            }
        }
    }
}

/// Not settled.
fn open(state: PushState) -> bool {
    matches!(state, PushState::Pending | PushState::Uploading | PushState::Failed)
}
