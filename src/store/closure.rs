//! Everything that some paths need, found in one pass over the database.
//!
//! Must not know: which paths are wanted; the caller says so path by path.

use std::collections::HashMap;

use super::info::PathInfo;
use super::nix_db::{NixDb, NixDbError};
use crate::types::StorePath;

/// A closure as row numbers: what tens of thousands of paths need of memory
/// before they are looked at one by one.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClosureIds {
    /// References before referrers.
    pub ids: Vec<i64>,
    /// RootFiles that are not valid.
    pub invalid: Vec<StorePath>,
}

/// A closure, or the part of it that was entered.
#[derive(Debug, Default)]
pub struct Closure {
    /// References before referrers.
    pub paths: Vec<PathInfo>,
    /// RootFiles that are not valid.
    pub invalid: Vec<StorePath>,
}

impl NixDb {
    /// Breadth-first over references from `roots`. `enter(id)` is asked once for
    /// each path met; false: neither reported nor descended into. It is called
    /// inside a read transaction, so it must not take long.
    ///
    /// The order holds between paths that are connected through entered ones.
    pub fn closure(
        &self,
        roots: &[StorePath],
        enter: &mut dyn FnMut(i64) -> bool,
    ) -> Result<Closure, NixDbError> {
        // One snapshot: a collection that runs meanwhile cannot tear it.
        let snapshot = self.db.unchecked_transaction()?;
        let ClosureIds { ids, invalid } = self.walk(roots, enter)?;
        let paths = {
            let mut read = self.reader()?;
            ids.iter().map(|id| read.row(*id)).collect::<Result<_, _>>()?
        };
        snapshot.finish()?;
        Ok(Closure { paths, invalid })
    }

    /// The same as row numbers; [`NixDb::infos`] tells what they stand for.
    pub fn closure_ids(
        &self,
        roots: &[StorePath],
        enter: &mut dyn FnMut(i64) -> bool,
    ) -> Result<ClosureIds, NixDbError> {
        let snapshot = self.db.unchecked_transaction()?;
        let found = self.walk(roots, enter)?;
        snapshot.finish()?;
        Ok(found)
    }

    fn walk(
        &self,
        roots: &[StorePath],
        enter: &mut dyn FnMut(i64) -> bool,
    ) -> Result<ClosureIds, NixDbError> {
        let mut walk = Walk { enter, met: HashMap::new(), entered: Vec::new(), edges: Vec::new() };
        let mut invalid = Vec::new();
        for root in roots {
            match self.id_of(root)? {
                Some(id) => drop(walk.meet(id)),
                None => invalid.push(root.clone()),
            }
        }
        let mut query = self.db.prepare_cached("select reference from Refs where referrer = ?1")?;
        let mut at = 0;
        while at < walk.entered.len() {
            let mut rows = query.query([walk.entered[at]])?;
            let mut edges = Vec::new();
            while let Some(row) = rows.next()? {
                edges.extend(walk.meet(row.get(0)?));
            }
            walk.edges[at] = edges;
            at += 1;
        }
        let order = in_order(&walk.edges);
        Ok(ClosureIds { ids: order.into_iter().map(|at| walk.entered[at]).collect(), invalid })
    }
}

struct Walk<'a> {
    enter: &'a mut dyn FnMut(i64) -> bool,
    /// Rows that were met, and where among the entered ones they are.
    met: HashMap<i64, Option<usize>>,
    entered: Vec<i64>,
    /// What each entered row refers to, of the entered ones.
    edges: Vec<Vec<usize>>,
}

impl Walk<'_> {
    fn meet(&mut self, id: i64) -> Option<usize> {
        if let Some(known) = self.met.get(&id) {
            return *known;
        }
        let place = (self.enter)(id).then_some(self.entered.len());
        if place.is_some() {
            self.entered.push(id);
            self.edges.push(Vec::new());
        }
        self.met.insert(id, place);
        place
    }
}

/// Depth-first, each path after what it refers to; a stack of its own, since
/// chains of references can be longer than a thread's stack allows.
fn in_order(edges: &[Vec<usize>]) -> Vec<usize> {
    let mut seen = vec![false; edges.len()];
    let mut order = Vec::with_capacity(edges.len());
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
                order.push(*node);
                stack.pop();
            }
        }
    }
    order
}
