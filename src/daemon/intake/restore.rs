//! The intake's first steps after a start: it finds the cursor, and reports the pushes
//! that an earlier run left unsettled.

use std::collections::BTreeMap;

use super::hand_over::{LedgerPush, Terms};
use super::{ABSENT, ITEMS, Intake, IntakeError, standing};
use crate::config::Existing;
use crate::daemon::push;
use crate::ledger::{Admit, Cursor, PushState};
use crate::observe::{detail, event};
use crate::types::{Mono, StorePath, Wall};

impl Intake {
    /// Returns the cursor to go on from: the ledger's, which [`Self::look`] compares with
    /// the database, or at the first start the one that the configuration asks for. All
    /// rows of a database that appears after the first start are new.
    pub(super) fn first_cursor(&mut self) -> Result<Cursor, IntakeError> {
        // First, because this opens the database.
        let (identity, head, _) = self.look_at_database()?;
        if let Some(cursor) = self.ledger.cursor()? {
            self.marks = standing::read(&cursor.marks);
            return Ok(cursor);
        }
        let id = if let Some(id) = self.baseline.start(&identity, head) {
            event!(LEDGER_NEW, "the ledger is new: what became valid since the first start counts as new");
            id
        } else {
            let id = self.first_row(head)?;
            self.baseline.note(&identity, id, Wall::now().seconds());
            id
        };
        self.marks.clear();
        let last = self.nix_db.db()?.rows(id.saturating_sub(1), 1)?;
        if let Some(last) = last.first().filter(|row| row.id == id) {
            standing::add(&mut self.marks, last.mark());
        }
        let cursor = Cursor { identity, id, marks: standing::written(&self.marks) };
        self.ledger.admit(Admit { cursor: Some(cursor.clone()), pushes: Vec::new(), at: Wall::now().0 })?;
        Ok(cursor)
    }

    /// The last row that is old at the very first start.
    fn first_row(&self, head: i64) -> Result<i64, IntakeError> {
        if self.was_absent || self.ledger.meta(ABSENT)?.is_some() {
            return Ok(0);
        }
        Ok(match self.existing {
            Existing::Yes => 0,
            Existing::No => head,
            Existing::SinceBoot => {
                boot_time().map_or(Ok(head), |boot| self.nix_db.db()?.last_before(boot))?
            }
        })
    }

    /// Reports the unsettled pushes of an earlier run to the driver, to the caches from number
    /// `first` on. With `retry` it reopens the failed pushes and reports only these.
    pub(super) fn restore(&mut self, first: u16, retry: bool) -> Result<(), IntakeError> {
        let mut after = 0;
        let mut count = 0_usize;
        loop {
            let rows = self.ledger.unsettled(after, ITEMS)?;
            let Some(last) = rows.last() else { break };
            after = last.id;
            let rows = rows.into_iter().filter(|row| !retry || row.state == PushState::Failed);
            let mut found: BTreeMap<u16, Vec<LedgerPush>> = BTreeMap::new();
            let mut reasons = Vec::new();
            for row in rows {
                let Some(cache) = self.number_of(&row.cache) else {
                    detail!(
                        cache = row.cache,
                        store_path = format!("{}/{}", self.store_dir.as_str(), row.path),
                        "the push is left as it is: its cache is not configured any more"
                    );
                    continue;
                };
                if cache < first {
                    continue;
                }
                let info = match StorePath::parse(&row.path) {
                    Ok(path) => self.nix_db.db()?.info(&path)?,
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
                        let sessions = Vec::new();
                        let push = LedgerPush {
                            info,
                            id: row.id,
                            state,
                            sessions,
                            seen_at: row.seen_at,
                            is_new: false,
                        };
                        found.entry(cache).or_default().push(push);
                    }
                    None => self.ledger.settle(row.id, push::collected(row.attempts)),
                }
            }
            for (cache, items) in found {
                count += items.len();
                let ids: std::collections::HashSet<i64> = items.iter().map(|push| push.id).collect();
                let mine = reasons.extract_if(.., |reason| ids.contains(&reason.0)).collect();
                if retry {
                    self.ledger.reopen(&items.iter().map(|push| push.id).collect::<Vec<_>>());
                }
                // The ledger does not keep when their closures were confirmed.
                let terms = Terms { cache, closure_at: None, ask_after: Mono(0), retry };
                self.hand_over(terms, &items, mine)?;
            }
        }
        if count > 0 && !retry {
            event!(BACKLOG_RESUMED, paths = count, "{count} pushes from before the restart continue");
        }
        Ok(())
    }

    pub(super) fn number_of(&self, cache: &str) -> Option<u16> {
        self.policy.caches.iter().position(|c| c.name == cache).and_then(|n| u16::try_from(n).ok())
    }
}

/// When the machine booted, in Unix seconds.
fn boot_time() -> Option<i64> {
    let stat = std::fs::read_to_string("/proc/stat").ok()?;
    stat.lines().find_map(|line| line.strip_prefix("btime "))?.trim().parse().ok()
}
