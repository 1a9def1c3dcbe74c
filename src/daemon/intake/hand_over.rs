//! Candidates into the ledger, and what of them is to be done to the driver.

use std::collections::HashMap;

use super::super::input::Input;
use super::super::wall_ms;
use super::{Intake, IntakeError};
use crate::flow::{CacheId, NewTask};
use crate::ledger::{Admit, Evidence, ItemState, NewItem, SessionRow};
use crate::store::{PathInfo, StorePath};

/// A path on its way into the ledger.
pub(super) struct Candidate {
    pub(super) info: PathInfo,
    pub(super) cache: u16,
    pub(super) state: ItemState,
    pub(super) sessions: Vec<(SessionRow, Evidence)>,
    pub(super) recheck_before: i64,
    pub(super) retry: bool,
}

impl Intake {
    /// Writes candidates of one cache, references first, and tells the driver
    /// what of them is to be done.
    pub(super) fn admit(
        &self,
        cache: u16,
        candidates: Vec<Candidate>,
        retry: bool,
    ) -> Result<(), IntakeError> {
        let items = candidates.iter().map(|c| self.new_item(c)).collect();
        let admitted = self.ledger.admit(Admit { cursor: None, items, at: wall_ms() })?;
        let mut sessions = HashMap::new();
        let mut found = Vec::new();
        for (candidate, (id, state, _)) in candidates.into_iter().zip(admitted.items) {
            if !candidate.sessions.is_empty() {
                sessions.insert(id, candidate.sessions.iter().map(|(s, _)| *s).collect());
            }
            found.push((candidate.info, id, state));
        }
        self.hand_over(cache, &found, &sessions, Vec::new(), retry)
    }

    fn new_item(&self, c: &Candidate) -> NewItem {
        NewItem {
            cache: self.wishes.caches[usize::from(c.cache)].clone(),
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
        items: &[(PathInfo, i64, ItemState)],
        sessions: &HashMap<i64, Vec<SessionRow>>,
        reasons: Vec<(i64, String, String)>,
        retry: bool,
    ) -> Result<(), IntakeError> {
        let open =
            |state: ItemState| matches!(state, ItemState::Pending | ItemState::Uploading | ItemState::Failed);
        let mut known: HashMap<&StorePath, Option<i64>> =
            items.iter().map(|(info, id, state)| (&info.path, open(*state).then_some(*id))).collect();
        let wanted: Vec<_> = items.iter().filter(|(_, _, state)| open(*state)).collect();
        if wanted.is_empty() {
            return Ok(());
        }
        // Before anybody may rely on it.
        self.keeper.protect(cache, wanted.iter().map(|(info, _, _)| &info.path));
        for (info, _, _) in wanted.iter().filter(|(_, _, state)| *state == ItemState::Failed) {
            self.keeper.park(cache, info.path.clone());
        }
        let mut elsewhere: Vec<&StorePath> = wanted
            .iter()
            .flat_map(|(info, _, _)| &info.references)
            .filter(|r| !known.contains_key(r))
            .collect();
        elsewhere.sort_unstable();
        elsewhere.dedup();
        let names: Vec<String> = elsewhere.iter().map(|p| p.base().to_owned()).collect();
        let places = self.ledger.lookup(&self.wishes.caches[usize::from(cache)], &names)?;
        for (path, place) in elsewhere.into_iter().zip(places) {
            known.insert(path, place.filter(|(_, state, _)| open(*state)).map(|(id, _, _)| id));
        }
        let tasks = wanted
            .iter()
            .map(|(info, id, state)| NewTask {
                id: *id,
                references: info
                    .references
                    .iter()
                    .filter(|r| **r != info.path)
                    .filter_map(|r| known.get(r).copied().flatten())
                    .collect(),
                sessions: sessions.get(id).cloned().unwrap_or_default(),
                parked: *state == ItemState::Failed,
            })
            .collect();
        let paths = wanted.iter().map(|(info, id, _)| (*id, info.path.clone())).collect();
        self.tell(Input::Found { cache: CacheId(cache), tasks, paths, reasons, retry })
    }
}
