//! Paths of no session that nobody knows yet where to push, in SQL. Runs inside the
//! writer's transaction and must not begin or end one. Must not know what a route is.

use rusqlite::{Connection, OptionalExtension};

use super::error::LedgerError;
use super::number;

type Result<T> = std::result::Result<T, LedgerError>;

/// Keeps paths (base names) of the user with these numbers.
pub(super) fn keep(conn: &Connection, paths: &[(String, (u32, u32))]) -> Result<()> {
    let mut insert =
        conn.prepare_cached("INSERT OR REPLACE INTO undecided (path, uid, gid) VALUES (?1, ?2, ?3)")?;
    for (path, (uid, gid)) in paths {
        insert.execute((path, uid, gid))?;
    }
    Ok(())
}

/// Returns the users that have paths, and how many each has.
pub(super) fn people(conn: &Connection) -> Result<Vec<((u32, u32), u64)>> {
    let mut find = conn.prepare_cached("SELECT uid, gid, count(*) FROM undecided GROUP BY uid, gid")?;
    let people = find.query_map([], |row| Ok(((row.get(0)?, row.get(1)?), number(row.get(2)?))))?;
    Ok(people.collect::<rusqlite::Result<_>>()?)
}

/// Returns paths of a user, at most `limit`.
pub(super) fn of(conn: &Connection, (uid, gid): (u32, u32), limit: usize) -> Result<Vec<String>> {
    let mut find = conn.prepare_cached("SELECT path FROM undecided WHERE uid = ?1 AND gid = ?2 LIMIT ?3")?;
    let paths = find.query_map((uid, gid, i64::try_from(limit).unwrap_or(i64::MAX)), |row| row.get(0))?;
    Ok(paths.collect::<rusqlite::Result<_>>()?)
}

/// Returns the user whose path of this hash waits.
pub(super) fn whose(conn: &Connection, hash: &str) -> Result<Option<(u32, u32)>> {
    // `.` follows `-`, so the range has the names `hash-…`.
    let mut find =
        conn.prepare_cached("SELECT uid, gid FROM undecided WHERE path >= ?1 AND path < ?2 LIMIT 1")?;
    let range = (format!("{hash}-"), format!("{hash}."));
    Ok(find.query_row(range, |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
}

/// Forgets paths.
pub(super) fn forget(conn: &Connection, paths: &[String]) -> Result<()> {
    let mut delete = conn.prepare_cached("DELETE FROM undecided WHERE path = ?1")?;
    for path in paths {
        delete.execute([path])?;
    }
    Ok(())
}
