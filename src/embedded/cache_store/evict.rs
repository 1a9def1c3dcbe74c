//! Eviction when the cache is full: it removes the least recently used paths, and
//! with a path all of its referrers, so that every other path keeps its closure. A
//! use of a path counts as a use of its references too.
//! Must not touch files: it returns the ones to remove once the transaction is durable.

use std::collections::HashMap;

use rusqlite::{Connection, Transaction};

use super::writer::ROW;
use crate::types::{NarHash, PathHash};

/// The rows that a transaction has removed, and the files to remove after it.
#[derive(Default)]
pub(super) struct Removed {
    pub(super) paths: usize,
    pub(super) bytes: u64,
    /// Files that have no row after the transaction.
    pub(super) files: Vec<NarHash>,
}

impl Removed {
    pub(super) fn add(&mut self, more: Self) {
        self.paths += more.paths;
        self.bytes += more.bytes;
        self.files.extend(more.files);
    }
}

/// Returns the approximate size of everything stored, in bytes, as the writer counts it.
pub(super) fn size(connection: &Connection) -> rusqlite::Result<u64> {
    let nars: i64 = connection.query_row("SELECT coalesce(sum(file_size), 0) FROM nar", [], |r| r.get(0))?;
    let sql = "SELECT coalesce(sum(length(refs) + ?1), 0) FROM path";
    let paths: i64 = connection.query_row(sql, [i64::try_from(ROW).unwrap_or(0)], |r| r.get(0))?;
    Ok(u64::try_from(nars + paths).unwrap_or(0))
}

/// Removes paths, least recently used first, until `bytes` are free. NARs in `pinned` stay.
pub(super) fn make_room(
    tx: &Transaction<'_>,
    bytes: u64,
    pinned: &HashMap<NarHash, usize>,
) -> rusqlite::Result<Removed> {
    let mut graph = Graph::load(tx)?;
    let mut removal = Removal::new(tx, &mut graph, pinned);
    removal.unreferenced_nars()?;
    for victim in removal.graph.oldest_first() {
        if removal.removed.bytes >= bytes {
            break;
        }
        removal.path_and_referrers(victim)?;
    }
    Ok(removal.removed)
}

/// Removes NARs whose content is lost, with every path that needs them.
pub(super) fn drop_nars(tx: &Transaction<'_>, nars: &[i64]) -> rusqlite::Result<Removed> {
    if nars.is_empty() {
        return Ok(Removed::default());
    }
    let mut graph = Graph::load(tx)?;
    let lost: Vec<usize> =
        (0..graph.paths.len()).filter(|&p| nars.contains(&graph.nars[graph.paths[p].nar].id)).collect();
    let nobody = HashMap::new();
    let mut removal = Removal::new(tx, &mut graph, &nobody);
    for path in lost {
        removal.path_and_referrers(path)?;
    }
    removal.unreferenced_nars()?;
    Ok(removal.removed)
}

struct PathNode {
    id: i64,
    nar: usize,
    cache: u32,
    used_at: i64,
    bytes: u64,
    references: Vec<u32>,
    referrers: Vec<u32>,
    gone: bool,
}

struct NarNode {
    id: i64,
    hash: NarHash,
    bytes: u64,
    in_file: bool,
    users: usize,
    gone: bool,
}

struct Graph {
    paths: Vec<PathNode>,
    nars: Vec<NarNode>,
}

impl Graph {
    fn load(tx: &Transaction<'_>) -> rusqlite::Result<Self> {
        let mut nars = Vec::new();
        let mut nar_by_id = HashMap::new();
        let mut query = tx.prepare("SELECT id, hash, file_size, data IS NULL FROM nar")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            nar_by_id.insert(r.get::<_, i64>(0)?, nars.len());
            let bytes = u64::try_from(r.get::<_, i64>(2)?).unwrap_or(0);
            let hash = NarHash(r.get(1)?);
            nars.push(NarNode { id: r.get(0)?, hash, bytes, in_file: r.get(3)?, users: 0, gone: false });
        }
        // References resolve within one cache: the same path in another cache is another row.
        let mut caches: HashMap<String, u32> = HashMap::new();
        let mut by_name: HashMap<(u32, PathHash), usize> = HashMap::new();
        let mut paths: Vec<PathNode> = Vec::new();
        let mut query =
            tx.prepare("SELECT id, nar, used_at, cache, hash, length(refs) FROM path ORDER BY id")?;
        let mut rows = query.query([])?;
        while let Some(r) = rows.next()? {
            // The foreign key guarantees that the NAR exists.
            let Some(&nar) = nar_by_id.get(&r.get::<_, i64>(1)?) else {
                return Err(rusqlite::Error::InvalidQuery);
            };
            let (name, hash): (String, String) = (r.get(3)?, r.get(4)?);
            let next = u32::try_from(caches.len()).unwrap_or(u32::MAX);
            let cache = *caches.entry(name).or_insert(next);
            if let Ok(hash) = PathHash::parse(&hash) {
                by_name.insert((cache, hash), paths.len());
            }
            nars[nar].users += 1;
            let bytes = ROW + u64::try_from(r.get::<_, i64>(5)?).unwrap_or(0);
            let edges = (Vec::new(), Vec::new());
            let (id, used_at) = (r.get(0)?, r.get(2)?);
            paths.push(PathNode {
                id,
                nar,
                cache,
                used_at,
                bytes,
                references: edges.0,
                referrers: edges.1,
                gone: false,
            });
        }
        let mut query = tx.prepare("SELECT refs FROM path ORDER BY id")?;
        let mut rows = query.query([])?;
        for referrer in 0..paths.len() {
            let Some(r) = rows.next()? else { break };
            let cache = paths[referrer].cache;
            for base in r.get_ref(0)?.as_str()?.split(' ').filter_map(|base| base.get(..32)) {
                let Ok(name) = PathHash::parse(base) else { continue };
                if let Some(&reference) = by_name.get(&(cache, name))
                    && reference != referrer
                {
                    paths[referrer].references.push(u32::try_from(reference).unwrap_or(u32::MAX));
                    paths[reference].referrers.push(u32::try_from(referrer).unwrap_or(u32::MAX));
                }
            }
        }
        Ok(Self { paths, nars })
    }

    /// Returns the paths, least recently used first. A path is as recent as its most
    /// recent referrer: nobody asks for a library that every host already has, and yet
    /// it must stay.
    fn oldest_first(&self) -> Vec<usize> {
        let mut newest_first: Vec<usize> = (0..self.paths.len()).collect();
        newest_first.sort_by_key(|&p| std::cmp::Reverse((self.paths[p].used_at, self.paths[p].id)));
        let mut reached = vec![false; self.paths.len()];
        let mut order = Vec::with_capacity(self.paths.len());
        // Depth first, references before their referrer. The reversed order removes a referrer before its references.
        let mut stack: Vec<(usize, usize)> = Vec::new();
        for root in newest_first {
            if !std::mem::replace(&mut reached[root], true) {
                stack.push((root, 0));
            }
            while let Some((path, next)) = stack.last_mut() {
                match self.paths[*path].references.get(*next) {
                    None => {
                        order.push(*path);
                        stack.pop();
                    }
                    Some(&reference) => {
                        *next += 1;
                        let reference = reference as usize;
                        if !std::mem::replace(&mut reached[reference], true) {
                            stack.push((reference, 0));
                        }
                    }
                }
            }
        }
        order.reverse();
        order
    }
}

struct Removal<'a> {
    tx: &'a Transaction<'a>,
    graph: &'a mut Graph,
    pinned: &'a HashMap<NarHash, usize>,
    removed: Removed,
}

impl<'a> Removal<'a> {
    fn new(tx: &'a Transaction<'a>, graph: &'a mut Graph, pinned: &'a HashMap<NarHash, usize>) -> Self {
        Self { tx, graph, pinned, removed: Removed::default() }
    }

    fn path_and_referrers(&mut self, path: usize) -> rusqlite::Result<()> {
        let mut stack = vec![path];
        while let Some(path) = stack.pop() {
            if std::mem::replace(&mut self.graph.paths[path].gone, true) {
                continue;
            }
            stack.extend(self.graph.paths[path].referrers.iter().map(|&r| r as usize));
            let (id, nar, bytes) =
                (self.graph.paths[path].id, self.graph.paths[path].nar, self.graph.paths[path].bytes);
            self.tx.prepare_cached("DELETE FROM path WHERE id = ?1")?.execute([id])?;
            self.removed.paths += 1;
            self.removed.bytes += bytes;
            self.graph.nars[nar].users = self.graph.nars[nar].users.saturating_sub(1);
            self.nar_if_unused(nar)?;
        }
        Ok(())
    }

    fn unreferenced_nars(&mut self) -> rusqlite::Result<()> {
        (0..self.graph.nars.len()).try_for_each(|nar| self.nar_if_unused(nar))
    }

    fn nar_if_unused(&mut self, nar: usize) -> rusqlite::Result<()> {
        let nar = &mut self.graph.nars[nar];
        if nar.users > 0 || nar.gone || self.pinned.contains_key(&nar.hash) {
            return Ok(());
        }
        nar.gone = true;
        self.tx.prepare_cached("DELETE FROM nar WHERE id = ?1")?.execute([nar.id])?;
        self.removed.bytes += nar.bytes;
        if nar.in_file {
            self.removed.files.push(nar.hash);
        }
        Ok(())
    }
}
