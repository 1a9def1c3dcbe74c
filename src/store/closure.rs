//! Everything that some paths need, found in one pass over the database.
//!
//! Must not know: which paths are wanted; the caller says so path by path.

use std::collections::HashMap;

use rusqlite::CachedStatement;

use super::info::PathInfo;
use super::journal::{Journal, JournalError};
use super::path::StorePath;

/// A closure, or the part of it that was entered.
#[derive(Debug, Default)]
pub struct Closure {
    /// References before referrers.
    pub paths: Vec<PathInfo>,
    /// Roots that are not valid.
    pub invalid: Vec<StorePath>,
}

/// A path that was met.
struct Met {
    path: StorePath,
    /// Where it is in the list of entered paths.
    entered: Option<usize>,
}

/// A path that was entered, with the rows it refers to.
struct Entered {
    info: PathInfo,
    references: Vec<i64>,
}

impl Journal {
    /// Breadth-first over references from `roots`. `enter(id)` is asked once for
    /// each path met; false: neither reported nor descended into. It is called
    /// inside a read transaction, so it must not take long.
    ///
    /// The order holds between paths that are connected through entered ones.
    pub fn closure(
        &self,
        roots: &[StorePath],
        enter: &mut dyn FnMut(i64) -> bool,
    ) -> Result<Closure, JournalError> {
        // One snapshot: a collection that runs meanwhile cannot tear it.
        let snapshot = self.db.unchecked_transaction()?;
        let mut walk = Walk {
            journal: self,
            enter,
            row: self.by_id_query()?,
            path: self.db.prepare_cached("select path from ValidPaths where id = ?1")?,
            references: self.db.prepare_cached("select reference from Refs where referrer = ?1")?,
            met: HashMap::new(),
            entered: Vec::new(),
        };
        let mut invalid = Vec::new();
        for root in roots {
            match self.id_of(root)? {
                Some(id) => walk.meet(id)?,
                None => invalid.push(root.clone()),
            }
        }
        let mut at = 0;
        while at < walk.entered.len() {
            walk.descend(at)?;
            at += 1;
        }
        let Walk { entered, met, .. } = walk;
        let paths = in_order(entered, &met);
        snapshot.finish()?;
        Ok(Closure { paths, invalid })
    }
}

struct Walk<'a> {
    journal: &'a Journal,
    enter: &'a mut dyn FnMut(i64) -> bool,
    // Kept for the whole walk: looking each up anew costs as much as running it.
    row: CachedStatement<'a>,
    path: CachedStatement<'a>,
    references: CachedStatement<'a>,
    met: HashMap<i64, Met>,
    entered: Vec<Entered>,
}

impl Walk<'_> {
    fn meet(&mut self, id: i64) -> Result<(), JournalError> {
        if self.met.contains_key(&id) {
            return Ok(());
        }
        let (path, entered) = if (self.enter)(id) {
            let info = self.journal.by_id(&mut self.row, id)?;
            let path = info.path.clone();
            self.entered.push(Entered { info, references: Vec::new() });
            (path, Some(self.entered.len() - 1))
        } else {
            let path: String = self.path.query_row([id], |row| row.get(0))?;
            (self.journal.path_in(id, &path)?, None)
        };
        self.met.insert(id, Met { path, entered });
        Ok(())
    }

    fn descend(&mut self, at: usize) -> Result<(), JournalError> {
        let id = self.entered[at].info.id;
        let references: Vec<i64> =
            self.references.query_map([id], |row| row.get(0))?.collect::<Result<_, _>>()?;
        for &id in &references {
            self.meet(id)?;
        }
        let mut names: Vec<StorePath> =
            references.iter().filter_map(|id| self.met.get(id)).map(|met| met.path.clone()).collect();
        names.sort_unstable();
        self.entered[at].info.references = names;
        self.entered[at].references = references;
        Ok(())
    }
}

/// Depth-first, each path after what it refers to; a stack of its own, since
/// chains of references can be longer than a thread's stack allows.
fn in_order(entered: Vec<Entered>, met: &HashMap<i64, Met>) -> Vec<PathInfo> {
    let (mut infos, edges): (Vec<Option<PathInfo>>, Vec<Vec<usize>>) = entered
        .into_iter()
        .map(|e| (Some(e.info), e.references.iter().filter_map(|id| met.get(id)?.entered).collect()))
        .unzip();
    let mut seen = vec![false; infos.len()];
    let mut paths = Vec::with_capacity(infos.len());
    let mut stack: Vec<(usize, usize)> = Vec::new();
    for start in 0..edges.len() {
        if !std::mem::replace(&mut seen[start], true) {
            stack.push((start, 0));
        }
        while let Some((node, next)) = stack.last_mut() {
            if let Some(&reference) = edges[*node].get(*next) {
                *next += 1;
                if !std::mem::replace(&mut seen[reference], true) {
                    stack.push((reference, 0));
                }
            } else {
                paths.extend(infos[*node].take());
                stack.pop();
            }
        }
    }
    paths
}
