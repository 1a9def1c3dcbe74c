//! Where the intake begins: the cursor of the last life, and what that left
//! unsettled.

use std::collections::HashMap;

use super::begin;
use super::{ITEMS, Intake, IntakeError};
use crate::daemon::push;
use crate::ledger::{Admit, Cursor, PushState};
use crate::observe::{detail, event};
use crate::store::PathInfo;
use crate::types::{StorePath, Wall};

impl Intake {
    /// Where to go on: where the ledger says, or at the store's present end.
    pub(super) fn first_cursor(&mut self) -> Result<Cursor, IntakeError> {
        let identity = self.nix_db.identity()?.to_string();
        match self.ledger.cursor()? {
            Some(cursor) if cursor.identity == identity && cursor.id <= self.nix_db.head()? => Ok(cursor),
            Some(cursor) => {
                event!(
                    DATABASE_REPLACED,
                    was = cursor.identity,
                    now = identity,
                    "the Nix database is another one than before: everything in it counts as new"
                );
                let cursor = Cursor { identity, id: 0 };
                self.windows().renumber();
                begin::note(&self.own_dir, &cursor);
                Ok(cursor)
            }
            None => {
                let head = self.nix_db.head()?;
                let id = match begin::noted(&self.own_dir, &identity).filter(|id| *id <= head) {
                    Some(id) => {
                        event!(
                            LEDGER_NEW,
                            "the ledger is new: what became valid since the first start counts as new"
                        );
                        id
                    }
                    None if self.existing => 0,
                    None => head,
                };
                let cursor = Cursor { identity, id };
                begin::note(&self.own_dir, &cursor);
                self.ledger.admit(Admit {
                    cursor: Some(cursor.clone()),
                    pushes: Vec::new(),
                    at: Wall::now().0,
                })?;
                Ok(cursor)
            }
        }
    }

    /// Tells the driver what an earlier life left unsettled; or, to `retry`,
    /// only what was given up, and that it is to be tried again.
    pub(super) fn restore(&mut self, retry: bool) -> Result<(), IntakeError> {
        let mut after = 0;
        let mut count = 0_usize;
        loop {
            let rows = self.ledger.unsettled(after, ITEMS)?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            let rows = rows.into_iter().filter(|row| !retry || row.state == PushState::Failed);
            let mut found: HashMap<u16, Vec<(PathInfo, i64, PushState)>> = HashMap::new();
            let mut reasons = Vec::new();
            for row in rows {
                let Some(cache) = self.number_of(&row.cache) else {
                    detail!(
                        cache = row.cache,
                        store_path = format!("{}/{}", self.store_dir.as_str(), row.path),
                        "left alone: its cache is not configured any more"
                    );
                    continue;
                };
                let info = match StorePath::parse(&row.path) {
                    Ok(path) => self.nix_db.info(&path)?,
                    Err(_) => None,
                };
                match info {
                    Some(info) => {
                        let state = if retry { PushState::Pending } else { row.state };
                        if state == PushState::Failed {
                            let unknown = || "no reason was recorded".to_owned();
                            let class = row.error_class.unwrap_or_default();
                            reasons.push((row.id, class, row.error.unwrap_or_else(unknown)));
                        }
                        found.entry(cache).or_default().push((info, row.id, state));
                    }
                    None => self.ledger.settle(row.id, push::collected(row.attempts)),
                }
            }
            for (cache, items) in found {
                count += items.len();
                let mine = reasons.extract_if(.., |r| items.iter().any(|(_, id, _)| *id == r.0)).collect();
                if retry {
                    self.ledger.reopen(&items.iter().map(|(_, id, _)| *id).collect::<Vec<_>>());
                }
                self.hand_over(cache, &items, &HashMap::new(), mine, retry)?;
            }
        }
        if count > 0 && !retry {
            event!(BACKLOG_RESUMED, paths = count, "taken up again from before the restart");
        }
        Ok(())
    }

    fn number_of(&self, cache: &str) -> Option<u16> {
        self.policy.caches.iter().position(|c| c.name == cache).and_then(|n| u16::try_from(n).ok())
    }
}
