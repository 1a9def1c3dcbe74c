//! Realisations in the Nix database. Nix makes their tables when the experimental feature
//! `ca-derivations` is first used, so each read looks whether they are there.
//!
//! Must not know: who needs realisations; transactions, the caller holds one.

use rusqlite::{Connection, OptionalExtension as _, Row};

use super::NixDbError;
use crate::types::{DrvOutput, Realisation, StoreDir, StorePath};

/// A table of realisations. Each numbers its rows by itself and gives no number twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RealisationTable {
    /// Nix from 2.4 to 2.34. Its rows end with their paths.
    Realisations,
    /// Nix from 2.35 on.
    BuildTrace,
}

impl RealisationTable {
    /// All of them.
    pub const ALL: [Self; 2] = [Self::Realisations, Self::BuildTrace];

    const fn name(self) -> &'static str {
        match self {
            Self::Realisations => "Realisations",
            Self::BuildTrace => "BuildTraceV3",
        }
    }
}

/// The highest number that was given in the table; 0 without the table.
pub(super) fn head(db: &Connection, table: RealisationTable) -> Result<i64, NixDbError> {
    let mut query = db.prepare_cached("select seq from sqlite_sequence where name = ?1")?;
    Ok(query.query_row([table.name()], |row| row.get(0)).optional()?.unwrap_or(0))
}

/// The rows with numbers above `after`, ascending, at most `limit`. A row that cannot be
/// understood has no realisation. None without the table.
pub(super) fn rows(
    db: &Connection,
    store_dir: &StoreDir,
    table: RealisationTable,
    after: i64,
    limit: usize,
) -> Result<Vec<(i64, Option<Realisation>)>, NixDbError> {
    if !has_table(db, table.name())? {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    let mut query = db.prepare_cached(match table {
        RealisationTable::Realisations => {
            "select r.id, r.drvPath, r.outputName, v.path, r.signatures from Realisations r \
             join ValidPaths v on v.id = r.outputPath where r.id > ?1 order by r.id limit ?2"
        }
        RealisationTable::BuildTrace => {
            "select id, drvPath, outputName, outputPath, signatures from BuildTraceV3 \
             where id > ?1 order by id limit ?2"
        }
    })?;
    let mut rows = query.query((after, i64::try_from(limit).unwrap_or(i64::MAX)))?;
    while let Some(row) = rows.next()? {
        let id: i64 = row.get(0)?;
        let mut realisation = realisation(row, store_dir, table);
        if let Some(realisation) = &mut realisation {
            realisation.dependencies = dependencies(db, store_dir, table, id)?;
        }
        found.push((id, realisation));
    }
    Ok(found)
}

fn realisation(row: &Row<'_>, store_dir: &StoreDir, table: RealisationTable) -> Option<Realisation> {
    let text = |at: usize| row.get_ref(at).ok()?.as_str_or_null().ok()?.map(str::to_owned);
    let (derivation, output) = (text(1)?, text(2)?);
    // Nix's rule for the names of outputs is that of store paths, without the hash.
    StorePath::parse(&format!("{:032}-{output}", 0)).ok()?;
    let output = match table {
        RealisationTable::Realisations => {
            let hash = derivation.strip_prefix("sha256:")?;
            if hash.len() != 64 || !hash.bytes().all(|b| b.is_ascii_hexdigit()) {
                return None;
            }
            DrvOutput::Hashed(format!("{derivation}!{output}"))
        }
        RealisationTable::BuildTrace => DrvOutput::Named(StorePath::parse(&derivation).ok()?, output),
    };
    let path = store_dir.parse(&text(3)?).ok()?;
    let sigs = text(4).unwrap_or_default().split_ascii_whitespace().map(str::to_owned).collect();
    Some(Realisation { output, path, dependencies: Vec::new(), sigs })
}

/// Nix 2.34 keeps the table of dependencies and writes nothing into it.
fn dependencies(
    db: &Connection,
    store_dir: &StoreDir,
    table: RealisationTable,
    id: i64,
) -> Result<Vec<(String, StorePath)>, NixDbError> {
    if table == RealisationTable::BuildTrace || !has_table(db, "RealisationsRefs")? {
        return Ok(Vec::new());
    }
    let mut query = db.prepare_cached(
        "select d.drvPath, d.outputName, v.path from RealisationsRefs x \
         join Realisations d on d.id = x.realisationReference \
         join ValidPaths v on v.id = d.outputPath where x.referrer = ?1",
    )?;
    let rows = query.query_map([id], |row| {
        let (derivation, output, path): (String, String, String) = (row.get(0)?, row.get(1)?, row.get(2)?);
        Ok((format!("{derivation}!{output}"), path))
    })?;
    let mut found = Vec::new();
    for row in rows {
        let (output, path) = row?;
        if let Ok(path) = store_dir.parse(&path) {
            found.push((output, path));
        }
    }
    Ok(found)
}

/// Which of these content-addressed paths have a realisation. Nix with the feature on notes one
/// for every output that it builds, so most that have one are not content-addressed.
pub(super) fn among(
    db: &Connection,
    store_dir: &StoreDir,
    paths: &[StorePath],
) -> Result<Vec<StorePath>, NixDbError> {
    let mut realised = vec![false; paths.len()];
    for (table, sql) in [
        (
            RealisationTable::Realisations,
            "select 1 from ValidPaths as p join Realisations as r on r.outputPath = p.id \
             where p.path = ?1 and p.ca is not null",
        ),
        (
            RealisationTable::BuildTrace,
            "select 1 from ValidPaths as p join BuildTraceV3 as r on r.outputPath = p.path \
             where p.path = ?1 and p.ca is not null",
        ),
    ] {
        if !has_table(db, table.name())? || head(db, table)? == 0 {
            continue;
        }
        let mut query = db.prepare_cached(sql)?;
        for (path, realised) in paths.iter().zip(&mut realised) {
            *realised = *realised || query.exists([store_dir.full(path)])?;
        }
    }
    Ok(paths.iter().zip(realised).filter(|(_, realised)| *realised).map(|(path, _)| path.clone()).collect())
}

fn has_table(db: &Connection, name: &str) -> Result<bool, NixDbError> {
    Ok(db.prepare_cached("select 1 from sqlite_master where type = 'table' and name = ?1")?.exists([name])?)
}
