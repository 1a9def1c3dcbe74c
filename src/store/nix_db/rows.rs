//! Rows of the Nix database as [`PathInfo`].
//!
//! Must not know: transactions; the caller holds one.

use rusqlite::{CachedStatement, Connection, OptionalExtension as _, Row};

use super::RowContent;
use super::error::NixDbError;
use super::identity::Mark;
use crate::store::PathInfo;
use crate::store::source_path::is_source;
use crate::types::{NarHash, StoreDir, StorePath};

/// Selects the columns that [`Rows::info`] reads, and adds a condition.
macro_rules! rows {
    ($which:literal) => {
        concat!(
            "select id, path, hash, narSize, deriver, ultimate, sigs, ca, registrationTime from ValidPaths ",
            $which
        )
    };
}

const REFERENCES: &str =
    "select v.path, v.id from Refs r join ValidPaths v on v.id = r.reference where r.referrer = ?1";

/// Reads rows within the caller's transaction.
pub(super) struct Rows<'a> {
    pub(super) db: &'a Connection,
    pub(super) store_dir: &'a StoreDir,
}

impl Rows<'_> {
    /// Rows above `after`, ascending, at most `limit`. Rows that cannot be
    /// understood go to `bad` with the reason and do not count.
    pub(super) fn after(
        &self,
        after: i64,
        limit: usize,
        bad: &mut Vec<(i64, String)>,
    ) -> Result<Vec<PathInfo>, NixDbError> {
        let mut references = self.db.prepare_cached(REFERENCES)?;
        let mut query = self.db.prepare_cached(rows!("where id > ?1 order by id"))?;
        let mut rows = query.query([after])?;
        let mut found = Vec::new();
        while found.len() < limit {
            let Some(row) = rows.next()? else { break };
            match self.info(row).and_then(|info| self.with_references(info, &mut references)) {
                Ok(info) => found.push(info),
                Err(NixDbError::Row { id, reason }) => bad.push((id, reason)),
                Err(other) => return Err(other),
            }
        }
        Ok(found)
    }

    /// The contents of the rows above `after`, ascending, at most `limit`.
    pub(super) fn contents(&self, after: i64, limit: usize) -> Result<Vec<RowContent>, NixDbError> {
        let mut query = self
            .db
            .prepare_cached("select id, path, hash from ValidPaths where id > ?1 order by id limit ?2")?;
        let mut rows = query.query((after, i64::try_from(limit).unwrap_or(i64::MAX)))?;
        let mut found = Vec::with_capacity(limit);
        while let Some(row) = rows.next()? {
            let path = row.get_ref(1)?.as_str().ok().and_then(|path| self.store_dir.parse(path).ok());
            let hash = row.get_ref(2)?.as_str().ok().and_then(|hash| NarHash::parse(hash).ok());
            found.push((row.get(0)?, path.zip(hash)));
        }
        Ok(found)
    }

    /// The rows with these ids, in this order, without those that do not exist.
    pub(super) fn of(&self, ids: &[i64], bad: &mut Vec<(i64, String)>) -> Result<Vec<PathInfo>, NixDbError> {
        // The statements are kept for all ids: looking each up in the cache
        // costs as much as running it.
        let mut references = self.db.prepare_cached(REFERENCES)?;
        let mut query = self.db.prepare_cached(rows!("where id = ?1"))?;
        let mut found = Vec::with_capacity(ids.len());
        for id in ids {
            let mut rows = query.query([id])?;
            let Some(row) = rows.next()? else { continue };
            match self.info(row).and_then(|info| self.with_references(info, &mut references)) {
                Ok(info) => found.push(info),
                Err(NixDbError::Row { id, reason }) => bad.push((id, reason)),
                Err(other) => return Err(other),
            }
        }
        Ok(found)
    }

    pub(super) fn of_path(&self, path: &StorePath) -> Result<Option<PathInfo>, NixDbError> {
        let mut query = self.db.prepare_cached(rows!("where path = ?1"))?;
        let mut rows = query.query([self.store_dir.full(path)])?;
        let Some(row) = rows.next()? else { return Ok(None) };
        let info = self.info(row)?;
        self.with_references(info, &mut self.db.prepare_cached(REFERENCES)?).map(Some)
    }

    pub(super) fn id(&self, path: &StorePath) -> Result<Option<i64>, NixDbError> {
        let mut query = self.db.prepare_cached("select id from ValidPaths where path = ?1")?;
        Ok(query.query_row([self.store_dir.full(path)], |row| row.get(0)).optional()?)
    }

    /// The row with this id as a mark; `None` when it does not exist or its
    /// path cannot be understood.
    pub(super) fn mark(&self, id: i64) -> Result<Option<Mark>, NixDbError> {
        let mut query =
            self.db.prepare_cached("select path, registrationTime from ValidPaths where id = ?1")?;
        let row = query
            .query_row([id], |row| Ok((row.get::<_, String>(0)?, row.get::<_, Option<i64>>(1)?)))
            .optional()?;
        Ok(row.and_then(|(path, at)| {
            let path = self.store_dir.parse(&path).ok()?;
            Some(Mark { id, path, registered_at: at.unwrap_or_default() })
        }))
    }

    /// Completes a row; a file without a content address and deriver is read.
    fn with_references(
        &self,
        mut info: PathInfo,
        query: &mut CachedStatement<'_>,
    ) -> Result<PathInfo, NixDbError> {
        let mut rows = query.query([info.id])?;
        while let Some(row) = rows.next()? {
            info.references.push(self.path_in(info.id, row.get_ref(0)?.as_str().unwrap_or_default())?);
            info.reference_ids.push(row.get(1)?);
        }
        drop(rows);
        info.references.sort_unstable();
        // An import without a deriver: nobody vouches that it was built. Its name may follow
        // from any kind of hash of its files, so that computing it again proves nothing.
        let is_unproven =
            !info.ultimate && info.sigs.is_empty() && info.ca.is_none() && info.references.is_empty();
        // What has a deriver was built, whatever its path looks like.
        info.is_source = info.deriver.is_none()
            && !info.path.is_derivation()
            && (is_unproven
                || is_source(
                    self.store_dir,
                    &info.path,
                    info.nar_hash,
                    info.ca.as_deref(),
                    &info.references,
                ));
        Ok(info)
    }

    fn path_in(&self, id: i64, full: &str) -> Result<StorePath, NixDbError> {
        self.store_dir.parse(full).map_err(|e| NixDbError::Row { id, reason: e.to_string() })
    }

    fn info(&self, row: &Row<'_>) -> Result<PathInfo, NixDbError> {
        let id: i64 = row.get(0)?;
        let bad = |reason: String| NixDbError::Row { id, reason };
        let text = |at: usize| -> Result<Option<&str>, NixDbError> {
            row.get_ref(at)?.as_str_or_null().map_err(|e| bad(e.to_string()))
        };
        let deriver = text(4)?.filter(|d| !d.is_empty());
        Ok(PathInfo {
            id,
            path: self.path_in(id, text(1)?.unwrap_or_default())?,
            nar_hash: NarHash::parse(text(2)?.unwrap_or_default()).map_err(|e| bad(e.to_string()))?,
            nar_size: row
                .get::<_, Option<i64>>(3)
                .ok()
                .and_then(|size| u64::try_from(size.unwrap_or(0)).ok())
                .ok_or_else(|| bad("narSize is not a size".to_owned()))?,
            // Nix does not rely on this column; old versions wrote `unknown-deriver`.
            deriver: deriver.and_then(|d| self.store_dir.parse(d).ok()),
            ultimate: row.get::<_, Option<i64>>(5).map_err(|e| bad(e.to_string()))? == Some(1),
            sigs: text(6)?.unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect(),
            ca: text(7)?.filter(|ca| !ca.is_empty()).map(str::to_owned),
            references: Vec::new(),
            reference_ids: Vec::new(),
            registered_at: row.get(8).map_err(|e| bad(e.to_string()))?,
            is_source: false,
        })
    }
}
