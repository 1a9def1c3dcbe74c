//! Takes in rows with their closures: either the whole closures, or only the rows that
//! are not known to be in the cache.

use std::collections::{HashMap, HashSet};

use super::confirmed::Memory;
use super::hand_over::{PlannedPush, Terms};
use super::{ITEMS, Intake, IntakeError};
use crate::ledger::Cursor;
use crate::store::PathInfo;
use crate::types::Mono;

/// Which rows of the closures are taken in, beside the roots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Enter {
    /// Rows that the driver does not have and that were not confirmed within
    /// `recheck_after`.
    Unconfirmed,
    /// All rows.
    Everything,
}

/// Rows of one cache that are taken in with their closures.
pub(super) struct Roots {
    pub(super) cache: u16,
    pub(super) rows: Vec<i64>,
    /// Rows that were read already.
    pub(super) in_hand: HashMap<i64, PathInfo>,
    pub(super) enter: Enter,
    /// Answers to questions that began earlier do not count.
    pub(super) ask_after: Mono,
    /// Whether failed pushes are retried.
    pub(super) retry: bool,
}

impl Intake {
    /// Takes in the roots with their closures, in chunks, references first. `plan` makes
    /// a planned push of each row; `aside` is taken in as well, without a closure. The
    /// cursor moves with the last chunk. Returns the rows that were entered.
    pub(super) fn take_in(
        &mut self,
        roots: Roots,
        plan: &mut dyn FnMut(&Self, PathInfo) -> PlannedPush,
        aside: Vec<PlannedPush>,
        cursor: Option<&Cursor>,
    ) -> Result<Vec<i64>, IntakeError> {
        let Roots { cache, rows, mut in_hand, enter, ask_after, retry } = roots;
        let now = self.now();
        let memory = &mut self.confirmed[usize::from(cache)];
        memory.turn(now);
        let chosen: HashSet<i64> = rows.iter().copied().collect();
        let mut closure_at = Mono::MAX;
        let known = |row| in_hand.get(&row).map(|info| &info.reference_ids[..]);
        let entered = self.nix_db.db()?.closure_beyond(&rows, &known, &mut |row| {
            if enter == Enter::Everything || chosen.contains(&row) {
                return true;
            }
            match memory.of(row) {
                Memory::Unknown => true,
                Memory::HandedOn => false,
                Memory::Since(at) => {
                    closure_at = closure_at.min(at);
                    false
                }
            }
        })?;
        let terms = Terms { cache, closure_at: Some(closure_at), ask_after, retry };
        let mut chunks = entered.chunks(ITEMS).peekable();
        while let Some(chunk) = chunks.next() {
            let missing: Vec<i64> = chunk.iter().filter(|row| !in_hand.contains_key(row)).copied().collect();
            let mut read: HashMap<i64, PathInfo> =
                self.nix_db.db()?.infos(&missing)?.into_iter().map(|info| (info.id, info)).collect();
            let infos = chunk.iter().filter_map(|row| in_hand.remove(row).or_else(|| read.remove(row)));
            let planned = infos.map(|info| plan(self, info)).collect();
            let is_last = chunks.peek().is_none() && aside.is_empty();
            self.admit(terms, planned, cursor.filter(|_| is_last))?;
        }
        if !aside.is_empty() || (entered.is_empty() && cursor.is_some()) {
            self.admit(terms, aside, cursor)?;
        }
        Ok(entered)
    }
}
