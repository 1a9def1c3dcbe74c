//! The part of the Nix database's schema that is relied upon.
//!
//! Must not know: what the columns are used for. The schema is private to Nix
//! (`libstore/schema.sql` there), so it is looked at before anything is read.

use rusqlite::{Connection, OptionalExtension as _};

use super::NixDbError;

/// Table and columns that must be there; more may be.
const NEEDED: [(&str, &[&str]); 2] = [
    (
        "ValidPaths",
        &["id", "path", "hash", "registrationTime", "deriver", "narSize", "ultimate", "sigs", "ca"],
    ),
    ("Refs", &["referrer", "reference"]),
];

/// Refuses a database that is not Nix's as it has been since Nix 2.0.
pub(super) fn check(db: &Connection) -> Result<(), NixDbError> {
    for (table, columns) in NEEDED {
        let made: Option<String> = db
            .query_row("select sql from sqlite_master where type = 'table' and name = ?1", [table], |row| {
                row.get(0)
            })
            .optional()?;
        let expected = || format!("a table {table} with the columns {}", columns.join(", "));
        let Some(made) = made else {
            return Err(NixDbError::Schema { expected: expected(), found: format!("no table {table}") });
        };
        let mut info = db.prepare("select name from pragma_table_info(?1)")?;
        let found: Vec<String> = info.query_map([table], |row| row.get(0))?.collect::<Result<_, _>>()?;
        if !columns.iter().all(|column| found.iter().any(|name| name == column)) {
            let found = format!("{table} with {}", found.join(", "));
            return Err(NixDbError::Schema { expected: expected(), found });
        }
        // Without it SQLite would give an id again after a garbage collection,
        // and `id > cursor` would miss paths.
        if table == "ValidPaths" && !made.to_ascii_lowercase().contains("autoincrement") {
            let expected = "ValidPaths.id as integer primary key autoincrement".to_owned();
            return Err(NixDbError::Schema { expected, found: "an id that can be given twice".to_owned() });
        }
    }
    Ok(())
}
