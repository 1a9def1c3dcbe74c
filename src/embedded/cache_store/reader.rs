//! Lookups on a separate database connection, so that readers do not wait for the
//! writer's disk. Every call blocks. Must not change anything.

use std::sync::{Mutex, MutexGuard, PoisonError};

use rusqlite::{Connection, OptionalExtension, Row};

use super::super::realisations;
use super::super::wire::PathRecord;
use crate::types::{DrvOutput, NarHash, PathHash, Realisation, StorePath, Wall};

/// Recency has a resolution of one minute: a read within this time of the last recorded use writes nothing.
const TOUCH_AFTER_MS: i64 = 60_000;

/// Number of lookups after which the connection is released for other callers.
const TURN: usize = 500;

pub(in super::super) struct Reader(Mutex<Connection>);

/// The place of a path's NAR: in the database, or in a file.
pub(in super::super) enum Nar {
    Small(Vec<u8>),
    File { hash: NarHash, size: u64 },
}

impl Reader {
    pub(super) fn new(connection: Connection) -> Self {
        Self(Mutex::new(connection))
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner) // SQLite's state survives a panic
    }

    pub(super) fn has_nar(&self, hash: &NarHash) -> rusqlite::Result<bool> {
        let connection = self.connection();
        connection.prepare_cached("SELECT 1 FROM nar WHERE hash = ?1")?.exists([hash.0])
    }

    pub(in super::super) fn has_path(&self, cache: &str, hash: PathHash) -> rusqlite::Result<bool> {
        let connection = self.connection();
        connection
            .prepare_cached("SELECT 1 FROM path WHERE cache = ?1 AND hash = ?2")?
            .exists((cache, hash.as_str()))
    }

    /// Returns those of `hashes` that are missing, each once, in the order asked,
    /// and the rows of the present ones whose last recorded use is too old. The caller
    /// records these as used now, because the client relies on the answer.
    pub(in super::super) fn missing(
        &self,
        cache: &str,
        hashes: &[PathHash],
    ) -> rusqlite::Result<(Vec<PathHash>, Vec<i64>)> {
        let (mut missing, mut stale) = (Vec::new(), Vec::new());
        let mut seen = std::collections::HashSet::with_capacity(hashes.len());
        let stale_before = Wall::now().0 - TOUCH_AFTER_MS;
        for turn in hashes.chunks(TURN) {
            let connection = self.connection();
            let mut query =
                connection.prepare_cached("SELECT id, used_at FROM path WHERE cache = ?1 AND hash = ?2")?;
            for hash in turn.iter().filter(|h| seen.insert(**h)) {
                let found: Option<(i64, i64)> =
                    query.query_row((cache, hash.as_str()), |r| Ok((r.get(0)?, r.get(1)?))).optional()?;
                match found {
                    None => missing.push(*hash),
                    Some((id, used_at)) if used_at < stale_before => stale.push(id),
                    Some(_) => {}
                }
            }
        }
        Ok((missing, stale))
    }

    /// Returns a path, and its row if the caller must record its use.
    pub(in super::super) fn path(
        &self,
        cache: &str,
        hash: PathHash,
    ) -> rusqlite::Result<Option<(PathRecord, Option<i64>)>> {
        let connection = self.connection();
        connection
            .prepare_cached(
                "SELECT p.base, p.refs, p.system, p.deriver, p.ca, p.sigs, n.hash, n.nar_size, p.id, p.used_at
                 FROM path p JOIN nar n ON n.id = p.nar WHERE p.cache = ?1 AND p.hash = ?2",
            )?
            .query_row((cache, hash.as_str()), |r| Ok((record(r)?, stale(r.get(8)?, r.get(9)?))))
            .optional()
    }

    /// Returns the realisation of an output, if this cache has its path.
    pub(in super::super) fn realisation(
        &self,
        cache: &str,
        output: DrvOutput,
    ) -> rusqlite::Result<Option<Realisation>> {
        let connection = self.connection();
        let mut query = connection.prepare_cached(
            "SELECT r.base, r.dependencies, r.sigs FROM realisation r
             JOIN path p ON p.hash = r.hash AND p.base = r.base WHERE r.key = ?1 AND p.cache = ?2",
        )?;
        let found = query.query_row((realisations::key(&output), cache), |r| {
            let dependencies: String = r.get(1)?;
            let dependency = |line: &str| {
                let (id, base) = line.split_once(' ').ok_or(rusqlite::Error::InvalidQuery)?;
                Ok((id.to_owned(), store_path(base)?))
            };
            Ok(Realisation {
                output,
                path: store_path(&r.get::<_, String>(0)?)?,
                dependencies: dependencies.lines().map(dependency).collect::<rusqlite::Result<_>>()?,
                sigs: r.get::<_, String>(2)?.split_ascii_whitespace().map(str::to_owned).collect(),
            })
        });
        found.optional()
    }

    /// Returns a path's NAR, and the path's row if the caller must record its use.
    pub(in super::super) fn nar(
        &self,
        cache: &str,
        hash: PathHash,
    ) -> rusqlite::Result<Option<(Nar, Option<i64>)>> {
        let connection = self.connection();
        connection
            .prepare_cached(
                "SELECT n.hash, n.file_size, p.id, p.used_at, n.data
                 FROM path p JOIN nar n ON n.id = p.nar WHERE p.cache = ?1 AND p.hash = ?2",
            )?
            .query_row((cache, hash.as_str()), |r| {
                let nar = match r.get::<_, Option<Vec<u8>>>(4)? {
                    Some(data) => Nar::Small(data),
                    None => Nar::File {
                        hash: NarHash(r.get(0)?),
                        size: u64::try_from(r.get::<_, i64>(1)?).unwrap_or(0),
                    },
                };
                Ok((nar, stale(r.get(2)?, r.get(3)?)))
            })
            .optional()
    }
}

fn stale(id: i64, used_at: i64) -> Option<i64> {
    (used_at < Wall::now().0 - TOUCH_AFTER_MS).then_some(id)
}

fn store_path(base: &str) -> rusqlite::Result<StorePath> {
    StorePath::parse(base)
        .map_err(|e| rusqlite::Error::FromSqlConversionFailure(0, rusqlite::types::Type::Text, Box::new(e)))
}

fn record(r: &Row<'_>) -> rusqlite::Result<PathRecord> {
    Ok(PathRecord {
        path: store_path(&r.get::<_, String>(0)?)?,
        references: r
            .get::<_, String>(1)?
            .split_ascii_whitespace()
            .map(store_path)
            .collect::<rusqlite::Result<_>>()?,
        system: r.get(2)?,
        deriver: r.get::<_, Option<String>>(3)?.as_deref().map(store_path).transpose()?,
        ca: r.get(4)?,
        sigs: r.get::<_, String>(5)?.split_ascii_whitespace().map(str::to_owned).collect(),
        nar_hash: NarHash(r.get(6)?),
        nar_size: u64::try_from(r.get::<_, i64>(7)?).unwrap_or(0),
    })
}
