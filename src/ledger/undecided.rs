//! Paths whose makers the name service has not named yet, in SQL. Runs inside the
//! writer's transaction and must not begin or end one. Must not know what a route is.

use rusqlite::Connection;

use super::error::LedgerError;

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

/// Returns the users that have paths.
pub(super) fn people(conn: &Connection) -> Result<Vec<(u32, u32)>> {
    let mut find = conn.prepare_cached("SELECT DISTINCT uid, gid FROM undecided")?;
    let people = find.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(people.collect::<rusqlite::Result<_>>()?)
}

/// Returns paths of a user, at most `limit`.
pub(super) fn of(conn: &Connection, (uid, gid): (u32, u32), limit: usize) -> Result<Vec<String>> {
    let mut find = conn.prepare_cached("SELECT path FROM undecided WHERE uid = ?1 AND gid = ?2 LIMIT ?3")?;
    let paths = find.query_map((uid, gid, i64::try_from(limit).unwrap_or(i64::MAX)), |row| row.get(0))?;
    Ok(paths.collect::<rusqlite::Result<_>>()?)
}

/// Forgets paths.
pub(super) fn forget(conn: &Connection, paths: &[String]) -> Result<()> {
    let mut delete = conn.prepare_cached("DELETE FROM undecided WHERE path = ?1")?;
    for path in paths {
        delete.execute([path])?;
    }
    Ok(())
}
