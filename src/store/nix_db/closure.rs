//! Closures, by row id.
//!
//! Must not know: which paths are wanted; the caller decides for each row.

use std::collections::HashMap;

use rusqlite::Connection;

use super::{NixDb, NixDbError};

impl NixDb {
    /// The ids of the closure of the rows `roots`, references before referrers,
    /// found breadth-first in one snapshot. `enter(id)` is asked for each row
    /// that is met: `false` leaves it out and does not descend into it. The
    /// order holds between rows that are connected through entered rows.
    ///
    /// `enter` must not have effects that add up and must be fast: it is called
    /// within the read transaction, and asked again when a writer interfered.
    /// [`Self::infos`] reads the rows; ids alone keep a closure of tens of
    /// thousands of paths small.
    pub fn closure(&self, roots: &[i64], enter: &mut dyn FnMut(i64) -> bool) -> Result<Vec<i64>, NixDbError> {
        self.closure_beyond(roots, &|_| None, enter)
    }

    /// The same where `known` returns the references of rows that were read already:
    /// these are not read again.
    pub(crate) fn closure_beyond<'a>(
        &self,
        roots: &[i64],
        known: &dyn Fn(i64) -> Option<&'a [i64]>,
        enter: &mut dyn FnMut(i64) -> bool,
    ) -> Result<Vec<i64>, NixDbError> {
        self.reading.read(|db| traverse(db, roots, known, enter))
    }
}

fn traverse<'a>(
    db: &Connection,
    roots: &[i64],
    known: &dyn Fn(i64) -> Option<&'a [i64]>,
    enter: &mut dyn FnMut(i64) -> bool,
) -> Result<Vec<i64>, NixDbError> {
    let mut graph = Graph { enter, known: HashMap::new(), entered: Vec::new(), references: Vec::new() };
    for root in roots {
        graph.node(*root);
    }
    let mut query = db.prepare_cached("select reference from Refs where referrer = ?1")?;
    let mut at = 0;
    while at < graph.entered.len() {
        let mut references = Vec::new();
        if let Some(ids) = known(graph.entered[at]) {
            references.extend(ids.iter().filter_map(|id| graph.node(*id)));
        } else {
            let mut rows = query.query([graph.entered[at]])?;
            while let Some(row) = rows.next()? {
                references.extend(graph.node(row.get(0)?));
            }
        }
        graph.references[at] = references;
        at += 1;
    }
    Ok(references_first(&graph.references).into_iter().map(|at| graph.entered[at]).collect())
}

struct Graph<'a> {
    enter: &'a mut dyn FnMut(i64) -> bool,
    /// The rows that were met, each with its place among the entered ones.
    known: HashMap<i64, Option<usize>>,
    entered: Vec<i64>,
    /// For each entered row the places of its references that were entered.
    references: Vec<Vec<usize>>,
}

impl Graph<'_> {
    /// The place of a row; `None` when it is not entered.
    fn node(&mut self, id: i64) -> Option<usize> {
        if let Some(known) = self.known.get(&id) {
            return *known;
        }
        let place = (self.enter)(id).then_some(self.entered.len());
        if place.is_some() {
            self.entered.push(id);
            self.references.push(Vec::new());
        }
        self.known.insert(id, place);
        place
    }
}

/// Depth-first, each node after its references. Uses its own stack, because
/// chains of references can be longer than a thread's stack allows.
fn references_first(references: &[Vec<usize>]) -> Vec<usize> {
    let mut visited = vec![false; references.len()];
    let mut order = Vec::with_capacity(references.len());
    let mut stack: Vec<(usize, usize)> = Vec::new();
    for start in 0..references.len() {
        if !std::mem::replace(&mut visited[start], true) {
            stack.push((start, 0));
        }
        while let Some((node, next)) = stack.last_mut() {
            if let Some(&reference) = references[*node].get(*next) {
                *next += 1;
                if !std::mem::replace(&mut visited[reference], true) {
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
