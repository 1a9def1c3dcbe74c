//! Copies realisations from the Nix database into the built-in cache. Must not know what
//! the cache does with them.

use super::IntakeError;
use crate::embedded::Realisations;
use crate::observe::detail;
use crate::store::{NixDb, RealisationTable};

/// Rows that are copied at a time.
const ROWS: usize = 512;

/// How far the tables of realisations are copied. Kept in memory only: a new start copies
/// everything again, which changes nothing.
pub(in crate::daemon) struct RealisationCopy {
    cache: Realisations,
    /// The identity of the database that the positions are about.
    identity: String,
    positions: [Position; RealisationTable::ALL.len()],
}

/// How far one table is copied.
#[derive(Debug, Clone, Copy, Default)]
struct Position {
    /// The last row that was copied.
    copied: i64,
    /// The last row that need not be copied again. Nix adds the dependencies of a
    /// realisation in a second step, so each row is copied by two looks.
    settled: i64,
}

impl RealisationCopy {
    /// Copies into this cache.
    pub(in crate::daemon) fn to(cache: Realisations) -> Self {
        Self { cache, identity: String::new(), positions: Default::default() }
    }

    /// Copies the rows that are new since the last call. `beat` is called for each batch.
    /// When the cache does not take them, the next call tries again.
    pub(super) fn look(
        &mut self,
        nix_db: &NixDb,
        identity: &str,
        beat: impl Fn(),
    ) -> Result<(), IntakeError> {
        if self.identity != identity {
            identity.clone_into(&mut self.identity);
            self.positions = Default::default();
        }
        for (table, position) in RealisationTable::ALL.into_iter().zip(&mut self.positions) {
            let head = nix_db.realisations_head(table)?;
            if head < position.copied {
                *position = Position::default();
            }
            if head == position.settled {
                continue;
            }
            let (before, mut at) = (position.copied, position.settled);
            loop {
                let rows = nix_db.realisations(table, at, ROWS)?;
                let Some((last, _)) = rows.last() else { break };
                at = *last;
                let realisations = rows.into_iter().filter_map(|(_, realisation)| realisation).collect();
                if !self.cache.publish(realisations) {
                    detail!("the built-in cache takes no realisations at the moment: they are copied later");
                    return Ok(());
                }
                beat();
            }
            *position = Position { copied: head.max(at), settled: before };
        }
        Ok(())
    }
}
